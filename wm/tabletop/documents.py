"""Two pictures and a caption: what the nano base reads before it ever sees an action.

The analogue of the interleaved web documents a unified vision-language model is pre-trained on. Captions say what
stands where in the second picture; no document names an action.
"""

import numpy as np

from wm.images import Pixels
from wm.tabletop.actions import caption, random_action
from wm.tabletop.scenes import State, random_camera, random_state, render

SAME_SHARE = 0.35
"""Documents whose two pictures show one state (under two cameras)."""
LATER_SHARE = 0.4
"""Documents whose second picture shows the table some time later: one to three changes. The rest: another scene."""


def sample_document(rng: np.random.Generator) -> tuple[Pixels, str, Pixels]:
    """(first picture, caption of the second, second picture)."""
    first = random_state(rng)
    draw = rng.random()
    if draw < SAME_SHARE:
        second = first
    elif draw < SAME_SHARE + LATER_SHARE:
        second = _later(first, rng)
    else:
        second = random_state(rng)
    pictures = [render(state, random_camera(rng), rng) for state in (first, second)]
    return pictures[0], caption(second, rng), pictures[1]


def _later(state: State, rng: np.random.Generator) -> State:
    for _ in range(int(rng.integers(1, 4))):
        state = random_action(state, rng).apply(state) or state
    return state
