"""A small annotated data set as ``annotate`` leaves it, and a browser to look at its page with."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from wm.images import encode_png
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, reject_row, triplet_row
from wm.tables import write_table

CLIPS = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "uri", "class_label")),
        *((name, pa.float64()) for name in ("start_s", "end_s", "frame_s")),
        ("num_frames", pa.int32()),
        ("keyframes", pa.list_(pa.int32())),
        ("times_s", pa.list_(pa.float64())),
        ("motion", pa.list_(pa.float32())),
        ("fallback", pa.string()),
    ]
)
PAIRS = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("difference", pa.float32()),
        ("source_hash", pa.uint64()),
        ("target_hash", pa.uint64()),
    ]
)
READER = {"reader": "decord"} if "reader" in TRIPLET_SCHEMA.names else {}
HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"'`\u2028\u2029 é 名 &amp; {{title}}"
)


def picture(red: int, height: int = 24, width: int = 32) -> dict[str, Any]:
    """A flat picture as an image column holds it."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = red, 255 - red
    return {"bytes": encode_png(pixels), "path": None}


def triplet(number: int, **changes: Any) -> dict[str, Any]:
    """Row ``number``: class wave or jump in turns, score -number / 4."""
    values: dict[str, Any] = {
        "triplet_id": f"t{number:05d}",
        "dataset": "toy",
        "split": "train",
        "class_label": ["wave", "jump"][number % 2],
        "video_uri": f"videos/v{number}.mp4",
        "source_frame": 10,
        "target_frame": 40,
        "source_time_s": 0.4,
        "target_time_s": 1.6,
        "motion": float(number),
        "source_image": picture(0),
        "target_image": picture(255),
        "action": f"wave hand {number}",
        "action_logprob": -number / 4 * 8,
        "action_tokens": 8,
        "origin": "idm",
        "annotator": "idm-1",
        "license": "CC-BY-4.0",
    }
    return triplet_row(**(values | READER | changes))


def clip(uri: str, **changes: Any) -> dict[str, Any]:
    motion = np.zeros(101, np.float32)
    motion[[10, 40, 90]] = 2, 4, 1
    values = {"key": uri, "uri": uri, "class_label": "", "start_s": None, "end_s": None, "num_frames": 101}
    curve = {"keyframes": [10, 40, 90], "times_s": [0.4, 1.6, 3.6], "motion": motion.tolist(), "fallback": ""}
    return values | curve | changes


def write_annotation(out: Path, rows: list[dict[str, Any]], rejects: list[dict[str, Any]] | None = None) -> Path:
    """``out`` with triplets, rejects, clips and pairs of one shard."""
    name = "shard-000000.parquet"
    write_table(rows, out / "triplets" / name, TRIPLET_SCHEMA)
    write_table([clip(uri) for uri in {row["video_uri"] for row in rows}], out / "clips" / name, CLIPS)
    pairs = [
        {"triplet_id": row["triplet_id"], "difference": 3.5, "source_hash": 1, "target_hash": 2**63 + 7} for row in rows
    ]
    write_table(pairs, out / "pairs" / name, PAIRS)
    if rejects is None:
        rejects = [
            reject_row(uri=f"bad{number}.mp4", stage="annotate", outcome=outcome, reason=reason, detail="in words")
            for number, (outcome, reason) in enumerate(
                [("failed", "time_out"), ("failed", "time_out"), ("failed", "not_a_video"), ("filtered", "static_pair")]
            )
        ]
    write_table(rejects, out / "rejects" / name, REJECT_SCHEMA)
    return out


def browser() -> str:
    """The installed Chromium, or the test is skipped."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome is installed")
    return found


def look(page: Path, fragment: str = "", *, profile: Path) -> str:
    """The document of ``page#fragment`` after its load event, as the browser prints it."""
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,900",
        f"--user-data-dir={profile}", "--dump-dom", f"file://{page}{fragment}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def mark(document: str, name: str) -> str:
    """A data attribute of the document's root."""
    root = re.search(r"<html[^>]*>", document)
    match = re.search(rf'data-{name}="([^"]*)"', root.group() if root else "")
    assert match, f"the page has no mark {name}"
    return match.group(1)
