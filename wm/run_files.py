"""Read and write the small files of runs, ``run.json`` and other JSON, and compute digests of inputs.

Of an output in a bucket the record is read as the bucket has it now. Not known here: what a run is.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from wm.errors import InputError, MissingPathError
from wm.files.atomic import replace_file
from wm.files.mirror import list_below, mirrored_path, uri_of
from wm.files.writer_lock import LOCK

COMPLETE: Final = "run.json"
"""Name of the record of a complete run."""


def read_run(folder: str | Path, name: str = COMPLETE) -> dict[str, Any] | None:
    """Load the record of a run.

    Args:
        folder: Output folder of the run.
        name: Name of the file.

    Returns:
        The record; None if there is none.

    Raises:
        InputError: It is damaged, or its bucket cannot be read.
    """
    path = Path(folder) / name
    text = _read_record(Path(folder), name)
    if text is None:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of too many digits
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is damaged: expected a JSON object")
    return record


def _read_record(folder: Path, name: str) -> bytes | None:
    """Read a record as it is now; None if there is none."""
    path = folder / name
    # The folder's: what is above a bucket stands for nothing.
    if uri_of(folder) is None:
        return path.read_bytes() if path.is_file() else None
    # Not through the local copy: a run may have been written over by one of another node in the same second.
    from wm.files.transfer import read_object

    return read_object(str(uri_of(path)))


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        text: The text, or its bytes in UTF-8.
        where: Its origin for the message, such as a file and a line.

    Returns:
        What the text holds.

    Raises:
        InputError: It is no JSON, is nested too deeply, or has a number of more digits than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON: nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid JSON: not UTF-8 text") from error
    except ValueError as error:  # Python's limit of digits
        raise InputError(f"{where}: not valid JSON: a number of more digits than are read") from error


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary file, then rename it.

    Args:
        path: The file; its folder must exist.
        value: What JSON can hold.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary file, then rename it; a failed attempt leaves nothing.

    Args:
        path: The file; its folder must exist.
        text: Its content.
    """
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves the name without its content


def digest_of(path: str | Path) -> str:
    """Compute a digest of an input.

    Args:
        path: A file or folder, also one of a bucket. For a stage's output, its ``run.json`` is digested, else names,
            sizes and times below.

    Returns:
        16 hexadecimal digits.

    Raises:
        InputError: Nothing is there.
    """
    root = Path(path)
    if uri_of(root) is not None:
        root = mirrored_path(str(uri_of(root)))
        # Raises if nothing is there.
        files = [(facts.name or ".", facts.size_bytes, facts.mtime_ns) for facts in list_below(root)]
        is_folder = [name for name, _, _ in files] != ["."]
    elif root.exists():
        files, is_folder = [], root.is_dir()
    else:
        raise MissingPathError(root)
    digest = hashlib.sha256()
    # A stage's output, or a table in one: the run says what is in it, also where the files were copied.
    for folder in (root, root.parent) if is_folder else (root.parent,):
        record = read_run(folder)
        if record is not None:
            identity = {name: record.get(name) for name in ("stage", "recipe", "inputs", "finished_at")}
            digest.update(json.dumps([identity, root.name], sort_keys=True).encode())
            return digest.hexdigest()[:16]
    # Not the content: reading terabytes of videos would take hours.
    for name, size, mtime_ns in files or _list_local(root):
        digest.update(f"{name}\x1f{size}\x1f{mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _list_local(root: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name below the root, size and time of every file, sorted by path."""
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        # What a writer that was killed has left of its lock is no content.
        if file.is_file() and file.name != LOCK:
            facts = file.stat()
            yield str(file.relative_to(root)), facts.st_size, facts.st_mtime_ns
