"""Parse and build file locations: local paths and ``file://``, ``s3://``, ``gs://``, ``http://`` and ``https://`` URIs.

A URI of an object store may carry options of its own, under pyarrow's names: ``?endpoint_override=HOST:PORT``,
``scheme=http``, ``region=``, ``anonymous=true``. A ``?`` that is followed by anything else belongs to the key: keys are
written as they are, never percent-encoded.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urljoin, urlsplit

from wm.errors import InputError

SCHEMES: Final = ("s3", "gs", "http", "https", "file")
OBJECT_STORES: Final = ("s3", "gs")

_OPTIONS: Final = ("endpoint_override", "scheme", "region", "anonymous")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class ObjectAddress:
    """An address in an object store: ``scheme://bucket/key?options``."""

    scheme: str
    bucket: str
    key: str
    options: tuple[tuple[str, str], ...] = ()

    @property
    def uri(self) -> str:
        """Return the URI again."""
        query = f"?{urlencode(self.options)}" if self.options else ""
        return f"{self.scheme}://{self.bucket}/{self.key}{query}"


def scheme_of(uri: str) -> str:
    """Return the scheme in lower case, empty for a plain local path.

    Raises:
        InputError: The scheme is unknown; the message lists those that are known.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return ""
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise InputError(f"{uri!r:.200}: unknown scheme {scheme!r}; expected a local path or one of {schemes}")
    return scheme


def is_remote(uri: str) -> bool:
    """Return whether a URI names something that must be downloaded before it can be opened."""
    return scheme_of(uri) not in ("", "file")


def local_path(uri: str) -> str:
    """Convert a ``file://`` URI to its path; a plain path stays as it is.

    Raises:
        InputError: The URI is remote, or names a host.
    """
    if is_remote(uri):
        raise InputError(f"{uri!r:.200} is remote; expected a local path")
    if not scheme_of(uri):
        return uri
    parts = _split(uri)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{uri!r:.200}: expected file:///absolute/path without a host")
    return unquote(parts.path, errors="surrogateescape")  # bytes that are no UTF-8 stay those bytes


def _split(uri: str) -> SplitResult:
    """Split a URI into its parts; :class:`InputError` if it has none, such as ``http://[x``."""
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise InputError(f"{uri!r:.200} is no URI: {error}") from error


def is_text(name: str) -> bool:
    """Return whether a name is Unicode text: one from the file system may hold bytes that are no UTF-8 (PEP 383)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_name(name: str) -> bool:
    """Return whether a name may be one of a local file: text, with bytes that are no UTF-8 as PEP 383 writes them."""
    try:
        return "\0" not in name and bool(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def escape_text(name: str) -> str:
    r"""Return a name with the bytes that are no UTF-8 written as ``\xe9``; text as it is."""
    if is_text(name):
        return name
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return name.encode("utf-8", "backslashreplace").decode()


def escape_path(path: str) -> str:
    """Return the ``file://`` URI of a local path whose bytes are no UTF-8: text that keeps them, percent-encoded.

    :func:`local_path` gives the path again.
    """
    return f"file://{quote(os.fsencode(os.path.abspath(path)))}"  # noqa: PTH100 - links stay as named


def parse_address(uri: str) -> ObjectAddress:
    """Split an ``s3://`` or ``gs://`` URI into bucket, key and options.

    Raises:
        InputError: It is of another scheme, or names no bucket.
    """
    scheme = scheme_of(uri)
    if scheme not in OBJECT_STORES:
        raise InputError(f"{uri!r:.200}: expected s3://bucket/key or gs://bucket/key")
    rest = uri.split("://", 1)[1]
    options: tuple[tuple[str, str], ...] = ()
    head, mark, query = rest.rpartition("?")
    if mark:
        pairs = parse_qsl(query, keep_blank_values=True)
        # A question mark may be part of a key: only known options end it.
        if pairs and all(name in _OPTIONS for name, _ in pairs):
            rest, options = head, tuple(pairs)
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise InputError(f"{uri!r:.200} names no bucket; expected {scheme}://bucket/key")
    return ObjectAddress(scheme, bucket, key, options)


def join_uri(folder: str, name: str) -> str:
    """Build the URI of a file in a remote folder.

    Args:
        folder: URI of the folder; its options are kept.
        name: Path below the folder; for HTTP a reference, which may lead elsewhere.

    Returns:
        The URI.

    Raises:
        InputError: The path leads out of the bucket.
    """
    if scheme_of(folder) not in OBJECT_STORES:
        _split(name)
        return urljoin(folder if folder.endswith("/") else f"{folder}/", name)
    # Keys are no URL paths: urljoin would take ? and # in them for more.
    address = parse_address(folder)
    parts = [*address.key.rstrip("/").split("/"), *name.split("/")]
    key: list[str] = []
    for part in parts:
        if part == ".." and key:
            key.pop()
        elif part == "..":
            raise InputError(f"{name!r:.200} leads out of the bucket of {folder}")
        elif part not in ("", "."):
            key.append(part)
    return replace(address, key="/".join(key)).uri


def path_in(uri: str) -> str:
    """Return the path that a URI names, without host, bucket, options and query; of a local one the path."""
    scheme = scheme_of(uri)
    if scheme in OBJECT_STORES:
        return parse_address(uri).key
    return unquote(_split(uri).path) if scheme in ("http", "https") else local_path(uri)


def ends_in(folder: str) -> tuple[str, str]:
    """Return what comes before and after a path below ``folder``, local or remote, in its URI; for many paths."""
    scheme = scheme_of(folder)
    if scheme in OBJECT_STORES:
        # A name that no file has marks where a path goes.
        head, _, tail = join_uri(folder, "\0").partition("\0")
        return head, tail
    if scheme in ("http", "https"):
        return f"{folder.rstrip('/')}/", ""
    path = str(PurePath(local_path(folder)))
    return {".": "", "/": "/"}.get(path, f"{path}/"), ""
