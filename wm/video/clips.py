"""A video's key-frames as pictures: scan, choose, fetch, with every native decoder in a child process."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

from wm.images import Pixels, encode_png
from wm.video.errors import VideoError
from wm.video.facts import FrameFacts, frame_facts
from wm.video.fetch import Reader, fetch_decord, fetch_pyav
from wm.video.isolation import IsolatedProcess
from wm.video.keyframes import KeyframeRule
from wm.video.motion import MotionKind
from wm.video.scan import Scan, scan_video

Picture: TypeAlias = tuple[bytes, FrameFacts]
"""A key-frame as PNG bytes, and what was measured of it."""

DECORD_LIMIT_S = 20.0
"""decord either answers in well under a second or never: after this long PyAV is asked instead."""


@dataclass(frozen=True)
class ClipSettings:
    """How clips are read. Names as in :func:`wm.video.scan.scan_video`.

    ``image_side_px``: short side of the stored pictures at most (Lanczos), 0 = full size. ``time_limit_s``:
    for the motion pass, and again for fetching by PyAV. ``memory_limit_mb``: of the child that decodes, 0 =
    none.
    """

    motion: MotionKind = "dis"
    motion_side_px: int = 40
    max_keyframes: int = 6
    min_interval: int = 20
    rule: KeyframeRule = "top_then_spacing"
    reader: Reader = "auto"
    image_side_px: int = 512
    time_limit_s: float = 120.0
    memory_limit_mb: int = 6000


@dataclass(frozen=True)
class Clip:
    """A scanned video and the PNG bytes of its key-frames (none if there are fewer than two, as no pair can
    be made).

    ``facts``: what was measured of each picture as it is stored. ``reader``: who served the pictures, ``decord`` or
    ``pyav``; empty if there are none. ``fallback``: why decord did not, when it was asked first. ``scan_s``,
    ``fetch_s``: seconds that the two passes took.
    """

    scan: Scan
    images_png: list[bytes]
    facts: list[FrameFacts]
    reader: Literal["decord", "pyav", ""]
    fallback: str = ""
    scan_s: float = 0.0
    fetch_s: float = 0.0


class ClipReader:
    """Reads clips one after the other through one :class:`IsolatedProcess`."""

    def __init__(self, settings: ClipSettings) -> None:
        self.settings = settings
        self.process = IsolatedProcess(settings.memory_limit_mb)

    def read(self, path: str | Path, start_s: float | None = None, end_s: float | None = None) -> Clip:
        """Key-frames of a file, or of its part in [start_s, end_s) on the file's own clock.

        Raises :class:`VideoError`; the reader stays usable after any.
        """
        settings = self.settings
        begin = time.perf_counter()
        scan = self.process.call(
            settings.time_limit_s,
            scan_video,
            str(path),
            motion=settings.motion,
            motion_side_px=settings.motion_side_px,
            max_keyframes=settings.max_keyframes,
            min_interval=settings.min_interval,
            rule=settings.rule,
            start_s=start_s,
            end_s=end_s,
        )
        scanned = time.perf_counter()
        if len(scan.keyframes) < 2:
            return Clip(scan, [], [], "", scan_s=scanned - begin)
        pictures, reader, fallback = self._pictures(path, scan)
        return Clip(
            scan,
            [png for png, _ in pictures],
            [facts for _, facts in pictures],
            reader,
            fallback,
            scan_s=scanned - begin,
            fetch_s=time.perf_counter() - scanned,
        )

    def close(self) -> None:
        self.process.close()

    def _pictures(self, path: str | Path, scan: Scan) -> tuple[list[Picture], Literal["decord", "pyav"], str]:
        """The key-frames, who read them, and why decord did not."""
        settings, fallback = self.settings, ""
        whole = scan.start_s is None and scan.end_s is None  # of a segment's file decord would read every packet first
        if settings.reader == "decord" or (settings.reader == "auto" and whole):
            try:
                return self._fetch("decord", min(settings.time_limit_s, DECORD_LIMIT_S), path, scan), "decord", ""
            except VideoError as error:
                if settings.reader == "decord":
                    raise
                fallback = str(error)
        return self._fetch("pyav", settings.time_limit_s, path, scan), "pyav", fallback

    def _fetch(self, reader: Literal["decord", "pyav"], limit_s: float, path: str | Path, scan: Scan) -> list[Picture]:
        return self.process.call(limit_s, fetch_pictures, reader, str(path), scan, self.settings)


def fetch_pictures(reader: Literal["decord", "pyav"], path: str, scan: Scan, settings: ClipSettings) -> list[Picture]:
    """PNG bytes and facts of the scan's key-frames, in time order; runs in the child."""
    images = fetch_decord(path, scan) if reader == "decord" else fetch_pyav(path, scan)
    limited = [limit_short_side(image, settings.image_side_px) for image in images]
    return [(encode_png(image), frame_facts(image)) for image in limited]


def limit_short_side(pixels_HWC: Pixels, side_px: int) -> Pixels:
    """Shrink so that the short side is ``side_px`` (0: leave it); smaller pictures are left as they are.

    Same filter and rounding as :func:`wm.images.fit_square`, so a codec of this side finds nothing left to
    scale.
    """
    height, width = pixels_HWC.shape[:2]
    if side_px == 0 or min(height, width) <= side_px:
        return pixels_HWC
    scale = side_px / min(height, width)
    size = (max(side_px, round(width * scale)), max(side_px, round(height * scale)))
    return np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS))
