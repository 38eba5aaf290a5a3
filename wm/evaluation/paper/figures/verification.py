"""Draw figure 4: a score against the number of candidates K that the verifier chooses among, a panel a subset."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from wm.evaluation.paper.figures.style import (
    COLOURS,
    GREY,
    MARKERS,
    SMALL_PT,
    TEXT_PT,
    TITLE_PT,
    grid_shape,
    mark_toy,
    new_figure,
    style_axes,
    write_csv,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Choice: TypeAlias = Literal["verifier", "oracle", "adaptive"]
AVERAGE: Final = "Avg."
"""Panel of the unweighted mean over the subsets."""
_LEVEL_STYLES: Final = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)))
_PANEL_IN: Final = (2.35, 2.1)


@dataclass(frozen=True)
class Point:
    """A mean. ``k``: candidates, for adaptive N their mean; ``std``: over seeds, None where there is one."""

    k: float
    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Curve:
    """The points of one model in one panel, by rising K."""

    label: str
    choice: Choice
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Level:
    """The mean of a system that predicts once, so that it has no K."""

    label: str
    mean: float


@dataclass(frozen=True)
class Panel:
    """A subset, or :data:`AVERAGE`. ``num_items``: triplets of it; ``note``: of whom there are fewer."""

    title: str
    curves: tuple[Curve, ...]
    levels: tuple[Level, ...] = ()
    num_items: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """Figure 4. ``metric``: what the y axis shows, in words; ``over``: what the bands are over."""

    panels: tuple[Panel, ...]
    metric: str
    over: str = "seeds"
    bound: str = "oracle"
    """What the best of K candidates is by."""
    lower_is_better: bool = False
    is_toy: bool = False


def build_verification(data: Verification) -> "Figure":
    """Draw the panels; a model has one colour and marker in all of them.

    Args:
        data: Panels with at least one curve or level.

    Returns:
        The figure.
    """
    from matplotlib.ticker import MaxNLocator

    rows, columns = grid_shape(data.panels, 3)
    # One panel alone needs room for title and legend, which are as wide as ever.
    width_in, height_in = max(columns * _PANEL_IN[0], 5.2), rows * _PANEL_IN[1] + 1.1
    figure = new_figure(width_in, height_in)
    figure.suptitle(_write_title(data), fontsize=TITLE_PT + 1)
    # A number a label over all panels, also where one of them lacks it.
    labels = list(dict.fromkeys(curve.label for panel in data.panels for curve in panel.curves))
    levels = list(dict.fromkeys(level.label for panel in data.panels for level in panel.levels))
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Artist] = {}
    # 1. Panels; what is left of the grid stays empty.
    for number, axes in enumerate(grid.flat):
        if number >= len(data.panels):
            axes.set_axis_off()
            continue
        panel = data.panels[number]
        size = "" if panel.num_items is None else f"  (n {panel.num_items:,})"
        axes.set_title(f"{panel.title}{size}", fontsize=TITLE_PT, pad=16 if panel.note else 6)
        if panel.note:
            axes.text(0.5, 1.02, panel.note, transform=axes.transAxes, ha="center", fontsize=SMALL_PT, color=GREY)
        style_axes(axes)
        for curve in panel.curves:
            handles |= _draw_curve(axes, curve, labels.index(curve.label), data.bound)
        for level in panel.levels:
            style = _LEVEL_STYLES[levels.index(level.label) % len(_LEVEL_STYLES)]
            line = axes.axhline(level.mean, color=GREY, linestyle=style, linewidth=1.3, label=level.label)
            handles.setdefault(level.label, line)
        ticks = _list_ticks(panel.curves)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if number % columns == 0:
            axes.set_ylabel(data.metric, fontsize=TEXT_PT)
        # Below the last panel of each column.
        if number + columns >= len(data.panels):
            axes.set_xlabel("K candidates", fontsize=TEXT_PT)
        axes.margins(x=0.08)
    # 2. One legend for all, in the order of first appearance.
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(len(handles), 4),
        fontsize=TEXT_PT, frameon=False,
    )  # fmt: skip
    return figure


def _write_title(data: Verification) -> str:
    better = ", lower is better" if data.lower_is_better else ""
    has_bands = any(point.std is not None for panel in data.panels for curve in panel.curves for point in curve.points)
    bands = f"; bands: standard deviation over {data.over}" if has_bands else ""
    return mark_toy(f"Verification: {data.metric}{better}{bands}", data.is_toy)


def _draw_curve(axes: "Axes", curve: Curve, number: int, bound: str) -> dict[str, "Artist"]:
    """Draw a curve with its band, and return its entry of the legend."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    ks, means = [point.k for point in curve.points], [point.mean for point in curve.points]
    if curve.choice == "adaptive":
        label = f"{curve.label}, adaptive N"
        # A dark edge: a white one would cut the lines that the stars lie on.
        stars = axes.plot(
            ks, means, "*", markersize=8.5, color=colour, markeredgecolor="#222222", markeredgewidth=0.6, zorder=4,
            label=label,
        )  # fmt: skip
        return {label: stars[0]}
    # The oracle is a bound and no system: thin, without marks.
    is_oracle = curve.choice == "oracle"
    label = f"{curve.label}, {bound}" if is_oracle else curve.label
    # A band where every point has a spread: one value has none, which is not a spread of 0.
    stds = [point.std for point in curve.points if point.std is not None]
    if len(stds) == len(curve.points) and not is_oracle:
        lows, highs = ([mean + sign * std for mean, std in zip(means, stds, strict=True)] for sign in (-1, 1))
        axes.fill_between(ks, lows, highs, color=colour, alpha=0.18, linewidth=0)
    line = axes.plot(
        ks, means, linestyle=(0, (2, 2)) if is_oracle else "-", linewidth=1.1 if is_oracle else 1.8, color=colour,
        marker="" if is_oracle else marker, markersize=5, label=label,
    )[0]  # fmt: skip
    return {label: line}


def _list_ticks(curves: Sequence[Curve]) -> list[float]:
    """List the K of the curves as ticks; a mean number of candidates is none."""
    return sorted({point.k for curve in curves if curve.choice != "adaptive" for point in curve.points})


def verification_csv(data: Verification) -> str:
    """Write a line a point; levels are of K = 1.

    Args:
        data: As :func:`build_verification` draws it.

    Returns:
        CSV with a head.
    """
    lines = []
    # As the panels are: by subset, then by system.
    for panel in data.panels:
        for curve in panel.curves:
            lines += [(panel.title, curve.label, curve.choice, *astuple(point)) for point in curve.points]
        lines += [(panel.title, level.label, "none", 1.0, level.mean, None) for level in panel.levels]
    return write_csv(("panel", "system", "choice", "k", data.metric, "std"), lines)
