"""Decode videos to key-frames with their numbers: the CPU actor of ``annotate``.

Knows no model and writes no table.
"""

import fcntl
import shutil
import socket
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.annotate.metrics import Metrics
from jobs.annotate.tables import DECODED_SCHEMA, DecodedVideo, Decoding, ListedVideo
from jobs.shared.ray_session import find_node_id
from wm.files.storage import download
from wm.files.uris import is_remote
from wm.video import Clip, ClipReader, ClipSettings, VideoError
from wm.video.errors import MachineError, check_name
from wm.video.facts import FrameFacts, pair_difference

_PREFIX, _LOCK = "wm-annotate-", ".owner"


@dataclass(frozen=True)
class DownloadSettings:
    """Limits of downloads.

    Attributes:
        time_limit_s: For one file.
        max_bytes: Larger files are rejected before the disk is full.
    """

    time_limit_s: float
    max_bytes: int


class Scratch:
    """A folder for downloads, removed with its owner; one whose owner was killed is removed by the next that is made.

    A lock that ends with the process shows whether the owner is alive.
    """

    def __init__(self) -> None:
        # A free lock: its owner was killed and could not clean up.
        for orphan in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError), (orphan / _LOCK).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(orphan, ignore_errors=True)
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.path = Path(folder.name)
        lock = (self.path / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        weakref.finalize(self, lock.close)
        weakref.finalize(self, folder.cleanup)  # before the lock is released: finalizers run last in, first out


class VideoReader:
    """Read listed videos, remote ones too. Owns the child process in which native decoders run."""

    def __init__(self, clips: ClipSettings, downloads: DownloadSettings) -> None:
        """Prepare the reader; nothing is started yet.

        Args:
            clips: Settings of reading.
            downloads: Limits for remote videos.
        """
        self.clips = ClipReader(clips)
        self.downloads = downloads
        self._scratch = Scratch()
        self._local_uri = ""

    def read(
        self, video: ListedVideo, path: str, rules: Sequence[str]
    ) -> tuple[dict[str, Decoding], npt.NDArray[np.float64] | None]:
        """Read the key-frames that each rule chooses.

        Args:
            video: As it is listed.
            path: Where it is, local or remote.
            rules: Names of key-frame rules.

        Returns:
            By rule, the numbers and images, or the reason of a failure, which all rules share; and the time of every
            frame in s of the file's own clock, None of a video that failed.

        Raises:
            OSError: The machine is at fault, not the video: its disk is full.
            RuntimeError: The same: no child starts, or a bucket's store does not let the machine in.
        """
        seconds: Decoding = {}
        begin = time.perf_counter()
        try:
            # Before anything is read: no table can hold such a name.
            check_name(path)
            if is_remote(path):
                path = self._local_copy(path, seconds)
            clips = self.clips.read_rules(path, rules, video["start_s"], video["end_s"])
        except VideoError as error:
            # Without the download, which has its own column.
            failed_s = time.perf_counter() - begin - seconds.get("download_s", 0.0)
            detail = _name_video(error.detail, path, video)
            failure: Decoding = {"outcome": "failed", "reason": error.reason, "detail": detail, "failed_s": failed_s}
            return {rule: {**seconds, **failure} for rule in rules}, None
        decodings: dict[str, Decoding] = {
            rule: {**seconds, **_describe_clip(clip, path, video)} for rule, clip in clips.items()
        }
        return decodings, next(iter(clips.values())).scan.times_s

    def _local_copy(self, uri: str, seconds: Decoding) -> str:
        """Fetch a remote file by the killable child and return its local path.

        It is kept until another file is needed, because the segments of one long video follow each other.
        """
        path = self._scratch.path / "video"
        if uri != self._local_uri or not path.exists():
            self._local_uri = ""
            for leftover in path.parent.iterdir():  # a child that was killed leaves an unfinished file
                leftover.unlink()
            begin = time.perf_counter()
            # The child enforces the limit itself; a little more time lets it say so.
            limits = self.downloads
            self.clips.process.call(
                self.clips.limit_s(limits.time_limit_s + 5.0),
                fetch_remote,
                uri,
                str(path),
                limits.time_limit_s,
                limits.max_bytes,
            )
            seconds["download_s"] = time.perf_counter() - begin
            self._local_uri = uri
        return str(path)


class Decoder:
    """Actor that turns a shard's videos into their key-frames."""

    def __init__(self, clips: ClipSettings, downloads: DownloadSettings, dataset: str) -> None:
        """Prepare the reader; nothing is started yet.

        Args:
            clips: Settings of reading.
            downloads: Limits for remote videos.
            dataset: Name for the metrics.
        """
        self.videos = VideoReader(clips, downloads)
        self.metrics = Metrics(dataset)
        self._node = find_node_id()

    @property
    def reader(self) -> ClipReader:
        """Return the reader of clips, with its child process."""
        return self.videos.clips

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Decode a batch.

        Args:
            batch: Rows of a listing with ``path, shard, shard_rows``.

        Returns:
            As many rows of :data:`DECODED_SCHEMA`, in the same order.
        """
        rows: list[DecodedVideo] = []
        paths: list[str] = batch.column("path").to_pylist()
        videos: list[ListedVideo] = batch.drop_columns(["path"]).to_pylist()
        rule = self.reader.settings.rule
        for video, path in zip(videos, paths, strict=True):
            try:
                decoding = self.videos.read(video, path, [rule])[0][rule]
            except MachineError as error:
                # Other nodes may be let in: the message says where to look.
                decoding = {"problem": f"on node {socket.gethostname()}: {error}", "errno": 0}
            except (OSError, RuntimeError) as error:
                # The machine's trouble (no space, no child that starts), not the video's: no reject.
                message = f"cannot decode {video['uri']} on this machine: {getattr(error, 'strerror', None) or error}"
                decoding = {"problem": message, "errno": getattr(error, "errno", None) or 0}
            row: DecodedVideo = {**video, **decoding, "node": self._node}
            rows.append(row)
            self.metrics.video(row)
        return pa.Table.from_pylist(rows, schema=DECODED_SCHEMA)


def _describe_clip(clip: Clip, path: str, video: ListedVideo) -> Decoding:
    """Describe a clip that was read: numbers and images, or why it is filtered."""
    # Numbers are recorded of filtered videos too: they show what another setting would give.
    scan, keyframes = clip.scan, clip.scan.keyframes
    row: Decoding = {
        "num_frames": scan.num_frames,
        "duration_s": scan.duration_s,
        "frame_s": scan.duration_s / scan.num_frames,
        "height_px": scan.size_px[0],
        "width_px": scan.size_px[1],
        "orientation": scan.orientations[0].filters,
        "sample_aspect_ratio": str(scan.sample_aspect),
        "reader": clip.reader,
        "fallback": clip.fallback.replace(path, video["uri"]),
        "errors": scan.errors,
        "measured_on": scan.measured_on,
        "keyframes": keyframes,
        "times_s": scan.times_s[keyframes].tolist(),
        "motion": scan.motion.tolist(),
        "scan_s": clip.scan_s,
        "fetch_s": clip.fetch_s,
    }
    if len(keyframes) < 2:
        detail = f"{path}: {len(keyframes)} key-frame among {scan.num_frames} frames; a pair needs two"
        detail = _name_video(detail, path, video)
        return {**row, "outcome": "filtered", "reason": "too_few_keyframes", "detail": detail}
    return {**row, "images": clip.images_png, **_list_facts(clip.facts, scan.cuts)}


def fetch_remote(uri: str, path: str, time_limit_s: float, max_bytes: int) -> None:
    """Download a file; runs in the child.

    Args:
        uri: Remote address.
        path: Local file to write.
        time_limit_s: For the complete download.
        max_bytes: Larger files are refused.

    Raises:
        VideoError: For what is the file's or its server's fault.
        MachineError: The store does not let this machine in.
    """
    from wm.files.storage_errors import LoginError, StorageError

    # Only these errors travel through the pipe as they are.
    try:
        download(uri, path, time_limit_s=time_limit_s, max_bytes=max_bytes)
    except LoginError as error:
        raise MachineError(error.detail) from error
    except StorageError as error:
        raise VideoError(error.reason, error.detail) from error


def _name_video(detail: str, path: str, video: ListedVideo) -> str:
    """Name a video by its URI: a local copy's name means nothing, and differs every time."""
    message = detail.replace(path, video["uri"])
    if video["uri"] not in message:  # a time-out's or a crash's
        message = f"{video['uri']}: {message}"
    if video["start_s"] is None and video["end_s"] is None:
        return message
    return f"segment {video['key'].rpartition('#')[2]}: {message}"


def _list_facts(facts: list[FrameFacts], cuts: list[float]) -> Decoding:
    """List the measurements of each key-frame, by column."""
    # Against the key-frame before; the first has none.
    return {
        "difference": [0.0, *(pair_difference(a, b) for a, b in pairwise(facts))],
        "cut": cuts,
        "luma": [fact.luma for fact in facts],
        "sharpness": [fact.sharpness for fact in facts],
        "phash": [fact.phash for fact in facts],
    }
