"""Say what ``ray job submit --working-dir .`` sends to the cluster: ``python -m cluster.working_dir [FOLDER]``.

Ray's own rules are used, with the ``.gitignore`` and ``.rayignore`` of the folder; nothing is sent.
"""

import argparse
import logging
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NUM_LARGEST = 3


@dataclass(frozen=True)
class Package:
    """A working directory as Ray sends it."""

    packed_bytes: int
    file_bytes: dict[str, int]
    """Size of each file by its path in the folder."""
    max_bytes: int
    """Ray refuses a package of this size."""


def pack(folder: Path) -> Package:
    """Pack a folder as Ray does.

    Args:
        folder: What ``--working-dir`` is to name.

    Raises:
        ValueError: There is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r}: no such folder")
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, create_package

    quiet = logging.getLogger(__name__)
    quiet.setLevel(logging.ERROR)  # it names every ignore file
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "package.zip")
        create_package(str(folder), archive, include_gitignore=True, logger=quiet)
        with zipfile.ZipFile(archive) as packed:
            file_bytes = {entry.filename: entry.file_size for entry in packed.infolist() if not entry.is_dir()}
        return Package(archive.stat().st_size, file_bytes, GCS_STORAGE_MAX_SIZE)


def main(argv: Sequence[str] | None = None) -> int:
    """Print number and size of the files, and the largest; status 1 where Ray would refuse them."""
    parser = argparse.ArgumentParser(prog="python -m cluster.working_dir", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path())
    arguments = parser.parse_args(argv)
    try:
        package = pack(arguments.folder)
    except ValueError as error:
        parser.error(str(error))
    largest = sorted(package.file_bytes, key=lambda name: -package.file_bytes[name])[:NUM_LARGEST]
    print(f"{len(package.file_bytes):,} files, {_mb(package.packed_bytes)} packed (Ray takes {_mb(package.max_bytes)})")
    print("largest: " + ", ".join(f"{name} {_mb(package.file_bytes[name])}" for name in largest))
    return int(package.packed_bytes >= package.max_bytes)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
