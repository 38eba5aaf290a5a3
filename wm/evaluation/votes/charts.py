"""Draw a study: mean votes with their intervals, win rates, and which positions were chosen. Computes nothing."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from wm.evaluation.paper.figures.style import (
    COLOURS,
    FRAME,
    GREY,
    SMALL_PT,
    TEXT_PT,
    TITLE_PT,
    grid_shape,
    new_figure,
    style_axes,
    wrap,
)
from wm.evaluation.votes.figures import PositionFigures, StudyFigures, VoteFigure, WinFigures
from wm.evaluation.votes.means import ALL
from wm.evaluation.votes.numbers import format_number, headline, row_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_LETTERS: Final = 18
_MAX_COLUMNS: Final = 3
_ROW_IN: Final = 0.30
_COLOUR_MAP: Final = "RdBu"


def draw_means(figures: StudyFigures) -> "Figure":
    """Draw a panel of all items and one a subset: mean vote of each system with its interval.

    Args:
        figures: Of the study.

    Returns:
        The figure.
    """
    # All first: it is what a reader came for.
    rows = [ALL, *(row for row in figures["rows"] if row != ALL)]
    rows = rows[:1] if len(rows) == 2 else rows
    lines, columns = grid_shape(rows, _MAX_COLUMNS)
    height_in = lines * (len(figures["systems"]) * _ROW_IN + 0.75) + 0.5
    figure = new_figure(columns * 2.5 + 1.0, height_in)
    figure.suptitle(headline(figures), fontsize=TITLE_PT + 1, fontweight="bold", parse_math=False)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    bound = _find_bound(figures, rows)
    for number, axes in enumerate(grid.flat):
        # Fewer panels than places.
        if number >= len(rows):
            axes.set_visible(False)
            continue
        row = rows[number]
        _draw_panel(axes, figures["table"][row], figures["systems"], figures["reference"])
        weight = "bold" if row == ALL else "normal"
        axes.set_title(row_title(row), fontsize=TITLE_PT, fontweight=weight, parse_math=False)
        axes.set_xlim(-bound, bound)
        # The lowest panel of each column names what it shows.
        if number + columns >= len(rows):
            axes.set_xlabel("mean vote (−1 worst … +1 best)", fontsize=SMALL_PT)
            axes.xaxis.set_tick_params(labelbottom=True)
    return figure


def _find_bound(figures: StudyFigures, rows: Sequence[str]) -> float:
    """Find the end of an axis that holds all intervals and is no larger than the scale."""
    ends = [
        abs(value)
        for row in rows
        for figure in figures["table"][row].values()
        for value in (figure["mean"], figure["ci_low"], figure["ci_high"])
        if value is not None
    ]
    return min(1.05, 1.12 * max([*ends, 0.2]))


def _draw_panel(axes: "Axes", table: Mapping[str, VoteFigure], systems: Sequence[str], reference: str) -> None:
    """Draw a row of points with their intervals, the first system on top."""
    style_axes(axes)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#E8EAEC", linewidth=0.7)
    axes.axvline(0, color=GREY, linewidth=0.9, linestyle=(0, (3, 3)))
    # Names and titles are anybody's: a dollar in them begins no formula.
    axes.set_yticks(range(len(systems)), [wrap(system, _NAME_LETTERS, 2) for system in systems], parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=TEXT_PT)
    axes.set_ylim(len(systems) - 0.4, -0.6)
    for level, system in enumerate(systems):
        figure = table[system]
        if figure["mean"] is None:
            axes.text(0, level, "no vote", fontsize=SMALL_PT, color=GREY, ha="center", va="center")
            continue
        # The reference has the second colour of every figure.
        colour = COLOURS[1] if system == reference else COLOURS[0]
        if figure["ci_low"] is not None and figure["ci_high"] is not None:
            axes.plot([figure["ci_low"], figure["ci_high"]], [level, level], color=colour, linewidth=2.2, alpha=0.45)
        axes.plot([figure["mean"]], [level], "o", color=colour, markersize=6.5, zorder=4)
        # Above its point, where neither interval nor grid is.
        text = format_number(figure["mean"], signed=True) + ("†" if figure["is_different"] else "")
        axes.annotate(
            text, (figure["mean"], level), (0, 5), textcoords="offset points", ha="center", fontsize=SMALL_PT - 0.5,
            color="#1C2024", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def draw_wins(figures: StudyFigures) -> "Figure":
    """Draw win rates as heat maps: of people, and beside it of the judge where there is one.

    Args:
        figures: Of the study.

    Returns:
        The figure.
    """
    mark = " (simulated)" if figures["kind"] == "simulated" else ""
    panels = [(f"People{mark}", figures["wins_by_item"])]
    if figures["judge"] is not None:
        panels.append((figures["judge"]["model"], figures["judge"]["wins"]))
    side_in = max(2.4, 0.72 * len(figures["systems"]) + 1.0)
    figure = new_figure(len(panels) * (side_in + 0.35) + 0.7, side_in + 0.9)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, wins) in zip(grid, panels, strict=True):
        _draw_map(axes, wins, figures["systems"])
        axes.set_title(wrap(title, 34, 2), fontsize=TITLE_PT, fontweight="bold", parse_math=False)
    figure.supxlabel("share of items on which the row is preferred to the column; ties below", fontsize=SMALL_PT)
    return figure


def _draw_map(axes: "Axes", wins: WinFigures, systems: Sequence[str]) -> None:
    """Draw a square a pair, blue where the row wins more often than it loses, with both numbers."""
    import numpy as np

    values = np.array([[wins["wins"][row][column] for column in systems] for row in systems], dtype=np.float64)
    ties = np.array([[wins["ties"][row][column] for column in systems] for row in systems], dtype=np.float64)
    # Half of the ties to each, for the colour alone: ½ is then in the middle.
    axes.imshow(values + ties / 2, cmap=_COLOUR_MAP, vmin=0, vmax=1, alpha=0.85)
    names = [wrap(system, _NAME_LETTERS, 2) for system in systems]
    rotation = 30 if max(map(len, names)) > 7 else 0
    axes.set_xticks(range(len(systems)), names, fontsize=SMALL_PT, rotation=rotation, parse_math=False)
    axes.set_yticks(range(len(systems)), names, fontsize=SMALL_PT, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_color(FRAME)
    for row, column in np.ndindex(values.shape):
        if np.isnan(values[row, column]):
            continue
        # White on the dark ends of the colour map.
        is_dark = abs(values[row, column] + ties[row, column] / 2 - 0.5) > 0.34
        axes.text(
            column, row - 0.06, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=TEXT_PT + 1,
            fontweight="bold", color="white" if is_dark else "#1C2024",
        )  # fmt: skip
        if ties[row, column]:
            axes.text(
                column, row + 0.28, f"ties {ties[row, column]:.2f}", ha="center", va="center", fontsize=SMALL_PT - 1.5,
                color="white" if is_dark else "#3B4147",
            )  # fmt: skip


def draw_positions(figures: StudyFigures) -> "Figure":
    """Draw how often each position was chosen as the best and as the worst, beside what is expected without a bias.

    Args:
        figures: Of the study.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MaxNLocator

    choices = (("best", figures["best_positions"], COLOURS[0]), ("worst", figures["worst_positions"], COLOURS[1]))
    figure = new_figure(6.0, 2.4)
    grid = figure.subplots(1, 2, sharey=True)
    for axes, (title, positions, colour) in zip(grid, choices, strict=True):
        style_axes(axes)
        counts = positions["counts"]
        axes.bar(range(len(counts)), counts, color=colour, width=0.7)
        # Without a bias all bars would end here.
        axes.axhline(sum(counts) / len(counts), color="black", linewidth=1.0, linestyle=(0, (3, 3)))
        axes.set_xticks(range(len(counts)), [f"Model {number + 1}" for number in range(len(counts))], fontsize=SMALL_PT)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_title(f"chosen as {title}{_p_text(positions)}", fontsize=TITLE_PT)
    grid[0].set_ylabel("votes", fontsize=TEXT_PT)
    return figure


def _p_text(positions: PositionFigures) -> str:
    p = positions["p"]
    if p is None:
        return ""
    return " (p < .001)" if p < 0.001 else f" (p = {p:.2f})"
