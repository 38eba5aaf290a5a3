"""Walk over local folders, through links too, and yield the files that a pattern takes.

Knows neither object stores nor what is in a file.
"""

import os
import stat
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from wm.datasets.videos.endings import is_video_name
from wm.datasets.videos.passed_over import PassedOver
from wm.datasets.videos.patterns import Pattern, States
from wm.errors import InputError
from wm.files.uris import ends_in


class _Folder(NamedTuple):
    """A folder to list. ``below``: its path below the root, with a slash at the end unless it is the root. ``states``:
    how far the pattern is matched. ``inside``: (device, inode) of the folders that hold it, as they were reached, and
    its own. ``is_linked``: reached through a link."""

    path: str
    below: str
    states: States
    inside: tuple[tuple[int, int], ...]
    is_linked: bool = False


class FolderWalk:
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
        # Files with another ending are taken too: the caller counts them.
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
        # Nothing below it can match: it is counted only where a user might have meant it.
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
        # Device and inode name a file, a hash of them costs less to keep than its path.
        is_linked = folder.is_linked or entry.is_symlink()
        identity = hash(_read_identity(entry.path) if entry.is_symlink() else (folder.inside[-1][0], entry.inode()))
        if identity in self._seen and (is_linked or identity in self._linked):
            self._passed_over.add("repeats", below)
        self._seen.add(identity)
        if is_linked:
            self._linked.add(identity)


def _iterate_entries(path: str) -> Iterator["os.DirEntry[str]"]:
    """Yield what is in a folder, in no order; :class:`InputError` if it may not be read."""
    # An unreadable folder stops the listing: its videos would be missing in silence.
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
