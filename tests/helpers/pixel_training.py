"""Tables of random triplets with images, for the tests of training models that read pixels."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.training_data import COLOURS, VERBS, write_triplets
from wm.images import encode_png
from wm.records import triplet_row


def pixel_rows(count: int, seed: int = 0, side_px: int = 16, **columns: Any) -> list[dict[str, Any]]:
    """Rows whose target has a square that its source has not; the action says its colour. ``columns`` override."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        source_HWC = generator.integers(0, 80, (side_px, side_px, 3), dtype=np.uint8)
        target_HWC = source_HWC.copy()
        half = side_px // 2
        top, left = (int(part) * half for part in generator.integers(0, 2, 2))
        target_HWC[top : top + half, left : left + half, number % 3] = 255
        values = {
            "dataset": "random",
            "split": "train",
            "video_uri": f"{seed}/{number}",
            "source_image": {"bytes": encode_png(source_HWC), "path": None},
            "target_image": {"bytes": encode_png(target_HWC), "path": None},
            "action": " ".join([VERBS[number % 2], "the", COLOURS[number % 3], "cup"][: 3 + number % 2]),
            "origin": "human",
        }
        rows.append(triplet_row(**(values | columns)))
    return rows


def write_pixel_triplets(folder: Path, count: int, seed: int = 0, **columns: Any) -> Path:
    """One Parquet file in ``folder``; returns the folder."""
    return write_triplets(pixel_rows(count, seed, **columns), folder)
