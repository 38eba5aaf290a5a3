"""Means with their spread. Small numbers of runs, so the spread is always given with its count."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A measured figure.

    ``std`` (n − 1 in the denominator) is taken ``over`` runs of different training seeds, or over sampling
    seeds where there is one run only; it is None where there is one value only, because one value has no
    spread. ``ci_low``, ``ci_high``: 95 % bootstrap interval over the test items, None where items do not
    apply. ``runs``: training seed → that run's value.
    """

    mean: float
    std: float | None
    n: int
    over: str
    ci_low: float | None
    ci_high: float | None
    runs: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def figure(
    by_run: Mapping[int, Sequence[float]],
    items: Floats | None = None,
    *,
    seed: int = 0,
    over: str = "sampling seeds",
) -> Figure:
    """Aggregate ``by_run``: training seed → values of that run's sampling seeds (at least one, all runs
    alike).

    ``items``: one value an item (mean over runs and seeds) for the bootstrap interval; NaN marks an item
    left out. ``over`` names what the values of one run are.
    """
    runs = {str(run): float(np.mean(values)) for run, values in sorted(by_run.items())}
    values = list(runs.values()) if len(runs) > 1 else [float(value) for value in next(iter(by_run.values()))]
    low, high = (None, None) if items is None else bootstrap_interval(items, seed=seed)
    return Figure(
        mean=float(np.mean(list(runs.values()))),
        std=sample_std(values),
        n=len(values),
        over="training seeds" if len(runs) > 1 else over,
        ci_low=low,
        ci_high=high,
        runs=runs,
    )


def sample_std(values: Sequence[float]) -> float | None:
    """Standard deviation with n − 1 in the denominator; None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def bootstrap_interval(
    items: Floats, *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Percentile interval of the mean under resampling of items; (None, None) for fewer than two items."""
    known = items[~np.isnan(items)]
    if len(known) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    means = known[rng.integers(0, len(known), size=(resamples, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def pearson(first: Floats, second: Floats) -> float | None:
    """Pearson's r; None where it is not defined (fewer than two pairs, or one side constant)."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
