"""Draw the motion curves of some clips with the key-frames that each rule would choose.

For choosing the settings of [keyframes] before a long annotation: one image a clip, and the numbers in
curves.parquet.
"""

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.datasets.layouts import DatasetLayout
from wm.datasets.videos.listing import Entry, listing_digest, passed_over_of
from wm.datasets.videos.passed_over import describe
from wm.datasets.videos.videos import list_videos
from wm.files.storage import StorageError, download
from wm.files.uris import is_remote
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.runs import Run, read_run
from wm.tables import write_table
from wm.video import KEYFRAME_RULES, ClipReader, ClipSettings, Reader, Scan, VideoError
from wm.video.errors import check_name
from wm.video.settings import DecodeLimits, MotionSettings
from wm.viewer.curves import Choice, draw_curve

CURVES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("class_label", pa.string()),
        ("picture", pa.string()),
        ("times_s", pa.list_(pa.float64())),
        ("motion", pa.list_(pa.float32())),
        *((f"keyframes_{rule}", pa.list_(pa.int32())) for rule in KEYFRAME_RULES),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""Schema of one row a clip. ``times_s``, ``motion``: one number a frame, seconds of the file's clock and px/frame at
full size. ``keyframes_RULE``: frame numbers. A clip that could not be read has nulls there and a ``reason``."""


class CurvesRecipe(Recipe):
    """Which clips, how key-frames are chosen."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "layout": "dataset_layout",
        "motion": "keyframes.motion",
        "motion_side_px": "keyframes.motion_side_px",
        "max_keyframes": "keyframes.max_keyframes",
        "min_interval": "keyframes.min_interval_frames",
        "time_limit_s": "limits.time_limit_s",
    }

    videos: InputPath
    """Folder, glob, list file or one video, local or remote (see jobs.annotate)."""
    out: OutputPath
    """Folder for the images and curves.parquet."""
    dataset_layout: DatasetLayout = "auto"
    """How paths imply classes (see jobs.annotate)."""
    annotations: OptionalInputPath = None
    """The data set's own table, for layouts that have one (see jobs.annotate)."""
    limit: int = Field(default=20, ge=1)
    """Max number of clips, evenly spaced over the sorted list."""
    keyframes: MotionSettings = MotionSettings()
    """How key-frames are chosen, but for the rule: every rule is plotted."""
    reader: Reader = "auto"
    """Who reads the chosen frames (see jobs.annotate)."""
    image_side_px: int = Field(default=160, ge=16)
    """Max short side of the frames in the strip."""
    limits: DecodeLimits = DecodeLimits()
    """A clip that takes longer than limits.time_limit_s is skipped."""

    def settings(self) -> list[ClipSettings]:
        """Build the settings of a reader for each rule."""
        common = self.keyframes.model_dump() | self.limits.model_dump()
        return [
            ClipSettings(rule=rule, reader=self.reader, image_side_px=self.image_side_px, **common)
            for rule in KEYFRAME_RULES
        ]


@dataclass(frozen=True)
class ClipCurve:
    """A clip's motion curve and the key-frames of each rule, or why it could not be read."""

    video: Entry
    image_name: str | None = None
    times_s: list[float] | None = None
    motion: list[float] | None = None
    keyframes: dict[str, list[int]] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""

    def row(self) -> dict[str, object]:
        """Build the row of :data:`CURVES_SCHEMA`."""
        return {
            "key": self.video.key,
            "uri": self.video.uri,
            "class_label": self.video.class_label,
            "picture": self.image_name,
            "times_s": self.times_s,
            "motion": self.motion,
            **{f"keyframes_{rule}": frames for rule, frames in self.keyframes.items()},
            "reason": self.reason,
            "detail": self.detail,
        }


