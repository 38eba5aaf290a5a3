"""Video files below a folder or matching a glob, local or in an object store."""

import fnmatch
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from wm.errors import InputError
from wm.storage import StorageError, list_files
from wm.uris import OBJECT_STORES, ends_in, is_remote, parse_place, path_in, scheme_of

_SUFFIXES = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts vob webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
MAGIC = "*?["

_ENDINGS = tuple(sorted(VIDEO_SUFFIXES))


@dataclass(frozen=True)
class Found:
    """Videos of one place. ``files``: URI and key (path below ``root``) of each, in no order. ``notes``: once ``files``
    is read to its end, for an object store ``versions``, a digest of the sizes and times that it told; local files
    are looked at when that is asked."""

    root: str
    files: Iterable[tuple[str, str]]
    notes: dict[str, str] = field(default_factory=dict)


def is_video_name(name: str) -> bool:
    """Whether a file name ends in one of :data:`VIDEO_SUFFIXES`, in any case, and is not hidden."""
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def find_videos(spec: str) -> Found:
    """The video files below a folder (local, ``s3://``, ``gs://``) or matching a glob, broken ones and links too.

    Names that start with a dot are left out; links to folders are followed by a glob only. Raises :class:`InputError`
    that names ``spec``, at once or while ``files`` is read: nothing is there, no video is among what is, a folder may
    not be read.
    """
    if is_remote(spec):
        return _remote(spec)
    if Path(spec).is_dir():
        return Found(spec, _some(_walk(str(Path(spec))), spec, ("is an empty folder", "holds")))
    root = _fixed_part(spec)
    if not Path(root).is_dir():
        raise InputError(f"videos = {spec!r}: no such folder: {root}")
    return Found(root, _some(_match(spec, root), spec, ("matches no file", "matches")))


def is_glob(spec: str) -> bool:
    """Whether a specification that is no file or folder is a pattern; over HTTP ``?`` begins a query."""
    return any(mark in path_in(spec) for mark in MAGIC)


def _some(files: Iterator[tuple[str, str]], spec: str, words: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """The videos among the files; an error if there are none."""
    num_files, num_videos = 0, 0
    for uri, key in files:
        num_files += 1
        if is_video_name(key.rpartition("/")[2]):
            num_videos += 1
            yield uri, key
    if not num_files:
        raise InputError(f"videos = {spec!r} {words[0]}")
    if not num_videos:
        suffixes = ", ".join(_ENDINGS)
        raise InputError(f"videos = {spec!r} {words[1]} no video: none of {num_files} files ends in {suffixes}")


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    head, _ = ends_in(folder)
    for path, subfolders, names in os.walk(folder, onerror=_raise):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = path[len(folder) :].strip("/")
        for name in names:
            if not name.startswith("."):
                key = f"{below}/{name}" if below else name
                yield head + key, key


def _raise(error: OSError) -> None:
    raise InputError(f"cannot list the folder {error.filename!r}: {error.strerror}; every folder must be readable")


def _match(pattern: str, root: str) -> Iterator[tuple[str, str]]:
    for path in glob.iglob(pattern, recursive=True):  # noqa: PTH207 - ** as people know it
        if not os.path.isdir(path):  # noqa: PTH112 - a million times
            yield path, os.path.normpath(path) if root == "." else path[len(root) :].lstrip("/")


def _fixed_part(pattern: str) -> str:
    """The folders of a glob before the first part with a mark."""
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if any(mark in part for mark in MAGIC))
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")


def _remote(spec: str) -> Found:
    if scheme_of(spec) not in OBJECT_STORES:
        raise InputError(
            f"videos = {spec!r}: HTTP has no listing; give the URI of a video, or a list file with one row a video"
        )
    place, pattern = parse_place(spec), ""
    if any(mark in place.key for mark in MAGIC):
        fixed = _fixed_part(place.key)
        fixed = "" if fixed == "." else fixed
        place, pattern = replace(place, key=fixed), place.key[len(fixed) :].lstrip("/")
    root = place.uri
    try:
        table = list_files(root)
    except StorageError as error:
        raise InputError(f"videos = {spec!r}: {error.detail}") from error
    notes: dict[str, str] = {}
    words = ("matches no file", "matches") if pattern else ("holds no file", "holds")
    return Found(root, _some(_read_off(table, root, pattern, notes), spec, words), notes)


def _read_off(table: pa.Table, root: str, pattern: str, notes: dict[str, str]) -> Iterator[tuple[str, str]]:
    """URI and path of the files that are wanted, and the note ``versions``: a digest of path, size and time of the
    videos among them that does not depend on their order."""
    head, tail = ends_in(root)
    versions = 0
    for batch in table.to_batches(max_chunksize=16384):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            path = row[0]
            if not _is_wanted(path, pattern):
                continue
            if is_video_name(path.rpartition("/")[2]):
                versions += int.from_bytes(hashlib.sha256(repr(row).encode()).digest()[:16])
            yield f"{head}{path}{tail}", path
    notes["versions"] = f"{versions % (1 << 128):032x}"


def _is_wanted(path: str, pattern: str) -> bool:
    if path.startswith(".") or "/." in path:
        return False
    return not pattern or _parts_match(path.split("/"), pattern.split("/"))


def _parts_match(parts: list[str], patterns: list[str]) -> bool:
    """A glob's match, part by part: ``**`` stands for any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**" and len(patterns) > 1:
        return any(_parts_match(parts[skip:], patterns[1:]) for skip in range(len(parts)))
    if patterns[0] == "**":
        return bool(parts)
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _parts_match(parts[1:], patterns[1:])
