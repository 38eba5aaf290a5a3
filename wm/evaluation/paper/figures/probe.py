"""Draw the preference probe: likelihoods of references against negatives (Figures 7 and 8), heat maps (Figure 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from wm.evaluation.metrics.stats import Floats, pearson
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.style import COLOURS, GREY, SMALL_PT, TITLE_PT, mark_toy, new_figure, wrap, write_csv
from wm.evaluation.probe import TIE_NATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "random_action": "Random Act.",
    "inverse": "Inverse Obs.",
    "copy": "Copy Obs.",
    "counterfactual_action": "Count. Act.",
    "random_observation": "Random Obs.",
}
"""Kinds of negatives in the order of the figures' panels, with the paper's names."""

_REFERENCE, _NEGATIVE, _TIE = COLOURS[0], COLOURS[1], GREY
_SHARES = "PRGn"
"""Violet below chance, green above it, white at it; both ends are distinct for colour-blind readers."""
_PANEL_IN = 2.45
_MAX_COLUMNS = 14
"""Of heat maps side by side: more would be wider than a page."""
_FONT = 8.5


@dataclass(frozen=True)
class Scatter:
    """Negative log-likelihoods of P pairs of a reference and its negative, in nats."""

    reference: Floats  # (P,)
    negative: Floats  # (P,)
    expected: int  # pairs that there would be if every item of the bench had one

    @property
    def share(self) -> float:
        """Return the share of pairs whose reference is likelier, ties counting half."""
        gap = self.negative - self.reference
        return float(np.where(np.abs(gap) <= TIE_NATS, 0.5, gap > 0).mean())

    @property
    def pearson_r(self) -> float | None:
        """Return Pearson's r of both sides; None if undefined."""
        return pearson(self.reference, self.negative)


