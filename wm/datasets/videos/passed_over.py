"""Count what a listing of videos passes over: how many of each kind, and a few by name.

Knows no file system: the caller passes the names.
"""

import bisect
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from wm.files.uris import escape_text

KINDS: Final = {
    "other_endings": "files without a video's ending",
    "hidden": "hidden files and folders, whose names begin with a dot",
    "broken_links": "links that lead nowhere",
    "looping_links": "links back into a folder that holds them, or followed already",
    "folders": "folders that match the pattern, which takes files",
    "repeats": "videos listed under one more name, by links to one file",
    "not_unicode": "file names that are no UTF-8, which become rejects",
    "duplicates": "entries listed twice, taken once",
    "unnamed": "videos that the annotations do not name",
    "same_name": "videos of a name for which the annotations' row took another one",
    "absent": "rows of the annotations whose video is not there, which become rejects",
}
"""Kinds of what is passed over, or listed under reserve, in words."""

MAX_NAMES: Final = 5
"""Names that are given of each kind: the first ones in the order of the alphabet."""

MAX_ENDINGS: Final = 20
_LONGEST_ENDING: Final = 12


class PassedOver:
    """Counts and examples by kind (:data:`KINDS`), for ``run.json`` and for people."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}
        self._endings: Counter[str] = Counter()

    def add(self, kind: str, name: str, count: int = 1) -> None:
        """Count what was passed over.

        Args:
            kind: Of :data:`KINDS`.
            name: What it is called, in whatever bytes; "" adds no example.
            count: How many are of this name.
        """
        # A few names of each kind, whatever the order in which they come.
        self._counts[kind] += count
        names = self._names.setdefault(kind, [])
        if name and (len(names) < MAX_NAMES or name < names[-1]) and name not in names:
            bisect.insort(names, name)
            del names[MAX_NAMES:]

    def add_file(self, path: str) -> None:
        """Count a file that has no video's ending, by its ending in lower case."""
        self.add("other_endings", path)
        stem, dot, ending = path.rpartition("/")[2].rpartition(".")
        is_ending = bool(stem and dot) and 0 < len(ending) <= _LONGEST_ENDING
        self._endings[f".{ending.lower()}" if is_ending else ""] += 1

    def count(self, kind: str) -> int:
        """Return how many of a kind were passed over."""
        return self._counts[kind]

    def record(self) -> dict[str, Any]:
        """Return kind → ``count`` and ``examples``, of ``other_endings`` also ``by_ending`` ("" = none); for JSON."""
        record: dict[str, Any] = {}
        for kind in KINDS:
            if not self._counts[kind]:
                continue
            # JSON holds Unicode only, file names any bytes.
            examples = [escape_text(name) for name in self._names[kind]]
            record[kind] = {"count": self._counts[kind], "examples": examples}
        if self._endings:
            ordered = sorted(self._endings.items(), key=lambda item: (-item[1], item[0]))
            by_ending = {escape_text(ending): count for ending, count in ordered[:MAX_ENDINGS]}
            if rest := sum(count for _, count in ordered[MAX_ENDINGS:]):
                by_ending["others"] = rest
            record["other_endings"]["by_ending"] = by_ending
        return record

    def dumps(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(self.record())


def describe(record: Mapping[str, Any]) -> list[str]:
    """Say in one line a kind what :meth:`PassedOver.record` holds: count, endings, examples."""
    lines = []
    for kind, words in KINDS.items():
        if kind not in record:
            continue
        count, names = record[kind]["count"], record[kind]["examples"]
        # Names may hold commas and line ends: such are quoted.
        line = f"{words}: {count:,}"
        if by_ending := record[kind].get("by_ending"):
            counted = (f"{number:,} {ending or 'without ending'}" for ending, number in by_ending.items())
            line += f" ({', '.join(counted)})"
        if names:
            more = ", …" if count > len(names) else ""
            line += (
                f": {', '.join(name if name.isprintable() and ',' not in name else repr(name) for name in names)}{more}"
            )
        lines.append(line)
    return lines
