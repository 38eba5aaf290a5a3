"""Tables of random triplets that speak a model's codec, for the tests of training."""

from pathlib import Path
from typing import Any

import numpy as np

from wm.models import load_codec
from wm.records import TRIPLET_SCHEMA, triplet_row, write_table

VERBS, COLOURS = ("put", "move", "take"), ("red", "blue", "green")


def random_rows(base: Path, count: int, seed: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """Rows whose target differs from the source in one token; the action says where. ``columns`` override."""
    codec = load_codec(base)
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        source_N = generator.integers(0, codec.num_codes, codec.tokens_per_image)
        place = int(generator.integers(codec.tokens_per_image))
        target_N = source_N.copy()
        target_N[place] = (target_N[place] + 1) % codec.num_codes
        change_N = generator.random(codec.tokens_per_image) * 0.1
        change_N[place] += 1
        values = {
            "dataset": "random",
            "split": "train",
            "video_uri": f"{seed}/{number}",
            "source_image": {"bytes": b"-", "path": None},
            "target_image": {"bytes": b"-", "path": None},
            "codec": codec.codec_id,
            "source_codes": source_N.tolist(),
            "target_codes": target_N.tolist(),
            "change": change_N.tolist(),
            "action": " ".join([VERBS[number % 3], "the", COLOURS[place % 3], "cup"][: 2 + number % 3]),
            "origin": "human",
        }
        rows.append(triplet_row(**(values | columns)))
    return rows


def write_triplets(rows: list[dict[str, Any]], folder: Path) -> Path:
    """One Parquet file in ``folder``; returns the folder."""
    write_table(rows, folder / "part.parquet", TRIPLET_SCHEMA)
    return folder
