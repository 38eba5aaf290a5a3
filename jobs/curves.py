"""Draw the motion curves of some clips with the key-frames that each rule would choose.

For choosing motion, max_keyframes and min_interval before a long annotation: one image a clip, and the numbers in
curves.parquet.
"""

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.datasets.videos.layouts import Layout
from wm.datasets.videos.videos import describe, list_videos, listing_digest, passed_over_of
from wm.files.storage import StorageError, download
from wm.files.uris import is_remote
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.records import write_table
from wm.runs import Run, read_run
from wm.video import KEYFRAME_RULES, ClipReader, ClipSettings, MotionKind, Reader, Scan, VideoError
from wm.video.errors import check_name
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

    videos: InputPath
    """Folder, glob, list file or one video, local or remote (see jobs.annotate)."""
    out: OutputPath
    """Folder for the images and curves.parquet."""
    layout: Layout = "auto"
    """How places tell classes (see jobs.annotate)."""
    annotations: OptionalInputPath = None
    """The data set's own table, for layouts that have one (see jobs.annotate)."""
    limit: int = Field(default=20, ge=1)
    """Max number of clips, evenly spaced over the sorted list."""
    motion: MotionKind = "dis"
    """Optical flow (see jobs.annotate)."""
    motion_side_px: int = Field(default=40, ge=16)
    """Frames are halved as long as their long side stays this or more, and dis runs on what is left."""
    max_keyframes: int = Field(default=6, ge=2)
    """K_f: max number of key-frames of a video."""
    min_interval: int = Field(default=20, ge=1)
    """I_f: min number of frames between two key-frames."""
    reader: Reader = "auto"
    """Who reads the chosen frames (see jobs.annotate)."""
    image_side_px: int = Field(default=160, ge=16)
    """Max short side of the frames in the strip."""
    time_limit_s: float = Field(default=120.0, gt=0)
    """A clip that takes longer is skipped; for a download again as much."""

    def settings(self) -> list[ClipSettings]:
        """Build the settings of a reader for each rule."""
        names = ("motion", "motion_side_px", "max_keyframes", "min_interval", "reader", "image_side_px", "time_limit_s")
        common = self.model_dump(include=set(names))
        return [ClipSettings(rule=rule, **common) for rule in KEYFRAME_RULES]


def run(recipe: CurvesRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Write images and ``curves.parquet`` into ``recipe.out``.

    Args:
        recipe: Which clips, how key-frames are chosen.
        dry_run: Report what would be drawn, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The list cannot be read, or the folder is another run's.
    """
    listing = list_videos(recipe.videos, layout=recipe.layout, annotations=recipe.annotations)
    # By the digest a run over another set of videos is refused, and one over the same resumed.
    stage = Run(recipe.out, "curves", recipe, {"videos": listing_digest(listing)})
    if stage.is_complete():
        print(f"curves: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    videos = listing.take(pa.array(evenly_spaced(listing.num_rows, recipe.limit))).to_pylist()
    passed_over = passed_over_of(listing)
    for line in describe(passed_over):
        print(f"  {line}")
    if dry_run:
        print(f"curves: would draw {len(videos):,} of {listing.num_rows:,} clips in {recipe.out}")
        return {}
    stage.start()
    rows = []
    # A reader for each rule, so that each rule's own key-frames are fetched.
    readers = [ClipReader(settings) for settings in recipe.settings()]
    try:
        with stage.timed("draw_s"), progress_bar(len(videos), "clip", "curves") as bar:
            for number, video in enumerate(videos):
                rows.append(_draw(readers, video, number, Path(recipe.out), recipe.time_limit_s))
                if rows[-1]["reason"]:
                    bar.write(f"  skipped {video['key']}: {rows[-1]['reason']}: {rows[-1]['detail']}", file=sys.stderr)
                bar.update()
    finally:
        # Each has a child process of its own.
        for reader in readers:
            reader.close()
    write_table(rows, Path(recipe.out) / "curves.parquet", CURVES_SCHEMA)
    record = stage.finish(_count(rows, listing.num_rows), passed_over=passed_over)
    _print_counts(recipe, record["counts"])
    return record


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Choose ``limit`` of ``count`` row numbers, first and last among them; all if there are no more."""
    if count <= limit:
        return list(range(count))
    return [int(row) for row in np.linspace(0, count - 1, limit).round()]


def _draw(
    readers: list[ClipReader], video: dict[str, Any], number: int, out: Path, time_limit_s: float
) -> dict[str, Any]:
    """Draw one clip; return its row of :data:`CURVES_SCHEMA`, with a reason where it could not be read."""
    row = {name: video[name] for name in ("key", "uri", "class_label")} | {"reason": "", "detail": ""}
    try:
        scan, choices = _read(readers, video, time_limit_s)
    except VideoError as error:
        # One bad clip costs itself.
        return row | {"reason": error.reason, "detail": error.detail}
    image_name = f"{number:04d}-{safe_name(video['key'])}.png"
    draw_curve(out / image_name, video["key"], scan.times_s, scan.motion, choices)
    return row | {
        "picture": image_name,
        "times_s": scan.times_s.tolist(),
        "motion": scan.motion.tolist(),
        **{f"keyframes_{choice.rule}": list(choice.frames) for choice in choices},
    }


def _read(readers: list[ClipReader], video: dict[str, Any], time_limit_s: float) -> tuple[Scan, list[Choice]]:
    """Return the scan (the same for every rule but for its key-frames) and the choice of each rule.

    A remote video is fetched into a temporary folder first.
    """
    check_name(video["uri"])
    with tempfile.TemporaryDirectory(prefix="wm-curves-") as folder:
        # One download serves all rules.
        path = Path(video["uri"])
        if is_remote(video["uri"]):
            path = Path(folder) / "video"
            try:
                download(video["uri"], path, time_limit_s=time_limit_s)
            except StorageError as error:
                raise VideoError(error.reason, error.detail) from error
        choices = []
        for reader in readers:
            clip = reader.read(path, video["start_s"], video["end_s"])
            choices.append(Choice(reader.settings.rule, clip.scan.keyframes, clip.images_png))
    return clip.scan, choices


def safe_name(key: str) -> str:
    """Convert a key to a part of a file name: letters, digits, dot, dash and underscore, its last 80 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", key)[-80:]


def _count(rows: list[dict[str, Any]], num_listed: int) -> dict[str, Any]:
    drawn_rows = [row for row in rows if not row["reason"]]
    return {
        "listed": num_listed,
        "drawn": len(drawn_rows),
        "skipped": len(rows) - len(drawn_rows),
        "skipped_by_reason": dict(sorted(Counter(row["reason"] for row in rows if row["reason"]).items())),
        "keyframes_per_clip": {
            rule: round(sum(len(row[f"keyframes_{rule}"]) for row in drawn_rows) / len(drawn_rows), 3)
            if drawn_rows
            else None
            for rule in KEYFRAME_RULES
        },
    }


def _print_counts(recipe: CurvesRecipe, counts: dict[str, Any]) -> None:
    rules = ", ".join(f"{rule} {'–' if mean is None else mean}" for rule, mean in counts["keyframes_per_clip"].items())
    print(
        f"curves: {counts['drawn']} of {counts['listed']:,} clips drawn in {recipe.out}, {counts['skipped']} skipped; "
        f"key-frames a clip: {rules}"
    )


def main() -> int:
    """Run the command line."""
    return cli_main(CurvesRecipe, run, name="curves", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
