"""Compute the differences of two systems by subset and on average, each with its interval, its test and its runs.

Knows no file and no words.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wm.evaluation.aurora_bench import order_subsets
from wm.evaluation.comparison.bases import Basis
from wm.evaluation.comparison.measures import Measure
from wm.evaluation.comparison.values import RunValues
from wm.evaluation.metrics.paired import bootstrap_intervals, compare_paired, holm_correct, signed_rank_sign
from wm.evaluation.metrics.stats import sample_std

ALPHA = 0.05
"""Below it a p says that two systems differ."""


@dataclass(frozen=True)
class Scope:
    """The difference over a subset, over all items (micro), or of the mean over subsets (macro).

    Attributes:
        first: Mean of the first system.
        second: Mean of the second one.
        difference: First minus second.
        low: Lower bound of its 95 % interval over items; None where it is not defined.
        high: Upper bound.
        p: Of Wilcoxon's signed-rank test; None for the mean over subsets, and for a single item.
        num_items: Items that both systems have.
        p_corrected: The same by Holm over the subsets; None where there are not several.
        rank_sign: Whom the test's ranks favour: 1 the higher values of the first, -1 those of the second, 0 neither.
    """

    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    num_items: int
    p_corrected: float | None = None
    rank_sign: int = 0

    @property
    def is_sure(self) -> bool:
        """Return whether the interval excludes 0, and the test (corrected where it is one of several) agrees."""
        p = self.p if self.p_corrected is None else self.p_corrected
        return self.excludes_zero and (p is None or (p < ALPHA and self.rank_sign * self.difference > 0))

    @property
    def excludes_zero(self) -> bool:
        """Return whether all of the interval is on one side of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Comparison:
    """Two systems in one metric.

    Attributes:
        measure: The metric.
        basis: What it was measured with.
        micro: Over all items that both have.
        macro: Of the mean over subsets; None for one subset, and where one of several has no item.
        subsets: By subset, those without an item left out.
        runs: Training runs of the first and of the second that the means are of.
        gaps: Run → first minus second, of runs that both have; empty unless there are two at least.
        missing: Triplets of the bench that the first and the second lack.
        fewer_runs: Triplet → how many runs of the first and of the second its means are over, where these are not all
            of ``runs``. Of paired runs both are the same; at 0 it counts for neither.
    """

    measure: Measure
    basis: Basis
    micro: Scope
    macro: Scope | None
    subsets: dict[str, Scope]
    runs: tuple[list[int], list[int]]
    gaps: dict[int, float] = field(default_factory=dict)
    missing: tuple[list[str], list[str]] = field(default=([], []))
    fewer_runs: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def headline(self) -> Scope:
        """Return the scope of the verdict: the paper's average where there is one, else all items."""
        return self.macro or self.micro

    @property
    def std(self) -> float | None:
        """Return the standard deviation of the difference over paired runs."""
        return sample_std(list(self.gaps.values()))

    @property
    def num_agreeing(self) -> int:
        """Return how many paired runs differ in the direction of the mean."""
        return sum(gap * self.headline.difference > 0 for gap in self.gaps.values())

    @property
    def is_sure(self) -> bool:
        """Return whether the difference is one that neither luck of items nor of runs is likely to give."""
        # A mean over subsets has no test of its own: that over all items must say the same, and of the same system.
        p, sign = self.micro.p, self.micro.rank_sign
        is_tested = p is not None and p < ALPHA and sign * self.headline.difference > 0
        return self.headline.excludes_zero and is_tested and self.num_agreeing == len(self.gaps)


