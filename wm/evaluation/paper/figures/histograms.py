"""Draw figure 11: how often a judge gave each score from 0 to 10, by loss, criterion and subset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.judge.figures import ItemScore
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.style import (
    COLOURS,
    GREY,
    SMALL_PT,
    TEXT_PT,
    TITLE_PT,
    mark_toy,
    new_figure,
    style_axes,
    write_csv,
)
from wm.evaluation.paper.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGES: Final = np.arange(12) - 0.5
"""Of 11 bins around the scores 0, 1, …, 10; a half point counts to the higher one."""
TOTAL: Final = "total"
"""Panel of all subsets together."""
VARIANTS: Final = (("C-FDM w/o LW", "Standard loss"), ("C-FDM", "Weighted loss"))
"""Systems of the paper's figure and what their panels are called."""
_PANEL_IN: Final = (1.55, 1.35)


@dataclass(frozen=True)
class JudgedSubset:
    """Scores of all judged predictions of a subset; ``unjudged``: those without a score."""

    name: str
    editing_success: Floats
    minimal_editing: Floats
    unjudged: int = 0


@dataclass(frozen=True)
class JudgedVariant:
    """One model, such as the one that was trained with the weighted loss."""

    title: str
    subsets: tuple[JudgedSubset, ...]


@dataclass(frozen=True)
class ScoreHistograms:
    """Figure 11."""

    variants: tuple[JudgedVariant, ...]
    judge: str
    is_toy: bool = False


def build_histograms(data: ScoreHistograms) -> "Figure":
    """Draw a block a variant, each with a row of editing success and one of minimal editing, a column a subset.

    Args:
        data: At least one variant; those of a figure have the same subsets. :data:`TOTAL` is added.

    Returns:
        The figure.
    """
    variants = [(variant.title, _add_total(variant.subsets)) for variant in data.variants]
    columns = max(len(subsets) for _, subsets in variants)
    # 1. One block a variant, so that its title is above its own panels.
    figure = new_figure(columns * _PANEL_IN[0] + 0.6, len(variants) * (2 * _PANEL_IN[1] + 0.85) + 0.6)
    figure.suptitle(mark_toy(f"Scores by {data.judge}", data.is_toy), fontsize=TITLE_PT + 1)
    blocks = figure.subfigures(len(variants), 1, squeeze=False, hspace=0.03)[:, 0]
    for block, (title, subsets), letter in zip(blocks, variants, "abcdefgh", strict=False):
        block.suptitle(f"({letter}) {title}", fontsize=TITLE_PT, fontweight="bold")
        grid = block.subplots(2, columns, squeeze=False, sharex=True)
        # 2. Counts, not shares: panels say by themselves how many scores they are of.
        for column, subset in enumerate(subsets):
            success, minimality = grid[0][column], grid[1][column]
            _draw_counts(success, subset.editing_success, COLOURS[0])
            _draw_counts(minimality, subset.minimal_editing, COLOURS[2])
            missing = f", {subset.unjudged} unjudged" if subset.unjudged else ""
            success.set_title(f"{subset.name}\nn {len(subset.editing_success):,}{missing}", fontsize=SMALL_PT)
            minimality.set_xlabel("score", fontsize=SMALL_PT)
        for axes, name in zip(grid[:, 0], ("editing success", "minimal editing"), strict=True):
            axes.set_ylabel(f"{name}\ncount", fontsize=TEXT_PT)
    return figure


def count_scores(scores: Floats) -> Floats:
    """Count the scores of each of 11 bins.

    Args:
        scores: From 0 to 10.

    Returns:
        Counts (11,).
    """
    counts: Floats = np.histogram(scores, EDGES)[0].astype(np.float64)
    return counts


def _draw_counts(axes: "Axes", scores: Floats, colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    style_axes(axes)
    axes.bar(np.arange(11), count_scores(scores), width=0.86, color=colour)
    # All of the scale, whatever scores occur: panels are compared.
    axes.set_xlim(-0.8, 10.8)
    axes.set_xticks([0, 5, 10])
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    if not len(scores):
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no score", transform=axes.transAxes, ha="center", fontsize=SMALL_PT, color=GREY)
        return
    # The mean says what the paper's tables say.
    axes.axvline(float(scores.mean()), color="black", linewidth=1.0, linestyle=(0, (2, 2)))


def histograms_csv(data: ScoreHistograms) -> str:
    """Write a line a variant, subset, criterion and score with its count.

    Args:
        data: As :func:`build_histograms` draws it.

    Returns:
        CSV with a head.
    """
    lines = [
        (variant.title, subset.name, criterion, score, int(count))
        for variant in data.variants
        for subset in _add_total(variant.subsets)
        for criterion in ("editing_success", "minimal_editing")
        for score, count in enumerate(count_scores(getattr(subset, criterion)))
    ]
    return write_csv(("model", "subset", "criterion", "score", "count"), lines)


def _add_total(subsets: Sequence[JudgedSubset]) -> list[JudgedSubset]:
    """Add all subsets together, which one subset is already."""
    if len(subsets) < 2:
        return list(subsets)
    # Pooled items, as the paper has it; the average of its tables weighs subsets alike.
    total = JudgedSubset(
        TOTAL,
        np.concatenate([subset.editing_success for subset in subsets]),
        np.concatenate([subset.minimal_editing for subset in subsets]),
        sum(subset.unjudged for subset in subsets),
    )
    return [*subsets, total]


def read_histograms(sources: Sources) -> ScoreHistograms | Absent:
    """Gather the judgements of both losses at one candidate a prediction, those of all runs and seeds.

    Args:
        sources: The results.

    Returns:
        The data, of one loss where only one was judged; absent where none was.
    """
    variants = []
    # One loss alone is shown too: the other may still be training.
    for system, title in VARIANTS:
        label = sources.label(system)
        # At one candidate nothing is chosen, as in table 3.
        own = [score for score in sources.judgements if score.system == label and score.num_candidates == 1]
        if own:
            subsets = (_gather_subset(name, own) for name in sources.subset_order)
            variants.append(JudgedVariant(f"{title}: {system}", tuple(subsets)))
    if not variants:
        names = " and ".join(sources.label(system) for system, _ in VARIANTS)
        return Absent(
            f"no judgement of {names}",
            f"wm judge predictions='[\"EVALUATION\"]' triplets={sources.triplets or 'BENCH'} out=JUDGED",
        )
    return ScoreHistograms(tuple(variants), str(sources.of("judge")[0].recipe("model")), sources.is_toy)


def _gather_subset(name: str, scores: Sequence[ItemScore]) -> JudgedSubset:
    own = [score for score in scores if score.subset == name]
    pairs = [
        (score.editing_success, score.minimal_editing)
        for score in own
        if score.editing_success is not None and score.minimal_editing is not None
    ]
    pairs_P2 = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    # A judgement that failed is no score of 0.
    return JudgedSubset(subset_title(name), pairs_P2[:, 0], pairs_P2[:, 1], len(own) - len(pairs))
