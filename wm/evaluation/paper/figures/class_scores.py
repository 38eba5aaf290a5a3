"""Draw figure 9: how likely the inverse model holds the chosen triplets, by class of action, a panel a video set."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

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
    wrap,
    write_csv,
)
from wm.evaluation.paper.sources import Source, Sources
from wm.tables import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SET_TITLES: Final = {"moments": "MIT", "ucf101": "UCF-101", "kinetics700": "Kinetics700"}
"""Data set of an annotation → its name in the paper."""
MAX_BOXES: Final = 40
"""Classes that get a labelled box each; more become bands of quantiles."""
_SCORE_SCHEMA: Final = pa.schema([("class_label", pa.string()), ("score", pa.float64())])
"""Columns of a selection that are read."""
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class VideoSetScores:
    """Class → mean log-likelihoods of its chosen triplets, nats an action token."""

    title: str
    by_class: Mapping[str, Floats]


@dataclass(frozen=True)
class ClassScores:
    """Figure 9. ``log``: show the log-likelihoods themselves rather than their exponential."""

    sets: tuple[VideoSetScores, ...]
    log: bool = False
    is_toy: bool = False


def sort_classes(scores: VideoSetScores, *, log: bool) -> list[tuple[str, Floats]]:
    """Sort the classes by falling median of what is plotted; ties by name; classes without a triplet are left out.

    Args:
        scores: The scores.
        log: Draw log-likelihoods; else likelihoods, which are their exponential.

    Returns:
        Class and its values.
    """
    values = {
        name: of_class if log else np.exp(of_class) for name, of_class in scores.by_class.items() if len(of_class)
    }
    return sorted(values.items(), key=lambda item: (-float(np.median(item[1])), item[0]))


def build_class_scores(data: ClassScores) -> "Figure":
    """Draw a panel a video set, one below the other.

    Args:
        data: At least one set with a chosen triplet.

    Returns:
        The figure.
    """
    panels = [(scores, sort_classes(scores, log=data.log)) for scores in data.sets]
    is_labelled = [len(classes) <= MAX_BOXES for _, classes in panels]
    heights_in = [2.9 if labelled else 2.1 for labelled in is_labelled]
    figure = new_figure(8.4, sum(heights_in) + 0.5)
    figure.suptitle(
        mark_toy("Likelihood of the chosen triplets' actions, by class", data.is_toy), fontsize=TITLE_PT + 1
    )
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights_in)[:, 0]
    unit = "mean log-likelihood, nats/token" if data.log else "exp(mean log-likelihood)"
    for axes, (scores, classes), labelled in zip(grid, panels, is_labelled, strict=True):
        style_axes(axes)
        count = sum(len(values) for _, values in classes)
        axes.set_title(f"{scores.title}: {len(classes):,} classes, n {count:,}", fontsize=TITLE_PT, loc="left")
        axes.set_ylabel(unit, fontsize=TEXT_PT)
        if labelled:
            _draw_boxes(axes, classes)
        else:
            _draw_bands(axes, classes)
    return figure


def _draw_boxes(axes: "Axes", classes: list[tuple[str, Floats]]) -> None:
    # The quantiles of the bands, so that few and many classes show the same.
    names = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [dict(zip(names, np.quantile(values, _QUANTILES).tolist(), strict=True)) for _, values in classes]
    axes.bxp(
        boxes, positions=range(1, len(classes) + 1), widths=0.65, showfliers=False, patch_artist=True,
        boxprops={"facecolor": "#CFE3F1", "edgecolor": COLOURS[0]},
        medianprops={"color": COLOURS[1], "linewidth": 1.4}, whiskerprops={"color": GREY}, capprops={"color": GREY},
        manage_ticks=False,
    )  # fmt: skip
    # Names of data sets are file names, with underscores for blanks.
    labels = [wrap(name.replace("_", " ") or "(no class)", 24, 1) for name, _ in classes]
    # Few names fit side by side.
    is_few = len(classes) <= 6
    axes.set_xticks(
        range(1, len(classes) + 1), labels, rotation=0 if is_few else 60, ha="center" if is_few else "right",
        rotation_mode="anchor", fontsize=SMALL_PT,
    )  # fmt: skip
    axes.set_xlim(0.3, len(classes) + 0.7)


def _draw_bands(axes: "Axes", classes: list[tuple[str, Floats]]) -> None:
    ranks = np.arange(1, len(classes) + 1)
    quantiles_CQ = np.array([np.quantile(values, _QUANTILES) for _, values in classes])
    low, lower, median, upper, high = quantiles_CQ.T
    # Steps: each class is by itself, and nothing is between two of them.
    for bottom, top, alpha, label in ((low, high, 0.18, "5 to 95 %"), (lower, upper, 0.4, "25 to 75 %")):
        axes.fill_between(ranks, bottom, top, step="mid", color=COLOURS[0], alpha=alpha, linewidth=0, label=label)
    axes.step(ranks, median, where="mid", color=COLOURS[1], linewidth=1.4, label="median")
    axes.set_xlabel("class, by falling median", fontsize=TEXT_PT)
    axes.set_xlim(0.5, len(classes) + 0.5)
    axes.legend(fontsize=SMALL_PT, frameon=False, ncols=3, loc="upper right")


def class_scores_csv(data: ClassScores) -> str:
    """Write a line a class with the quantiles of what is plotted.

    Args:
        data: As :func:`build_class_scores` draws it.

    Returns:
        CSV with a head.
    """
    lines = [
        (scores.title, name, len(values), *(float(value) for value in np.quantile(values, _QUANTILES)))
        for scores in data.sets
        for name, values in sort_classes(scores, log=data.log)
    ]
    return write_csv(("set", "class", "n", *(f"q{quantile:g}" for quantile in _QUANTILES)), lines)


def read_class_scores(sources: Sources) -> ClassScores | Absent:
    """Gather the scores of the chosen triplets of every selection that ranked by the mean log-likelihood.

    Args:
        sources: The results.

    Returns:
        The data; absent without such a selection, or where none chose a triplet.
    """
    command = "wm select triplets=ANNOTATION k=7000 out=SELECTION"
    selections = [source for source in sources.of("select") if source.recipe("score", "mean") == "mean"]
    if not selections:
        is_summed = bool(sources.of("select"))
        return Absent("selections by the sum of log-likelihoods only" if is_summed else "no selection", command)
    sets = [VideoSetScores(_name_set(source), _read_selection(source)) for source in selections]
    sets = [scores for scores in sets if scores.by_class]
    if not sets:
        return Absent("no selection chose a triplet", command)
    # In the paper's order, then in that of the folders.
    order = list(SET_TITLES.values())
    sets.sort(key=lambda scores: order.index(scores.title) if scores.title in order else len(order))
    return ClassScores(tuple(sets), sources.options.log_scores, sources.is_toy)


def _name_set(source: Source) -> str:
    """Name a selection by the data set of its annotation, or by its folder."""
    dataset = str(source.annotation_recipe().get("dataset") or source.folder.name)
    return SET_TITLES.get(dataset, dataset)


def _read_selection(source: Source) -> dict[str, Floats]:
    table = read_table(source.folder / "selection", _SCORE_SCHEMA, _SCORE_SCHEMA.names)
    scores = table.column("score").to_numpy()
    # As codes: a loop over rows would take seconds for a million.
    labels = table.column("class_label").combine_chunks().dictionary_encode()
    codes = labels.indices.to_numpy(zero_copy_only=False)
    return {str(name or ""): scores[codes == code] for code, name in enumerate(labels.dictionary.to_pylist())}