def compare_metric(
    measure: Measure, basis: Basis, first: RunValues, second: RunValues, subsets: Mapping[str, str], *, seed: int = 0
) -> Comparison | None:
    """Compare two systems on the items that both have.

    An item's value is its mean over runs: those in which both have it where two runs or more are of both, else all of
    each system.

    Args:
        measure: The metric.
        basis: What it was measured with.
        first: Values of the first system.
        second: Of the second.
        subsets: Subset of each triplet of the bench, in its order.
        seed: Of the bootstrap.

    Returns:
        The comparison; None where no item has a value of both.
    """
    # Runs of the same training seed share data order and start, which their difference cancels.
    shared = sorted(set(first) & set(second))
    is_paired = len(shared) > 1
    runs = (shared, shared) if is_paired else (sorted(first), sorted(second))
    values, counts = _average(first, second, runs, subsets, is_paired=is_paired)
    # In the bench's order: what one lacks counts for neither.
    common = [key for key in subsets if key in values[0] and key in values[1]]
    if not common:
        return None
    first_B, second_B = (np.array([system[key] for key in common]) for system in values)
    names = order_subsets(subsets.values())
    members = {name: np.array([subsets[key] == name for key in common]) for name in names}
    by_subset = {
        name: _compare(first_B[inside], second_B[inside], seed) for name, inside in members.items() if inside.any()
    }
    # Over fewer subsets than the bench has it would be another average.
    is_complete = len(names) > 1 and len(by_subset) == len(names)
    macro = (
        _compare_macro([(first_B[inside], second_B[inside]) for inside in members.values()], seed)
        if is_complete
        else None
    )
    # One run has no spread, which is not a spread of 0.
    gaps = {}
    for run in shared if is_paired else []:
        gap = _difference_of_run(first[run], second[run], {key: subsets[key] for key in common}, macro is not None)
        if gap is not None:
            gaps[run] = gap
    return Comparison(
        measure=measure,
        basis=basis,
        micro=_compare(first_B, second_B, seed),
        macro=macro,
        subsets=_correct(by_subset),
        runs=runs,
        gaps=gaps,
        missing=(_list_missing(subsets, first, runs[0]), _list_missing(subsets, second, runs[1])),
        fewer_runs=counts,
    )


def _average(
    first: RunValues,
    second: RunValues,
    runs: tuple[Sequence[int], Sequence[int]],
    items: Iterable[str],
    *,
    is_paired: bool,
) -> tuple[tuple[dict[str, float], dict[str, float]], dict[str, tuple[int, int]]]:
    """Average each item over its runs; also say over how many, where not over all."""
    values: tuple[dict[str, float], dict[str, float]] = ({}, {})
    counts: dict[str, tuple[int, int]] = {}
    for key in items:
        own = [run for run in runs[0] if key in first[run]]
        other = [run for run in runs[1] if key in second[run]]
        has_both = bool(own) and bool(other)
        if is_paired:
            # In a run that one of them lacks, the other one's value would be that of the run, not of the system.
            own = other = [run for run in own if run in other]
        for system, into, of in ((first, values[0], own), (second, values[1], other)):
            if of:
                into[key] = sum(system[run][key] for run in of) / len(of)
        if has_both and (len(own), len(other)) != (len(runs[0]), len(runs[1])):
            counts[key] = (len(own), len(other))
    return values, counts


def _list_missing(items: Iterable[str], system: RunValues, runs: Sequence[int]) -> list[str]:
    return [key for key in items if not any(key in system[run] for run in runs)]


def _compare(first_B: np.ndarray, second_B: np.ndarray, seed: int) -> Scope:
    (result,) = compare_paired([first_B - second_B], seed=seed)
    return Scope(
        first=float(first_B.mean()),
        second=float(second_B.mean()),
        difference=result.mean,
        low=result.low,
        high=result.high,
        p=result.p,
        num_items=result.num_items,
        rank_sign=signed_rank_sign(first_B - second_B),
    )


def _compare_macro(members: Sequence[tuple[np.ndarray, np.ndarray]], seed: int) -> Scope:
    """Compare the means over subsets; items are resampled within each subset."""
    # Each subset counts alike, whatever its size.
    first, second = (float(np.mean([pair[side].mean() for pair in members])) for side in (0, 1))
    ((low, high),) = bootstrap_intervals([(first_B - second_B)[:, None] for first_B, second_B in members], seed=seed)
    return Scope(first, second, first - second, low, high, None, sum(len(first_B) for first_B, _ in members))


def _correct(by_subset: Mapping[str, Scope]) -> dict[str, Scope]:
    """Correct the tests of several subsets: of many, some differ by chance."""
    # A subset of a single item has no test, and counts as none.
    tested = {name: scope.p for name, scope in by_subset.items() if scope.p is not None}
    if len(by_subset) < 2:
        return dict(by_subset)
    corrected = dict(zip(tested, holm_correct(list(tested.values())), strict=True))
    return {name: replace(scope, p_corrected=corrected.get(name)) for name, scope in by_subset.items()}


def _difference_of_run(
    first: Mapping[str, float], second: Mapping[str, float], subsets: Mapping[str, str], is_macro: bool
) -> float | None:
    """Compute the headline difference of one run over the items that both have in it; None where a subset has none."""
    by_subset: dict[str, list[float]] = {name if is_macro else "": [] for name in subsets.values()}
    for key, name in subsets.items():
        if key in first and key in second:
            by_subset[name if is_macro else ""].append(first[key] - second[key])
    # Over fewer subsets it would be another average.
    if not all(by_subset.values()):
        return None
    return float(np.mean([np.mean(values) for values in by_subset.values()]))
