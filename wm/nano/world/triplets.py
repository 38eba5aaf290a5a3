"""Write a supervised set of the tabletop as AURORA writes its own: a JSON list and PNG images."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wm.images import Pixels, encode_png
from wm.nano.world.actions import random_action
from wm.nano.world.scenes import random_camera, random_state, render

SPLIT_SEEDS = {"train": 11, "tune": 12, "test": 13}
"""A stream of random numbers a split. ``tune`` is for choosing settings, ``test`` only for reporting."""


def sample_triplet(rng: np.random.Generator) -> tuple[Pixels, str, Pixels]:
    """Sample (source image, action in words, target image); the camera moves in 30 % of the pairs."""
    state = random_state(rng)
    action = random_action(state, rng)
    after = action.apply(state)
    if after is None:
        raise ValueError(f"{action} cannot happen in {state}")
    # One table, one camera: only its position may move between the two.
    camera = random_camera(rng, shifted_share=0.0)
    moved = random_camera(rng, crumbed_share=0.0).shift_px
    later = type(camera)(moved, camera.noise, camera.crumbs)
    return render(state, camera, rng), action.text(int(rng.integers(2))), render(after, later, rng)


def write_triplets(
    root: Path, split: str, count: int, seed: int = 0, progress: Callable[[int], object] | None = None
) -> Path:
    """Write ``root/data/tabletop/{split}.json`` and its images, the JSON last.

    Args:
        root: Folder of the data set.
        split: Name of the split.
        count: Number of triplets.
        seed: The same seed gives the same triplets.
        progress: Called after each triplet.

    Returns:
        The path of the JSON file.
    """
    folder = root / "data" / "tabletop"
    images = folder / "images" / split
    # The JSON comes last: a killed writer leaves no set that looks complete.
    images.mkdir(parents=True, exist_ok=True)
    # Splits have streams of their own: more training rows leave the test set as it is.
    rng = np.random.default_rng([seed, SPLIT_SEEDS[split]])
    rows = []
    for index in range(count):
        source_HWC, instruction, target_HWC = sample_triplet(rng)
        names = {"input": images / f"{index:06d}_left.png", "output": images / f"{index:06d}_right.png"}
        for path, pixels_HWC in zip(names.values(), (source_HWC, target_HWC), strict=True):
            path.write_bytes(encode_png(pixels_HWC))
        paths = {key: str(path.relative_to(root)) for key, path in names.items()}
        rows.append({"instruction": instruction, **paths, "task": "tabletop"})
        if progress is not None:
            progress(1)
    path = folder / f"{split}.json"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(rows, indent=1))
    os.replace(temporary, path)
    return path
