"""``wm predict`` with a tree of actions: files, figure, refusals."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs.predict import PredictRecipe, run
from wm.errors import InputError
from wm.evaluation.paper.figures.action_tree import load_action_tree
from wm.models import load_codec

LEVELS = [["put", "take"], ["up", "down"]]


@pytest.fixture(scope="module")
def predicted(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / "a.png")
    values = {"fdm": str(tiny_base), "idm": str(tiny_base), "image": str(folder / "a.png"), "out": str(folder / "out")}
    recipe = PredictRecipe.parse(values | {"tree": LEVELS, "search": {"num_candidates": 2}}, "test")
    assert run(recipe, dry_run=True) == {} and not (folder / "out").exists()
    return folder / "out", run(recipe)["counts"]


def test_all_branches_are_written(predicted, tiny_base):
    out, counts = predicted
    record = json.loads((out / "tree.json").read_text())
    first, second = record["levels"]
    assert [branch["action"] for branch in first] == LEVELS[0]
    assert [(branch["parent"], branch["action"]) for branch in second] == [
        (parent, action) for parent in (0, 1) for action in LEVELS[1]
    ]
    codec = load_codec(tiny_base)
    for branch in (*first, *second):
        pixels = codec.decode(np.array([branch["codes"]]))[0]
        assert np.array_equal(np.array(Image.open(out / branch["image"])), pixels)
        assert branch["mean_logprob"] == pytest.approx(branch["logprob"] / branch["tokens"])
    assert counts["levels"] == 2 and counts["branches"] == 6 and 8 <= counts["draws"] <= 12
    assert Image.open(out / "tree.png").size[0] > 300


def test_the_figure_has_what_is_in_the_file(predicted):
    out, _ = predicted
    root = load_action_tree(out).root
    assert [child.action for child in root.children] == LEVELS[0]
    assert all([leaf.action for leaf in child.children] == LEVELS[1] for child in root.children)
    assert np.array_equal(root.children[1].children[0].pixels, np.array(Image.open(out / "branches/2-3.png")))
    with pytest.raises(InputError, match=r"tree\.json is no tree of actions"):
        load_action_tree(out / "branches")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"actions": ["put"]}, "tree belongs to image, without actions"),
        ({"image": "", "triplets": "t"}, "tree belongs to image, without triplets"),
        ({"search": {"num_beams": 2}}, "search.num_beams = 2 belongs to actions; a tree keeps one sequence"),
        ({"tree": [["put", "put"]]}, "level 1 of tree has one action twice"),
        ({"tree": [["put"], []]}, "level 2 of tree is empty"),
        ({"tree": [[f"put {number}" for number in range(8)]] * 2}, "tree has 72 images; expected 64 at most"),
        ({"tree": [["put", " "]]}, "action ' ' is empty"),
    ],
)
def test_trees_that_cannot_be_are_refused(more, said):
    values = {"fdm": "f", "idm": "i", "image": "a.png", "out": "o", "tree": LEVELS}
    with pytest.raises(InputError, match=said):
        PredictRecipe.parse(values | more, "test")
