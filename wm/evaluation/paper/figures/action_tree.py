"""Draw figure 5: a tree of predicted images, from the source over first actions to further ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, cast

import numpy as np

from wm.errors import InputError
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.style import GREY, SMALL_PT, TEXT_PT, TITLE_PT, draw_image, mark_toy, new_figure, wrap
from wm.evaluation.paper.sources import Sources
from wm.images import Pixels, decode_image
from wm.runs import parse_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TREE_FILE: Final = "tree.json"
"""What ``predict`` writes of a tree of actions."""
_CELL_IN: Final = 1.3
_GAP_IN: Final = 1.0
"""Room between two levels, for the edges."""
_ROW_IN: Final = 2.1
"""A leaf with its action above and its score below."""
_RIGHT_IN: Final = 0.85
"""Room right of the last level, over which its actions may reach."""
_LETTERS: Final = 20
_NO_IMAGE: Final = np.full((8, 8, 3), 235, np.uint8)
"""In place of an image that the forward model did not give: light grey."""


class StoredBranch(TypedDict):
    """What the figure needs of a branch of :data:`TREE_FILE`."""

    parent: int
    action: str
    image: str | None
    """File; None where the forward model gave no image, and there is no likelihood either."""
    mean_logprob: float


@dataclass(frozen=True)
class TreeNode:
    """An image, the action that led to it (empty for the source), a line below it, and what was predicted from it."""

    pixels: Pixels
    action: str = ""
    below: str = ""
    children: tuple["TreeNode", ...] = ()


@dataclass(frozen=True)
class ActionTree:
    """Figure 5."""

    root: TreeNode
    is_toy: bool = False


def build_action_tree(data: ActionTree) -> "Figure":
    """Draw the tree from left to right.

    Args:
        data: The source and what follows it.

    Returns:
        The figure.
    """
    root, is_toy = data.root, data.is_toy
    # 1. Levels from left to right, leaves one below the other.
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
    # 2. Images, their texts, and an edge from each parent.
    for node, level, row, parent_row in placed:
        left_in = 0.15 + level * (_CELL_IN + _GAP_IN)
        middle_in = height_in - head_in - (row + 0.5) * _ROW_IN
        box = left_in / width_in, (middle_in - _CELL_IN / 2) / height_in, _CELL_IN / width_in, _CELL_IN / height_in
        draw_image(figure.add_axes(box), node.pixels)
        # Actions are free text: a dollar sign begins no formula.
        figure.text(
            left_in / width_in, (middle_in + _CELL_IN / 2 + 0.05) / height_in,
            wrap(node.action or "source", _LETTERS, 3), fontsize=TEXT_PT, fontweight="bold", va="bottom",
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
    # Children first: a parent's row is the mean of theirs.
    below = [list(_place(child, level + 1, next_row)) for child in node.children]
    if below:
        row = sum(placed[-1][2] for placed in below) / len(below)
    else:
        row = float(next_row[0])
        next_row[0] += 1
    # The last one of each subtree is the child itself, whose parent is this node.
    for placed in below:
        yield from placed[:-1]
        child, child_level, child_row, _ = placed[-1]
        yield child, child_level, child_row, row
    yield node, level, row, None


def _draw_edge(figure: "Figure", start_in: Sequence[float], end_in: Sequence[float], size_in: Sequence[float]) -> None:
    """Draw an edge from the right side of a parent to the left side of a child."""
    from matplotlib.lines import Line2D

    # Right angles: slanted edges would cross the texts.
    middle_in = (start_in[0] + end_in[0]) / 2
    xs = [start_in[0] + 0.04, middle_in, middle_in, end_in[0] - 0.04]
    ys = [start_in[1], start_in[1], end_in[1], end_in[1]]
    figure.add_artist(Line2D([x / size_in[0] for x in xs], [y / size_in[1] for y in ys], color=GREY, linewidth=1.2))


def load_action_tree(folder: Path, *, is_toy: bool = False) -> ActionTree:
    """Load the tree that ``predict`` wrote, with the likelihood of each action below its image.

    Args:
        folder: Its output folder.
        is_toy: Whether its world is the nano world.

    Returns:
        The tree.

    Raises:
        InputError: A file is missing or damaged.
    """
    path = folder / TREE_FILE
    try:
        record = parse_json(path.read_bytes(), str(path))
        levels = cast(list[list[StoredBranch]], record["levels"])
        # From the leaves on: a node is complete when its children are.
        children: dict[int, list[TreeNode]] = {}
        for level in reversed(levels):
            nodes: dict[int, list[TreeNode]] = {}
            for number, branch in enumerate(level):
                if branch["image"] is None:
                    node = TreeNode(_NO_IMAGE, branch["action"], "no image")
                else:
                    below = f"{branch['mean_logprob']:.3f} nats/token"
                    image = _load_image(folder / branch["image"])
                    node = TreeNode(image, branch["action"], below, tuple(children.get(number, ())))
                nodes.setdefault(branch["parent"], []).append(node)
            children = nodes
        return ActionTree(
            TreeNode(_load_image(folder / record["source"]["image"]), children=tuple(children.get(0, ()))), is_toy
        )
    except (OSError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no tree of actions, or lacks an image: {error!r:.100}") from error


def _load_image(path: Path) -> Pixels:
    return decode_image(path.read_bytes(), str(path))


def read_action_tree(sources: Sources) -> ActionTree | Absent:
    """Load the first prediction of a tree among the results.

    Args:
        sources: The results.

    Returns:
        The tree; absent without one.
    """
    for source in sources.of("predict"):
        if source.recipe("tree"):
            is_toy = sources.is_toy or str(source.recipe("fdm", "")).startswith("nano:")
            return load_action_tree(source.folder, is_toy=is_toy)
    return Absent(
        "no prediction of a tree of actions",
        """wm predict fdm=FDM idm=IDM image=IMAGE tree='[["cut the onion", "whisk the egg"], ["whisk the egg", "cut """
        """the onion"]]' out=TREE""",
    )
