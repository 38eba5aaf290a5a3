"""Define what can happen on the table, in words and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wm.nano.world.scenes import COLOURS, POSITIONS, SHAPES, State, object_id, object_name

Kind = Literal["move", "add", "remove", "recolour"]
KINDS: tuple[Kind, ...] = ("move", "add", "remove", "recolour")
SHARES = {"move": 0.45, "add": 0.2, "remove": 0.2, "recolour": 0.15}
"""How often each kind happens in the supervised set."""

_TEMPLATES: dict[Kind, tuple[str, str]] = {
    "move": ("move the {colour} {shape} to the {position}", "put the {colour} {shape} on the {position}"),
    "add": ("add a {colour} {shape} at the {position}", "place a {colour} {shape} in the {position}"),
    "remove": ("remove the {colour} {shape}", "take away the {colour} {shape}"),
    "recolour": ("make the {colour} {shape} {new_colour}", "paint the {colour} {shape} {new_colour}"),
}
PARAPHRASES = 2
"""Wordings of each kind."""
_VERBS: dict[str, Kind] = {
    "move": "move",
    "put": "move",
    "add": "add",
    "place": "add",
    "remove": "remove",
    "take": "remove",
    "make": "recolour",
    "paint": "recolour",
}


@dataclass(frozen=True)
class Action:
    """``thing``: object id. ``cell``: where to (move, add). ``becomes``: object id afterwards (recolour)."""

    kind: Kind
    thing: int
    cell: int | None = None
    becomes: int | None = None

    def apply(self, state: State) -> State | None:
        """Return the state afterwards; None if the action cannot happen there."""
        cell = state.cell_of(self.thing)
        if (cell is None) != (self.kind == "add"):
            return None
        # An object leaves its cell first; an added one is in none.
        cleared = state if cell is None else state.put(cell, 0)
        if self.kind == "remove":
            return cleared
        if self.kind == "recolour":
            possible = self.becomes is not None and self.becomes not in state.cells
            return cleared.put(cell or 0, self.becomes or 0) if possible else None
        # Its new cell must be empty.
        if self.cell is None or state.cells[self.cell]:
            return None
        return cleared.put(self.cell, self.thing)

    def text(self, paraphrase: int = 0) -> str:
        """Say the action in words; ``paraphrase`` is 0 or 1."""
        colour, shape = object_name(self.thing)
        return _TEMPLATES[self.kind][paraphrase].format(
            colour=colour,
            shape=shape,
            position=POSITIONS[self.cell] if self.cell is not None else "",
            new_colour=object_name(self.becomes)[0] if self.becomes else "",
        )


def actions_of(state: State, kind: Kind) -> list[Action]:
    """List every action of a kind that can happen in a state.

    Args:
        state: The table.
        kind: Of the actions.
    """
    if kind == "move":
        return [Action("move", thing, cell=cell) for thing in state.things() for cell in state.free()]
    if kind == "remove":
        return [Action("remove", thing) for thing in state.things()]
    # Each of the 12 objects is on the table once at most.
    everything = [object_id(colour, shape) for colour in COLOURS for shape in SHAPES]
    if kind == "add":
        absent = [thing for thing in everything if thing not in state.cells]
        return [Action("add", thing, cell=cell) for thing in absent for cell in state.free()]
    return [
        Action("recolour", thing, becomes=other)
        for thing in state.things()
        for other in everything
        if object_name(other)[1] == object_name(thing)[1] and other not in state.cells
    ]


def action_between(source: State, target: State) -> Action | None:
    """Find the one action that leads from a state to another.

    Args:
        source: The table before.
        target: The table after.

    Returns:
        The action; None if there is none or more than one, or a cell could not be read.
    """
    # An unreadable cell is -1.
    readable = min(*source.cells, *target.cells) >= 0
    actions = [
        action
        for kind in KINDS
        for action in (actions_of(source, kind) if readable else [])
        if action.apply(source) == target
    ]
    return actions[0] if len(actions) == 1 else None


def random_action(state: State, rng: np.random.Generator, kind: Kind | None = None) -> Action:
    """Sample an action that can happen.

    Args:
        state: The table, which keeps 1 to 5 objects.
        rng: Samples kind and action.
        kind: Of the action; None: sampled by :data:`SHARES`.
    """
    # A table with one object has something to act on, one with five some room left.
    crowd = len(state.things())
    kind = kind or KINDS[int(rng.choice(len(KINDS), p=[SHARES[name] for name in KINDS]))]
    if (kind == "add" and crowd >= 5) or (kind == "remove" and crowd <= 1):
        kind = "move"
    # Every colour of every shape here may be on the table already: then nothing can be recoloured.
    choices = actions_of(state, kind) or actions_of(state, "move")
    return choices[int(rng.integers(len(choices)))]


def parse_action(text: str) -> Action | None:
    """Parse an action in words leniently: a verb, then the first colour, shape, position and, for a recolouring, the
    last colour; any other word is passed over. None if that leaves it undetermined."""
    # Commas and full stops are the punctuation that answers come with.
    words = text.lower().replace(".", " ").replace(",", " ").split()
    kind = next((_VERBS[word] for word in words if word in _VERBS), None)
    colours = [word for word in words if word in COLOURS]
    shapes = [word for word in words if word in SHAPES]
    cells = [POSITIONS.index(word) for word in words if word in POSITIONS]
    if kind is None or not colours or not shapes:
        return None
    # The first colour and shape name the object, whatever follows.
    thing = object_id(colours[0], shapes[0])
    if kind in ("move", "add"):
        return Action(kind, thing, cell=cells[0]) if cells else None
    if kind == "recolour":
        return Action(kind, thing, becomes=object_id(colours[-1], shapes[0])) if len(colours) > 1 else None
    return Action(kind, thing)


def vocabulary() -> list[str]:
    """List the words that an action or a caption can hold, sorted."""
    words = {*COLOURS, *SHAPES, *POSITIONS, "and", "empty"}
    for templates in _TEMPLATES.values():
        for template in templates:
            words |= {word for word in template.split() if "{" not in word}
    return sorted(words)


def caption(state: State, rng: np.random.Generator, cells: Sequence[int] = (), max_cells: int = 3) -> str:
    """Say which object is where: "red circle top-left empty center", in random order.

    Args:
        state: The table.
        rng: Orders and samples the cells.
        cells: Cells to choose from; without any, those with an object.
        max_cells: Max number of cells to name.

    Returns:
        The caption; "empty" for a table without objects.
    """
    order = rng.permutation(list(cells) or [cell for cell, thing in enumerate(state.cells) if thing])[:max_cells]
    parts = [(*_split_name(state.cells[int(cell)]), POSITIONS[int(cell)]) for cell in order]
    return " ".join(word for part in parts for word in part) or "empty"


def _split_name(thing: int) -> tuple[str, ...]:
    return object_name(thing) if thing else ("empty",)
