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
    with pytest.raises(InputError, match="none of 2 candidates has an image"):
        roll_out(Editor(0, 1), Eyes(), [image(0)], [["brighten"]], search=search, sampling=Sampling())
