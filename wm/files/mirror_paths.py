"""Compute the path that is used for an object of a bucket, and the URI of such a path; nothing is read or made.

Not known here: what is in the bucket (:mod:`wm.files.mirror`).
"""

import os
import re
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from wm.errors import InputError
from wm.files.uris import OBJECT_STORES, ObjectAddress, is_text, parse_address, scheme_of

CACHE: Final = "WM_CACHE"
"""Variable with the folder of local copies; its default is ``~/.cache/wm``."""
UNFINISHED: Final = "run.unfinished.json"
"""Name of the mark of an output that is being written."""
WRITERS: Final = ".wm-writers"
"""Folder of an output that holds the claims of its writers, and nothing of the output."""

_FOLDER: Final = "wm-buckets"
_SHOWN = re.compile(rf"[^\s'\"]*/{_FOLDER}/({'|'.join(OBJECT_STORES)})/([^/\s'\"]+)")


def mirror_root() -> Path:
    """Return the folder of all local copies on this node; nothing is made."""
    return Path(os.environ.get(CACHE) or "~/.cache/wm").expanduser().absolute() / _FOLDER


def mirrored_path(uri: str) -> Path:
    """Compute the path that stands for an object or folder; nothing is read or made.

    Args:
        uri: ``s3://`` or ``gs://``, with options of its own or without.

    Returns:
        Its path below :func:`mirror_root`.

    Raises:
        InputError: The URI is of another scheme, or its key cannot be a path (``//``, ``..``).
    """
    address = parse_address(uri)
    parts = address.key.rstrip("/").split("/") if address.key.rstrip("/") else []
    # What a file system would fold into another name would not come back as the same key.
    if any(part in ("", ".", "..") or "\0" in part or not is_text(part) for part in parts):
        raise InputError(f"{uri!r:.200}: a key with an empty part, '.' or '..' cannot be a path; choose another")
    options = f"?{urlencode(address.options)}" if address.options else ""
    return mirror_root().joinpath(address.scheme, quote(address.bucket + options, safe=""), *parts)


def uri_of(path: str | PurePath) -> str | None:
    """Compute the URI of a path that stands for an object.

    Args:
        path: Also one made on a node with another root.

    Returns:
        The URI; None for any other path.
    """
    text = str(path)
    if f"/{_FOLDER}/" not in text:
        return None
    parts = PurePath(text).parts
    below = parts[parts.index(_FOLDER) + 1 :]
    if len(below) < 2 or below[0] not in OBJECT_STORES:
        return None
    name, _, options = unquote(below[1]).partition("?")
    return ObjectAddress(below[0], name, "/".join(below[2:]), tuple(parse_qsl(options, keep_blank_values=True))).uri


def to_path(path: str) -> str:
    """Replace the URI of an object store by the path that stands for it.

    Args:
        path: Other texts stay as they are.
    """
    is_bucket = "://" in path and scheme_of(path) in OBJECT_STORES
    return str(mirrored_path(path)) if is_bucket else path


def to_uri(path: str) -> str:
    """Replace a path that stands for an object by its URI.

    Args:
        path: Other texts stay as they are.
    """
    return uri_of(path) or path


def on_this_node(path: str | Path) -> Path:
    """Return where a path of another node is on this one.

    Args:
        path: Stays the same, unless it stands for an object.
    """
    uri = uri_of(path)
    return Path(path) if uri is None else mirrored_path(uri)


def shown(text: object) -> str:
    """Write URIs for the local copies that a message names, without options: users need not know of copies.

    Args:
        text: The message.
    """
    root = f"{mirror_root()}/"
    short = str(text).replace(root, f"/{_FOLDER}/")
    return _SHOWN.sub(lambda match: f"{match[1]}://{unquote(match[2]).partition('?')[0]}", short)


def is_own(name: str) -> bool:
    """Return whether a file is bookkeeping of this package and no part of an output.

    Args:
        name: Of the file, below the output.
    """
    parts = name.split("/")
    is_temporary = any(part.startswith(".") and part.endswith(".tmp") for part in parts)
    return parts[0] == WRITERS or parts[-1] == ".lock" or is_temporary
