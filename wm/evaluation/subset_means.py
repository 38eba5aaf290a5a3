"""Average the metrics of a bench by subset, and over subsets that count alike, each mean with its spread over runs."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

import numpy as np

from wm.evaluation.metrics.stats import Floats, build_figure

Means: TypeAlias = dict[str, float]
"""Metric → mean, or its standard deviation."""


class SubsetMeans(TypedDict):
    """The part of a row that goes by subset; empty for a single subset, whose figures those of the set are."""

    by_subset: dict[str, Means]
    by_subset_std: dict[str, Means]  # without what has one value, which has no spread
    macro: Means
    macro_std: Means


def average_subsets(samples: Mapping[str, Mapping[int, Sequence[Floats]]], subsets: Sequence[str]) -> SubsetMeans:
    """Average each subset, and the subsets.

    The spread is over training seeds, or over the sampling seeds of one run, as in
    :func:`wm.evaluation.metrics.stats.build_figure`.

    Args:
        samples: Metric → training seed → one (B,) a sampling seed.
        subsets: Subset of each of B items.

    Returns:
        Means and standard deviations.
    """
    means: SubsetMeans = {"by_subset": {}, "by_subset_std": {}, "macro": {}, "macro_std": {}}
    # Once for all metrics.
    members = {name: np.array([subset == name for subset in subsets]) for name in sorted(set(subsets))}
    if len(members) < 2:
        return means
    for name in members:
        means["by_subset"][name], means["by_subset_std"][name] = {}, {}
    for metric, runs in samples.items():
        # (subsets) of each seed of each run.
        values = {
            run: [np.array([seed_B[inside_B].mean() for inside_B in members.values()]) for seed_B in seeds]
            for run, seeds in runs.items()
        }
        for number, name in enumerate(members):
            figure = build_figure({run: [seed_S[number] for seed_S in seeds] for run, seeds in values.items()})
            means["by_subset"][name][metric] = figure["mean"]
            if figure["std"] is not None:
                means["by_subset_std"][name][metric] = figure["std"]
        macro = build_figure({run: [float(seed_S.mean()) for seed_S in seeds] for run, seeds in values.items()})
        means["macro"][metric] = macro["mean"]
        if macro["std"] is not None:
            means["macro_std"][metric] = macro["std"]
    return means