def run(recipe: CurvesRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Write images and ``curves.parquet`` into ``recipe.out``.

    Args:
        recipe: Which clips, how key-frames are chosen.
        dry_run: Report what would be plotted, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The list cannot be read, or the folder is another run's.
    """
    listing = list_videos(recipe.videos, layout=recipe.dataset_layout, annotations=recipe.annotations)
    # By the digest a run over another set of videos is refused, and one over the same resumed.
    stage = Run(recipe.out, "curves", recipe, {"videos": listing_digest(listing)})
    if stage.is_complete():
        print(f"curves: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    rows = listing.take(pa.array(evenly_spaced(listing.num_rows, recipe.limit))).to_pylist()
    videos = [Entry(**row) for row in rows]
    passed_over = passed_over_of(listing)
    for line in describe(passed_over):
        print(f"  {line}")
    if dry_run:
        print(f"curves: would plot {len(videos):,} of {listing.num_rows:,} clips in {recipe.out}")
        return {}
    stage.start()
    curves: list[ClipCurve] = []
    # A reader for each rule, so that each rule's own key-frames are fetched.
    readers = [ClipReader(settings) for settings in recipe.settings()]
    try:
        with stage.timed("draw_s"), progress_bar(len(videos), "clip", "curves") as bar:
            for number, video in enumerate(videos):
                curve = _draw(readers, video, number, Path(recipe.out), recipe.limits.time_limit_s)
                if curve.reason:
                    bar.write(f"  skipped {video.key}: {curve.reason}: {curve.detail}", file=sys.stderr)
                curves.append(curve)
                bar.update()
    finally:
        # Each has a child process of its own.
        for reader in readers:
            reader.close()
    write_table([curve.row() for curve in curves], Path(recipe.out) / "curves.parquet", CURVES_SCHEMA)
    record = stage.finish(_count(curves, listing.num_rows), passed_over=passed_over)
    _print_counts(recipe, record["counts"])
    return record


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Choose row numbers that are evenly spaced, first and last among them.

    Args:
        count: Number of rows.
        limit: Max number to choose; all if there are no more.
    """
    if count <= limit:
        return list(range(count))
    return [int(row) for row in np.linspace(0, count - 1, limit).round()]


def _draw(readers: list[ClipReader], video: Entry, number: int, out: Path, time_limit_s: float) -> ClipCurve:
    """Draw one clip; return its numbers, or a reason where it could not be read."""
    try:
        scan, choices = _read(readers, video, time_limit_s)
    except VideoError as error:
        # One bad clip costs itself.
        return ClipCurve(video, reason=error.reason, detail=error.detail)
    # Numbered: keys cut to 80 characters may be equal.
    image_name = f"{number:04d}-{safe_name(video.key)}.png"
    draw_curve(out / image_name, video.key, scan.times_s, scan.motion, choices)
    keyframes = {choice.rule: list(choice.frames) for choice in choices}
    return ClipCurve(video, image_name, scan.times_s.tolist(), scan.motion.tolist(), keyframes)


def _read(readers: list[ClipReader], video: Entry, time_limit_s: float) -> tuple[Scan, list[Choice]]:
    """Return the scan (the same for every rule but for its key-frames) and the choice of each rule.

    A remote video is fetched into a temporary folder first.
    """
    # No table holds a name that is no UTF-8.
    check_name(video.uri)
    with tempfile.TemporaryDirectory(prefix="wm-curves-") as folder:
        # One download serves all rules.
        path = Path(video.uri)
        if is_remote(video.uri):
            path = Path(folder) / "video"
            try:
                download(video.uri, path, time_limit_s=time_limit_s)
            except StorageError as error:
                raise VideoError(error.reason, error.detail) from error
        choices = []
        for reader in readers:
            clip = reader.read(path, video.start_s, video.end_s)
            choices.append(Choice(reader.settings.rule, clip.scan.keyframes, clip.images_png))
    return clip.scan, choices


def safe_name(key: str) -> str:
    """Convert a key to a part of a file name: letters, digits, dot, dash and underscore, its last 80 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", key)[-80:]


def _count(curves: list[ClipCurve], num_listed: int) -> dict[str, Any]:
    # A mean over clips that could be read; without any it is not known.
    readable = [curve for curve in curves if not curve.reason]
    reasons = Counter(curve.reason for curve in curves if curve.reason)
    means = {
        rule: round(sum(len(curve.keyframes[rule]) for curve in readable) / len(readable), 3) if readable else None
        for rule in KEYFRAME_RULES
    }
    return {
        "listed": num_listed,
        "drawn": len(readable),
        "skipped": len(curves) - len(readable),
        "skipped_by_reason": dict(sorted(reasons.items())),
        "keyframes_per_clip": means,
    }


def _print_counts(recipe: CurvesRecipe, counts: dict[str, Any]) -> None:
    # A mean over no clip is a dash, never 0.
    rules = ", ".join(f"{rule} {'–' if mean is None else mean}" for rule, mean in counts["keyframes_per_clip"].items())
    clips = f"{counts['drawn']} of {counts['listed']:,} clips plotted in {recipe.out}, {counts['skipped']} skipped"
    print(f"curves: {clips}; key-frames a clip: {rules}")


def main() -> int:
    """Run the command line."""
    return cli_main(CurvesRecipe, run, name="curves", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
