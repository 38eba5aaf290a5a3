"""Means by subset and over subsets, with their spread, against plain numpy."""

import numpy as np
import pytest

from wm.evaluation.subset_means import average_subsets

SUBSETS = ["a", "b", "a", "a"]
VALUES = np.arange(16, dtype=float).reshape(2, 2, 4) ** 1.5


def means_of(items):
    return items[[0, 2, 3]].mean(), items[1]


def test_the_spread_is_over_training_seeds():
    means = average_subsets({"l1": {0: list(VALUES[0]), 3: list(VALUES[1])}}, SUBSETS)
    per_run = np.array([np.mean([means_of(items) for items in seeds], axis=0) for seeds in VALUES])
    assert means["by_subset"] == {"a": {"l1": pytest.approx(per_run[:, 0].mean())}, "b": {"l1": per_run[:, 1].mean()}}
    assert means["by_subset_std"]["a"]["l1"] == pytest.approx(per_run[:, 0].std(ddof=1))
    assert means["by_subset_std"]["b"]["l1"] == pytest.approx(per_run[:, 1].std(ddof=1))
    macro = per_run.mean(axis=1)
    assert means["macro"]["l1"] == pytest.approx(macro.mean())
    assert means["macro_std"]["l1"] == pytest.approx(macro.std(ddof=1))


def test_of_one_run_the_spread_is_over_sampling_seeds():
    means = average_subsets({"l1": {0: list(VALUES[0])}, "final": {0: [VALUES[0, 0]]}}, SUBSETS)
    per_seed = np.array([means_of(items) for items in VALUES[0]])
    assert means["by_subset_std"]["a"] == {"l1": pytest.approx(per_seed[:, 0].std(ddof=1))}
    assert means["macro_std"] == {"l1": pytest.approx(per_seed.mean(axis=1).std(ddof=1))}
    assert means["macro"]["final"] == pytest.approx(np.mean(means_of(VALUES[0, 0])))


def test_one_subset_repeats_nothing():
    assert not any(average_subsets({"l1": {0: [VALUES[0, 0]]}}, ["a"] * 4).values())
