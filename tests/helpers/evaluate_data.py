"""A small held-out set, and a recipe to evaluate models on it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jobs.evaluate import EvaluateRecipe
from wm.images import Pixels, encode_png
from wm.models import ImageCodec
from wm.records import TRIPLET_SCHEMA, triplet_row
from wm.tables import write_table

Pair: TypeAlias = tuple[Pixels, Pixels]

ACTIONS = [
    "move the red cup",
    "put the blue block",
    "take the cup",
    "move the green cup",
    "put the red block",
    "take",
]
ITEMS = len(ACTIONS)


def write_triplets(
    folder: Path, pixels_of: Callable[[int], Pair], actions: Sequence[str], *, codec: ImageCodec | None = None
) -> Path:
    """Write a triplet for each action, with codes if a codec is given."""
    rows = []
    for index, action in enumerate(actions):
        source, target = pixels_of(index)
        codes: dict[str, Any] = {}
        if codec is not None:
            pair = codec.encode(np.stack([source, target])).tolist()
            codes = {
                "codec": codec.codec_id,
                "source_codes": pair[0],
                "target_codes": pair[1],
                "change": [float(index)] * codec.tokens_per_image,
            }
        rows.append(
            triplet_row(
                triplet_id=f"t{index}",
                dataset="even" if index % 2 == 0 else "odd",
                split="test",
                action=action,
                origin="human",
                source_image={"bytes": encode_png(source)},
                target_image={"bytes": encode_png(target)},
                **codes,
            )
        )
    write_table(rows, folder / "part-0.parquet", TRIPLET_SCHEMA)
    return folder


def noise_pair(index: int) -> Pair:
    """Sample a source and a target of noise."""
    rng = np.random.default_rng(index)
    source, target = (rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2))
    return source, target


def recipe_of(model: Path, triplets: Path, out: Path, /, **changes: Any) -> EvaluateRecipe:
    """Build a recipe of one model in every part: two inverse models, one of them the base's, and two training seeds."""
    fdm = {"path": str(model), "role": "fdm", "label": "C-FT"}
    values = {
        "triplets": str(triplets),
        "out": str(out),
        "base": str(model),
        "models": {
            "idm-0": {"path": str(model), "role": "idm", "label": "IDM"},
            "ft-0": fdm,
            "ft-1": fdm | {"seed": 1, "idm": "zero-shot-idm"},
        },
        "idm": "idm-0",
        "seeds": [0, 1],
        "examples": 3,
    }
    search = {"num_candidates": [1, 2, 4]} | changes.get("search", {})
    return EvaluateRecipe.parse(values | changes | {"search": search}, "test")
