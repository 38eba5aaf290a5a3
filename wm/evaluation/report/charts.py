"""Draw line charts as inline SVG in the page's own colours, so that they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from wm.evaluation.report.templates import render

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BASE = 52, 406, 10, 210
"""Edges of the plotted area."""
_COLOURS = 6


@dataclass(frozen=True)
class Line:
    """A series."""

    name: str  # in the legend; empty: not there
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int  # number of a page colour
    band: Sequence[float] = ()  # half-width of the shaded spread at each point
    dashed: bool = False
    thin: bool = False

    @property
    def css_colour(self) -> str:
        """Return the colour as the style sheet names it."""
        return f"var(--c{self.colour % _COLOURS})"

    def edge(self, sign: int) -> list[float]:
        """Return the upper (+1) or lower (-1) edge of the band, which is the line itself without one."""
        return [y + sign * half for y, half in zip(self.ys, self.band or [0.0] * len(self.ys), strict=True)]


@dataclass(frozen=True)
class _Frame:
    """The plotted area: converts values to positions in the drawing."""

    stops: Sequence[float]  # the x values that occur, sorted
    even_x: bool
    low: float
    high: float
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    base: int = _BASE

    def x(self, value: float) -> float:
        """Convert an x value."""
        position = self.stops.index(value) if self.even_x else value - self.stops[0]
        span = len(self.stops) - 1 if self.even_x else self.stops[-1] - self.stops[0]
        return round(self.left + (self.right - self.left) * (position / span if span else 0.5), 1)

    def y(self, value: float) -> float:
        """Convert a y value; one below the area moves to its edge."""
        share = (max(value, self.low) - self.low) / (self.high - self.low)
        return round(self.top + (self.base - self.top) * (1 - share), 1)

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
        """Convert a series."""
        return [(self.x(x), self.y(y)) for x, y in zip(xs, ys, strict=True)]

    def band(self, line: Line) -> list[tuple[float, float]]:
        """Convert the outline of a line's band; empty where it has no width."""
        if not any(line.band):
            return []
        return self.points(line.xs, line.edge(1)) + self.points(line.xs, line.edge(-1))[::-1]


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_label: str, even_x: bool = False) -> Markup:
    """Draw a chart with its legend.

    Args:
        title: Text above the chart.
        lines: Series; those without a point are left out. Lines without a name share the legend's entry of their
            colour.
        x_label: Text below the x axis.
        y_label: Text beside the y axis.
        even_x: Equal distances between the x values that occur (K = 1, 2, 4, 8).

    Returns:
        HTML; empty without a point.
    """
    series = [line for line in lines if line.xs]
    if not series:
        return Markup()
    # 1. Axes that hold every band; what is never negative gets no negative axis.
    stops = sorted({x for line in series for x in line.xs})
    floor = 0.0 if all(y >= 0 for line in series for y in line.ys) else -math.inf
    low = min(max(y, floor) for line in series for y in line.edge(-1))
    y_ticks = nice_ticks(low, max(y for line in series for y in line.edge(1)))
    x_ticks: Sequence[float] = stops
    if not even_x:
        # A tick far beyond the last value would only waste room.
        x_ticks = [tick for tick in nice_ticks(stops[0], stops[-1]) if tick <= 1.04 * stops[-1]]
        stops = sorted({*stops, *x_ticks})
    # 2. One legend entry a name.
    legend: dict[str, Line] = {}
    for line in series:
        if line.name:
            legend.setdefault(line.name, line)
    return render(
        "chart.html",
        title=title, lines=series, legend=list(legend.values()), width=_WIDTH, height=_HEIGHT,
        frame=_Frame(stops, even_x, y_ticks[0], y_ticks[-1]), x_ticks=x_ticks, y_ticks=y_ticks,
        x_label=x_label, y_label=y_label,
    )  # fmt: skip


def nice_ticks(low: float, high: float) -> list[float]:
    """List about five round numbers for an axis.

    Args:
        low: Smallest value.
        high: Largest value.

    Returns:
        Numbers that cover [low, high].
    """
    if not high > low:
        low, high = (0.0, 1.0) if low == 0 else (low - 0.5, high + 0.5)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    # Ends that are round up to rounding errors are ends.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def thin_out(values: Sequence[float], points: int = 120) -> list[tuple[float, float]]:
    """Average a noisy curve, so that it becomes readable and keeps its course.

    Args:
        values: The curve.
        points: Max number of points.

    Returns:
        Middle index and mean of as many equal stretches.
    """
    if len(values) <= points:
        return [(float(index), float(value)) for index, value in enumerate(values)]
    edges = [round(index * len(values) / points) for index in range(points + 1)]
    return [((a + b - 1) / 2, sum(values[a:b]) / (b - a)) for a, b in pairwise(edges)]
