"""Gather the metrics of single images into the figures of a table: by system, choice and subset, macro and micro means.

A mean over fewer items than the bench has is given with their number; a macro mean over fewer subsets is not given.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypedDict, cast

import numpy as np

from wm.evaluation.aurora_bench import macro_mean, order_subsets
from wm.evaluation.image_scoring import METRICS, Values
from wm.evaluation.metrics.stats import mean_interval, sample_std

Choice: TypeAlias = tuple[str, str, int]
"""(system, choice, k): choice is none (a system without one), greedy, or idm (the verifier's among k)."""
WeightedRows: TypeAlias = list[tuple[Values, int]]
"""Rows of values, each with how often it counts."""
Sums: TypeAlias = dict[tuple[int, int, str], list[float]]
"""(run, sampling seed, triplet) → sum of a metric over the candidates, each as often as it counts, and their number."""


class ScoreFigure(TypedDict):
    """A metric of a system."""

    macro_mean: float | None  # mean of the subsets' means; None where a subset has no value
    micro_mean: float  # mean over items
    ci_low: float | None  # 95 % interval of the micro mean over items
    ci_high: float | None
    std: float | None  # of the micro mean
    num_values: int  # values that std is of
    over: str  # what they are: training seeds, or sampling seeds where there is one training seed only
    num_items: int
    by_subset: dict[str, float | None]
    num_items_by_subset: dict[str, int]


class ScoreRow(TypedDict):
    """The metrics of one system and choice."""

    system: str
    choice: str
    k: int
    num_items: int  # items with a prediction
    num_missing: int  # items of the bench without one
    missing_by_subset: dict[str, int]  # only subsets that lack some
    metrics: dict[str, ScoreFigure]


def build_score_rows(
    values: Iterable[Values], subsets: Mapping[str, str], metrics: Sequence[str] = METRICS
) -> list[ScoreRow]:
    """Build the rows of the table.

    An item's value is the mean over its candidates, each as often as it counts, then over sampling seeds, then over
    training seeds.

    Args:
        values: Rows of :data:`wm.evaluation.image_scoring.VALUE_SCHEMA`; each is read once, and only sums are kept.
        subsets: Id of each triplet of the bench → its subset.
        metrics: Columns that are metrics.

    Returns:
        A row a system and choice, systems in their first order.
    """
    sums: dict[Choice, dict[str, Sums]] = defaultdict(lambda: {name: {} for name in metrics})
    present: dict[Choice, set[str]] = defaultdict(set)
    for row in values:
        for choice, weight in choices_of(row).items():
            present[choice].add(cast(str, row["triplet_id"]))
            for name, of_metric in sums[choice].items():
                _add_candidate(of_metric, name, row, weight)
    systems = list(dict.fromkeys(system for system, _, _ in present))
    order = sorted(present, key=lambda key: (systems.index(key[0]), key[1], key[2]))
    return [_build_row(choice, present[choice], sums[choice], subsets) for choice in order]


def choices_of(row: Values) -> dict[Choice, int]:
    """Return the choices that a row belongs to, and how often it counts in each.

    Args:
        row: Of a prediction set or of its values.
    """
    system, decoding = cast(str, row["system"]), row["decoding"]
    if decoding != "sampled":
        # All candidates of a system without a choice count alike.
        count = len(cast(list[int], row["candidates"]))
        return {(system, "greedy" if decoding == "greedy" else "none", 1): count}
    chosen_at = cast(list[int], row["chosen_at"])
    return {(system, "idm", k): chosen_at.count(k) for k in set(chosen_at)}


def _build_row(choice: Choice, present: set[str], sums: Mapping[str, Sums], subsets: Mapping[str, str]) -> ScoreRow:
    missing = [subset for triplet_id, subset in subsets.items() if triplet_id not in present]
    return {
        "system": choice[0],
        "choice": choice[1],
        "k": choice[2],
        "num_items": len(present),
        "num_missing": len(missing),
        "missing_by_subset": {name: missing.count(name) for name in order_subsets(missing)},
        "metrics": {name: _build_figure(of_metric, subsets) for name, of_metric in sums.items() if of_metric},
    }


def _build_figure(sums: Sums, subsets: Mapping[str, str]) -> ScoreFigure:
    # 1. Mean over the candidates of an item in one run and seed, then over seeds, then over runs.
    by_run = _average_candidates(sums)
    runs = {run: _average(list(seeds.values())) for run, seeds in sorted(by_run.items())}
    items = _average(list(runs.values()))
    # 2. Means of subsets, of all of the bench's, so that one without a value shows.
    members: dict[str, list[float]] = {name: [] for name in order_subsets(subsets.values())}
    for triplet_id, value in items.items():
        members[subsets[triplet_id]].append(value)
    by_subset = {name: float(np.mean(values)) if values else None for name, values in members.items()}
    spread = runs if len(runs) > 1 else dict(sorted(next(iter(by_run.values())).items()))
    means = [float(np.mean(list(of_run.values()))) for of_run in spread.values()]
    # In the bench's order: a sum in floating point depends on it.
    ordered = np.array([items[triplet_id] for triplet_id in subsets if triplet_id in items])
    low, high = mean_interval(ordered)
    return {
        "macro_mean": macro_mean(by_subset),
        "micro_mean": float(ordered.mean()),
        "ci_low": low,
        "ci_high": high,
        "std": sample_std(means),
        "num_values": len(means),
        "over": "training seeds" if len(runs) > 1 else "sampling seeds",
        "num_items": len(items),
        "by_subset": by_subset,
        "num_items_by_subset": {name: len(values) for name, values in members.items()},
    }


def average_by_run(metric: str, rows: WeightedRows) -> dict[int, dict[str, float]]:
    """Average a metric over the candidates of an item, then over sampling seeds.

    Args:
        metric: Its column.
        rows: Rows of one system and choice, with how often each counts.

    Returns:
        Training run → triplet → value; rows without a value are left out.
    """
    sums: Sums = {}
    for row, weight in rows:
        _add_candidate(sums, metric, row, weight)
    by_run = _average_candidates(sums)
    return {run: _average(list(seeds.values())) for run, seeds in sorted(by_run.items())}


def _add_candidate(sums: Sums, metric: str, row: Values, weight: int) -> None:
    """Add a row's value of a metric, if it has one."""
    value = cast(float | None, row.get(metric))
    if value is not None:
        key = cast(int, row["run"]), cast(int, row["sampling_seed"]), cast(str, row["triplet_id"])
        total = sums.setdefault(key, [0.0, 0.0])
        total[0] += weight * value
        total[1] += weight


def _average_candidates(sums: Sums) -> dict[int, dict[int, dict[str, float]]]:
    """Average over the candidates of an item: by run, sampling seed and triplet."""
    by_run: dict[int, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for (run, seed, triplet_id), (total_value, total_weight) in sums.items():
        by_run[run][seed][triplet_id] = total_value / total_weight
    return by_run


def _average(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each item over the parts that have it."""
    gathered: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for triplet_id, value in part.items():
            gathered[triplet_id].append(value)
    return {triplet_id: float(np.mean(values)) for triplet_id, values in gathered.items()}