@dataclass(frozen=True)
class ScatterData:
    """What Figures 7 and 8 show.

    Attributes:
        title: Such as ``C-ZS, zero-shot``.
        rows: What is scored (action, next observation) → kind of negative → its pairs, or why there are none.
        is_toy: Whether the results are of the toy world.
    """

    title: str
    rows: Mapping[str, Mapping[str, Scatter | Absent]]
    is_toy: bool = False


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map: shares in per cent.

    Attributes:
        share: Ours; None where there is none.
        published: The paper's; None where it prints none, or where it must not stand beside ours.
        pairs: Pairs that ours is over.
        expected: Items of the bench.
    """

    share: float | None = None
    published: float | None = None
    pairs: int = 0
    expected: int = 0


HeatRows: TypeAlias = Mapping[str, Mapping[str, HeatCell]]
"""Row (a negative) → column (a model) → cell; all rows have the same columns."""


@dataclass(frozen=True)
class HeatData:
    """What Figure 2 shows: panel → row (a negative) → column (a model) → cell.

    Attributes:
        panels: The cells.
        note: What an empty cell means.
        is_toy: Whether the results are of the toy world.
    """

    panels: Mapping[str, HeatRows]
    note: str = ""
    is_toy: bool = False


def build_probe_scatter(data: ScatterData) -> "Figure":
    """Draw a row for each thing that is scored and a panel for each negative.

    Args:
        data: The pairs.

    Returns:
        The figure: x is the negative's, y the reference's negative log-likelihood; below the diagonal the reference is
        preferred.
    """
    # All panels, also where a negative is missing: the reader sees that it is.
    columns, rows = len(PANELS), len(data.rows)
    figure = new_figure(_PANEL_IN * columns, _PANEL_IN * rows + 0.75)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes_row, (scored, panels) in zip(grid, data.rows.items(), strict=True):
        for axes, (kind, name) in zip(axes_row, PANELS.items(), strict=True):
            pairs = panels.get(kind, Absent("not in these results"))
            if isinstance(pairs, Absent):
                _draw_absent(axes, name, pairs)
            else:
                _draw_scatter(axes, name, pairs)
        axes_row[0].set_ylabel(f"{scored}\nNLL of the reference (nats)", fontsize=_FONT)
    figure.suptitle(mark_toy(data.title, data.is_toy), fontsize=TITLE_PT)
    return figure


def _draw_scatter(axes: "Axes", name: str, pairs: Scatter) -> None:
    gap = pairs.negative - pairs.reference
    sides = {
        _REFERENCE: gap > TIE_NATS,
        _NEGATIVE: gap < -TIE_NATS,
        _TIE: np.abs(gap) <= TIE_NATS,
    }
    # Small and translucent: hundreds of points lie on the diagonal.
    for colour, inside in sides.items():
        axes.scatter(pairs.negative[inside], pairs.reference[inside], s=9, alpha=0.55, linewidths=0, color=colour)
    both = np.concatenate([pairs.negative, pairs.reference])
    span = float(np.ptp(both)) or 1.0
    # Room above for the legend, on both axes alike: the diagonal is a diagonal.
    low, high = float(both.min()) - 0.04 * span, float(both.max()) + 0.3 * span
    axes.plot([low, high], [low, high], color="#444444", linewidth=0.8, linestyle="--")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    # Entries of their own, since a side may have no point.
    share, r = 100 * pairs.share, pairs.pearson_r
    # As in the paper: one line a side, the correlation behind the second.
    labels = (f"Ref: {share:.1f} %", f"NEG: {100 - share:.1f} %  Corr: {'–' if r is None else f'{r:.2f}'}")
    for label, colour in zip(labels, (_REFERENCE, _NEGATIVE), strict=True):
        axes.scatter([], [], s=16, color=colour, label=label)
    axes.legend(
        fontsize=SMALL_PT, loc="upper left", handletextpad=0.2, borderpad=0.3, labelspacing=0.25, framealpha=0.85,
    )  # fmt: skip
    # Fewer pairs than items are said in the panel itself.
    part = f"\n(n {len(gap)} of {pairs.expected})" if len(gap) < pairs.expected else ""
    axes.set_title(f"{name}{part}", fontsize=_FONT + 0.5)
    axes.set_xlabel("NLL of the negative (nats)", fontsize=_FONT)
    axes.tick_params(labelsize=SMALL_PT)
    axes.locator_params(nbins=4)


def _draw_absent(axes: "Axes", name: str, absent: Absent) -> None:
    # An empty frame with the reason, never points at 0.
    axes.set_title(name, fontsize=_FONT + 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    lines = wrap(absent.reason, 26, 8)
    axes.text(
        0.5, 0.5, f"–\n{lines}", ha="center", va="center", fontsize=SMALL_PT, color=GREY, transform=axes.transAxes,
        parse_math=False,
    )  # fmt: skip
    axes.set_box_aspect(1)


def build_probe_heatmap(data: HeatData) -> "Figure":
    """Draw one heat map a panel: shares of the reference preferred, per cent, around 50.

    Args:
        data: The cells.

    Returns:
        The figure; ours in black, the published value below it in grey.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    blocks = _split_blocks(data.panels)
    widths = [len(names) for _, _, names in blocks]
    # Beside each other where both are narrow, else below each other: a page is no wider than one of them.
    is_stacked = sum(widths) > _MAX_COLUMNS
    heights = [len(rows) for _, rows, _ in blocks]
    if is_stacked:
        figure = new_figure(0.62 * max(widths) + 2.0, sum(0.5 * height + 1.35 for height in heights) + 0.55)
        grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    else:
        figure = new_figure(0.62 * sum(widths) + 1.6 * len(blocks) + 0.6, 0.5 * max(heights) + 1.9)
        grid = figure.subplots(1, len(blocks), squeeze=False, width_ratios=widths)[0]
    for axes, (title, rows, names) in zip(grid, blocks, strict=True):
        _draw_heatmap(axes, rows, names, max(widths) if is_stacked else len(names))
        axes.set_title(title, fontsize=_FONT + 0.5, loc="left" if is_stacked else "center")
    figure.colorbar(
        ScalarMappable(Normalize(0, 100), _SHARES), ax=list(grid), shrink=0.6 if is_stacked else 0.85, pad=0.01,
        ticks=[0, 25, 50, 75, 100],
    ).ax.tick_params(labelsize=SMALL_PT)  # fmt: skip
    title = mark_toy("Share of the reference preferred, per cent", data.is_toy)
    figure.suptitle(title, fontsize=TITLE_PT)
    if data.note:
        figure.supxlabel(data.note, fontsize=SMALL_PT, color=GREY)
    return figure


