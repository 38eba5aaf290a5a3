"""Compare two figures of ``tables.json``: their difference, and the spread that it must exceed to count."""

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from wm.evaluation.metrics.stats import half_interval, student_quantile
from wm.evaluation.report.summary import describe_certainty
from wm.evaluation.rows import Figure, ItemDifference

Verdict: TypeAlias = Literal["shows", "within the spread", "does not show", "not measured"]


@dataclass(frozen=True)
class Difference:
    """The difference of two figures."""

    mean: float  # of first - second
    spread: float | None  # what it must exceed to count; None if unknown
    basis: str  # what the spread is
    certainty: str = ""  # interval over items, p, number of items and runs; empty where unknown

    def verdict(self, *, higher_is_better: bool = True) -> Verdict:
        """Return whether the first is better by more than the spread."""
        if self.spread is None:
            return "not measured"
        gain = self.mean if higher_is_better else -self.mean
        if abs(gain) <= self.spread:
            return "within the spread"
        return "shows" if gain > 0 else "does not show"

    def text(self) -> str:
        """Format the difference and its spread."""
        text = f"difference {self.mean:+.3f}, spread {'unknown' if self.spread is None else f'{self.spread:.3f}'}"
        return f"{text} ({self.certainty})" if self.certainty else text


def compare_figures(first: Figure, second: Figure, by_item: ItemDifference | None = None) -> Difference:
    """Compare two figures; what both have in common cancels: training seeds, test items, their sampling noise.

    The spread is half a 95 % interval: Student's over the differences of training seeds that both have (two at least),
    and that over the items, compared one by one; the larger of the two where both are known. Without either it is the
    two figures' own half intervals, added in squares.

    Args:
        first: A figure of ``tables.json``.
        second: Another.
        by_item: Their row of ``differences`` in ``tables.json``, if it has one.

    Returns:
        The difference, its spread unknown where the figures are one value each.
    """
    difference = _weigh_spreads(first, second, by_item)
    return difference if by_item is None else replace(difference, certainty=describe_certainty(by_item))


def _weigh_spreads(first: Figure, second: Figure, by_item: ItemDifference | None) -> Difference:
    """Find the spread that counts."""
    # Runs of the same training seed share data order and start, which their difference cancels.
    seeds = sorted(set(first["runs"]) & set(second["runs"]))
    is_paired = len(seeds) > 1
    gaps = [first["runs"][seed] - second["runs"][seed] for seed in seeds]
    mean = sum(gaps) / len(gaps) if is_paired else first["mean"] - second["mean"]
    over_items = _half_width(by_item) if by_item is not None else None
    over_seeds = half_interval(gaps) if is_paired else _add_halves(first, second, over_items is None)
    halves = [half for half in (over_seeds, over_items) if half is not None]
    if not halves:
        return Difference(mean, None, "one value each, which has no spread")
    # The larger of the two, so that neither luck of seeds nor of items passes for a difference.
    spread = max(halves)
    if by_item is not None and spread == over_items:
        return Difference(mean, spread, f"half the 95 % interval over {by_item['items']} paired items")
    if is_paired:
        return Difference(mean, spread, f"half the 95 % interval over {len(gaps)} paired training seeds")
    return Difference(mean, spread, "half the two figures' own 95 % intervals, added in squares")


def _half_width(interval: Figure | ItemDifference) -> float | None:
    low, high = interval["ci_low"], interval["ci_high"]
    return None if low is None or high is None else (high - low) / 2


def _add_halves(first: Figure, second: Figure, with_items: bool) -> float | None:
    """Add the half intervals of two figures in squares; without those over items, the ones that are known."""
    halves = [half for figure in (first, second) if (half := _compute_half(figure, with_items)) is not None]
    is_known = len(halves) == 2 if with_items else bool(halves)
    return math.hypot(*halves) if is_known else None


def _compute_half(figure: Figure, with_items: bool) -> float | None:
    """Compute half an interval over training seeds; with one run over items, or else over sampling seeds."""
    values = list(figure["runs"].values())
    if len(values) > 1:
        return half_interval(values)
    if not with_items:
        return None
    if (half := _half_width(figure)) is not None:
        return half
    if figure["std"] is None:
        return None
    return student_quantile(0.95, figure["n"] - 1) * figure["std"] / math.sqrt(figure["n"])
