"""Tables of random triplets that speak a model's codec, for the tests of training."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from wm.models import load_codec
from wm.records import TRIPLET_SCHEMA, triplet_row
from wm.tables import write_table

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


def merge_tables(*recipes: dict[str, Any]) -> dict[str, Any]:
    """Join recipes as plain values; of a key that several have, the last one counts, inside of tables too."""
    merged: dict[str, Any] = {}
    for recipe in recipes:
        for key, value in recipe.items():
            is_table = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = merge_tables(merged[key], value) if is_table else value
    return merged


def to_arguments(recipe: dict[str, Any], prefix: str = "") -> list[str]:
    """Write a recipe of plain values as arguments of the command line, such as ``optim.lr=0.1``."""
    arguments = []
    for key, value in recipe.items():
        if isinstance(value, dict):
            arguments += to_arguments(value, f"{prefix}{key}.")
        else:
            arguments.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return arguments


def write_triplets(rows: list[dict[str, Any]], folder: Path) -> Path:
    """One Parquet file in ``folder``; returns the folder."""
    write_table(rows, folder / "part.parquet", TRIPLET_SCHEMA)
    return folder


def small_training(base: Path, triplets: Path, out: Path, **values: Any) -> dict[str, Any]:
    """Plain values of a recipe: 120 steps over the tables beside ``triplets``; ``values`` override."""
    common = {"task": "fdm", "base": str(base), "triplets": str(triplets.parent), "out": str(out)}
    training = {
        "max_steps": 120,
        "global_batch_size": 8,
        "checkpoint": {"every_steps": 30},
        "optim": {"lr": 1e-3},
    }
    return merge_tables(common, training, values)
