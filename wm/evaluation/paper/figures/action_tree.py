"""Draw figure 5: a tree of predicted images, from the source over first actions to further ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wm.evaluation.paper.figures.style import GREY, SMALL_PT, TEXT_PT, TITLE_PT, draw_image, mark_toy, new_figure, wrap
from wm.images import Pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL_IN: Final = 1.3
_GAP_IN: Final = 0.75
"""Room between two levels, for the edges."""
_ROW_IN: Final = 1.95
"""A leaf with its action above and its score below."""
_RIGHT_IN: Final = 0.5
"""Room right of the last level, over which its actions may reach."""
_LETTERS: Final = 20


@dataclass(frozen=True)
class TreeNode:
    """An image, the action that led to it (empty for the source), a line below it, and what was predicted from it."""

    pixels: Pixels
    action: str = ""
    below: str = ""
    children: tuple["TreeNode", ...] = ()


def build_action_tree(root: TreeNode, *, is_toy: bool = False) -> "Figure":
    """Draw the tree from left to right.

    Args:
        root: The source.
        is_toy: Whether its world is the nano world.

    Returns:
        The figure.
    """
    placed = list(_place(root, 0, [0]))
    depth, leaves = max(level for _, level, _, _ in placed), sum(not node.children for node, _, _, _ in placed)
    head_in = 0.35 if is_toy else 0.05
    width_in = (depth + 1) * _CELL_IN + depth * _GAP_IN + 0.15 + _RIGHT_IN
    height_in = leaves * _ROW_IN + head_in + 0.1
    figure = new_figure(width_in, height_in, constrained=False)
    if is_toy:
        figure.text(
            0.5, 1 - 0.1 / height_in, mark_toy("Predicted futures", True), fontsize=TITLE_PT, ha="center", va="top"
        )
    for node, level, row, parent_row in placed:
        left_in = 0.15 + level * (_CELL_IN + _GAP_IN)
        middle_in = height_in - head_in - (row + 0.5) * _ROW_IN
        box = left_in / width_in, (middle_in - _CELL_IN / 2) / height_in, _CELL_IN / width_in, _CELL_IN / height_in
        draw_image(figure.add_axes(box), node.pixels)
        # People's own words: no mathematics in them.
        figure.text(
            left_in / width_in, (middle_in + _CELL_IN / 2 + 0.05) / height_in,
            wrap(node.action or "source", _LETTERS, 2), fontsize=TEXT_PT, fontweight="bold", va="bottom",
            parse_math=False,
        )  # fmt: skip
        figure.text(
            left_in / width_in, (middle_in - _CELL_IN / 2 - 0.05) / height_in, node.below, fontsize=SMALL_PT,
            color=GREY, va="top", parse_math=False,
        )  # fmt: skip
        if parent_row is not None:
            parent_in = height_in - head_in - (parent_row + 0.5) * _ROW_IN
            _draw_edge(figure, (left_in - _GAP_IN, parent_in), (left_in, middle_in), (width_in, height_in))
    return figure


def _place(
    node: TreeNode, level: int, next_row: list[int], parent: int = -1
) -> Iterator[tuple[TreeNode, int, float, float | None]]:
    """Yield each node with its level, its row and its parent's: leaves one below the other, parents at their middle."""
    below = [list(_place(child, level + 1, next_row)) for child in node.children]
    if below:
        row = sum(placed[-1][2] for placed in below) / len(below)
    else:
        row = float(next_row[0])
        next_row[0] += 1
    for placed in below:
        yield from placed[:-1]
        child, child_level, child_row, _ = placed[-1]
        yield child, child_level, child_row, row
    yield node, level, row, None


def _draw_edge(figure: "Figure", start_in: Sequence[float], end_in: Sequence[float], size_in: Sequence[float]) -> None:
    """Draw an edge from the right side of a parent to the left side of a child."""
    from matplotlib.lines import Line2D

    middle_in = (start_in[0] + end_in[0]) / 2
    xs = [start_in[0] + 0.04, middle_in, middle_in, end_in[0] - 0.04]
    ys = [start_in[1], start_in[1], end_in[1], end_in[1]]
    figure.add_artist(Line2D([x / size_in[0] for x in xs], [y / size_in[1] for y in ys], color=GREY, linewidth=1.2))
