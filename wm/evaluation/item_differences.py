"""Compare models item by item: whatever makes an item hard or lucky for both cancels in its difference.

Not known here: how the values were measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from wm.evaluation.metrics.paired import PairedResult, compare_paired
from wm.evaluation.metrics.stats import Floats, mean_interval, sample_std
from wm.evaluation.rows import Choice, DifferenceRow, ItemDifference

PROPOSED = "propose"
"""``choice`` of an inverse model's greedy action."""


def compare_choices(values: Mapping[Choice, Mapping[str, Mapping[int, Floats]]], top_k: int) -> list[DifferenceRow]:
    """Compare the pairs that say something: other labels at the same choice, more candidates of one label, inverse and
    forward models.

    Args:
        values: (label, choice, k) → metric → training seed → (B,).
        top_k: Largest number of candidates; between it and 1 no pair is compared.

    Returns:
        One row a pair and metric.
    """
    # Pairs first, so that their intervals are computed together.
    pairs: list[tuple[Choice, Choice, str, _ItemGaps]] = []
    for first, second in combinations(values, 2):
        same_choice = first[1:] == second[1:] and first[2] in (1, top_k)
        by_k = first[0] == second[0] and first[1] == second[1] and (first[2], second[2]) == (1, top_k)
        crossed = PROPOSED in (first[1], second[1]) and second[2] == first[2] == 1
        if same_choice or by_k or crossed:
            for name, runs in values[first].items():
                if name in values[second]:
                    pairs.append((first, second, name, _pair_items(runs, values[second][name])))
    # All at once: they are of the same items, and share their resamples.
    results = compare_paired([gaps.values for *_, gaps in pairs])
    return [
        DifferenceRow(metric=name, first=list(first), second=list(second), **_describe_gaps(gaps, result))
        for (first, second, name, gaps), result in zip(pairs, results, strict=True)
    ]


@dataclass(frozen=True)
class _ItemGaps:
    """First minus second of each item, (B,), the runs that it is of, and the mean of each run that both have."""

    values: Floats
    runs: list[list[int]]
    by_run: list[float]


def _pair_items(first: Mapping[int, Floats], second: Mapping[int, Floats]) -> _ItemGaps:
    """Subtract two (B,) a training seed item by item."""
    # Runs of the same training seed share data order and start, which their difference cancels.
    common = sorted(set(first) & set(second))
    is_paired = len(common) > 1
    runs = [common, common] if is_paired else [sorted(first), sorted(second)]
    first_B, second_B = (
        np.mean([of_run[run] for run in seeds], axis=0) for of_run, seeds in zip((first, second), runs, strict=True)
    )
    by_run = [float((first[run] - second[run]).mean()) for run in common] if is_paired else []
    return _ItemGaps(first_B - second_B, runs, by_run)


def _describe_gaps(gaps: _ItemGaps, result: PairedResult) -> ItemDifference:
    # Student's beside the bootstrap's: it covers in small sets too, and verdicts go by it.
    low, high = mean_interval(gaps.values)
    return {
        "mean": float(gaps.values.mean()),
        "ci_low": low,
        "ci_high": high,
        "items": len(gaps.values),
        "runs": gaps.runs,
        "bootstrap_low": result.low,
        "bootstrap_high": result.high,
        "p": result.p,
        "std": sample_std(gaps.by_run),
    }
