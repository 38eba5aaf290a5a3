"""Draw one image of a rollout: the source, then a column a step with the beam and the next best candidates."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wm.images import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, KEPT, OTHER = "#1667c7", "#7aa9d8", "#d5d8db"
"""Outlines of images: on the way to the best sequence, in the beam, sampled and left out."""
_CELL_IN, _BELOW_IN, _TITLE_IN, _DPI = 1.7, 0.62, 0.24, 110
_LETTERS = 22
"""That fit into a column's width."""


@dataclass(frozen=True)
class Shot:
    """An image with the lines below it."""

    pixels: Pixels  # uint8 RGB, (H, W, 3)
    below: Sequence[str]
    frame: str = OTHER  # colour of its outline


@dataclass(frozen=True)
class Column:
    """A column of images."""

    title: str
    shots: Sequence[Shot]  # best first


def draw_storyboard(columns: Sequence[Column], path: Path) -> None:
    """Draw the storyboard of a rollout.

    Args:
        columns: From left to right in time.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = [textwrap.fill(column.title, _LETTERS, max_lines=5, placeholder=" …") for column in columns]
    head_in = 0.15 + _TITLE_IN * max(title.count("\n") + 1 for title in titles)
    rows = max(len(column.shots) for column in columns)
    row_in = _CELL_IN + _BELOW_IN
    width_in, height_in = len(columns) * (_CELL_IN + 0.35) + 0.2, head_in + rows * row_in
    figure = Figure(figsize=(width_in, height_in), dpi=_DPI, facecolor="white")
    for index, (column, title) in enumerate(zip(columns, titles, strict=True)):
        left_in = 0.2 + index * (_CELL_IN + 0.35)
        # No mathematics in actions, and no font for some scripts: both are the user's own words.
        figure.text(
            left_in / width_in, 1 - 0.1 / height_in, title,
            fontsize=9, fontweight="bold", va="top", ha="left", parse_math=False,
        )  # fmt: skip
        for number, shot in enumerate(column.shots):
            bottom_in = height_in - head_in - number * row_in - _CELL_IN
            box = (left_in / width_in, bottom_in / height_in, _CELL_IN / width_in, _CELL_IN / height_in)
            _draw_shot(figure.add_axes(box), shot)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        FigureCanvasAgg(figure).print_png(buffer)
    path.write_bytes(buffer.getvalue())


def _draw_shot(axes: "Axes", shot: Shot) -> None:
    few = max(shot.pixels.shape[:2]) <= 128
    axes.imshow(shot.pixels, interpolation="nearest" if few else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(shot.frame)
        spine.set_linewidth(3 if shot.frame == CHOSEN else 2)
    axes.set_xlabel("\n".join(shot.below), fontsize=7.5, loc="left", labelpad=4, parse_math=False)
