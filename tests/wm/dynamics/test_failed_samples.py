"""Searches and rollouts where the forward model gives no image for some candidates, or for all."""

import numpy as np
import pytest

from wm.dynamics import (
    Observation,
    SampleFailure,
    Samples,
    Sampling,
    ScoredAction,
    Search,
    grow_tree,
    predict_observations,
    roll_out,
)
from wm.errors import InputError

BLACK = SampleFailure("black_image", "every pixel is black")


def image(value: int) -> Observation:
    return Observation.from_pixels(np.full((8, 8, 3), value, np.uint8))


class Editor:
    """Makes an image of value 10 x (candidate + 1), except for the candidates that fail."""

    model_id, kind = "editor", "editor"

    def __init__(self, *failing: int) -> None:
        self.failing = failing

    def check_action(self, action) -> None:
        if not action:
            raise InputError("action is empty")

    def check_search(self, search, sampling) -> None:
        pass

    def sample(self, sources, actions, *, candidates, **_options):
        row = [BLACK if index in self.failing else image(10 * (index + 1)) for index in candidates]
        return Samples([list(row) for _ in sources])


class Eyes:
    """Score an action by the target's brightness: log p = -1 / value."""

    model_id, kind = "eyes", "pixels"

    def check_action(self, action) -> None:
        pass

    def score(self, sources, targets, actions, *, batch_size=None):
        values = [float(target._pixels_HWC.mean()) for target in targets]
        return [ScoredAction(action, -1 / value, 1) for action, value in zip(actions, values, strict=True)]


def test_failed_candidates_are_named_and_left_out():
    search = Search(num_candidates=4)
    (prediction,) = predict_observations(Editor(3, 0), Eyes(), [image(0)], ["brighten"], search=search)
    assert [candidate.index for candidate in prediction.candidates] == [2, 1]
    assert prediction.failures == ((0, BLACK), (3, BLACK))
    assert prediction.best.observation == image(30)
    with pytest.raises(InputError, match="made of pixels"):
        _ = prediction.best.codes


def test_an_unreadable_action_is_refused_before_any_work():
    editor = Editor()
    editor.sample = None
    with pytest.raises(InputError, match="action is empty"):
        predict_observations(editor, Eyes(), [image(0)] * 2, ["brighten", ""], search=Search(num_candidates=1))


def test_a_round_without_image_does_not_end_the_search():
    search = Search(num_candidates=4, min_candidates=1, min_gain_nats=5.0)
    (prediction,) = predict_observations(Editor(0), Eyes(), [image(0)], ["brighten"], search=search)
    assert prediction.rounds == 2 and [candidate.index for candidate in prediction.candidates] == [1]


def test_no_image_at_all_is_an_error_only_when_asked_for():
    search = Search(num_candidates=2)
    (prediction,) = predict_observations(Editor(0, 1), Eyes(), [image(0)], ["brighten"], search=search)
    assert prediction.candidates == () and len(prediction.failures) == 2
    with pytest.raises(InputError, match="none of 2 candidates has an image: every pixel is black"):
        _ = prediction.best
    (rollout,) = roll_out(Editor(0, 1), Eyes(), [image(0)], [["brighten", "dim"]], search=search, sampling=Sampling())
    assert rollout.trajectories == () and [step.action for step in rollout.steps] == ["brighten"]
    with pytest.raises(InputError, match="step 1, 'brighten': none of 2 candidates has an image: every pixel is black"):
        _ = rollout.best


class Prude(Editor):
    """Withholds all images of one action."""

    def sample(self, sources, actions, *, candidates, **options):
        rows = super().sample(sources, actions, candidates=candidates, **options).candidates
        shown = zip(rows, actions, strict=True)
        return Samples([[BLACK] * len(row) if action == "undress" else row for row, action in shown])


def test_other_rollouts_go_on_where_one_ends():
    actions = [["brighten", "undress", "brighten"], ["brighten", "dim"], ["undress"], ["dim", "dim", "brighten"]]
    options = {"search": Search(num_candidates=2, num_beams=2), "sampling": Sampling()}
    rollouts = roll_out(Prude(), Eyes(), [image(0)] * 4, actions, seed=[1, 2, 3, 4], **options)
    assert [len(rollout.steps) for rollout in rollouts] == [2, 2, 1, 3]
    assert [len(rollout.trajectories) for rollout in rollouts] == [0, 2, 0, 2]
    assert [failure for prediction in rollouts[0].steps[1].predictions for _, failure in prediction.failures] == [
        BLACK
    ] * 4
    # As without those that ended.
    others = roll_out(Prude(), Eyes(), [image(0)] * 2, actions[1::2], seed=[2, 4], **options)
    assert rollouts[1::2] == others
    assert len(roll_out(Prude(), Eyes(), [image(0)], [["undress", "dim"]], **options)[0].steps) == 1


def test_other_branches_go_on_where_one_ends():
    levels = [["undress", "brighten"], ["dim", "undress"], ["dim"]]
    tree = grow_tree(Prude(), Eyes(), image(0), levels, search=Search(num_candidates=2))
    assert [[(branch.parent, branch.action) for branch in level] for level in tree] == [
        [(0, "undress"), (0, "brighten")],
        [(1, "dim"), (1, "undress")],
        [(0, "dim")],
    ]
    assert [[len(branch.prediction.candidates) for branch in level] for level in tree] == [[0, 2], [2, 0], [2]]
    assert tree[0][0].prediction.failures == ((0, BLACK), (1, BLACK))
    # Nothing is left to continue from.
    assert len(grow_tree(Prude(), Eyes(), image(0), [["undress"], ["dim"]], search=Search(num_candidates=2))) == 1
