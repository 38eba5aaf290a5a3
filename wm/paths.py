"""Mark the recipe keys that hold paths, and refuse outputs that would be lost.

Ray is not imported: a submitted job is recognised by its environment, Ray's package cache by the names of its folders.
Not known here: which job a recipe belongs to.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, overload

from pydantic import AfterValidator, BaseModel, PlainSerializer

from wm.files.mirror import to_path, to_uri, uri_of
from wm.files.uris import OBJECT_STORES, is_remote, local_path
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
    """True if a URI stays one, for its reader or writer to open; else it becomes the path that stands for it."""
    is_cache: bool = False
    """True if what is written there can be made again: a disk of one node does."""
    is_lazy: bool = False
    """True if Parquet files of an input in a bucket are fetched by whoever reads them."""
    is_model: bool = False
    """True if an input is a model, of which whoever looks at it or loads it fetches what it needs."""


INPUT: Final = PathKey(is_output=False)


@overload
def _resolve(path: str) -> str: ...
@overload
def _resolve(path: None) -> None: ...
def _resolve(path: str | None) -> str | None:
    return path if path is None else to_path(resolve_packaged(path))


@overload
def _to_name(path: str) -> str: ...
@overload
def _to_name(path: None) -> None: ...
def _to_name(path: str | None) -> str | None:
    return path if path is None else to_uri(to_packaged_name(path))


# A shipped file, or an object of a bucket, is read at a path of this node and recorded by its name, which is the same
# on every machine. Nothing is downloaded here: wm.preflight does that when a command starts.
_AS_PATH: Final = AfterValidator(_resolve)
_AS_NAME: Final = PlainSerializer(_to_name, when_used="json")
_AS_SHIPPED: Final = AfterValidator(resolve_packaged)
_AS_SHIPPED_NAME: Final = PlainSerializer(to_packaged_name, when_used="json")

InputPath = Annotated[str, INPUT, _AS_PATH, _AS_NAME]
OptionalInputPath = Annotated[str | None, INPUT, _AS_PATH, _AS_NAME]
TablePath = Annotated[str, PathKey(is_output=False, is_lazy=True), _AS_PATH, _AS_NAME]
"""A stage's output, or a folder of Parquet files, which are fetched by whoever reads them: see wm.tables."""
OptionalTablePath = Annotated[str | None, PathKey(is_output=False, is_lazy=True), _AS_PATH, _AS_NAME]
ModelPath = Annotated[str, PathKey(is_output=False, is_model=True), _AS_PATH, _AS_NAME]
"""A model folder, or that of the run that trained it: see wm.models.manifest."""
OptionalModelPath = Annotated[str | None, PathKey(is_output=False, is_model=True), _AS_PATH, _AS_NAME]
SourcePath = Annotated[str, PathKey(is_output=False, takes_uri=True), _AS_SHIPPED, _AS_SHIPPED_NAME]
"""Videos: a URI stays one, and its reader opens it."""
OptionalSourcePath = Annotated[str | None, PathKey(is_output=False, takes_uri=True), _AS_SHIPPED, _AS_SHIPPED_NAME]
OutputPath = Annotated[str, PathKey(is_output=True), _AS_PATH, _AS_NAME]
CachePath = Annotated[str, PathKey(is_output=True, is_cache=True), _AS_PATH, _AS_NAME]
OutputPathOrUri = Annotated[str, PathKey(is_output=True, takes_uri=True)]
"""A folder of checkpoints: a URI stays one, and its writer opens it."""


def path_key(metadata: Iterable[object]) -> PathKey | None:
    """Return the mark among a field's annotations, or None for a key that holds no path."""
    return next((mark for mark in metadata if isinstance(mark, PathKey)), None)


def find_paths(recipe: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, PathKey]]:
    """Find every path of a recipe, and of tables in it.

    Args:
        recipe: The recipe.
        prefix: Of the keys.

    Yields:
        Dotted key, path and mark; of empty keys nothing.
    """
    for name, field in type(recipe).model_fields.items():
        mark = path_key(field.metadata)
        value = getattr(recipe, name)
        items: Iterable[tuple[str, object]] = [("", value)]
        if isinstance(value, Mapping):
            items = [(f".{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            items = [(f".{number}", item) for number, item in enumerate(value)]
        for suffix, item in items:
            if isinstance(item, BaseModel):
                yield from find_paths(item, f"{prefix}{name}{suffix}.")
            elif mark is not None and item and isinstance(item, (str, Path)):
                yield f"{prefix}{name}{suffix}", str(item), mark


def name_key(recipe: BaseModel, path: str) -> str | None:
    """Name the key whose path is a given one, or holds it; None where there is none.

    Args:
        recipe: The recipe.
        path: Below one of its inputs, or that itself.
    """
    parents = [str(Path(path)), *map(str, Path(path).parents)]
    keys: dict[str, str | None] = {}
    # Inputs first: of a path that is both, the input is what was missed.
    for key, value, mark in sorted(find_paths(recipe), key=lambda entry: entry[2].is_output):
        keys.setdefault(str(Path(value)), None if mark.is_output else key)
    # The nearest first: one input may be in the folder of another, and an output in that of an input.
    return next((keys[parent] for parent in parents if parent in keys), None)


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
        takes_uri: Whether ``file://`` is taken too.

    Raises:
        ValueError: The path is a URI of no object store, is relative in a submitted job, or leads into Ray's package
            cache.
    """
    # What stands for an object is kept in its bucket.
    if not path or uri_of(path) is not None:
        return
    # 1. URIs: of the others only those of object stores can be written.
    if "://" in path:
        if path.startswith(tuple(f"{scheme}://" for scheme in OBJECT_STORES)):
            return
        if not (takes_uri and path.startswith("file://")):
            raise ValueError(
                f"{name} = {path!r:.200} is no URI of an object store; expected a path, such as "
                f"{name}=/mnt/shared/run, or one in a bucket, such as {name}=s3://bucket/run"
            )
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
