"""Find finished results below a folder, their bench, and the system that a text such as ``runs/a:C-FDM@8`` names.

Not known here: what the results hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from wm.buckets import WEIGHTS
from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow, read_bench_rows
from wm.evaluation.recorded_inputs import fetch_recorded
from wm.evaluation.report.findings import SUPERSEDED
from wm.evaluation.subsets import spread_rows
from wm.files.mirror import fetch, list_below
from wm.files.uris import OBJECT_STORES, parse_address
from wm.runs import read_run

STAGES = ("evaluate", "judge", "score")
"""Commands whose results hold values of single items."""
GREEDY = "greedy"
_DEPTH = 3


@dataclass(frozen=True)
class Choice:
    """Which prediction of an item counts: the verifier's among ``k`` candidates, or the greedy one."""

    k: int = 1
    is_greedy: bool = False

    def __str__(self) -> str:
        """Return its name in tables."""
        return GREEDY if self.is_greedy else f"K = {self.k}"


@dataclass(frozen=True)
class SystemName:
    """What a text on the command line names."""

    folders: tuple[str, ...]
    """Empty: those of the other system."""
    label: str
    """Empty: the only system there, or the other one's label."""


@dataclass(frozen=True)
class Result:
    """A finished output folder of one of :data:`STAGES`."""

    folder: Path
    stage: str
    record: dict[str, Any]

    def key(self, name: str, default: object = None) -> Any:
        """Return a key of its recipe.

        Args:
            name: The key.
            default: Where the recipe has none.
        """
        return self.record.get("recipe", {}).get(name, default)


def parse_system(text: str, results: Sequence[str]) -> SystemName:
    """Read ``FOLDER``, ``FOLDER:LABEL`` or ``LABEL``.

    Args:
        text: As it was given.
        results: Folders for a label alone; empty: those of the other system.

    Returns:
        Folders and label.

    Raises:
        InputError: The part before a colon looks like a path and is no folder.
    """
    # A folder's name may hold colons, and so may a label: the longest part that is a folder counts.
    if is_folder(text):
        return SystemName((text,), "")
    for position in [index for index, character in enumerate(text) if character == ":"][::-1]:
        if is_folder(text[:position]):
            return SystemName((text[:position],), text[position + 1 :])
    head, colon, _ = text.partition(":")
    # A label may hold a slash as well; what cannot be found is named below with those that can.
    if (colon and "/" in head) or ("/" in text and not results):
        raise InputError(f"no such folder: {head or text!r:.300}; expected FOLDER, FOLDER:LABEL or LABEL")
    return SystemName(tuple(results), text.removeprefix(":"))


def fetch_system(text: str) -> str:
    """Fetch the folder of ``URI`` or ``URI:LABEL`` and write its local path for it; any other text stays as it is.

    Args:
        text: As it was given.

    Raises:
        InputError: No part of a URI is a folder of a bucket, or it cannot be read.
    """
    if not text.startswith(tuple(f"{scheme}://" for scheme in OBJECT_STORES)):
        return text
    # As with paths the longest part counts: names, labels and options may all hold colons.
    begin = text.index("://") + 3
    positions = [len(text), *(index for index in range(len(text) - 1, begin, -1) if text[index] == ":")]
    for position in positions:
        uri = text[:position]
        # Options end a URI; only a server's has a colon of its own.
        if any(":" in value for name, value in parse_address(uri).options if name != "endpoint_override"):
            continue
        if list_below(uri, missing_ok=True):
            # What single items need, without the weights of models.
            return f"{fetch(uri, leave=WEIGHTS)}{text[position:]}"
    raise InputError(f"no such folder in the bucket: {text:.300}; expected URI, URI:LABEL or LABEL")


def is_folder(text: str) -> bool:
    """Return whether a text is the path of a folder, however long it is.

    Args:
        text: As it was given.
    """
    try:
        return bool(text) and Path(text).is_dir()
    except (OSError, ValueError):
        return False  # too long for a path


def split_choice(label: str, labels: Sequence[str], default: Choice) -> tuple[str, Choice]:
    """Split ``C-FDM@8`` and ``C-FDM@greedy`` into label and choice.

    Args:
        label: As it was given.
        labels: Those that the results hold, one of which may have the sign in its name.
        default: The choice without ``@``.

    Returns:
        Both.

    Raises:
        InputError: What follows the sign is neither.
    """
    head, sign, tail = label.rpartition("@")
    # A system may have the sign in its own name.
    if label in labels or not sign:
        return label, default
    if tail == GREEDY:
        return head, Choice(is_greedy=True)
    if not tail.isdecimal() or not 1 <= int(tail) < 1 << 31:
        raise InputError(f"{label!r:.200}: expected LABEL@greedy, or LABEL@K with a number of candidates")
    return head, Choice(int(tail))


def find_results(folders: Sequence[str]) -> list[Result]:
    """Find finished results in folders, or up to three folders below them.

    Args:
        folders: Output folders, or such as hold some.

    Returns:
        The results, each once, in the order of their names.

    Raises:
        InputError: A folder holds none.
    """
    results: dict[Path, Result] = {}
    for folder in folders:
        own = _list_below(Path(folder))
        if not own:
            raise InputError(
                f"{folder} holds no result of single items; expected a finished folder of wm evaluate, wm judge or wm "
                "score, or one that has some below it"
            )
        # A folder that is named twice, or below another one, counts once.
        for result in own:
            results.setdefault(result.folder.resolve(), result)
    return list(results.values())


def _list_below(root: Path) -> list[Result]:
    """List the folder itself, if it is a result, else those below it."""
    own = _read_result(root)
    # Below a result there is no other: its own subfolders may be many.
    if own is not None:
        return [own]
    paths = [path for depth in range(1, _DEPTH + 1) for path in root.glob("*/" * depth + "run.json")]
    # What a later run has replaced is no result any more.
    current = [path.parent for path in sorted(paths) if SUPERSEDED not in path.relative_to(root).parts]
    return [result for path in current if (result := _read_result(path)) is not None]


def _read_result(folder: Path) -> Result | None:
    record = read_run(folder)
    if record is None or record.get("stage") not in STAGES:
        return None
    return Result(folder, str(record["stage"]), record)


def read_bench(result: Result, triplets: str) -> tuple[BenchRow, ...]:
    """List the triplets that a result is of, in its order.

    Args:
        result: The result.
        triplets: Folder of the bench; empty: the one that the result names.

    Returns:
        The rows; of a result of a part of the bench, that part.

    Raises:
        InputError: The bench is not there.
    """
    folder = triplets or fetch_recorded(str(result.key("triplets", "")))
    if not Path(folder).is_dir():
        raise InputError(f"{result.folder}: its bench {folder} is not there; give triplets=FOLDER")
    rows = _read_rows(folder)
    # What was scored has no limit of its own: its predictions may be of a part.
    limit = result.key("limit", 0) if result.stage != "score" else 0
    return tuple(rows[index] for index in spread_rows(len(rows), limit or None))


@lru_cache(maxsize=4)
def _read_rows(folder: str) -> tuple[BenchRow, ...]:
    return tuple(read_bench_rows(folder))
