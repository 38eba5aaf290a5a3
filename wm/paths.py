"""Mark the recipe keys that hold paths, and refuse outputs that would be lost.

Ray is not imported: a submitted job is recognised by its environment, Ray's package cache by the names of its folders.
Not known here: which job a recipe belongs to.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, PlainSerializer

from wm.files.uris import is_remote, local_path
from wm.packaged import resolve_packaged, to_packaged_name

SUBMITTED_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets for the command of ``ray job submit``."""

_CACHE_FOLDER: Final = "runtime_resources"
_PACKAGE_PREFIX: Final = "_ray_pkg_"


@dataclass(frozen=True)
class PathKey:
    """Annotation of a recipe key that holds a path, or a list of paths."""

    is_output: bool
    """True if something is written there."""
    takes_uri: bool = False
    """True if an output may be in an object store; inputs are checked by who reads them."""
    is_cache: bool = False
    """True if what is written there can be made again: a disk of one node does."""


INPUT: Final = PathKey(is_output=False)

# A shipped file is read at its absolute path and recorded by its name: a run resumes where the package was moved.
InputPath = Annotated[str, INPUT, AfterValidator(resolve_packaged), PlainSerializer(to_packaged_name, when_used="json")]
OptionalInputPath = Annotated[
    str | None, INPUT, AfterValidator(resolve_packaged), PlainSerializer(to_packaged_name, when_used="json")
]
OutputPath = Annotated[str, PathKey(is_output=True)]
CachePath = Annotated[str, PathKey(is_output=True, is_cache=True)]
OutputPathOrUri = Annotated[str, PathKey(is_output=True, takes_uri=True)]


def path_key(metadata: Iterable[object]) -> PathKey | None:
    """Return the mark among a field's annotations, or None for a key that holds no path."""
    return next((mark for mark in metadata if isinstance(mark, PathKey)), None)


def absolute_path(path: str) -> str:
    """Return a path that means the same in another working directory; remote URIs and empty texts stay as they are."""
    if not path or is_remote(path):
        return path
    return str(Path(local_path(path)).absolute())


def is_submitted_job() -> bool:
    """Return whether this process is the command of ``ray job submit``, or was started by it."""
    return SUBMITTED_JOB in os.environ


def check_output(name: str, path: str, *, takes_uri: bool = False) -> None:
    """Refuse an output that would be lost, or written where nobody looks for it.

    Args:
        name: Recipe key, for the message.
        path: Its value; empty means that nothing is written.
        takes_uri: Whether an object store is meant by ``s3://`` and ``gs://``.

    Raises:
        ValueError: The path is a URI where only local paths can be written, is relative in a submitted job, or leads
            into Ray's package cache.
    """
    if not path:
        return
    # 1. URIs: only few outputs may go to an object store.
    if "://" in path:
        if not takes_uri:
            raise ValueError(f"{name} = {path!r:.200} is a URI; expected a local path, such as {name}=/mnt/shared/run")
        if is_remote(path):
            return
    local = Path(local_path(path))
    remedy = f"give an absolute path on storage that all nodes share, such as {name}=/mnt/shared/run"
    # Links are followed: an absolute path may lead into the cache too.
    try:
        real = Path(os.path.realpath(local))
    except FileNotFoundError as error:
        raise ValueError(f"{name} = {path!r:.200} is relative, and the working directory was removed") from error
    is_cached = _is_in_package_cache(real)
    # 2. Relative paths, which mean another folder where the job runs.
    if not local.is_absolute() and (is_cached or is_submitted_job()):
        home = ", as ~ is not expanded" if str(local).startswith("~") else ""
        folder = "Ray's package cache, which is removed with the session" if is_cached else "a folder of one node"
        raise ValueError(
            f"{name} = {path!r:.200} is relative{home}: in this Ray job it would be {real}, in {folder}, and the "
            f"output would be lost; {remedy}"
        )
    # 3. Absolute paths that lead there nevertheless, such as $PWD/x in the submitted command.
    if is_cached:
        raise ValueError(
            f"{name} = {path!r:.200} leads to {real}, in Ray's package cache, which is removed with the session, and "
            f"the output would be lost; {remedy}"
        )


def check_tracking_uri(name: str, uri: str) -> None:
    """Refuse a tracker's address that names a local place, if :func:`check_output` refuses that place.

    Args:
        name: Variable or key that holds the address, for the message.
        uri: ``http://`` and the like are servers, and so is ``databricks``; a plain path, ``file:`` and ``sqlite:///``
            are local places.

    Raises:
        ValueError: As :func:`check_output`.
    """
    for prefix in ("sqlite:///", "file://", "file:"):
        if uri.startswith(prefix):
            check_output(name, uri.removeprefix(prefix))
            return
    if "://" not in uri and not uri.startswith("databricks"):
        check_output(name, uri)


def _is_in_package_cache(path: Path) -> bool:
    """Return whether a path is in a folder to which Ray unpacks a job's files."""
    # SESSION/runtime_resources/working_dir_files/_ray_pkg_HASH
    pairs = zip(path.parts, path.parts[1:], strict=False)
    is_below = any(parent == _CACHE_FOLDER and name.endswith("_files") for parent, name in pairs)
    return is_below or any(part.startswith(_PACKAGE_PREFIX) for part in path.parts)
