"""Scopes of a comparison: which runs and items count, by hand."""

import numpy as np
import pytest

from wm.evaluation.comparison.bases import Basis
from wm.evaluation.comparison.figures import compare_metric
from wm.evaluation.comparison.measures import find_measure
from wm.evaluation.comparison.verdict import describe

SUBSETS = {f"t{item}": "ag" if item < 6 else "kubric" for item in range(9)}
MEASURE = find_measure("judge.final")


def values(*numbers):
    return {f"t{item}": float(number) for item, number in enumerate(numbers) if number is not None}


def test_runs_that_both_have_are_paired_and_others_averaged():
    first = {0: values(*[2] * 9), 1: values(*[4] * 9), 2: values(*[90] * 9)}
    second = {0: values(*[1] * 9), 1: values(*[2] * 9), 7: values(*[50] * 9)}
    entry = compare_metric(MEASURE, Basis(), first, second, SUBSETS)
    assert entry.runs == ([0, 1], [0, 1]) and entry.gaps == {0: 1.0, 1: 2.0}
    assert (entry.micro.first, entry.micro.second, entry.std) == (3.0, 1.5, pytest.approx(np.sqrt(0.5)))
    # One seed in common pairs nothing.
    entry = compare_metric(MEASURE, Basis(), first, {0: values(*[1] * 9)}, SUBSETS)
    assert entry.runs == ([0, 1, 2], [0]) and entry.gaps == {} and entry.std is None
    assert entry.micro.first == 32.0 and "3 and 1 training seed" in describe(entry, ("A", "B"))


def test_an_average_is_over_all_subsets_or_not_there():
    first, second = values(*[2] * 6), values(*[1] * 9)
    entry = compare_metric(MEASURE, Basis(), {0: first}, {0: second}, SUBSETS)
    assert entry.macro is None and list(entry.subsets) == ["ag"] and entry.missing == (["t6", "t7", "t8"], [])
    assert entry.headline is entry.micro and entry.subsets["ag"].p_corrected is None
    # A single item of a subset: its mean counts, but has no interval.
    entry = compare_metric(MEASURE, Basis(), {0: first | {"t8": 4.0}}, {0: second}, SUBSETS)
    assert entry.macro is not None and (entry.macro.difference, entry.macro.low) == (2.0, None)
    assert not entry.is_sure and "no interval: a subset has one item" in describe(entry, ("A", "B"))
    assert compare_metric(MEASURE, Basis(), {0: values(1)}, {0: {"t3": 1.0}}, SUBSETS) is None


def test_a_run_without_a_subset_has_no_average():
    full, part = values(*[2] * 9), values(*[2] * 6)
    second = {run: values(*[1] * 9) for run in range(3)}
    entry = compare_metric(MEASURE, Basis(), {0: full, 1: full, 2: part}, second, SUBSETS)
    assert entry.gaps == {0: 1.0, 1: 1.0} and entry.std == 0.0


def test_paired_runs_are_compared_in_those_that_both_have():
    # By hand: t0 in run 0 only (2 - 1), t1 in both (mean of 1 and 2), t2 in no common run.
    first = {0: values(2, 2, 2), 1: {"t0": 90.0, "t1": 4.0}}
    second = {0: {"t0": 1.0, "t1": 1.0}, 1: {"t1": 2.0, "t2": 7.0}}
    entry = compare_metric(MEASURE, Basis(), first, second, dict.fromkeys(("t0", "t1", "t2"), "ag"))
    assert entry.micro.num_items == 2 and entry.micro.difference == pytest.approx((1 + 1.5) / 2)
    assert entry.fewer_runs == {"t0": (1, 1), "t2": (0, 0)} and entry.missing == ([], [])
    # Runs of different seeds: each system's own mean.
    entry = compare_metric(MEASURE, Basis(), first, {5: values(1, 1)}, dict.fromkeys(("t0", "t1", "t2"), "ag"))
    assert entry.micro.difference == pytest.approx(((2 + 90) / 2 - 1 + 3 - 1) / 2)
    assert entry.fewer_runs == {} and entry.missing == ([], ["t2"])


def test_one_item_says_nothing():
    entry = compare_metric(MEASURE, Basis(), {0: values(3)}, {0: values(1)}, {"t0": "ag"})
    assert describe(entry, ("A", "B")) == "one item says nothing: difference +2.00" and not entry.is_sure


@pytest.mark.parametrize("subset", ["a", "b"])
def test_ranks_against_the_mean_leave_it_undecided(subset):
    # Most items favour the second, a few by much the first: both tests are sure, of different systems.
    subsets = {str(item): "a" if item < 85 else subset for item in range(100)}
    first = {key: (-0.1 if int(key) < 85 else 5.0) + 0.001 * int(key) for key in subsets}
    second = {key: 0.001 * int(key) for key in subsets}
    comparison = compare_metric(find_measure("l1"), Basis(), {0: first}, {0: second}, subsets)
    assert comparison.headline.low > 0 and comparison.micro.p < 0.01
    assert comparison.micro.rank_sign == -1 and not comparison.is_sure
    turned = compare_metric(find_measure("l1"), Basis(), {0: second}, {0: first}, subsets)
    assert turned.micro.rank_sign == 1 and not turned.is_sure
