"""Draw figure 3: where an action changes an image, as the recognition model weighs the target's tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from wm.evaluation.metrics.stats import Floats
from wm.evaluation.paper.figures.style import FRAME, SMALL_PT, TEXT_PT, TITLE_PT, draw_image, mark_toy, new_figure, wrap
from wm.images import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL_IN: Final = 1.45
_COLOUR_MAP: Final = "viridis"
_ROWS: Final = ("source", "target", "token weights")


@dataclass(frozen=True)
class WeightedTriplet:
    """A triplet of a data set. ``weights``: of the target's image tokens, (side, side), mean 1; None with a reason."""

    title: str
    action: str
    source: Pixels
    target: Pixels
    weights: Floats | None
    reason: str = ""


@dataclass(frozen=True)
class HeatMaps:
    """Figure 3."""

    triplets: tuple[WeightedTriplet, ...]
    is_toy: bool = False


def to_weights(change_N: Floats) -> Floats | None:
    """Turn squared feature distances into weights of mean 1 (paper, section 3.2).

    Args:
        change_N: Row-major over a square of tokens, each 0 or more.

    Returns:
        (side, side); ones where nothing changes; None where the tokens are no square.
    """
    side = round(len(change_N) ** 0.5)
    if not side or side * side != len(change_N):
        return None
    # An image without change has no mean to divide by: plain weights, as in the loss.
    mean = float(change_N.mean())
    weights: Floats = (change_N / mean if mean > 0 else np.ones(len(change_N))).reshape(side, side)
    return weights


def build_heat_maps(data: HeatMaps) -> "Figure":
    """Draw a column a data set: source, target, and the weights on a scale of their own.

    Args:
        data: At least one triplet.

    Returns:
        The figure.
    """
    columns = len(data.triplets)
    # Room for the data set's name and two lines of the action.
    head_in = 0.95 if data.is_toy else 0.7
    width_in, height_in = 0.3 + columns * (_CELL_IN + 0.08), head_in + 3 * (_CELL_IN + 0.08) + 0.25
    figure = new_figure(width_in, height_in, constrained=False)
    if data.is_toy:
        title = mark_toy("Token weights", True)
        figure.text(0.5, 1 - 0.08 / height_in, title, fontsize=TITLE_PT, ha="center", va="top")
    # Boxes in inches: all images have one size, whatever their texts.
    for column, triplet in enumerate(data.triplets):
        left_in = 0.28 + column * (_CELL_IN + 0.08)
        figure.text(
            left_in / width_in, 1 - (head_in - 0.4) / height_in, triplet.title, fontsize=TEXT_PT, fontweight="bold",
            va="bottom", parse_math=False,
        )  # fmt: skip
        figure.text(
            left_in / width_in, 1 - (head_in - 0.37) / height_in, wrap(triplet.action, 25, 2), fontsize=SMALL_PT,
            va="top", parse_math=False,
        )  # fmt: skip
        for row in range(3):
            bottom_in = height_in - head_in - row * (_CELL_IN + 0.08) - _CELL_IN
            size = _CELL_IN / width_in, _CELL_IN / height_in
            axes = figure.add_axes((left_in / width_in, bottom_in / height_in, *size))
            if row < 2:
                draw_image(axes, (triplet.source, triplet.target)[row])
            else:
                _draw_weights(axes, triplet)
            if column == 0:
                axes.set_ylabel(_ROWS[row], fontsize=SMALL_PT, labelpad=3)
    return figure


def _draw_weights(axes: "Axes", triplet: WeightedTriplet) -> None:
    """Draw the weights over the target in grey, so that a reader sees what they are of."""
    if triplet.weights is None:
        draw_image(axes, None, reason=triplet.reason)
        return
    grey_HW = triplet.target.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    height_px, width_px = grey_HW.shape
    # Both over one extent: a token covers its own pixels.
    extent = (-0.5, width_px - 0.5, height_px - 0.5, -0.5)
    axes.imshow(grey_HW, cmap="gray", vmin=0, vmax=255, extent=extent)
    # A scale of its own: one image's largest weight says nothing of another's.
    top = float(triplet.weights.max())
    axes.imshow(triplet.weights, cmap=_COLOUR_MAP, vmin=0, vmax=top, extent=extent, alpha=0.7, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FRAME)
    axes.set_xlabel(f"0 to {top:.3g} (mean 1)", fontsize=SMALL_PT, labelpad=3)
