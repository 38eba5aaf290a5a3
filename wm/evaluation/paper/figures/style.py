"""Set what all figures of the paper share: colours, sizes, panels. Knows no figure and no folder."""

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from wm.images import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's colours ("Color universal design", 2008), which colour-blind readers can tell apart; without the
yellow, which is too light for lines on white."""
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
"""Beside the colours, for print in grey."""
GREY: Final = "#6B7075"
FRAME: Final = "#C9CDD1"
TEXT_PT: Final = 9.0
SMALL_PT: Final = 8.0
TITLE_PT: Final = 10.0
TOY: Final = "toy world"
"""Mark of results of the nano world, which must not be taken for those of the benchmark."""
_DPI: Final = 150
_CELL_PX: Final = 400
_NEAREST_PX: Final = 128
"""Images up to this side are enlarged without smoothing: their pixels are what the codec gave."""


def new_figure(width_in: float, height_in: float, *, constrained: bool = True) -> "Figure":
    """Create an empty figure that no global state of matplotlib knows.

    Args:
        width_in: Width, inches.
        height_in: Height, inches.
        constrained: Let the axes be placed so that no text overlaps; False: the caller places them.

    Returns:
        The figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size_in = width_in, height_in
    figure = Figure(size_in, dpi=_DPI, facecolor="white", layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def mark_toy(title: str, is_toy: bool) -> str:
    """Return the title, marked where its results are those of the nano world.

    Args:
        title: The title.
        is_toy: Whether the bench is the tabletop.
    """
    return f"{title} ({TOY})" if is_toy else title


def wrap(text: str, letters: int, max_lines: int = 3) -> str:
    """Break text into lines; what does not fit ends in an ellipsis.

    Args:
        text: The text.
        letters: Letters a line.
        max_lines: Lines at most.
    """
    return textwrap.fill(text, letters, max_lines=max_lines, placeholder=" …")


def style_axes(axes: "Axes") -> None:
    """Draw a light frame on two sides and a light horizontal grid.

    Args:
        axes: The panel.
    """
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FRAME)
    axes.tick_params(labelsize=SMALL_PT, color=FRAME, length=3)
    axes.grid(axis="y", color="#E8EAEC", linewidth=0.7)
    axes.set_axisbelow(True)


def draw_image(axes: "Axes", pixels_HWC: Pixels | None, *, reason: str = "", frame: str = FRAME) -> None:
    """Draw an image in a frame without ticks, or an empty frame that says why there is none.

    Args:
        axes: The cell; its box should be the image's square.
        pixels_HWC: uint8 RGB; None: there is no image.
        reason: Why there is none.
        frame: Colour of the outline.
    """
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(frame)
        spine.set_linewidth(1.2)
    if pixels_HWC is None:
        axes.set_facecolor("#F6F7F8")
        axes.set_box_aspect(1)
        axes.text(
            0.5, 0.5, wrap(reason, 18, 6), transform=axes.transAxes, ha="center", va="center",
            fontsize=SMALL_PT, color=GREY, parse_math=False,
        )  # fmt: skip
        return
    few = max(pixels_HWC.shape[:2]) <= _NEAREST_PX
    axes.imshow(shrink(pixels_HWC), interpolation="nearest" if few else "antialiased")


def shrink(pixels_HWC: Pixels) -> Pixels:
    """Shrink an image to what a cell can show, so that a page of many stays small; smaller ones stay as they are.

    Args:
        pixels_HWC: uint8 RGB.

    Returns:
        uint8 RGB with a longer side of 400 px at most.
    """
    if max(pixels_HWC.shape[:2]) <= _CELL_PX:
        return pixels_HWC
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
    return np.array(image)


def grid_shape(panels: Sequence[object], max_columns: int) -> tuple[int, int]:
    """Return rows and columns of a grid that holds the panels, its rows filled alike.

    Args:
        panels: The panels.
        max_columns: Columns at most.
    """
    rows = -(-len(panels) // max_columns)
    return rows, -(-len(panels) // rows)


def write_csv(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Write the data of a figure as CSV; numbers keep all their digits, None is an empty field.

    Args:
        head: Names of the columns.
        lines: Values.

    Returns:
        The text.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()
