"""A tree of actions against the rollout of each of its paths."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.code_calls import grow_tree, roll_out
from tests.helpers.models_reference import lively
from wm.dynamics import Observation, Sampling, Search
from wm.errors import InputError
from wm.models import load_model

LEVELS = [["put", "take the block up"], ["move the red cup"], ["up", "down"]]
SHARP = Sampling(temperature=0.4)


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


def test_every_path_is_the_rollout_of_its_actions(vlm):
    source_1N = np.random.default_rng(2).integers(0, 16, (1, 4))
    search, sizes = Search(num_candidates=3), []
    options = {"search": search, "sampling": SHARP, "seed": 5}
    tree = grow_tree(vlm, vlm, source_1N, LEVELS, on_level=lambda level: sizes.append(len(level)), **options)
    assert sizes == [2, 2, 4] and [[branch.parent for branch in level] for level in tree] == [
        [0, 0],
        [0, 1],
        [0, 0, 1, 1],
    ]
    paths = list(itertools.product(*LEVELS))
    rollouts = roll_out(vlm, vlm, np.repeat(source_1N, len(paths), 0), paths, **options)
    for number, (path, rollout) in enumerate(zip(paths, rollouts, strict=True)):
        # From the leaf back to the source.
        branches, index = [], number
        for level in reversed(tree):
            branches.insert(0, level[index])
            index = level[index].parent
        assert tuple(branch.action for branch in branches) == path
        for branch, candidate in zip(branches, rollout.best.candidates, strict=True):
            assert branch.prediction.best.codes == candidate.codes and branch.prediction.best.seed == candidate.seed
            assert branch.prediction.best.score.logprob == pytest.approx(candidate.score.logprob, abs=1e-4)


def test_equal_starts_are_predicted_once(vlm, monkeypatch):
    batches = []

    def predict(_fdm, _idm, sources, actions, **_options):
        batches.append([(source.codes, action) for source, action in zip(sources, actions, strict=True)])
        # Every action but "up" leads to one observation.
        ends = [(1, 1, 1, int(action == "up")) for action in actions]
        return [
            SimpleNamespace(
                best=SimpleNamespace(observation=Observation.from_codes(codes, vlm.codec_id)), candidates=(None,)
            )
            for codes in ends
        ]

    monkeypatch.setattr("wm.dynamics.tree.predict_observations", predict)
    tree = grow_tree(vlm, vlm, [[1, 2, 3, 4]], [["put", "up", "down"], ["take"]], search=Search(num_candidates=1))
    assert batches[1] == [((1, 1, 1, 0), "take"), ((1, 1, 1, 1), "take")]
    assert [branch.parent for branch in tree[1]] == [0, 1, 2]
    assert tree[1][0].prediction is tree[1][2].prediction and tree[1][0].prediction is not tree[1][1].prediction


@pytest.mark.parametrize(
    ("levels", "search", "said"),
    [
        ([], {}, "expected one action or more in each"),
        ([["put"], []], {}, r"levels of the tree = \[\['put'\], \[\]\]: expected one action or more"),
        ([["put"]], {"num_beams": 2}, "num_beams = 2: a tree keeps one sequence"),
    ],
)
def test_trees_that_cannot_be_are_refused(vlm, levels, search, said):
    with pytest.raises(InputError, match=said):
        grow_tree(vlm, vlm, [[1, 2, 3, 4]], levels, search=Search(num_candidates=2, **search))
