"""Figure 5: each image at its place, each action above its own."""

import numpy as np

from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_svg
from wm.evaluation.paper.figures.action_tree import ActionTree, TreeNode, build_action_tree, read_action_tree
from wm.evaluation.paper.sources import Source, Sources


def node(number, action="", children=()):
    return TreeNode(np.full((4, 4, 3), number, np.uint8), action, f"{number}", tuple(children))


def test_parents_are_at_the_middle_of_their_children():
    tree = node(0, children=[node(1, "a", [node(2, "b"), node(3, "c")]), node(4, "$d$", [node(5, "e")])])
    figure = build_action_tree(ActionTree(tree, is_toy=True))
    boxes = {axes.get_images()[0].get_array()[0, 0, 0]: axes.get_position() for axes in figure.axes}
    middle = {number: (box.y0 + box.y1) / 2 for number, box in boxes.items()}
    assert sorted(middle) == list(range(6))
    assert middle[2] > middle[3] > middle[5]
    np.testing.assert_allclose(middle[1], (middle[2] + middle[3]) / 2)
    np.testing.assert_allclose((middle[4], middle[0]), (middle[5], (middle[1] + middle[4]) / 2))
    assert boxes[0].x0 < boxes[1].x0 == boxes[4].x0 < boxes[2].x0 == boxes[5].x0
    texts = [text.get_text() for text in figure.texts]
    assert {"source", "a", "b", "c", "$d$", "e", "Predicted futures (toy world)"} <= set(texts)
    # An edge a child.
    assert len(figure.artists) == 5
    assert save_svg(figure) == save_svg(build_action_tree(ActionTree(tree, is_toy=True)))


def test_a_prediction_without_a_tree_is_none():
    sources = Sources((Source("P", "predict", {"recipe": {"tree": [], "actions": ["put"]}}),))
    absent = read_action_tree(sources)
    assert isinstance(absent, Absent) and "tree='[[" in absent.command
