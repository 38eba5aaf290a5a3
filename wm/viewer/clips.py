"""Write the page of ``look``: clips with their motion curves, key-frames and proposed pairs.

Everything that it shows is passed in as plain values; the images were written into its folder before.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from wm.runs import write_text
from wm.templates import render_template
from wm.viewer.scripts import MAX_CURVE_POINTS, build_script
from wm.viewer.sprites import build_sprite

WEBP_QUALITY = 76
WEB_FILES = ("viewer.css", "clips.css", "elements.js", "curve.js", "clips.js", "pairs.js")


class TimedCurve(TypedDict):
    """A motion curve over time, of fewer points than frames: of every ``step`` frames the one that moves most."""

    frames: int
    step: int
    at: list[int]  # frame of each point
    times_s: list[float]
    motion: list[float]  # px/frame
    slow_ms: float  # the longest time between two frames
    fast_ms: float  # the shortest


class ClipSheet(TypedDict):
    """All key-frames of a clip in one image file of the page, in cells of two a row."""

    file: str
    size_px: list[int]  # width, height
    cell_px: list[int]
    frames: list[int]
    sizes_px: list[list[int]]  # width and height of each frame's image
    stored_px: list[int]  # of the first image before it was shrunk for the page


class KeyframeMark(TypedDict):
    """A key-frame on the page."""

    frame: int
    time_s: float
    motion: float


class PairCard(TypedDict):
    """A proposed pair, of a key-frame and the next one."""

    numbers: Mapping[str, object]  # what the filters compare, null where it was not measured
    findings: list[str]
    reason: str
    repeats_known: bool


class RuleCard(TypedDict):
    """What a key-frame rule makes of a clip."""

    keyframes: list[KeyframeMark]
    pairs: list[PairCard]
    reader: str
    note: str


class ClipCard(TypedDict):
    """A clip on the page."""

    key: str
    uri: str
    class_label: str
    facts: list[tuple[str, str]]
    curve: TimedCurve
    sheet: ClipSheet | None
    rules: dict[str, RuleCard]


class FailedClip(TypedDict):
    """A clip that could not be read, or not within the time."""

    key: str
    class_label: str
    reason: str
    detail: str


def encode_timed_curve(
    times_T: npt.NDArray[np.float64], motion_T: npt.NDArray[np.float32], max_points: int = MAX_CURVE_POINTS
) -> TimedCurve:
    """Reduce a motion curve to few points, its peaks, each with the frame and the time at which it is.

    Args:
        times_T: Times of the frames, in s of the file's own clock.
        motion_T: Motion by frame, px/frame.
        max_points: Max number of points.

    Returns:
        The curve.
    """
    values_T = np.nan_to_num(np.asarray(motion_T, dtype=np.float64))
    # A peak is what a key-frame is chosen for: it must not be averaged away.
    step = max(1, -(-len(values_T) // max_points))
    at = [begin + int(values_T[begin : begin + step].argmax()) for begin in range(0, len(values_T), step)]
    gaps_ms = np.diff(times_T) * 1000 if len(times_T) > 1 else np.zeros(1)
    return {
        "frames": len(values_T),
        "step": step,
        "at": at,
        "times_s": [round(float(times_T[frame]), 4) for frame in at],
        "motion": [round(float(values_T[frame]), 4) for frame in at],
        "slow_ms": round(float(gaps_ms.max()), 2),
        "fast_ms": round(float(gaps_ms.min()), 2),
    }


def build_sheet(images: Mapping[int, bytes], name: str, side_px: int) -> tuple[ClipSheet, bytes]:
    """Draw the key-frames of a clip into one image.

    Args:
        images: Encoded image of each frame.
        name: File of the sheet.
        side_px: Max long side of an image.

    Returns:
        Where each frame's image is, and the sheet as WebP.
    """
    # Two cells a row, as the sprites of triplets have; the last may stay empty.
    frames = sorted(images)
    cells: list[bytes | None] = [images[frame] for frame in frames]
    cells += [None] * (len(cells) % 2)
    sprite = build_sprite(list(zip(cells[::2], cells[1::2], strict=True)), side_px, WEBP_QUALITY)
    sizes = [list(size) for row in sprite.sizes_px for size in (row[:2], row[2:])]
    return {
        "file": name,
        "size_px": list(sprite.size_px),
        "cell_px": list(sprite.cell_px),
        "frames": frames,
        "sizes_px": sizes[: len(frames)],
        "stored_px": list(_png_size(images[frames[0]])),
    }, sprite.data


def _png_size(png: bytes) -> tuple[int, int]:
    # Width and height are the first fields of a PNG's header.
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def write_clips_page(out: Path, title: str, data: Mapping[str, object], clips: Sequence[ClipCard]) -> int:
    """Write ``out/index.html`` and the scripts in ``out/page``, where the sheets are already.

    Args:
        out: Folder of the page.
        title: Headline.
        data: Summary, settings, failures clips.
        clips: In the order in which they show.

    Returns:
        Bytes of the page with its images.
    """
    # The document comes last: where it is, the page opens.
    folder = out / "page"
    write_text(folder / "clips-data.js", build_script("clipsPage", {**data, "title": title}, list(clips)))
    for name in WEB_FILES:
        write_text(folder / name, (files("wm.viewer") / "web" / name).read_text(encoding="utf-8"))
    write_text(out / "index.html", render_template("wm.viewer", "web", "clips.html", title=title))
    # Images of clips that are not on the page, such as those of other budgets, do not count.
    used = {clip["sheet"]["file"] for clip in clips if clip["sheet"]}
    names = [path for path in folder.iterdir() if path.name in used or not re.match(r"clip-\d+\.webp$", path.name)]
    return sum(path.stat().st_size for path in [*names, out / "index.html"])
