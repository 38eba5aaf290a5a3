"""What stands above the episodes in LeRobot's layout: features, schemas, statistics, ``meta/info.json``, the card."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wm.datasets.card import license_lines, license_sentence
from wm.datasets.export.plan import Plan
from wm.datasets.export.rows import PROVENANCE, Context, aside
from wm.images import decode_image
from wm.records import TRIPLET_SCHEMA
from wm.runs import write_json, write_text

VERSION = "v3.0"

FPS = 1

CHUNK_FILES = 1000
"""Files in a chunk folder: LeRobot's default."""

FEATURES: dict[str, tuple[str, pa.DataType]] = {
    "observation.image": ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    "next.done": ("bool", pa.bool_()),
    "triplet_id": ("string", pa.string()),
    "video_frame": ("int64", pa.int64()),
    "video_time_s": ("float64", pa.float64()),
    "timestamp": ("float32", pa.float32()),
    "frame_index": ("int64", pa.int64()),
    "episode_index": ("int64", pa.int64()),
    "index": ("int64", pa.int64()),
    "task_index": ("int64", pa.int64()),
}
"""Columns of ``data``: LeRobot's dtype and the Arrow type. All but the image have shape (1,)."""

_HF = {
    name: {"_type": "Image"} if dtype == "image" else {"_type": "Value", "dtype": dtype}
    for name, (dtype, _) in FEATURES.items()
}

DATA_SCHEMA = pa.schema(
    [(name, kind) for name, (_, kind) in FEATURES.items()],
    metadata={b"huggingface": json.dumps({"info": {"features": _HF}}).encode()},
)

EPISODE_SCHEMA = pa.schema(
    [
        ("episode_index", pa.int64()),
        ("tasks", pa.list_(pa.string())),
        ("length", pa.int64()),
        ("data/chunk_index", pa.int64()),
        ("data/file_index", pa.int64()),
        ("dataset_from_index", pa.int64()),
        ("dataset_to_index", pa.int64()),
        ("meta/episodes/chunk_index", pa.int64()),
        ("meta/episodes/file_index", pa.int64()),
        *[(name, TRIPLET_SCHEMA.field(name).type) for name in PROVENANCE],
    ]
)
"""Rows of ``meta/episodes``: LeRobot's columns, then the provenance of the triplet."""


class Stats:
    """Sums from which minimum, maximum, mean and standard deviation of a feature follow, over parts too."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, Any]] = {}

    def add(self, frames: list[dict[str, Any]]) -> None:
        """Numbers of some frames; what is unknown does not count."""
        for name, (dtype, _) in FEATURES.items():
            if dtype in ("image", "string"):
                continue
            unknown = -1 if name == "video_frame" else None
            values = [float(frame[name]) for frame in frames if frame[name] != unknown]
            known = np.array([value for value in values if np.isfinite(value)])[:, None]
            if len(known):
                self._merge(name, known, len(known))

    def add_images(self, frames: list[dict[str, Any]]) -> None:
        """Pixels of some frames, in [0, 1], by channel."""
        for frame in frames:
            pixels = decode_image(frame["observation.image"]["bytes"], f"an image of {frame['triplet_id']}")
            self._merge("observation.image", pixels.reshape(-1, 3) / 255.0, 1)

    def _merge(self, name: str, values: npt.NDArray[np.float64], count: int) -> None:
        """``values``: float64, (how many, channels). ``count``: frames they come from."""
        new = {
            "count": count,
            "values": len(values),
            "sum": values.sum(0).tolist(),
            "squares": (values**2).sum(0).tolist(),
            "min": values.min(0).tolist(),
            "max": values.max(0).tolist(),
        }
        self.sums[name] = _merged(self.sums[name], new) if name in self.sums else new


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    def add(x: float, y: float) -> float:
        return x + y

    rules: dict[str, Callable[[float, float], float]] = {"sum": add, "squares": add, "min": min, "max": max}
    lists = {key: [rule(x, y) for x, y in zip(a[key], b[key], strict=True)] for key, rule in rules.items()}
    return lists | {key: a[key] + b[key] for key in ("count", "values")}


def finish(context: Context, plan: Plan, facts: Sequence[dict[str, Any]]) -> None:
    """``meta/tasks.parquet``, ``meta/stats.json``, ``meta/info.json`` and the data-set card."""
    import pandas as pd

    assert context.tasks is not None and context.image_size is not None
    out = Path(context.out)
    tasks = pd.DataFrame(
        {"task_index": np.arange(len(context.tasks))}, index=pd.Index(context.tasks.to_pylist(), name="task")
    )
    path = out / "meta" / "tasks.parquet"
    hidden = aside(path)
    tasks.to_parquet(hidden)
    os.replace(hidden, path)
    write_json(out / "meta" / "stats.json", _statistics([fact["stats"] for fact in facts]))
    write_json(out / "meta" / "info.json", _info(context, plan))
    write_text(out / "README.md", _card(plan, facts))


def _statistics(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """LeRobot's ``stats.json``: lists of shape (1,), of images (3, 1, 1)."""
    sums: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, found in part.items():
            sums[name] = _merged(sums[name], found) if name in sums else found
    stats = {}
    for name, found in sums.items():
        mean = np.array(found["sum"]) / found["values"]
        variance = np.maximum(np.array(found["squares"]) / found["values"] - mean**2, 0)
        columns = {"min": found["min"], "max": found["max"], "mean": mean.tolist(), "std": np.sqrt(variance).tolist()}
        if name == "observation.image":
            columns = {key: [[[value]] for value in values] for key, values in columns.items()}
        stats[name] = columns | {"count": [found["count"]]}
    return stats


def _info(context: Context, plan: Plan) -> dict[str, Any]:
    assert context.image_size is not None and context.tasks is not None
    features: dict[str, Any] = {
        name: {"dtype": dtype, "shape": [1], "names": None} for name, (dtype, _) in FEATURES.items()
    }
    features["observation.image"] |= {"shape": [*context.image_size, 3], "names": ["height", "width", "channels"]}
    return {
        "codebase_version": VERSION,
        "robot_type": None,
        "total_episodes": plan.exported,
        "total_frames": 2 * plan.exported,
        "total_tasks": len(context.tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": plan.max_bytes // 2**20,
        "video_files_size_in_mb": 200,
        "fps": FPS,
        "splits": {plan.splits[0] or "train": f"0:{plan.exported}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": features,
    }


def _card(plan: Plan, facts: Sequence[dict[str, Any]]) -> str:
    licenses = Counter[str]()
    for fact in facts:
        licenses.update(fact["licenses"])
    return "\n".join(
        [
            "---",
            *license_lines(sorted(licenses)),
            "task_categories:",
            "- robotics",
            "tags:",
            "- LeRobot",
            "configs:",
            "- config_name: default",
            "  data_files: data/*/*.parquet",
            "---",
            "",
            f"{plan.exported:,} pairs of images with the action between them, in LeRobot's layout {VERSION}: every",
            "pair is an episode of two frames (`observation.image`), its action in words is the task. There is no",
            "`action` vector. `timestamp` counts frames (fps = 1); `video_frame` (-1 = unknown) and `video_time_s`",
            "(NaN = unknown) say where a frame lies in its video. Source, licence and likelihood of every pair stand",
            "in `meta/episodes`.",
            "",
            license_sentence(licenses),
            "",
        ]
    )
