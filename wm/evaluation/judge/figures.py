"""Compute means of judgements by system and subset, each with how many items it is of. Knows no file and no API."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Final, Literal, TypeAlias, TypedDict

import numpy as np

from wm.evaluation.judge.items import COPY
from wm.evaluation.judge.repetitions import Repetition, name_repetitions
from wm.evaluation.metrics.stats import mean_interval, sample_std

Criterion: TypeAlias = Literal["final", "editing_success", "minimal_editing"]
CRITERIA: Final[tuple[Criterion, ...]] = ("final", "editing_success", "minimal_editing")
MACRO: Final = "macro average"
"""Unweighted mean of the subsets' means, the paper's average; absent where a subset has no judgement."""
MICRO: Final = "all items"
TOP: Final = 10.0
MIN_COVERAGE: Final = 0.95
"""Below it a mean is marked: what is not judged may be what is hard."""
MAX_COPY: Final = 0.5
"""A judge that gives the source itself more on average does not see whether an edit was made."""


@dataclass(frozen=True)
class ItemScore:
    """A judgement of a prediction, or why there is none."""

    triplet_id: str
    subset: str
    system: str
    run: int
    sampling_seed: int
    num_candidates: int
    repeat: int
    editing_success: float | None
    minimal_editing: float | None
    failure: str | None

    @property
    def repetition(self) -> Repetition:
        """What distinguishes it from other judgements of the same item."""
        return self.run, self.sampling_seed, self.repeat

    @property
    def final(self) -> float | None:
        """The minimum of both criteria."""
        if self.editing_success is None or self.minimal_editing is None:
            return None
        return min(self.editing_success, self.minimal_editing)


class JudgeFigure(TypedDict):
    """A mean from 0 to 10. ``std`` is over what the system's ``over`` says; the interval (95 %) is over the items."""

    mean: float
    std: float | None
    ci_low: float | None
    ci_high: float | None
    judged: int
    expected: int


class SystemFigures(TypedDict):
    """Figures of a system at one K, by criterion and then by subset, :data:`MACRO` and :data:`MICRO`."""

    system: str
    num_candidates: int
    num_values: int
    """Times that each item may be judged: different training seeds, sampling seeds and repeats of the question."""
    over: str
    """What these differ in, which spreads are over, such as ``sampling seeds``."""
    figures: dict[str, dict[str, JudgeFigure]]
    missing: dict[str, int]
    """Triplets of a subset without any prediction, where there are some."""
    unjudged: dict[str, int]
    """Judgements that failed, by reason."""


def compute_figures(scores: Sequence[ItemScore], subsets: Mapping[str, str]) -> list[SystemFigures]:
    """Compute all figures.

    A mean is over what was judged: failures are counted, never taken for 0.

    Args:
        scores: Of all systems.
        subsets: Subset by triplet of the bench.

    Returns:
        A table row for each system and K, systems in the order of ``scores``.
    """
    groups: dict[tuple[str, int], list[ItemScore]] = defaultdict(list)
    for score in scores:
        groups[score.system, score.num_candidates].append(score)
    # Sizes are the bench's, not those of what was judged.
    sizes = Counter(subsets.values())
    table: list[SystemFigures] = []
    for (system, num_candidates), group in groups.items():
        # Without a prediction there is nothing to judge, which is another thing than a failure of the judge.
        present = Counter(subsets[triplet_id] for triplet_id in {score.triplet_id for score in group})
        runs = {score.repetition for score in group}
        table.append(
            {
                "system": system,
                "num_candidates": num_candidates,
                "num_values": len(runs),
                "over": name_repetitions(runs),
                "figures": {criterion: _by_subset(group, criterion, sizes, len(runs)) for criterion in CRITERIA},
                "missing": {name: sizes[name] - present[name] for name in sizes if present[name] < sizes[name]},
                "unjudged": dict(sorted(Counter(score.failure for score in group if score.failure).items())),
            }
        )
    return table


def copy_warning(table: Sequence[SystemFigures]) -> str | None:
    """Return a warning where the judge likes the source as its own prediction, else None."""
    for row in table:
        figure = row["figures"]["final"].get(MICRO)
        if row["system"] == COPY and figure is not None and figure["mean"] > MAX_COPY:
            return (
                f"the judge gives {COPY} {figure['mean']:.2f} on average (expected at most {MAX_COPY}): it does not "
                "see whether an edit was made"
            )
    return None


def _by_subset(
    group: Sequence[ItemScore], criterion: Criterion, sizes: Mapping[str, int], num_runs: int
) -> dict[str, JudgeFigure]:
    figures: dict[str, JudgeFigure] = {}
    for name in sizes:
        figure = _figure([score for score in group if score.subset == name], criterion, sizes[name] * num_runs)
        if figure is not None:
            figures[name] = figure
    micro = _figure(group, criterion, sum(sizes.values()) * num_runs)
    # An average over fewer subsets would be another figure of the same name.
    if micro is not None and len(figures) == len(sizes):
        means = [figures[name]["mean"] for name in sizes]
        runs = _means_by_run(group, criterion, sizes)
        figures[MACRO] = {
            **micro, "mean": mean(means), "std": sample_std(runs), "ci_low": None, "ci_high": None,
        }  # fmt: skip
    if micro is not None:
        figures[MICRO] = micro
    return figures


def _means_by_run(group: Sequence[ItemScore], criterion: Criterion, sizes: Mapping[str, int]) -> list[float]:
    """Compute the macro average of every run that has all subsets."""
    runs: dict[Repetition, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in group:
        value = getattr(score, criterion)
        if value is not None:
            runs[score.repetition][score.subset].append(value)
    return [mean(mean(run[name]) for name in sizes) for run in runs.values() if len(run) == len(sizes)]


def _figure(group: Sequence[ItemScore], criterion: Criterion, expected: int) -> JudgeFigure | None:
    """Compute the mean over what was judged, each item's runs averaged first; None without any."""
    by_item, by_run = defaultdict[str, list[float]](list), defaultdict[Repetition, list[float]](list)
    for score in group:
        value = getattr(score, criterion)
        if value is not None:
            by_item[score.triplet_id].append(value)
            by_run[score.repetition].append(value)
    if not by_item:
        return None
    # Items are what the interval is over: several judgements of one item are no further items.
    items = [mean(values) for values in by_item.values()]
    # Bounded by the scale, 0 to 10.
    low, high = mean_interval(np.array(items), top=TOP)
    return {
        "mean": mean(items),
        "std": sample_std([mean(values) for values in by_run.values()]),
        "ci_low": low,
        "ci_high": high,
        "judged": sum(map(len, by_item.values())),
        "expected": expected,
    }
