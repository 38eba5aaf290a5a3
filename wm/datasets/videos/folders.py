"""Find video files below a folder or matching a glob, local or in an object store, and count what is passed over.

Not known here: classes, lists and what is in a file.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from wm.datasets.videos.endings import is_video_name
from wm.datasets.videos.passed_over import PassedOver, describe
from wm.datasets.videos.patterns import MARKS, Pattern, States, fixed_part
from wm.datasets.videos.walk import FolderWalk
from wm.errors import InputError
from wm.files.storage import list_files
from wm.files.storage_errors import StorageError
from wm.files.uris import OBJECT_STORES, ends_in, is_remote, parse_address, path_in, scheme_of


@dataclass(frozen=True)
class Found:
    """Videos of one place. ``files``: URI and key (path below ``root``) of each, in no order. Once ``files`` is read to
    its end, ``passed_over`` is complete, and ``notes`` holds for an object store ``versions``, a digest of the sizes
    and times that it listed; local files are looked at when that is asked."""

    root: str
    files: Iterable[tuple[str, str]]
    notes: dict[str, str] = field(default_factory=dict)
    passed_over: PassedOver = field(default_factory=PassedOver)


def find_videos(spec: str) -> Found:
    """Find the video files below a folder (local, ``s3://``, ``gs://``) or matching a glob, broken ones and links too.

    Links to folders are followed: a link that leads back into a folder that holds it, or that was followed already, is
    passed over. Names that start with a dot are left out (a glob takes folders by a part that starts with a dot).
    Whatever else is not listed is counted in ``passed_over``.

    Raises:
        InputError: Names ``spec``, at once or while ``files`` is read: nothing is there, no video is among what is, a
            folder may not be read.
    """
    if is_remote(spec):
        return _find_remote(spec)
    passed_over = PassedOver()
    if os.path.isdir(spec):  # noqa: PTH112 - of a name that is too long, pathlib raises
        walk = FolderWalk(str(Path(spec)), Pattern("**"), passed_over)
        words = ("is an empty folder", "holds")
        return Found(spec, _videos_of(walk.files(), spec, words, passed_over), passed_over=passed_over)
    # A glob: only the folders below its fixed part are walked through.
    root = fixed_part(spec)
    if not os.path.isdir(root):  # noqa: PTH112
        raise InputError(f"videos = {spec!r:.200}: no such folder: {root:.200}")
    below = spec[len(root) :] if root != "." or spec.startswith("./") else spec
    walk = FolderWalk(root, Pattern(below), passed_over)
    words = ("matches no file", "matches")
    return Found(root, _videos_of(walk.files(), spec, words, passed_over), passed_over=passed_over)


def is_glob(spec: str) -> bool:
    """Return whether a specification that is no file or folder is a pattern; over HTTP ``?`` begins a query."""
    return any(mark in path_in(spec) for mark in MARKS)


def _videos_of(
    files: Iterator[tuple[str, str]], spec: str, words: tuple[str, str], passed_over: PassedOver
) -> Iterator[tuple[str, str]]:
    """Yield the videos among the files and count the others; raise :class:`InputError` if there are no videos."""
    num_videos = 0
    for uri, key in files:
        if is_video_name(key.rpartition("/")[2]):
            num_videos += 1
            yield uri, key
        else:
            passed_over.add_file(key)
    if num_videos:
        return
    # No video: say what is there instead.
    summary = "; ".join(describe(passed_over.record()))
    num_files = passed_over.count("other_endings")
    if not num_files:
        raise InputError(f"videos = {spec!r} {words[0]}{f' ({summary})' if summary else ''}")
    raise InputError(
        f"videos = {spec!r} {words[1]} no video: none of {num_files} files has a video's ending ({summary})"
    )


def _find_remote(spec: str) -> Found:
    if scheme_of(spec) not in OBJECT_STORES:
        raise InputError(
            f"videos = {spec!r}: HTTP has no listing; give the URI of a video, or a list file with one row a video"
        )
    # 1. A prefix to list, and what is to match below it.
    address, pattern = parse_address(spec), ""
    if any(mark in address.key for mark in MARKS):
        # Only the prefix before the first mark can be asked of the store.
        fixed = fixed_part(address.key)
        fixed = "" if fixed == "." else fixed
        address, pattern = replace(address, key=fixed), address.key[len(fixed) :].lstrip("/")
    root = address.uri
    try:
        table = list_files(root)
    except StorageError as error:
        raise InputError(f"videos = {spec!r}: {error.detail}") from error
    # 2. Keys are matched as if they were paths of files.
    notes: dict[str, str] = {}
    passed_over = PassedOver()
    words = ("matches no file", "matches") if pattern else ("holds no file", "holds")
    files = _iterate_objects(table, root, _Objects(Pattern(pattern or "**"), passed_over), notes)
    return Found(root, _videos_of(files, spec, words, passed_over), notes, passed_over)


class _Objects:
    """Which objects of a store a pattern takes, as if their keys were paths of files."""

    def __init__(self, pattern: Pattern, passed_over: PassedOver) -> None:
        self._pattern, self._passed_over = pattern, passed_over
        self._folders: dict[str, States] = {"": pattern.start}

    def takes(self, path: str) -> bool:
        """Return whether an object is taken; count it if it is not because it is hidden."""
        # As a walk over folders would, so that a bucket lists what a copy of it on disk does.
        folder, _, name = path.rpartition("/")
        states = self._states(folder)
        if self._pattern.takes(states, name):
            return True
        if name.startswith(".") and self._pattern.could_take(states, name):
            self._passed_over.add("hidden", path)
        return False

    def _states(self, folder: str) -> States:
        """Return how far the pattern is matched in a folder; each folder is looked at, and counted, once."""
        # From the root down: what is hidden in a hidden folder is not counted again.
        if folder not in self._folders:
            parent, _, name = folder.rpartition("/")
            before = self._states(parent)
            states = self._pattern.enter(before, name)
            if not states and name.startswith(".") and self._pattern.could_enter(before, name):
                self._passed_over.add("hidden", f"{folder}/")
            elif not states and self._pattern.takes(before, name):
                self._passed_over.add("folders", f"{folder}/")
            self._folders[folder] = states
        return self._folders[folder]


def _iterate_objects(table: pa.Table, root: str, objects: _Objects, notes: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield URI and path of the files that the pattern takes, and note ``versions``: a digest of path, size and time of
    the videos among them that does not depend on their order."""
    head, tail = ends_in(root)
    versions = 0
    for batch in table.to_batches(max_chunksize=16384):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            path = row[0]
            if not objects.takes(path):
                continue
            if is_video_name(path.rpartition("/")[2]):
                # A sum does not depend on the order in which the store lists.
                versions += int.from_bytes(hashlib.sha256(repr(row).encode()).digest()[:16])
            yield f"{head}{path}{tail}", path
    notes["versions"] = f"{versions % (1 << 128):032x}"
