"""Questions about the tabletop, answered again by the judge that reads images back into states."""

import json

import numpy as np

from wm.evaluation.questions.images import load_image
from wm.evaluation.questions.reading import read_questions
from wm.nano.world.oracle import read_states
from wm.nano.world.questions import NUM_PLACES, SIDES, write_questions
from wm.nano.world.scenes import GRID, POSITIONS, object_id


def find(state, words):
    colour, shape = words.split()
    return state.cells.index(object_id(colour, shape))


def test_every_answer_is_what_the_image_shows(tmp_path):
    counts = []
    write_questions(tmp_path, 40, seed=3, progress=counts.append)
    found = read_questions("folder", tmp_path)
    assert len(found.questions) == sum(counts) == 40 and not found.rejects
    states = read_states(np.stack([load_image(tmp_path, question.image) for question in found.questions]))
    for question, state in zip(found.questions, states, strict=True):
        words = question.text.removeprefix("Where is the ").removesuffix("?")
        if question.group == "place":
            assert POSITIONS[find(state, words)] == question.reference and len(question.options) == NUM_PLACES
            continue
        (row, column), (other_row, other_column) = (
            divmod(find(state, part), GRID) for part in words.split(" relative to the ")
        )
        # On one line, so that no other side is right, too.
        assert (row == other_row) != (column == other_column)
        assert question.options == SIDES and question.group == question.reference
        assert question.reference == {
            (True, True): "left of", (True, False): "right of", (False, True): "above", (False, False): "below",
        }[row == other_row, column < other_column if row == other_row else row < other_row]  # fmt: skip
    assert {question.group for question in found.questions} == {"place", *SIDES}


def test_a_seed_writes_the_same_questions(tmp_path):
    first, again = (write_questions(tmp_path / name, 6).read_text() for name in "ab")
    assert first == again != write_questions(tmp_path / "c", 6, seed=1).read_text()
    assert [json.loads(line)["id"] for line in first.splitlines()][:2] == ["0-000000", "0-000001"]
