"""Banks of editors: images that are withheld are replaced and counted, and each image is stored once."""

from typing import Any

import numpy as np
import pytest
import torch

from wm.dynamics import Observation, Sampling, ScoredAction
from wm.dynamics.observation import pixels_of
from wm.dynamics.protocols import SampleFailure, Samples
from wm.errors import InputError
from wm.evaluation import editor_bank
from wm.evaluation.editor_bank import sample_editor_bank
from wm.evaluation.heldout import HeldOut
from wm.evaluation.margins import score_other_predictions
from wm.judging import JudgeScore

ROWS, SIDE = 5, 8


def plain(value: int) -> Observation:
    return Observation.from_pixels(np.full((SIDE, SIDE, 3), value, np.uint8))


class Editor:
    """Candidate k of row b is a plain image of value 10 b + k, or is withheld."""

    model_id, kind = "fake", "editor"

    def __init__(self, *withheld: tuple[int, int]) -> None:
        self.withheld, self.asked = withheld, []

    def check_action(self, action: str) -> None:
        if action == "2":
            raise InputError("too long")

    def sample(self, sources: Any, actions: Any, *, candidates: range, **_: Any) -> Samples:
        self.asked += [(action, number) for action in actions for number in candidates]
        return Samples([[self._image(int(action), number) for number in candidates] for action in actions])

    def _image(self, row: int, number: int) -> Observation | SampleFailure:
        if (row, number) in self.withheld or (row, -1) in self.withheld:
            return SampleFailure("safety_checker", "withheld")
        # Two rows share an image, which is stored once.
        return plain(200 if (row, number) in ((0, 1), (4, 0)) else 10 * row + number + 1)


class Verifier:
    """Prefers bright images; reads pixels."""

    model_id, kind = "fake", "pixels"

    def score(self, sources: Any, targets: Any, actions: Any, **_: Any) -> list[ScoredAction]:
        values = [float(image.mean()) for image in pixels_of(targets)]
        return [ScoredAction(action, value, 3) for action, value in zip(actions, values, strict=True)]


@pytest.fixture
def held_out() -> HeldOut:
    pixels = np.full((ROWS, SIDE, SIDE, 3), 11, np.uint8)
    codes = torch.zeros(ROWS, 1, dtype=torch.int64)
    names = [str(row) for row in range(ROWS)]
    return HeldOut(names, names, ["x"] * ROWS, pixels, pixels, codes, codes, np.zeros((ROWS, 0)))


def values_of(bank: Any) -> list[list[int]]:
    return [[int(image[0, 0, 0]) for image in bank.decode(codes_K1, None)] for codes_K1 in bank.codes]


def test_a_withheld_image_is_replaced_by_the_next_candidate(held_out, monkeypatch):
    monkeypatch.setattr(editor_bank, "ITEMS_AT_ONCE", 2)
    judged: list[tuple[int, int]] = []

    def judge(items_M: Any, images: Any) -> list[JudgeScore]:
        judged.extend((int(item), int(image[0, 0, 0])) for item, image in zip(items_M, images, strict=True))
        return [JudgeScore(1.0, 2.0, right=True, copied=False) for _ in items_M]

    editor = Editor((1, 0), (3, 1), (3, 2), (3, 3))
    bank = sample_editor_bank(editor, Verifier(), held_out, None, judge, num_candidates=2, seed=0)
    assert values_of(bank) == [[1, 200], [12, 13], [21, 22], [31, 35], [200, 42]]
    assert bank.withheld == {"safety_checker": 4} and len(bank.images) == 9
    assert bank.codes.shape == (ROWS, 2, 1) and bank.codes[0, 1] == bank.codes[4, 0]
    # Scored in the order of sampling, by the number of the triplet in the complete set.
    assert np.array_equal(bank.verifier, np.array(values_of(bank), dtype=float)) and set(bank.action_tokens) == {3.0}
    assert sorted(judged) == sorted((row, value) for row, of_row in enumerate(values_of(bank)) for value in of_row)
    assert np.allclose(bank.metrics["l1"] * 255, np.abs(np.array(values_of(bank)) - 11))
    # Blocks whose values differ by at most 4 on average are unchanged.
    assert bank.metrics["unchanged_tokens"].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [0, 0]]
    assert ("0", 2) not in editor.asked and ("3", 4) in editor.asked


def test_an_editor_that_withholds_all_of_a_triplet_is_named(held_out):
    with pytest.raises(InputError, match=r"triplet 2: fake gave 0 of 2 images in 8 tries \(safety_checker 8\); leave"):
        sample_editor_bank(Editor((2, -1)), None, held_out, None, None, num_candidates=2, seed=0)


def test_actions_that_are_cut_are_counted(held_out):
    assert editor_bank.count_cut_actions(Editor(), held_out) == 1


class StrictEditor(Editor):
    """Refuses settings of codes, as editors do."""

    def sample(self, sources: Any, actions: Any, *, candidates: range, **settings: Any) -> Samples:
        assert settings["sampling"] == Sampling() and not settings["num_draft_tokens"]
        return super().sample(sources, actions, candidates=candidates)


def test_margins_use_the_editors_own_settings(held_out):
    editor, others = (
        StrictEditor((3, 0)),
        {"shuffled": ["1", "3", None, "1", "0"], "opposite": [None, "2", "0", "2", None]},
    )
    withheld, arrays = score_other_predictions(
        editor, Verifier(), held_out, None, others,
        sampling=Sampling(temperature=0.5), seed=0, batch_size=2, num_draft_tokens=4,
    )  # fmt: skip
    # Row 1 is shown nothing, row 2 has no other action; values are those of the other action's image.
    assert arrays["rows.shuffled"].tolist() == [0, 3, 4]
    assert arrays["score.shuffled"].tolist() == [11, 11, 1]
    # An opposite that would be cut is compared with nothing.
    assert withheld == {"safety_checker": 1, "long_action": 2} and ("2", 0) not in editor.asked
    assert arrays["rows.opposite"].tolist() == [2] and arrays["score.opposite"].tolist() == [1]
