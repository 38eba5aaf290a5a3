"""Write what describes LeRobot's episodes: features, schemas, statistics, ``meta/info.json``, the card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wm.cards import license_lines, license_sentence
from wm.datasets.export.plan import Plan
from wm.datasets.export.rows import PROVENANCE, Context, Moments, PartFacts, count_licenses
from wm.files.atomic import replace_file
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
    """Count, mean, spread, minimum and maximum of every numeric feature over all frames that were added.

    Each feature is held as its mean and its sum of squared deviations, not as a sum of squares: times in seconds since
    1970 would lose their spread in the difference of two large sums.
    """

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}

    def add(self, frames: list[dict[str, Any]]) -> None:
        """Add frames: rows of :data:`DATA_SCHEMA`. Unknown numbers do not count, images count by their pixels.

        Raises:
            InputError: An image cannot be decoded.
        """
        for name, (dtype, _) in FEATURES.items():
            if dtype == "image":
                for frame in frames:
                    self._add_image(name, frame[name]["bytes"], frame["triplet_id"])
            elif dtype != "string":
                # Unknown numbers would move the mean.
                unknown = -1 if name == "video_frame" else None
                values = np.array([float(frame[name]) for frame in frames if frame[name] != unknown])
                values = values[np.isfinite(values)]
                if len(values):
                    self._merge(name, len(values), values[:, None], np.ones(len(values)))

    def _add_image(self, name: str, data: bytes, triplet_id: str) -> None:
        """Add one image's pixels in [0, 1], by channel, from its histograms: 256 values stand for every pixel."""
        pixels_HWC = decode_image(data, f"an image of {triplet_id}")
        levels = np.arange(256)[:, None] / 255.0
        counts_LC = np.stack([np.bincount(pixels_HWC[..., channel].ravel(), minlength=256) for channel in range(3)], 1)
        self._merge(name, 1, np.broadcast_to(levels, counts_LC.shape), counts_LC)

    def _merge(self, name: str, frames: int, values: npt.NDArray[np.float64], weights: npt.NDArray[Any]) -> None:
        """Merge values of some frames.

        Args:
            name: The feature.
            frames: How many frames the values come from.
            values: float64, (values, channels).
            weights: How often each value occurs: (values,) or (values, channels).
        """
        # A number a channel for images, one for all others.
        weights = weights.reshape(len(values), -1)
        number = weights.sum(0)
        mean = (weights * values).sum(0) / number
        occurs = np.broadcast_to(weights > 0, values.shape)
        new: Moments = {
            "count": frames,
            "values": int(number[0]),
            "mean": mean.tolist(),
            "deviations": (weights * (values - mean) ** 2).sum(0).tolist(),
            "min": np.where(occurs, values, np.inf).min(0).tolist(),
            "max": np.where(occurs, values, -np.inf).max(0).tolist(),
        }
        self.moments[name] = _merge_moments(self.moments[name], new) if name in self.moments else new


def _merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two groups of values (Chan, Golub and LeVeque 1979)."""
    # Deviations from each mean, not sums of squares: large values would lose their spread.
    number = a["values"] + b["values"]
    step = np.subtract(b["mean"], a["mean"])
    deviations = np.add(a["deviations"], b["deviations"]) + step**2 * a["values"] * b["values"] / number
    return {
        "count": a["count"] + b["count"],
        "values": number,
        "mean": (np.array(a["mean"]) + step * b["values"] / number).tolist(),
        "deviations": deviations.tolist(),
        "min": np.minimum(a["min"], b["min"]).tolist(),
        "max": np.maximum(a["max"], b["max"]).tolist(),
    }


def finish(context: Context, plan: Plan, facts: Sequence[PartFacts]) -> None:
    """Write ``meta/tasks.parquet``, ``meta/stats.json``, ``meta/info.json`` and the data-set card.

    Args:
        context: What all parts share.
        plan: What was exported.
        facts: Of each part, in order.
    """
    import pandas as pd

    assert context.tasks is not None and context.image_size is not None
    out = Path(context.out)
    tasks = pd.DataFrame(
        {"task_index": np.arange(len(context.tasks))}, index=pd.Index(context.tasks.to_pylist(), name="task")
    )
    # pandas, as LeRobot reads the index of this table by pandas' metadata.
    with replace_file(out / "meta" / "tasks.parquet") as temporary:
        tasks.to_parquet(temporary)
    write_json(out / "meta" / "stats.json", _statistics([fact["stats"] for fact in facts]))
    write_json(out / "meta" / "info.json", _info(context, plan))
    write_text(out / "README.md", _card(plan, facts))


def _statistics(parts: Sequence[Mapping[str, Moments]]) -> dict[str, object]:
    """Build LeRobot's ``stats.json`` from the moments of the parts: lists of shape (1,), of images (3, 1, 1)."""
    moments: dict[str, Moments] = {}
    for part in parts:
        for name, new in part.items():
            moments[name] = _merge_moments(moments[name], new) if name in moments else new
    stats: dict[str, object] = {}
    for name, sums in moments.items():
        # Of the population, as LeRobot's own.
        std = np.sqrt(np.array(sums["deviations"]) / sums["values"])
        columns = {"min": sums["min"], "max": sums["max"], "mean": sums["mean"], "std": std.tolist()}
        # By channel, as LeRobot broadcasts them over an image.
        images = {key: [[[value]] for value in values] for key, values in columns.items()}
        stats[name] = {**(images if FEATURES[name][0] == "image" else columns), "count": [sums["count"]]}
    return stats


def _info(context: Context, plan: Plan) -> dict[str, object]:
    assert context.image_size is not None and context.tasks is not None
    # As LeRobot writes it: shapes without the batch, null where a feature has no names.
    features: dict[str, dict[str, object]] = {
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


def _card(plan: Plan, facts: Sequence[PartFacts]) -> str:
    # The paths are named: without them datasets would take the tables of meta for rows.
    licenses = count_licenses(facts)
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
            "(NaN = unknown) say where a frame is in its video. Source, licence and likelihood of every pair are",
            "in `meta/episodes`.",
            "",
            license_sentence(licenses),
            "",
        ]
    )
