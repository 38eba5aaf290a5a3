"""Judge an image by reading it back into a state, exact where GPT-4o (paper, appendix F) is an opinion.

Editing success and minimal editing run from 0 to 10 and the score is their minimum, as the paper's judge does:

* editing success: the share of the cells that the action changed (source state != target state) which the prediction
  shows as in the target, times 10;
* minimal editing: the same over the cells that the action left alone.
"""

from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.errors import InputError
from wm.images import Pixels
from wm.judging import JudgeScore
from wm.nano.world.actions import parse_action
from wm.nano.world.scenes import (
    BACKGROUNDS,
    CELL_PX,
    GRID,
    NUM_CELLS,
    NUM_OBJECTS,
    SIDE_PX,
    Camera,
    State,
    render,
)

Floats: TypeAlias = npt.NDArray[np.float32]

UNREADABLE = -1
MAX_SHIFT_PX = 2
MAX_RESIDUAL = 34.0
"""Root mean square difference, in grey levels, above which a cell shows no known thing. A decoded image of a true
scene stays below 25 in nearly every cell; noise and half-formed objects come above 40."""


def read_states(images_BHWC: Pixels) -> list[State]:
    """Read the state that each image shows.

    Each table top and camera shift from -2 to 2 px is tried; the pair under which the nine cells fit best wins.

    Args:
        images_BHWC: uint8 RGB (B, 48, 48, 3).

    Returns:
        A state an image; a cell like nothing known is :data:`UNREADABLE`.

    Raises:
        InputError: For images of another shape.
    """
    images = np.asarray(images_BHWC)
    if images.ndim != 4 or images.shape[1:] != (SIDE_PX, SIDE_PX, 3):
        raise InputError(f"tabletop images have shape {images.shape}; expected (B, {SIDE_PX}, {SIDE_PX}, 3)")
    if not len(images):
        return []
    templates, norms = _render_templates()
    views, things = len(norms), NUM_OBJECTS + 1
    # |cell - template|² as norms and one matrix product, for all views and things at once.
    cells = _split_cells(images.astype(np.float32))
    flat = cells.reshape(-1, cells.shape[-1])
    # torch's product, not numpy's: its threads are ours to set, while OpenBLAS's wait for each other on busy cores
    # (a thousand times the work, seen on 2 cores).
    products = torch.from_numpy(flat) @ torch.from_numpy(templates).reshape(views * things, -1).T
    errors = (flat**2).sum(1)[:, None] + norms.reshape(-1)[None] - 2 * products.numpy()
    errors = errors.reshape(len(images), NUM_CELLS, views, things) / flat.shape[1]
    # The camera moves all cells alike, so that one view is chosen an image.
    best_view = errors.min(3).sum(1).argmin(1)
    error_BNT = errors[np.arange(len(images)), :, best_view]
    thing, residual = error_BNT.argmin(2), np.sqrt(np.maximum(error_BNT.min(2), 0))
    thing = np.where(residual > MAX_RESIDUAL, UNREADABLE, thing)
    shifts = (2 * MAX_SHIFT_PX + 1) ** 2
    return [
        State(int(view) // shifts, tuple(int(cell) for cell in row)) for view, row in zip(best_view, thing, strict=True)
    ]


def judge(source_HWC: Pixels, target_HWC: Pixels, predicted_HWC: Pixels) -> JudgeScore:
    """Score a predicted image against the true pair.

    Args:
        source_HWC: uint8 (48, 48, 3).
        target_HWC: The same shape.
        predicted_HWC: The same shape.
    """
    return judge_states(*read_states(np.stack([source_HWC, target_HWC, predicted_HWC])))


def judge_states(source: State, target: State, predicted: State) -> JudgeScore:
    """Score a predicted state against the true pair.

    Args:
        source: Before the action.
        target: After it.
        predicted: On another table top every cell is wrong.
    """
    # On another table top no cell can look as in the target.
    same_table = predicted.background == target.background
    right = [same_table and a == b for a, b in zip(predicted.cells, target.cells, strict=True)]
    changed = [a != b for a, b in zip(source.cells, target.cells, strict=True)]
    success = [ok for ok, is_changed in zip(right, changed, strict=True) if is_changed]
    stable = [ok for ok, is_changed in zip(right, changed, strict=True) if not is_changed]
    return JudgeScore(
        editing_success=10 * float(np.mean(success)) if success else 10.0,
        minimal_editing=10 * float(np.mean(stable)) if stable else 10.0,
        right=all(right),
        copied=predicted == source,
    )


def action_is_right(source_HWC: Pixels, target_HWC: Pixels, text: str) -> bool:
    """Return whether the action in words, done in the source, gives the target's state (paraphrases are as good).

    Args:
        source_HWC: uint8 (48, 48, 3).
        target_HWC: The same shape.
        text: The action in words.
    """
    source, target = read_states(np.stack([source_HWC, target_HWC]))
    action = parse_action(text)
    return action is not None and action.apply(source) == target


def _split_cells(images_BHWC: Floats) -> Floats:
    """Cut images (B, 48, 48, 3) into cells (B, 9, 768), row-major."""
    grid = images_BHWC.reshape(-1, GRID, CELL_PX, GRID, CELL_PX, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(len(images_BHWC), NUM_CELLS, -1)


@cache
def _render_templates() -> tuple[Floats, Floats]:
    """Render each thing in the middle cell under each table top and shift: (75 views, 13 things, 768); and squared
    norms.

    A shape ends 2 px before its cell does, so a shift of 2 px never brings in a neighbour.
    """
    rng = np.random.default_rng(0)
    span = range(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1)
    middle = NUM_CELLS // 2
    views = []
    # Every view in which an image may show a thing: 3 table tops, 25 shifts.
    for background in range(len(BACKGROUNDS)):
        for down in span:
            for right in span:
                camera = Camera((right, down), noise=0.0)
                images = [
                    render(State(background, (0,) * NUM_CELLS).put(middle, thing), camera, rng)
                    for thing in range(NUM_OBJECTS + 1)
                ]
                views.append(_split_cells(np.stack(images).astype(np.float32))[:, middle])
    templates = np.stack(views)
    return templates, (templates**2).sum(2)
