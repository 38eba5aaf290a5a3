"""Which videos a specification names: a folder, a glob, a list file or one file."""

import glob
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wm.errors import InputError

_SUFFIXES = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
_MAGIC = "*?["


@dataclass(frozen=True)
class Video:
    """One listed video; it need not be readable.

    ``uri``: how to open it from where the specification was given. ``key``: its name within the listing
    (relative to the folder or glob's fixed part, or as written in the list), the same wherever the data
    lie: ids are made of it. ``class_label``: the parent folder's name where the layout is
    ``root/class/file``, else empty.
    """

    uri: str
    key: str
    class_label: str

    @property
    def path(self) -> str:
        """Absolute path."""
        return os.path.abspath(self.uri)  # noqa: PTH100 - links in it must stay as they are named


def list_videos(spec: str) -> list[Video]:
    """The videos that ``spec`` names, sorted by key, each once.

    A folder: every file below it with a video's suffix (:data:`VIDEO_SUFFIXES`, any case), broken ones too;
    names that start with a dot are left out. A glob (``*``, ``?``, ``[``, ``**``): the matching files with
    a video's suffix. A ``.txt`` file: one path a line, relative to the file's folder, ``#`` starts a
    comment; every line counts, whether something is there or not. Any other file: itself.

    Raises :class:`InputError` naming the specification if nothing is there or no video is among what is.
    """
    if not spec:
        raise InputError("videos is empty; expected a folder, a glob, a .txt list or a video file")
    path = Path(spec)
    if path.is_dir():
        videos = _below(path, spec)
    elif path.is_file():
        videos = _listed(path) if path.suffix.lower() == ".txt" else [Video(spec, path.name, "")]
    elif any(mark in spec for mark in _MAGIC):
        videos = _matching(spec)
    else:
        raise InputError(f"videos = {spec!r}: no such file or folder")
    for video in videos:
        _require_text(video.uri)
    return sorted({video.key: video for video in videos}.values(), key=lambda video: video.key)


def listing_digest(videos: Iterable[Video]) -> str:
    """16 hexadecimal digits of the keys, sizes and modification times: has the input changed?"""
    digest = hashlib.sha256()
    for video in videos:
        try:
            facts = Path(video.path).stat()
            seen = f"{facts.st_size}\x1f{facts.st_mtime_ns}"
        except OSError:
            seen = "absent"
        digest.update(f"{video.key}\x1f{seen}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _below(root: Path, spec: str) -> list[Video]:
    found: list[Path] = []
    num_files = 0
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        visible = [name for name in names if not name.startswith(".")]
        num_files += len(visible)
        found += [Path(folder, name) for name in visible if _is_video_name(name)]
    if not num_files:
        raise InputError(f"videos = {spec!r} is an empty folder")
    if not found:
        raise InputError(f"videos = {spec!r} holds no video: none of {num_files} files ends in {_suffixes()}")
    return [_relative(path, root) for path in found]


def _matching(spec: str) -> list[Video]:
    parts = Path(spec).parts
    fixed = next(number for number, part in enumerate(parts) if any(mark in part for mark in _MAGIC))
    root = Path(*parts[:fixed])
    if not root.is_dir():
        raise InputError(f"videos = {spec!r}: no such folder: {root}")
    files = [Path(name) for name in glob.glob(spec, recursive=True) if not Path(name).is_dir()]  # noqa: PTH207 - ** as people know it
    if not files:
        raise InputError(f"videos = {spec!r} matches no file")
    videos = [_relative(path, root) for path in files if _is_video_name(path.name)]
    if not videos:
        raise InputError(f"videos = {spec!r} matches no video: none of {len(files)} files ends in {_suffixes()}")
    return videos


def _listed(path: Path) -> list[Video]:
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"videos = {str(path)!r} is no list of paths (not UTF-8 text)") from error
    names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not names:
        raise InputError(f"videos = {str(path)!r} lists no video; expected one path a line")
    return [Video(str(path.parent / name), name, "") for name in names]


def _relative(path: Path, root: Path) -> Video:
    relative = path.relative_to(root)
    label = relative.parts[0] if len(relative.parts) == 2 else ""
    return Video(str(path), relative.as_posix(), label)


def _require_text(name: str) -> None:
    """Names become text columns: bytes that are no UTF-8 are refused at once, not in the middle of a run."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"file name {os.fsencode(name)!r} is not UTF-8; rename the file") from None


def _is_video_name(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _suffixes() -> str:
    return ", ".join(sorted(VIDEO_SUFFIXES))
