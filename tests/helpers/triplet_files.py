"""Build a small triplet data set as a stage leaves it: several shards, real images, nulls, unicode, leftovers."""

from pathlib import Path
from typing import Any

import numpy as np

from wm.images import encode_png
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, reject_row, triplet_row
from wm.tables import write_table

LABELS = ("put on+take off", "größer / 小さい", "", "ウサギ")


def picture(number: int, height: int = 12, width: int = 20) -> np.ndarray:
    """Generate uint8 RGB noise, the same for the same number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)


def triplet(number: int, size: tuple[int, int] = (12, 20), **columns: Any) -> dict[str, Any]:
    """Build row ``number``: even ones annotated by a model and with times, odd ones by people and without."""
    annotated = number % 2 == 0
    idm = {"origin": "idm", "annotator": "idm-é", "action_logprob": -1.5 - number, "action_tokens": 3}
    times = {"source_frame": number, "target_frame": number + 30, "source_time_s": number / 3, "target_time_s": 9.25}
    codes = {"codec": "c0dec", "source_codes": [1, 65535], "target_codes": [3, 4], "change": [0.5, 1.0]}
    plain = {
        "triplet_id": f"{number:024x}",
        "dataset": "vidéos",
        "split": "train",
        "class_label": LABELS[number % 4],
        "video_uri": f"s3://bucket/dir {number}/ä b.mp4",
        "source_image": {"bytes": encode_png(picture(2 * number, *size)), "path": None},
        "target_image": {"bytes": encode_png(picture(2 * number + 1, *size)), "path": f"{number}.png"},
        "action": f'take the "cup" № {number // 2}\u2028🥤',
        "origin": "human",
        "license": "MIT" if number % 3 else "CC BY 4.0, (c) Zoë",
    }
    return triplet_row(**(plain | ({**idm, **times, **codes, "motion": 2.5} if annotated else {}) | columns))


def write_output(out: Path, rows: list[dict[str, Any]], shard_rows: int = 4, num_rejects: int = 3) -> Path:
    """Write ``out/triplets`` in shards of ``shard_rows``, ``out/rejects``, and the leftover of a killed run.

    Its name ends in ``.tmp``: DuckDB's ``*.parquet`` takes hidden names too.
    """
    for number, start in enumerate(range(0, len(rows), shard_rows)):
        name = f"shard-{number:06d}.parquet"
        write_table(rows[start : start + shard_rows], out / "triplets" / name, TRIPLET_SCHEMA)
    rejects = [
        reject_row(
            uri=f"v {number}.mp4",
            stage="annotate",
            outcome="failed" if number else "filtered",
            reason="time_out",
            detail="zu lang: 小さい",
        )
        for number in range(num_rejects)
    ]
    if rejects:
        write_table(rejects, out / "rejects" / "shard-000000.parquet", REJECT_SCHEMA)
    (out / "triplets" / ".shard-000009.parquet.abc.tmp").write_bytes(b"half")
    return out
