"""Find video files below a folder or matching a glob, local or in an object store, and count what is passed over.

Not known here: classes, lists and what is in a file.
"""

import hashlib
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from wm.datasets.videos.passed_over import PassedOver, describe
from wm.datasets.videos.patterns import MARKS, Pattern, States, fixed_part
from wm.errors import InputError
from wm.files.storage import StorageError, list_files
from wm.files.uris import OBJECT_STORES, ends_in, is_remote, parse_address, path_in, scheme_of

_CONTAINERS = """
    360 3g2 3gp 3gp2 3gpp 3gpp2 amv apng asf avi bik cine dav divx dv dif dvr-ms evo f4v flc fli flm flv gif gxf hdmov
    ifv imx insv ismv ivf ivr k3g kux lrv lvf lxf m1v m2p m2t m2ts m2v m4v mj2 mjpeg mjpg mk3d mkv mlv mod moflex mov
    movie mp2v mp4 mp4v mpe mpeg mpeg1 mpeg2 mpeg4 mpg mpg2 mpg4 mpv mpv2 mqv mts mtv mvi mxf mxg nsv nut nuv ogm ogv
    ogx pva qt r3d rm rmvb roq rv ser smk swf thp tod tp trp ts ty usm viv vivo vob vqa vro webm wm wmv wtv xmv xvid y4m
"""
_RAW_STREAMS = """
    264 265 266 av1 avc avs2 avs3 cavs dirac dnxhd dnxhr drc evc h261 h263 h264 h265 h266 h26l hevc obu vc1 vc2 vvc
"""
VIDEO_SUFFIXES = frozenset(f".{name}" for name in f"{_CONTAINERS} {_RAW_STREAMS}".split())
"""Endings of video files, in lower case: of the containers and raw streams that FFmpeg demuxes into frames. Left out:
those that are mostly something else (``.dat``, ``.ogg``, ``.webp``), and raw pixels, whose size no file tells."""

_ENDINGS = tuple(sorted(VIDEO_SUFFIXES))


@dataclass(frozen=True)
class Found:
    """Videos of one place. ``files``: URI and key (path below ``root``) of each, in no order. Once ``files`` is read to
    its end, ``passed_over`` is complete, and ``notes`` holds for an object store ``versions``, a digest of the sizes
    and times that it listed; local files are looked at when that is asked."""

    root: str
    files: Iterable[tuple[str, str]]
    notes: dict[str, str] = field(default_factory=dict)
    passed_over: PassedOver = field(default_factory=PassedOver)


def is_video_name(name: str) -> bool:
    """Return whether a file name ends in one of :data:`VIDEO_SUFFIXES`, in any case, and is not hidden."""
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


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
        walk = _Walk(str(Path(spec)), Pattern("**"), passed_over)
        words = ("is an empty folder", "holds")
        return Found(spec, _videos_of(walk.files(), spec, words, passed_over), passed_over=passed_over)
    root = fixed_part(spec)
    if not os.path.isdir(root):  # noqa: PTH112
        raise InputError(f"videos = {spec!r:.200}: no such folder: {root:.200}")
    below = spec[len(root) :] if root != "." or spec.startswith("./") else spec
    walk = _Walk(root, Pattern(below), passed_over)
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
    summary = "; ".join(describe(passed_over.record()))
    num_files = passed_over.count("other_endings")
    if not num_files:
        raise InputError(f"videos = {spec!r} {words[0]}{f' ({summary})' if summary else ''}")
    raise InputError(
        f"videos = {spec!r} {words[1]} no video: none of {num_files} files has a video's ending ({summary})"
    )


class _Folder(NamedTuple):
    """A folder to list. ``below``: its path below the root, with a slash at the end unless it is the root. ``states``:
    how far the pattern is matched. ``inside``: (device, inode) of the folders that hold it, as they were reached, and
    its own. ``is_linked``: reached through a link."""

    path: str
    below: str
    states: States
    inside: tuple[tuple[int, int], ...]
    is_linked: bool = False


