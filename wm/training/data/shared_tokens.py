"""Share folders of tokens in a bucket: each node copies those that another one has published.

A folder is complete when its file of facts is there, which names the sizes of the others under ``sizes``. Of a folder
on a disk nothing is published. Not known here: what the files hold.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from wm.files.cache import hold
from wm.files.mirror import fetch, publish, uri_of
from wm.files.transfer import stat_object


def is_here(folder: Path, facts: str) -> bool:
    """Return whether a folder is complete on this node.

    Args:
        folder: A local path, or a mirrored one, of which the limit of local copies may have taken files.
        facts: Name of the file of facts.
    """
    if not (folder / facts).is_file():
        return False
    if uri_of(folder) is None:
        return True
    # From here on it is used: none of its files may go.
    hold(folder)
    return not wrong_sizes(folder, json.loads((folder / facts).read_text())["sizes"])


def fetch_shared(folder: Path, facts: str) -> bool:
    """Download a folder that another node has published.

    Args:
        folder: A local path, or a mirrored one.
        facts: Name of the file of facts.

    Returns:
        Whether there was one.

    Raises:
        InputError: The bucket cannot be read, or this node has not the room.
    """
    if uri_of(folder) is None or stat_object(str(uri_of(folder / facts))) is None:
        return False
    fetch(folder)
    return True


def publish_shared(folder: Path, facts: str) -> None:
    """Upload a complete folder, its facts last; nothing for a local path.

    Args:
        folder: A local path, or a mirrored one.
        facts: Name of the file of facts.

    Raises:
        InputError: The bucket cannot be written to.
    """
    if uri_of(folder) is None:
        return
    hold(folder)
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == facts, file.name)):
        publish(file)


def wrong_sizes(folder: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes of files that have not the expected one, by name; -1 for one that is not there.

    Args:
        folder: Of the files.
        sizes: Expected, by name.
    """
    actual = {name: (folder / name).stat().st_size if (folder / name).is_file() else -1 for name in sizes}
    return {name: size for name, size in actual.items() if size != sizes[name]}
