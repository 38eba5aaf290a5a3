"""Write a file completely or not at all: to a hidden temporary file beside it, which is then renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_path(path: Path) -> Path:
    """Return a hidden name beside ``path`` to write under before the renaming; no two writers share one."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary file the name of a file once it is written; a failed attempt leaves the old file alone.

    Args:
        path: The file; its folder must exist.

    Yields:
        The temporary file's path, to be written.

    Raises:
        OSError: The disk is full or may not be written.
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