class _Walk:
    """A walk over local folders in which every link to a folder is followed once."""

    def __init__(self, root: str, pattern: Pattern, passed_over: PassedOver) -> None:
        self._root, self._pattern, self._passed_over = root, pattern, passed_over
        self._links: deque[_Folder] = deque()
        self._followed: set[tuple[int, int]] = set()
        self._seen: set[int] = set()
        self._linked: set[int] = set()

    def files(self) -> Iterator[tuple[str, str]]:
        """Yield URI and path below the root of every file that the pattern matches and that is not hidden."""
        head, _ = ends_in(self._root)
        folders = [_Folder(self._root, "", self._pattern.start, (_read_identity(self._root),))]
        while folders or self._links:
            # Folders that need no link come first: what can be reached both ways is named by its own path.
            folder = folders.pop() if folders else self._links.popleft()
            later = []
            # 1. Files as they come: a folder may hold a million.
            for entry in _iterate_entries(folder.path):
                if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                    later.append(entry)
                elif self._takes(folder, entry, folder.below + entry.name):
                    yield head + folder.below + entry.name, folder.below + entry.name
            # 2. Folders and links in the order of their names, by which it is settled which link is followed.
            deeper: list[_Folder] = []
            for entry in sorted(later, key=lambda entry: entry.name):
                below = folder.below + entry.name
                target = _resolve_target(entry)
                if target == "folder":
                    self._enter(folder, entry, below, deeper)
                else:
                    takes = self._takes if target == "file" else self._takes_broken
                    if takes(folder, entry, below):
                        yield head + below, below
            folders += reversed(deeper)

    def _takes(self, folder: _Folder, entry: "os.DirEntry[str]", below: str) -> bool:
        """Return whether a file is taken, and count what is to be said of it."""
        if self._pattern.takes(folder.states, entry.name):
            if is_video_name(entry.name):
                self._count_repeats(folder, entry, below)
            return True
        if entry.name.startswith(".") and self._pattern.could_take(folder.states, entry.name):
            self._passed_over.add("hidden", below)
        return False

    def _takes_broken(self, folder: _Folder, link: "os.DirEntry[str]", below: str) -> bool:
        """Take a link that leads nowhere where a video was meant, which then becomes a reject; count it otherwise."""
        if is_video_name(link.name) and self._pattern.takes(folder.states, link.name):
            return True
        states = folder.states
        if self._pattern.could_take(states, link.name) or self._pattern.could_enter(states, link.name):
            self._passed_over.add("broken_links", below)
        return False

    def _enter(self, folder: _Folder, entry: "os.DirEntry[str]", below: str, deeper: list[_Folder]) -> None:
        """Put a folder on the list of those to walk through, or count why it is not."""
        states = self._pattern.enter(folder.states, entry.name)
        if not states:
            if entry.name.startswith(".") and self._pattern.could_enter(folder.states, entry.name):
                self._passed_over.add("hidden", f"{below}/")
            elif self._pattern.takes(folder.states, entry.name):
                self._passed_over.add("folders", f"{below}/")
            return
        # A folder inside itself never ends; a link that was followed already would list everything twice.
        identity, is_link = _read_identity(entry.path), entry.is_symlink()
        link = (folder.inside[-1][0], entry.inode())
        if identity in folder.inside or (is_link and link in self._followed):
            self._passed_over.add("looping_links", below)
            return
        inside = (*folder.inside, identity)
        child = _Folder(entry.path, f"{below}/", states, inside, is_link or folder.is_linked)
        if is_link:
            self._followed.add(link)
            self._links.append(child)
        else:
            deeper.append(child)

    def _count_repeats(self, folder: _Folder, entry: "os.DirEntry[str]", below: str) -> None:
        """Count a file that a link gives a second name: both are listed, as their classes may differ."""
        is_linked = folder.is_linked or entry.is_symlink()
        identity = hash(_read_identity(entry.path) if entry.is_symlink() else (folder.inside[-1][0], entry.inode()))
        if identity in self._seen and (is_linked or identity in self._linked):
            self._passed_over.add("repeats", below)
        self._seen.add(identity)
        if is_linked:
            self._linked.add(identity)


def _iterate_entries(path: str) -> Iterator["os.DirEntry[str]"]:
    """Yield what is in a folder, in no order; :class:`InputError` if it may not be read."""
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        name = error.filename or path
        raise InputError(
            f"cannot list the folder {name!r:.200}: {error.strerror}; every folder must be readable"
        ) from error


def _read_identity(path: str) -> tuple[int, int]:
    try:
        facts = os.stat(path)  # noqa: PTH116 - of every folder
    except OSError as error:
        raise InputError(
            f"cannot list the folder {path!r:.200}: {error.strerror}; every folder must be readable"
        ) from error
    return facts.st_dev, facts.st_ino


def _resolve_target(entry: "os.DirEntry[str]") -> str:
    """Return what a folder or link leads to: ``file``, ``folder``, or "" for nothing that can be reached."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "folder" if stat.S_ISDIR(entry.stat().st_mode) else "file"
    except OSError:  # gone, a loop of links, in a folder that may not be entered
        return ""


def _find_remote(spec: str) -> Found:
    if scheme_of(spec) not in OBJECT_STORES:
        raise InputError(
            f"videos = {spec!r}: HTTP has no listing; give the URI of a video, or a list file with one row a video"
        )
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
        folder, _, name = path.rpartition("/")
        states = self._states(folder)
        if self._pattern.takes(states, name):
            return True
        if name.startswith(".") and self._pattern.could_take(states, name):
            self._passed_over.add("hidden", path)
        return False

    def _states(self, folder: str) -> States:
        """Return how far the pattern is matched in a folder; each folder is looked at, and counted, once."""
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
