"""Read a video's key-frames as images: scan, choose, fetch, with every native decoder in a child process.

Knows nothing of lists, pairs or remote files.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from wm.video.device_flow import NO_DEVICE, prepare_device
from wm.video.errors import VideoError
from wm.video.facts import FrameFacts
from wm.video.farneback import compile_flow
from wm.video.fetch import EncodedFrame, Reader, fetch_encoded
from wm.video.isolation import RESIDENT_LIMIT_MIB, IsolatedProcess
from wm.video.motion import MotionKind
from wm.video.scan import Scan, scan_rules

DECORD_LIMIT_S = 20.0
"""decord either answers in well under a second or never: after this time PyAV reads instead."""
DEVICE_LIMIT_S = 120.0
"""For torch's import, a GPU's driver and the self-test, which count for no video."""
COMPILE_LIMIT_S = 120.0
"""For compiling the flow in a new child, where no cache of it is on disk."""


@dataclass(frozen=True)
class ClipSettings:
    """Settings of reading clips; the others are named as in :func:`wm.video.scan.scan_video`.

    Attributes:
        reader: Who serves the images: ``decord``, ``pyav``, or ``auto`` (decord first, PyAV where it fails).
        image_side_px: Max short side of the stored images (Lanczos), 0 = full size.
        time_limit_s: For the motion pass, and again for fetching by PyAV.
        memory_limit_mib: Of the child that decodes, 0 = none: address space, or with a device resident memory beyond
            what the device needs.
    """

    motion: MotionKind = "dis"
    device: str = NO_DEVICE
    motion_side_px: int = 40
    max_keyframes: int = 6
    min_interval_frames: int = 20
    rule: str = "top_then_spacing"
    reader: Reader = "auto"
    image_side_px: int = 512
    time_limit_s: float = 120.0
    memory_limit_mib: int = 6000


@dataclass(frozen=True)
class Clip:
    """A scanned video and the images of its key-frames.

    Attributes:
        scan: Times, motion and key-frames.
        images_png: PNG bytes of each key-frame; none if there are fewer than two, as no pair can be made.
        facts: Measurements of each image as it is stored.
        reader: Who served the images, ``decord`` or ``pyav``; empty if there are none.
        fallback: Why decord did not, where it was tried first.
        scan_s: Seconds of the motion pass.
        fetch_s: Seconds of fetching.
    """

    scan: Scan
    images_png: list[bytes]
    facts: list[FrameFacts]
    reader: Literal["decord", "pyav", ""]
    fallback: str = ""
    scan_s: float = 0.0
    fetch_s: float = 0.0


class ClipReader:
    """A reader of clips, one after the other, through one :class:`IsolatedProcess`."""

    def __init__(self, settings: ClipSettings) -> None:
        self.settings = settings
        self.deadline = math.inf
        """Time of :func:`time.monotonic` at which whatever is under way ends with ``time_out``."""
        self.process = IsolatedProcess()
        self._prepared_start = 0
        self._compile_problem = ""
        self._use_device(settings.device)

    def read(self, path: str | Path, start_s: float | None = None, end_s: float | None = None) -> Clip:
        """Read the key-frames of a file, or of a segment of it.

        Args:
            path: A local file.
            start_s: Begin of the half-open segment on the file's own clock, within half a frame step; None: of the
                file.
            end_s: Its end.

        Returns:
            The clip; without images where it has fewer than two key-frames.

        Raises:
            VideoError: Any reason; the reader stays usable afterwards.
        """
        rule = self.settings.rule
        return self.read_rules(path, [rule], start_s, end_s)[rule]

    def read_rules(
        self, path: str | Path, rules: Sequence[str], start_s: float | None = None, end_s: float | None = None
    ) -> dict[str, Clip]:
        """Read the key-frames that several rules choose, after one motion pass.

        Args:
            path: A local file.
            rules: Names of different key-frame rules; that of the settings does not count here.
            start_s: As for :meth:`read`.
            end_s: As for :meth:`read`.

        Returns:
            The clip of each rule, as :meth:`read` gives it with that rule in the settings.

        Raises:
            VideoError: Any reason; the reader stays usable afterwards.
        """
        self._prepare_device()
        self._prepare_flow()
        begin_s = time.perf_counter()
        # 1. The motion pass chooses the key-frames.
        try:
            scans = self._scan(path, rules, start_s, end_s)
        except VideoError as error:
            if self.device == NO_DEVICE or error.reason != "crashed":
                raise
            scans = self._scan_without_device(f"{self.device}: {error.detail}", path, rules, start_s, end_s)
        # 2. Each rule's key-frames are read in colour.
        scan_s = time.perf_counter() - begin_s
        clips: dict[str, Clip] = {}
        for rule, scan in scans.items():
            # Rules often agree: the same key-frames are read once.
            same = next((clip for clip in clips.values() if clip.scan.keyframes == scan.keyframes), None)
            if same is not None:
                clips[rule] = replace(same, scan=scan)
            else:
                clips[rule] = self._fetch_clip(path, scan, scan_s)
        return clips

    def _scan(
        self, path: str | Path, rules: Sequence[str], start_s: float | None, end_s: float | None
    ) -> dict[str, Scan]:
        settings = self.settings
        scans = self.process.call(
            self.limit_s(settings.time_limit_s),
            scan_rules,
            str(path),
            list(rules),
            motion=settings.motion,
            device=self.device,
            motion_side_px=settings.motion_side_px,
            max_keyframes=settings.max_keyframes,
            min_interval_frames=settings.min_interval_frames,
            start_s=start_s,
            end_s=end_s,
        )
        if not self._device_problem:
            return scans
        where = f"{NO_DEVICE} ({self._device_problem})"
        return {
            rule: replace(scan, measured_on=where + scan.measured_on.removeprefix(NO_DEVICE))
            for rule, scan in scans.items()
        }

    def _scan_without_device(
        self, problem: str, path: str | Path, rules: Sequence[str], start_s: float | None, end_s: float | None
    ) -> dict[str, Scan]:
        """Scan once more on the CPU; where that works, the device was at fault and is not used again."""
        device = self.device
        self._use_device(NO_DEVICE, problem)
        try:
            self._prepare_flow()
            return self._scan(path, rules, start_s, end_s)
        except VideoError:
            self._use_device(device)
            raise

    def _prepare_device(self) -> None:
        """Let a child that is new load torch and test the device, before a video's time counts."""
        if self.device == NO_DEVICE:
            return
        limits = (self.settings.memory_limit_mib, self.device)
        try:
            problem, resident_mib = self.process.call(self.limit_s(DEVICE_LIMIT_S), prepare_device, *limits)
        except VideoError as error:
            problem, resident_mib = f"self-test of {self.device}: {error}", 0.0
        if problem:
            self._use_device(NO_DEVICE, problem)
        # What torch and the driver hold at first is no leak.
        elif self._prepared_start != self.process.starts:
            self._prepared_start = self.process.starts
            self.process.resident_limit_mib = RESIDENT_LIMIT_MIB + round(resident_mib)

    def _prepare_flow(self) -> None:
        """Let a child that is new compile the flow, before a video's time counts; once done, this costs a message."""
        if self.settings.motion != "farneback":
            return
        try:
            self.process.call(self.limit_s(COMPILE_LIMIT_S), compile_flow, self._compile_problem)
        except VideoError as error:
            # A caller's deadline says nothing of the compiler.
            if time.monotonic() >= self.deadline:
                raise
            # What ended one child would end the next: from now on OpenCV measures.
            self._compile_problem = str(error)
            self.process.call(self.limit_s(COMPILE_LIMIT_S), compile_flow, self._compile_problem)

    def _use_device(self, device: str, problem: str = "") -> None:
        """Measure motion on a device from now on, in a child with the limits that go with it."""
        self.device, self._device_problem = device, problem
        self.process.close()
        # A GPU's driver reserves far more address space than there is memory.
        self.process.memory_limit_mib = self.settings.memory_limit_mib if device == NO_DEVICE else 0
        self.process.resident_limit_mib = RESIDENT_LIMIT_MIB

    def limit_s(self, limit_s: float) -> float:
        """Return a call's time limit, shortened to what is left until the deadline.

        Args:
            limit_s: Without a deadline, in seconds.
        """
        return max(0.0, min(limit_s, self.deadline - time.monotonic()))

    def _fetch_clip(self, path: str | Path, scan: Scan, scan_s: float) -> Clip:
        # Fewer than two key-frames make no pair: nothing is read in colour.
        if len(scan.keyframes) < 2:
            return Clip(scan, [], [], "", scan_s=scan_s)
        # Only those are read in colour.
        begin_s = time.perf_counter()
        encoded, reader, fallback = self._fetch_images(path, scan)
        return Clip(
            scan,
            [png for png, _ in encoded],
            [facts for _, facts in encoded],
            reader,
            fallback,
            scan_s=scan_s,
            fetch_s=time.perf_counter() - begin_s,
        )

    def close(self) -> None:
        """End the child process."""
        self.process.close()

    def _fetch_images(self, path: str | Path, scan: Scan) -> tuple[list[EncodedFrame], Literal["decord", "pyav"], str]:
        """Return the key-frames, who read them, and why decord did not."""
        settings, fallback = self.settings, ""
        # Before it seeks, decord reads every packet of the file: too slow for a segment of a long one.
        is_complete = scan.start_s is None and scan.end_s is None
        if settings.reader == "decord" or (settings.reader == "auto" and is_complete):
            try:
                return self._fetch("decord", min(settings.time_limit_s, DECORD_LIMIT_S), path, scan), "decord", ""
            except VideoError as error:
                # Asked for by name, decord's failure is the answer; else PyAV reads what decord cannot.
                if settings.reader == "decord":
                    raise
                fallback = str(error)
        return self._fetch("pyav", settings.time_limit_s, path, scan), "pyav", fallback

    def _fetch(
        self, reader: Literal["decord", "pyav"], limit_s: float, path: str | Path, scan: Scan
    ) -> list[EncodedFrame]:
        # decord may have ended the child: with a device, a new one has no limit of memory until it is prepared.
        self._prepare_device()
        return self.process.call(
            self.limit_s(limit_s), fetch_encoded, reader, str(path), scan, self.settings.image_side_px
        )
