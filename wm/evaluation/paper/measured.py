"""Compute the figures of single cells: of a judge, of image metrics, the best of three samples. Knows no table."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import mean
from typing import cast

import numpy as np

from wm.evaluation.image_scoring import Values
from wm.evaluation.judge.figures import MACRO, TOP, Criterion, ItemScore, SystemFigures, compute_figures
from wm.evaluation.judge.repetitions import Repetition, name_repetitions
from wm.evaluation.metrics.paired import bootstrap_intervals
from wm.evaluation.metrics.stats import sample_std, stratified_interval
from wm.evaluation.paper.cells import Cell
from wm.evaluation.paper.sources import Sources
from wm.evaluation.score_tables import ScoreFigure, build_score_rows

AVERAGE = "average"
"""The unweighted mean of the subsets' means, as a subset's name."""
NUM_BEST_OF = 3
_CHOICES = (("none", 1), ("idm", 1), ("greedy", 1))
"""Which predictions of a system count, the first that it has: without a choice, one sample a prediction, greedy."""


@dataclass(frozen=True)
class BestOf:
    """For each item the best of three samples by the judge: its judgement, and its image metrics where they are."""

    scores: tuple[ItemScore, ...]
    values: tuple[Values, ...]


class Measured:
    """The figures of one set of results; each is computed once."""

    def __init__(self, sources: Sources) -> None:
        """Take the results; nothing is computed yet.

        Args:
            sources: The results.
        """
        self.sources = sources
        # A system's figures serve several tables.
        self.judged = lru_cache(maxsize=None)(self._judged)
        self.best_of = lru_cache(maxsize=None)(self._best_of)
        self._figures = lru_cache(maxsize=None)(self._compute_figures)

    def scores_of(self, label: str, num_candidates: int = 1) -> list[ItemScore]:
        """List the judgements of a system at one number of candidates.

        Args:
            label: Its label in the results.
            num_candidates: K of the judging.

        Returns:
            Of all runs, seeds and repeats, failed ones too.
        """
        key = label, num_candidates
        return [score for score in self.sources.judgements if (score.system, score.num_candidates) == key]

    def finals_by_item(self, label: str) -> dict[str, float]:
        """Return the final score of each judged item of a system, the mean over its training and sampling seeds."""
        gathered: dict[str, list[float]] = defaultdict(list)
        for score in self.scores_of(label):
            if score.final is not None:
                gathered[score.triplet_id].append(score.final)
        return {triplet_id: mean(values) for triplet_id, values in gathered.items()}

    def _judged(self, label: str) -> SystemFigures | None:
        # At one candidate: what verification adds is figure 4.
        scores = self.scores_of(label)
        return compute_figures(scores, self.sources.subsets)[0] if scores else None

    def judge_cell(self, label: str, subset: str, criterion: Criterion = "final", *, digits: int = 2) -> Cell | None:
        """Build the cell of a system's judgements.

        Args:
            label: Its label in the results.
            subset: Of the bench, or :data:`AVERAGE`.
            criterion: Which score.
            digits: After the point.

        Returns:
            The cell; None where nothing was judged.
        """
        figures = self.judged(label)
        return None if figures is None else self._to_cell(figures, self.scores_of(label), subset, criterion, digits)

    def _to_cell(
        self, figures: SystemFigures, scores: Sequence[ItemScore], subset: str, criterion: Criterion, digits: int
    ) -> Cell | None:
        figure = figures["figures"][criterion].get(MACRO if subset == AVERAGE else subset)
        if figure is None:
            return None
        low, high = figure["ci_low"], figure["ci_high"]
        # The table of judgements has none for an average of averages.
        if subset == AVERAGE:
            low, high = stratified_interval(_items_by_subset(scores, criterion))
            low, high = (None if low is None else max(low, 0.0)), (None if high is None else min(high, TOP))
        return Cell(
            mean=figure["mean"], std=figure["std"], num_values=figures["num_values"], over=figures["over"],
            ci_low=low, ci_high=high, n=figure["judged"], expected=figure["expected"], digits=digits,
        )  # fmt: skip

    def metric_cell(self, label: str, subset: str, metric: str, *, lower_is_better: bool = False) -> Cell | None:
        """Build the cell of an image metric, with three digits.

        Args:
            label: Label of the system in the results.
            subset: Of the bench.
            metric: A column of the scoring's values.
            lower_is_better: Whether less is better.

        Returns:
            The cell; None where it was not scored.
        """
        figure = self._figures(label, subset).get(metric)
        return None if figure is None else self._score_cell(figure, subset, lower_is_better)

    def _score_cell(self, figure: ScoreFigure, subset: str, lower_is_better: bool) -> Cell:
        return Cell(
            mean=figure["micro_mean"], std=figure["std"], num_values=figure["num_values"], over=figure["over"],
            ci_low=figure["ci_low"], ci_high=figure["ci_high"], n=figure["num_items"],
            expected=sum(name == subset for name in self.sources.subsets.values()), digits=3,
            lower_is_better=lower_is_better,
        )  # fmt: skip

    def _compute_figures(self, label: str, subset: str) -> Mapping[str, ScoreFigure]:
        # Of one subset alone, as its interval and spread are.
        own = [row for row in self._by_system.get(label, []) if self.sources.subsets[_id_of(row)] == subset]
        return self._figures_of(own, subset)

    def _figures_of(self, rows: Sequence[Values], subset: str) -> Mapping[str, ScoreFigure]:
        ids = {triplet_id: name for triplet_id, name in self.sources.subsets.items() if name == subset}
        # By choice and K, of which one is shown.
        table = {(row["choice"], row["k"]): row["metrics"] for row in build_score_rows(rows, ids)}
        return next((table[choice] for choice in _CHOICES if choice in table), {})

    @cached_property
    def _by_system(self) -> Mapping[str, list[Values]]:
        groups: dict[str, list[Values]] = defaultdict(list)
        for row in self.sources.values:
            groups[cast(str, row["system"])].append(row)
        return groups

    def _best_of(self, label: str) -> BestOf | None:
        """Choose the best of three samples a prediction by the judge's final score.

        The samples are those of three sampling seeds of a run, or of three runs where a run has fewer seeds, at one
        candidate each. An item with fewer judged samples is left out.
        """
        scores = [score for score in self.scores_of(label) if score.final is not None]
        # 1. What a sample is: a sampling seed, or a run.
        seeds: dict[int, set[int]] = defaultdict(set)
        for score in scores:
            seeds[score.run].add(score.sampling_seed)
        over_seeds = bool(seeds) and all(len(of_run) >= NUM_BEST_OF for of_run in seeds.values())
        if not over_seeds and len(seeds) < NUM_BEST_OF:
            return None
        # A run's further seeds would be further samples.
        if not over_seeds:
            scores = [score for score in scores if score.sampling_seed == min(seeds[score.run])]
        # 2. Samples of each item; samples over runs are one run.
        samples: dict[tuple[int, str], dict[int, list[ItemScore]]] = defaultdict(lambda: defaultdict(list))
        for score in scores:
            run, sample = (score.run, score.sampling_seed) if over_seeds else (0, score.run)
            samples[run, score.triplet_id][sample].append(score)
        values = {_sample_of(row): row for row in self._by_system.get(label, []) if _is_first_sample(row)}
        # 3. The best of each item, with its image metrics.
        best: list[ItemScore] = []
        chosen_values: list[Values] = []
        for (run, _), of_sample in samples.items():
            if len(of_sample) < NUM_BEST_OF:
                continue
            # The first three, and of equal ones the first. Repeats of one question are averaged.
            first = [_average_repeats(of_sample[number]) for number in sorted(of_sample)[:NUM_BEST_OF]]
            best_sample = max(first, key=lambda score: cast(float, score.final))
            best.append(replace(best_sample, run=run, sampling_seed=0, repeat=0))
            if (row := values.get((best_sample.run, best_sample.sampling_seed, best_sample.triplet_id))) is not None:
                single = {"run": run, "sampling_seed": 0, "decoding": "unknown", "candidates": [0], "chosen_at": []}
                chosen_values.append(row | single)
        return BestOf(tuple(best), tuple(chosen_values))

    def best_judge_cell(self, label: str, subset: str, *, digits: int = 2) -> Cell | None:
        """Build the judge's cell of the best of three samples.

        Args:
            label: Label of the system in the results.
            subset: Of the bench, or :data:`AVERAGE`.
            digits: After the point.

        Returns:
            The cell; None where there are no three.
        """
        best = self.best_of(label)
        if best is None or not best.scores:
            return None
        # As if the best of each item were a system of its own.
        figures = compute_figures(best.scores, self.sources.subsets)[0]
        return self._to_cell(figures, best.scores, subset, "final", digits)

    def best_metric_cell(self, label: str, subset: str, metric: str, *, lower_is_better: bool = False) -> Cell | None:
        """Build the cell of an image metric of the samples that the judge likes best of three.

        Args:
            label: Label of the system in the results.
            subset: Of the bench.
            metric: A column of the scoring's values.
            lower_is_better: Whether less is better.

        Returns:
            The cell; None where there are no three samples, or those were not scored.
        """
        best = self.best_of(label)
        if best is None:
            return None
        # Those that were scored: without their images no metric is known.
        own = [row for row in best.values if self.sources.subsets[_id_of(row)] == subset]
        figure = self._figures_of(own, subset).get(metric)
        return None if figure is None else self._score_cell(figure, subset, lower_is_better)

    def difference_cell(self, first: str, second: str, subset: str, *, digits: int = 2) -> Cell | None:
        """Build the cell of first - second in the judge's final score, paired over items.

        The interval is the bootstrap's over the items that both have; the spread is that of the differences of equal
        training seeds, sampling seeds and repeats.

        Args:
            first: Label of a system.
            second: Label of the other.
            subset: Of the bench, or :data:`AVERAGE`.
            digits: After the point.

        Returns:
            The cell; None where no item of the subset, or of one of them for the average, has both.
        """
        # Runs are averaged first: items are what is paired.
        pairs = [self.finals_by_item(label) for label in (first, second)]
        differences = {
            triplet_id: pairs[0][triplet_id] - pairs[1][triplet_id]
            for triplet_id in self.sources.subsets
            if triplet_id in pairs[0] and triplet_id in pairs[1]
        }
        names = self.sources.subset_order if subset == AVERAGE else [subset]
        groups = [[d for key, d in differences.items() if self.sources.subsets[key] == name] for name in names]
        # A mean over fewer subsets would be another figure.
        if not groups or not all(groups):
            return None
        # Resampled within each subset, as the average weighs subsets and not items.
        [(low, high)] = bootstrap_intervals([np.array(group)[:, None] for group in groups])
        by_run = self._differences_by_run(first, second, names)
        return Cell(
            mean=mean(mean(group) for group in groups), std=sample_std(list(by_run.values())), num_values=len(by_run),
            over=name_repetitions(by_run), ci_low=low, ci_high=high, n=sum(map(len, groups)), digits=digits,
            is_signed=True,
            expected=sum(name in names for name in self.sources.subsets.values()),
        )  # fmt: skip

    def _differences_by_run(self, first: str, second: str, names: Sequence[str]) -> dict[Repetition, float]:
        """Compute the mean difference of each run that both systems have, over the items that both have in it."""
        # Known by training seed, sampling seed and repeat: equal ones share what is random but for the systems.
        finals = {(*score.repetition, score.triplet_id): score.final for score in self.scores_of(second)}
        runs: dict[Repetition, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for score in self.scores_of(first):
            other = finals.get((*score.repetition, score.triplet_id))
            if score.final is not None and other is not None and score.subset in names:
                runs[score.repetition][score.subset].append(score.final - other)
        return {key: mean(map(mean, runs[key].values())) for key in sorted(runs) if len(runs[key]) == len(names)}


def _items_by_subset(scores: Sequence[ItemScore], criterion: Criterion) -> list[list[float]]:
    groups: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for score in scores:
        if (value := getattr(score, criterion)) is not None:
            groups[score.subset][score.triplet_id].append(value)
    return [[mean(values) for values in items.values()] for items in groups.values()]


def _average_repeats(scores: Sequence[ItemScore]) -> ItemScore:
    # The minimum of averages is not the average of minima, which is what is chosen by.
    final = mean(cast(float, score.final) for score in scores)
    return replace(scores[0], editing_success=final, minimal_editing=final)


def _id_of(row: Values) -> str:
    return cast(str, row["triplet_id"])


def _sample_of(row: Values) -> tuple[int, int, str]:
    return cast(int, row["run"]), cast(int, row["sampling_seed"]), _id_of(row)


def _is_first_sample(row: Values) -> bool:
    return row["decoding"] != "greedy" and 0 in cast(list[int], row["candidates"])
