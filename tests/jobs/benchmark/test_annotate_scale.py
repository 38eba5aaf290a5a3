"""The rate of workers that work side by side, by hand. Speed itself is never asserted."""

import pytest

from jobs.benchmark.annotate_scale import compute_rate


def ends(worker, *times):
    return [{"clips": 10, "done_s": time, "worker": worker} for time in times]


def test_one_worker_counts_from_its_first_shard_s_end():
    rate, begin, end = compute_rate(ends(1, 8.0, 3.0, 5.0))
    assert (rate, begin, end) == (20 / 5, 3.0, 8.0)


def test_only_the_time_counts_in_which_all_work():
    # Worker 2 starts late, and worker 1 ends early: of 1 the ends at 4, 6 and 8 count, of 2 those at 3, 5 and 7.
    rate, begin, end = compute_rate([*ends(2, 3.0, 5.0, 7.0, 9.0, 11.0), *ends(1, 1.0, 2.0, 4.0, 6.0, 8.0)])
    assert (begin, end) == (3.0, 8.0)
    assert rate == pytest.approx(20 / 4 + 20 / 4)


def test_a_run_too_short_for_that_counts_as_a_whole():
    # The workers were never busy together for two shards each.
    rate, begin, end = compute_rate([*ends(1, 1.0, 2.0, 3.0), *ends(2, 2.5, 5.0)])
    assert (rate, begin, end) == (40 / 4, 1.0, 5.0)
