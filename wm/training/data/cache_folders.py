"""Folders of prepared triplets: named by what decides their content, written once, shared by the workers of a node.

A temporary folder is written and renamed when complete, under a lock: of several workers of a node one writes and the
others wait. Where locks do not reach (nodes that share a folder over a network), two may write, and the second removes
its own. A folder in a bucket is read through this node's copy of it (:mod:`wm.training.data.shared_tokens`).

Not known here: what the files hold.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from wm.errors import InputError
from wm.files.mirror import list_below, uri_of
from wm.runs import digest_of
from wm.tables import table_files
from wm.training.data.shared_tokens import fetch_shared, is_here, publish_shared, wrong_sizes
from wm.training.data.sources import Source

FACTS = "facts.json"
"""Written last: a folder without it is not read."""


def name_folder(source: Source, number: int, seed: int, facts: Sequence[object]) -> str:
    """Digest all that the content depends on to 32 hexadecimal digits.

    Args:
        source: The table.
        number: Of the source in the recipe, from 0; with the seed it samples the limit.
        seed: Of the recipe.
        facts: What else decides the content, the version of the format among it.
    """
    # Any of these changes the content.
    values = [
        *facts,
        [digest_of(source.path), _files_digest(source.folder)],
        [digest_of(source.selection), _files_digest(source.selection)] if source.selection else [],
        [source.limit, seed, number] if source.limit else [],
    ]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def ensure_folder(folder: Path, prepare: Callable[[], Callable[[Path], None]]) -> None:
    """Write a folder unless it is there, here or in its bucket.

    Args:
        folder: The folder; those above it are made.
        prepare: Called if it has to be written: checks what can be checked before, and returns a function that writes
            the files into a folder that it is given, :data:`FACTS` last.
    """
    # Usually an earlier run, or another worker, has written it.
    root = folder.parent
    if is_here(folder, FACTS):
        return
    # Checked again under the lock: another worker may have written it meanwhile.
    with _created_folder(root), _locked(root / f".{folder.name}.lock"):
        if not is_here(folder, FACTS) and not fetch_shared(folder, FACTS):
            _write(folder, prepare)
            publish_shared(folder, FACTS)


def _write(folder: Path, prepare: Callable[[], Callable[[Path], None]]) -> None:
    _remove_leftovers(folder)
    # What can be refused is refused before a file is made.
    write_files = prepare()
    prefix = f".{folder.name}.{platform.node()}.{os.getpid()}."
    temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=folder.parent))
    try:
        write_files(temporary)
        temporary.chmod(0o755)
        # Another node may have been quicker.
        with suppress(OSError):
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the files of killed writers of this node; those of other nodes may be at work."""
    for leftover in folder.parent.glob(f".{folder.name}.{platform.node()}.*.tmp"):
        if not Path(f"/proc/{leftover.name.split('.')[-3]}").exists():
            shutil.rmtree(leftover, ignore_errors=True)


def check_sizes(folder: Path, sizes: Mapping[str, int]) -> None:
    """Check that no file of a folder is cut short.

    Args:
        folder: A complete folder.
        sizes: Expected bytes by name.

    Raises:
        InputError: A file has another size; it names the remedy.
    """
    for name, actual in wrong_sizes(folder, sizes).items():
        raise InputError(
            f"{folder / name} has {actual} bytes, expected {sizes[name]}; remove {folder}, which is then written again"
        )


def _files_digest(folder: str | Path) -> str:
    """Digest names, sizes and times of Parquet files: a table that was written again in place is another one."""
    if uri_of(folder) is not None:
        # As the bucket lists them: the same on every node, whatever of the table has been copied to it.
        facts = [(entry.name, entry.size_bytes, entry.mtime_ns) for entry in list_below(folder)]
    else:
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in table_files(folder)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written, and wait until the disk has it.

    Args:
        path: The file.

    Yields:
        The file, for bytes.
    """
    with path.open("wb") as file:
        yield file
        file.flush()
        # Otherwise a power cut leaves the name without its content.
        os.fsync(file.fileno())


@contextmanager
def _created_folder(root: Path) -> Iterator[None]:
    """Create ``root``, and remove what was created for it if the block fails."""
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for folder in created:
                folder.rmdir()
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a file for one process of a node at a time; a killed one lets go."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        except BaseException:
            path.unlink(missing_ok=True)
            raise
