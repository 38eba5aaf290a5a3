"""Make documents of two images and a caption: what the nano base reads before it ever sees an action.

The analogue of the interleaved documents that a unified vision-language model is pre-trained on. As there, text about
images is far more common than images generated from text. Captions say which object is where in the second image, and
where it shows the table some time after the first, what is different there. No document names an action, and none
generates an image of a changed table.
"""

from typing import Literal

import numpy as np

from wm.images import Pixels
from wm.nano.world.actions import caption, random_action
from wm.nano.world.scenes import State, random_camera, random_state, render

Reading = Literal["understand", "generate"]

UNDERSTAND_SHARE = 0.8
"""Documents [image][image][caption]; the rest are [image][caption][image]."""
LATER_SHARE = 0.6
"""Of the first kind: those whose second image shows the table one to three changes later."""
SAME_SHARE = 0.75
"""Of the others: those whose two images show one state, under two cameras. The rest show another scene."""


def sample_document(rng: np.random.Generator) -> tuple[Reading, Pixels, str, Pixels]:
    """Sample (order, first image, caption of the second, second image)."""
    # Understanding is far more common, as on the web.
    reading: Reading = "understand" if rng.random() < UNDERSTAND_SHARE else "generate"
    first = random_state(rng)
    # The caption names what differs, so that images of one table must be compared.
    if reading == "understand" and rng.random() < LATER_SHARE:
        second = _later(first, rng)
        changed = [cell for cell, (a, b) in enumerate(zip(first.cells, second.cells, strict=True)) if a != b]
    else:
        second = first if rng.random() < SAME_SHARE else random_state(rng)
        changed = []
    # Each image has a camera of its own: what differs by the camera alone is never named.
    images = [render(state, random_camera(rng), rng) for state in (first, second)]
    return reading, images[0], caption(second, rng, changed), images[1]


def _later(state: State, rng: np.random.Generator) -> State:
    for _ in range(int(rng.integers(1, 4))):
        state = random_action(state, rng).apply(state) or state
    return state