def _split_blocks(panels: Mapping[str, HeatRows]) -> list[tuple[str, HeatRows, list[str]]]:
    """Split panels that are wider than a page into blocks of nearly equal width: title, rows and columns of each."""
    blocks: list[tuple[str, HeatRows, list[str]]] = []
    for title, rows in panels.items():
        names = list(next(iter(rows.values())))
        count = -(-len(names) // _MAX_COLUMNS)
        size = -(-len(names) // count)
        for number in range(count):
            head = title if number == 0 else f"{title} (continued)"
            blocks.append((head, rows, names[number * size : (number + 1) * size]))
    return blocks


def _draw_heatmap(axes: "Axes", rows: HeatRows, columns: Sequence[str], width: int) -> None:
    """Draw the cells of some columns; ``width``: columns that the axes have room for."""
    from matplotlib import colormaps

    shares = [[cells[name].share for name in columns] for cells in rows.values()]
    values = np.array([[np.nan if share is None else share for share in row] for row in shares], dtype=np.float64)
    # Cells without a figure are grey.
    axes.imshow(values, cmap=colormaps[_SHARES].with_extremes(bad="#f2f2f2"), vmin=0, vmax=100, aspect="auto")
    for number, cells in enumerate(rows.values()):
        for column, name in enumerate(columns):
            _write_cell(axes, column, number, cells[name])
    axes.set_xticks(
        range(len(columns)), columns, rotation=40, ha="right", fontsize=SMALL_PT, rotation_mode="anchor",
        parse_math=False,
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), list(rows), fontsize=SMALL_PT)
    axes.tick_params(length=0)
    # White lines between the cells.
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    # Cells of one size in all blocks: a narrower one leaves room on its right.
    axes.set_xlim(-0.5, width - 0.5)
    axes.spines[:].set_visible(False)


def _write_cell(axes: "Axes", column: int, row: int, cell: HeatCell) -> None:
    is_dark = cell.share is not None and abs(cell.share - 50) > 33
    # A share over fewer pairs than the bench is marked, as everywhere.
    mark = "*" if cell.share is not None and cell.pairs < cell.expected else ""
    text = "–" if cell.share is None else f"{cell.share:.1f}{mark}"
    # Room below for the published one.
    shift = 0.0 if cell.published is None else 0.17
    axes.text(column, row - shift, text, ha="center", va="center", fontsize=8.5, color="white" if is_dark else "black")
    if cell.published is not None:
        grey = "#d8d8d8" if is_dark else "#595959"
        axes.text(column, row + 0.22, f"{cell.published:.1f}", ha="center", va="center", fontsize=SMALL_PT, color=grey)


def scatter_csv(data: ScatterData) -> str:
    """Write the pairs as CSV: scored, negative, both negative log-likelihoods in nats."""
    rows = [
        [scored, kind, *map(repr, pair)]
        for scored, panels in data.rows.items()
        for kind, pairs in panels.items()
        if isinstance(pairs, Scatter)
        for pair in zip(pairs.reference.tolist(), pairs.negative.tolist(), strict=True)
    ]
    return write_csv(["scored", "negative", "nll_reference", "nll_negative"], rows)


def heatmap_csv(data: HeatData) -> str:
    """Write the cells as CSV: panel, negative, model, share, published share, pairs."""
    rows = [
        [panel, negative, model, *("" if value is None else repr(value) for value in (cell.share, cell.published)),
         str(cell.pairs)]
        for panel, by_negative in data.panels.items()
        for negative, cells in by_negative.items()
        for model, cell in cells.items()
    ]  # fmt: skip
    return write_csv(["panel", "negative", "model", "share", "published", "pairs"], rows)
