"""Bring models of a bucket to this node: first the files that say what a folder is, and all of them when it is loaded.

A model of 14 GB is looked at (by whoever starts a server, or checks a recipe) far more often than it is loaded. Not
known here: what is in the files.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wm.files.mirror import fetch, list_below, mirrored_path, to_path, uri_of
from wm.files.uris import join_uri

_FRESH_S: Final = 5.0
"""For so long the bucket is not asked again what a folder is: one command asks a dozen times."""
_INNER: Final = "model/"
"""Where a run's folder has its model."""

_looked_at: dict[Path, tuple[float, Path]] = {}
_changed_ns: dict[Path, int] = {}
"""When files of buckets were written, by their mirrored paths."""


def to_local(path: str | Path) -> Path:
    """Return the local path of a folder, which for one of a bucket is where this node has its copy; nothing is read.

    Args:
        path: A local path, a mirrored one of any node, or a URI.
    """
    local = to_path(str(path))
    uri = uri_of(local)
    return Path(local) if uri is None else mirrored_path(uri)


def is_in_bucket(folder: Path) -> bool:
    """Return whether a model folder is one of a bucket: not one that is being written here, as its name says."""
    is_being_written = folder.name.startswith(".") or folder.suffix == ".partial"
    return uri_of(folder) is not None and not is_being_written


def fetch_heads(folder: Path, configs: Sequence[str], others: Sequence[str]) -> Path:
    """Find the model folder that a mirrored path means, and copy the files that say what it is.

    Args:
        folder: Mirrored path of a model folder, or of the run that trained it.
        configs: Names of files of which every model folder has one.
        others: Names of files that are copied too, where they are there.

    Returns:
        The model folder: ``folder`` itself, or ``model`` below it.

    Raises:
        InputError: There is no such folder in the bucket, or it cannot be read.
    """
    looked_s, model = _looked_at.get(folder, (float("-inf"), folder))
    if time.monotonic() - looked_s < _FRESH_S and model.is_dir():
        return model
    times_ns = {facts.name: facts.mtime_ns for facts in list_below(folder)}
    # A file, such as the checkpoint of a codec.
    if times_ns.keys() == {""}:
        return folder
    model = _copy_heads(folder, times_ns, configs, others)
    for name in (*configs, *others):
        # Of a model that was there before.
        if (model / name).relative_to(folder).as_posix() not in times_ns:
            (model / name).unlink(missing_ok=True)
    return model


def fetch_heads_below(folder: Path, configs: Sequence[str], others: Sequence[str]) -> list[Path]:
    """List the model folders in a mirrored folder, and copy the files that say what they are.

    One request lists a thousand files, and only heads that have changed since are asked for.

    Args:
        folder: Mirrored path of a folder of model folders.
        configs: As for :func:`fetch_heads`.
        others: As for :func:`fetch_heads`.

    Returns:
        Model folders, or those of the runs that trained them, sorted by name.

    Raises:
        InputError: The bucket cannot be read.
    """
    heads: dict[str, dict[str, int]] = {}
    for facts in list_below(folder):
        name, _, rest = facts.name.partition("/")
        if rest.removeprefix(_INNER) in (*configs, *others):
            heads.setdefault(name, {})[rest] = facts.mtime_ns
    for name, times_ns in heads.items():
        _copy_heads(folder / name, times_ns, configs, others)
    return [folder / name for name in sorted(heads)]


def _copy_heads(folder: Path, times_ns: dict[str, int], configs: Sequence[str], others: Sequence[str]) -> Path:
    """Copy the heads of a model folder that are new, or were written again; returns the folder that has them."""
    # A run's folder holds its record beside the model.
    is_run = times_ns.keys().isdisjoint(configs) and any(f"{_INNER}{name}" in times_ns for name in configs)
    model = folder / _INNER if is_run else folder
    model.mkdir(parents=True, exist_ok=True)
    for name in (*configs, *others):
        time_ns = times_ns.get(f"{_INNER}{name}" if is_run else name)
        if time_ns is not None and (_changed_ns.get(model / name) != time_ns or not (model / name).is_file()):
            fetch(model / name)
            _changed_ns[model / name] = time_ns
    _looked_at[folder] = _looked_at[model] = time.monotonic(), model
    return model


def fetch_all(folder: Path) -> Path:
    """Copy all files of a model folder to this node, if it is one of a bucket.

    Args:
        folder: A model folder, or the checkpoint of a codec, beside which its ``.yaml`` is.

    Returns:
        The same path.

    Raises:
        InputError: It cannot be read, or this node has not the room.
    """
    if not is_in_bucket(folder):
        return folder
    fetch(folder)
    if folder.is_file():
        fetch(folder.with_suffix(".yaml"))
    return folder


def changed_s(folder: Path) -> int:
    """Return when a model folder was last changed, in seconds since 1970; 0 if it is not there.

    Args:
        folder: A model folder, or the folder of the run that trained it.

    Raises:
        InputError: It is in a bucket that cannot be read.
    """
    if uri_of(folder) is None:
        try:
            return int(folder.stat().st_mtime)
        except OSError:  # removed since it was listed
            return 0
    # A copy is as new as its node: the bucket knows when the model was written.
    known = [time_ns for path, time_ns in _changed_ns.items() if path.parent == folder]
    return max(known or (facts.mtime_ns for facts in list_below(folder))) // 10**9


def relative_uri(folder: Path, path: str) -> Path:
    """Resolve a path that a manifest in a bucket names relative to its own folder.

    Args:
        folder: Mirrored path of the manifest's folder.
        path: Such as ``../base/model``.

    Returns:
        A mirrored path.

    Raises:
        InputError: The path leads out of the bucket.
    """
    return mirrored_path(join_uri(str(uri_of(folder)), path))
