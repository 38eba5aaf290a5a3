"""Draw line charts as inline SVG in the page's own colours, so that they follow light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP = 52, 14, 10
_BASE = _HEIGHT - 40
COLOURS = 6


@dataclass(frozen=True)
class Line:
    """A series. ``band``: half-width of the shaded spread at each point. ``colour``: number of a page
    colour."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int
    band: Sequence[float] = field(default=())
    dashed: bool = False
    thin: bool = False


@dataclass(frozen=True)
class _Frame:
    """From values to places in the drawing. ``stops``: the x values that occur, sorted."""

    stops: Sequence[float]
    even_x: bool
    low: float
    high: float

    def x(self, value: float) -> float:
        position = self.stops.index(value) if self.even_x else value - self.stops[0]
        span = len(self.stops) - 1 if self.even_x else self.stops[-1] - self.stops[0]
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (position / span if span else 0.5)

    def y(self, value: float) -> float:
        return _TOP + (_BASE - _TOP) * (1 - (value - self.low) / (self.high - self.low))


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    even_x: bool = False,
    from_zero: bool = False,
) -> str:
    """Draw a chart with its legend.

    Args:
        title: Text above the chart.
        lines: Series; those without a point are left out.
        x_label: Text below the x axis.
        y_label: Text beside the y axis.
        even_x: Equal distances between the x values that occur (K = 1, 2, 4, 8).
        from_zero: Start the y axis at 0.

    Returns:
        HTML; empty without a point.
    """
    series = [line for line in lines if line.xs]
    if not series:
        return ""
    stops = sorted({x for line in series for x in line.xs})
    floor = 0.0 if all(y >= 0 for line in series for y in line.ys) else -math.inf
    lows = [max(y - b, floor) for line in series for y, b in _with_band(line)]
    highs = [y + b for line in series for y, b in _with_band(line)]
    y_ticks = nice_ticks(min([*lows, 0.0] if from_zero else lows), max(highs))
    x_ticks: Sequence[float] = stops
    if not even_x:
        # A tick far beyond the last value would only waste room.
        x_ticks = [tick for tick in nice_ticks(stops[0], stops[-1]) if tick <= 1.04 * stops[-1]]
        stops = sorted({*stops, *x_ticks})
    frame = _Frame(stops, even_x, y_ticks[0], y_ticks[-1])
    parts = _axes(frame, x_ticks, y_ticks, x_label, y_label)
    for line in series:
        parts += _band(line, frame) + _stroke(line, frame)
    drawing = "".join(parts)
    name = escape(title)
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{drawing}</svg>'
    return f"<figure><figcaption>{name}</figcaption>{legend(series)}{svg}</figure>"


def _axes(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> list[str]:
    right, half = _WIDTH - _RIGHT, (_TOP + _BASE) / 2
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{_BASE}" y2="{_BASE}"/>')
    for tick in x_ticks:
        parts.append(f'<text x="{frame.x(tick):.1f}" y="{_BASE + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    turn = f'transform="rotate(-90 13 {half})"'
    parts.append(f'<text x="13" y="{half}" text-anchor="middle" {turn}>{escape(y_label)}</text>')
    return parts


def legend(lines: Sequence[Line]) -> str:
    """One entry a name; lines without a name share the entry of their colour."""
    styles: dict[str, str] = {}
    for line in lines:
        if not line.name:
            continue
        dash = ' class="dash"' if line.dashed else ""
        stroke = f'<i{dash} style="border-color:var(--c{line.colour % COLOURS})"></i>'
        styles.setdefault(line.name, f"<span>{stroke}{escape(line.name)}</span>")
    return f'<div class="legend">{"".join(styles.values())}</div>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that cover [low, high]."""
    if not high > low:
        low, high = (0.0, 1.0) if low == 0 else (low - 0.5, high + 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def thin_out(values: Sequence[float], points: int = 120) -> list[tuple[float, float]]:
    """Return (index, mean) of ``points`` equal stretches: a noisy curve becomes readable and keeps its course."""
    if len(values) <= points:
        return [(float(index), float(value)) for index, value in enumerate(values)]
    edges = [round(index * len(values) / points) for index in range(points + 1)]
    return [((a + b - 1) / 2, sum(values[a:b]) / (b - a)) for a, b in pairwise(edges)]


def _with_band(line: Line) -> list[tuple[float, float]]:
    return list(zip(line.ys, line.band or [0.0] * len(line.ys), strict=True))


def _band(line: Line, frame: _Frame) -> list[str]:
    if not any(line.band):
        return []
    both = list(zip(line.xs, line.ys, line.band, strict=True))
    edge = [(x, y + b) for x, y, b in both] + [(x, max(y - b, frame.low)) for x, y, b in reversed(both)]
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
    return [f'<polygon points="{points}" fill="var(--c{line.colour % COLOURS})" opacity=".14"/>']


def _stroke(line: Line, frame: _Frame) -> list[str]:
    colour = f"var(--c{line.colour % COLOURS})"
    points = [(frame.x(x), frame.y(y)) for x, y in zip(line.xs, line.ys, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    width = 1.2 if line.thin else 2.2
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dash}/>']
    if not line.thin:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return parts
