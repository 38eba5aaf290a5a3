"""Write questions about where things are on the tabletop, in the folder format of ``wm ask``; states give the answers.

The nano models never saw a question: they answer by chance. What a laptop can try with them is the way from questions
to a table.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wm.images import encode_png
from wm.nano.world.scenes import GRID, POSITIONS, State, object_name, random_camera, random_state, render

_STREAM = 14
"""Of random numbers, beside those of the splits of the pairs (11 to 13)."""
SIDES = ("left of", "right of", "above", "below")
NUM_PLACES = 4
"""Options of a question for a place, of the nine that there are."""


def write_questions(folder: Path, count: int, seed: int = 0, progress: Callable[[int], object] | None = None) -> Path:
    """Write ``questions.jsonl`` and its images, the list last.

    Args:
        folder: Folder of the questions.
        count: How many.
        seed: The same seed gives the same questions.
        progress: Called after each question.

    Returns:
        The path of the list.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, _STREAM])
    lines = []
    for number in range(count):
        state = random_state(rng)
        name = f"images/{number:06d}.png"
        (folder / name).write_bytes(encode_png(render(state, random_camera(rng), rng)))
        entry = _ask_relation(state, rng) if number % 2 else None
        # Where no two things share a row or a column, their relation has no single name.
        entry = entry or _ask_place(state, rng)
        lines.append(json.dumps({"id": f"{seed}-{number:06d}", "image": name, "source": "tabletop", **entry}))
        if progress is not None:
            progress(1)
    # The list comes last: a killed writer leaves no set that looks complete.
    path, temporary = folder / "questions.jsonl", folder / ".questions.jsonl.tmp"
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _ask_place(state: State, rng: np.random.Generator) -> dict[str, object]:
    """Ask for the cell of a thing."""
    thing = int(rng.choice(state.things()))
    answer = POSITIONS[state.cells.index(thing)]
    others = [name for name in POSITIONS if name != answer]
    options = [answer, *(others[int(row)] for row in rng.choice(len(others), NUM_PLACES - 1, replace=False))]
    shuffled = [options[int(row)] for row in rng.permutation(len(options))]
    return {"question": f"Where is the {_name(thing)}?", "options": shuffled, "answer": answer, "group": "place"}


def _ask_relation(state: State, rng: np.random.Generator) -> dict[str, object] | None:
    """Ask on which side of another thing one is; None where no two are in one row or column."""
    pairs = [
        (thing, other, side)
        for thing in state.things()
        for other in state.things()
        if (side := _find_side(state.cells.index(thing), state.cells.index(other))) is not None
    ]
    if not pairs:
        return None
    thing, other, side = pairs[int(rng.integers(len(pairs)))]
    question = f"Where is the {_name(thing)} relative to the {_name(other)}?"
    return {"question": question, "options": list(SIDES), "answer": side, "group": side}


def _find_side(cell: int, other: int) -> str | None:
    (row, column), (other_row, other_column) = divmod(cell, GRID), divmod(other, GRID)
    if row == other_row and column != other_column:
        return SIDES[0] if column < other_column else SIDES[1]
    if column == other_column and row != other_row:
        return SIDES[2] if row < other_row else SIDES[3]
    return None


def _name(thing: int) -> str:
    return " ".join(object_name(thing))
