"""Match globs over paths, folder by folder, so that a walk leaves out what cannot match; local and remote alike."""

import fnmatch
from typing import Final, TypeAlias

MARKS: Final = "*?["

States: TypeAlias = frozenset[int]
"""The parts of a pattern that the next name of a path may match; none: nothing below can match."""


class Pattern:
    """A pattern of path parts: ``*``, ``?`` and ``[…]`` within a name, ``**`` for any number of folders.

    Names that begin with a dot match only a part that begins with a dot, as in a shell.
    """

    def __init__(self, text: str) -> None:
        """Split the pattern; empty parts and ``.`` do not count."""
        self._parts = [part for part in text.split("/") if part not in ("", ".")]
        self._last = len(self._parts) - 1
        self.start: States = self._close({0})

    def takes(self, states: States, name: str) -> bool:
        """Return whether a file of this name matches.

        Args:
            states: How far the pattern is matched in the folder.
            name: Of the file or folder.
        """
        return any(self._ends(state, name) for state in states if self._may_be_hidden(state, name))

    def could_take(self, states: States, name: str) -> bool:
        """Return whether a file matches, or would if its name did not begin with a dot.

        Args:
            states: How far the pattern is matched in the folder.
            name: Of the file or folder.
        """
        return any(self._ends(state, name) for state in states)

    def enter(self, states: States, name: str) -> States:
        """Return what is to be matched below a folder of this name.

        Args:
            states: How far the pattern is matched in the folder.
            name: Of the file or folder.
        """
        return self._enter(frozenset(state for state in states if self._may_be_hidden(state, name)), name)

    def could_enter(self, states: States, name: str) -> bool:
        """Return whether something below a folder may match, or might if its name did not begin with a dot.

        Args:
            states: How far the pattern is matched in the folder.
            name: Of the file or folder.
        """
        return bool(self._enter(states, name))

    def _enter(self, states: States, name: str) -> States:
        # ``**`` takes the folder and stays; any other part is used up.
        deeper = {state for state in states if self._parts[state] == "**"}
        deeper |= {state + 1 for state in states if state < self._last and self._fits(state, name)}
        return self._close(deeper)

    def _ends(self, state: int, name: str) -> bool:
        return state == self._last and (self._parts[state] == "**" or self._fits(state, name))

    def _fits(self, state: int, name: str) -> bool:
        return self._parts[state] != "**" and fnmatch.fnmatchcase(name, self._parts[state])

    def _may_be_hidden(self, state: int, name: str) -> bool:
        return not name.startswith(".") or self._parts[state].startswith(".")

    def _close(self, states: set[int]) -> States:
        """Add the parts that are reached where ``**`` stands for no folder."""
        # ``a/**/b`` matches ``a/b`` too.
        closed = set(states)
        for state in sorted(states):
            reached = state
            while reached < self._last and self._parts[reached] == "**":
                reached += 1
                closed.add(reached)
        return frozenset(closed)


def fixed_part(pattern: str) -> str:
    """Return the folders of a glob before the first part with a mark, "." for none."""
    parts = pattern.split("/")
    # Only the folders below it are walked through.
    fixed = next(number for number, part in enumerate(parts) if any(mark in part for mark in MARKS))
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else ".")
