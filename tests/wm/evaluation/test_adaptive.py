"""The replay of adaptive and fixed N against plain loops over every rotation."""

import numpy as np
import pytest

from wm.evaluation.adaptive import adaptive_rows, replay_adaptive, replay_fixed
from wm.evaluation.bank import Bank
from wm.evaluation.report.adaptive import adaptive_part


def bank_of(seed, *, items=6, total=8, max_unchanged=1.0):
    rng = np.random.default_rng(seed)
    metrics = {"l1": rng.random((items, total)), "unchanged_tokens": rng.integers(0, 5, (items, total)) / 4}
    scores = -np.round(rng.gamma(1.0, 4.0, (items, total)), 1)
    tokens = rng.integers(3, 9, items).astype(float)
    return Bank(rng.integers(0, 9, (items, total, 4)), metrics, scores, tokens, max_unchanged)


def slow(bank, name, stop_after):
    """(draws, metric) of each item, averaged over rotations; ``stop_after(means, allowed)`` says when it stops."""
    rows = []
    items, total = bank.verifier.shape
    for item in range(items):
        draws, values = [], []
        for first in range(total):
            order = [*range(first, total), *range(first)]
            allowed = [bank.metrics["unchanged_tokens"][item, k] <= bank.max_unchanged for k in order]
            means = [bank.verifier[item, k] / bank.action_tokens[item] for k in order]
            size = stop_after(means, allowed)
            best = max(range(size), key=lambda k: (allowed[k], means[k], -k))
            draws.append(size)
            values.append(bank.metrics[name][item, order[best]])
        rows.append((np.mean(draws), np.mean(values)))
    return np.array(rows).T


@pytest.mark.parametrize("max_unchanged", [1.0, 0.5])
@pytest.mark.parametrize(("at_least", "sizes"), [(1, [1, 2, 4, 8]), (3, [3, 6, 8])])
def test_replays_are_those_of_plain_loops(at_least, sizes, max_unchanged):
    bank = bank_of(3, max_unchanged=max_unchanged)

    def rule(margin):
        def stop(means, allowed):
            for size in sizes[:-1]:
                fine = [mean for mean, good in zip(means[:size], allowed, strict=False) if good]
                if fine and -max(fine) / (size + 1) <= margin:
                    return size
            return sizes[-1]

        return stop

    mean_draws = []
    for margin in (0.01, 0.1, 0.2, 0.4):
        expected = slow(bank, "l1", rule(margin))
        replay = replay_adaptive(bank, margin, at_least)
        assert replay.num_candidates == pytest.approx(expected[0])
        assert replay.metrics["l1"] == pytest.approx(expected[1])
        mean_draws.append(replay.num_candidates.mean())
    assert mean_draws == sorted(mean_draws, reverse=True) and len(set(mean_draws)) > 2
    for count in (1, 3, 8):
        expected = slow(bank, "l1", lambda means, allowed, count=count: count)
        replay = replay_fixed(bank, count)
        assert replay.num_candidates.tolist() == [count] * 6
        assert replay.metrics["l1"] == pytest.approx(expected[1])


def test_the_guard_puts_copies_last_in_every_choice():
    bank = bank_of(5, max_unchanged=0.5)
    for item in range(6):
        order = sorted(
            range(8), key=lambda k: (bank.metrics["unchanged_tokens"][item, k] > 0.5, -bank.verifier[item, k], k)
        )
        assert np.argsort(-bank.ranking[item], kind="stable").tolist() == order
    assert np.array_equal(bank_of(5).ranking, bank_of(5).verifier)


def test_rows_hold_fixed_and_adaptive_figures_of_a_label():
    banks = {("A", 0, 0): bank_of(1), ("A", 0, 1): bank_of(2), ("A", 1, 0): bank_of(3), ("B", 0, 0): bank_of(4)}
    unverified = Bank(bank_of(1).codes, bank_of(1).metrics, None)
    rows = adaptive_rows({**banks, ("C", 0, 0): unverified}, [0.05, 0.3], min_candidates=1)
    assert {row["label"] for row in rows} == {"A", "B"}
    fixed = [row for row in rows if row["label"] == "A" and row["margin"] is None]
    assert [row["metrics"]["draws"]["mean"] for row in fixed] == list(range(1, 9))
    adaptive = [row for row in rows if row["label"] == "A" and row["margin"] is not None]
    assert [row["margin"] for row in adaptive] == [0.3, 0.05]
    for row in adaptive:
        replays = [replay_adaptive(banks["A", run, seed], row["margin"], 1) for run, seed in ((0, 0), (0, 1), (1, 0))]
        for name, of in (("draws", lambda one: one.num_candidates), ("l1", lambda one: one.metrics["l1"])):
            first, second, third = (of(one).mean() for one in replays)
            assert row["metrics"][name]["mean"] == pytest.approx(((first + second) / 2 + third) / 2)
            assert row["metrics"][name]["n"] == 2 and row["metrics"][name]["over"] == "training seeds"
        draws = row["metrics"]["draws"]["mean"]
        low = int(draws)
        below, above = (fixed[count - 1]["metrics"]["l1"]["mean"] for count in (low, low + 1))
        assert row["fixed"]["l1"] == pytest.approx(below + (draws - low) * (above - below))


def test_rows_go_by_subset_too():
    bank, subsets = bank_of(1), ["x", "y", "x", "x", "y", "x"]
    rows = adaptive_rows({("A", 0, 0): bank}, [0.05], 1, subsets)
    items = replay_adaptive(bank, 0.05, 1)
    of_subset = rows[-1]["by_subset"]["y"]
    assert of_subset == {"draws": items.num_candidates[[1, 4]].mean()} | {
        name: pytest.approx(values[[1, 4]].mean()) for name, values in items.metrics.items()
    }


def test_the_report_shows_every_margin():
    rows = adaptive_rows({("A & B", 0, 0): bank_of(1)}, [0.05, 0.3], min_candidates=1)
    html = adaptive_part(rows, ["l1"])
    assert "A &amp; B" in html and html.count("fixed 0.") == 2 and html.count("<figure>") == 1
    assert adaptive_part([], ["l1"]) == ""
