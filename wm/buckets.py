"""Prepare what a recipe names in buckets before its command works: outputs are written to for a test, inputs fetched.

Not known here: which command it is.
"""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO, TypeVar, cast

from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import WRITERS, fetch, mirrored_path, on_this_node, shown, uri_of
from wm.files.uris import join_uri
from wm.paths import PathKey, find_paths, path_key

RecipeT = TypeVar("RecipeT", bound=Recipe)

CHECK_S = 20.0
"""How long a store that does not answer well is asked again, before a command starts."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.distcp")
"""Files of models and checkpoints, which readers of results and reports do not need."""
LARGE = ("*.parquet", *WEIGHTS)
"""Files that are fetched by whoever reads them, where an input is a stage's complete output."""


def prepare_buckets(recipe: Recipe) -> None:
    """Check every output of a recipe that is in a bucket, and fetch its inputs.

    Args:
        recipe: Of the command that starts, or of a call of its ``run`` from Python.

    Raises:
        InputError: A bucket does not exist, cannot be read or written, or there are no credentials; the message has
            the key, the URI and what to do.
    """
    paths = list(find_bucket_paths(recipe))
    # Outputs first: a wrong one costs no download.
    for name, uri, mark in paths:
        if mark.is_output:
            check_writable(name, uri)
    for name, uri, mark in paths:
        if not mark.is_output:
            fetch_input(name, uri, is_lazy=mark.is_lazy, is_model=mark.is_model)


def find_bucket_paths(recipe: Recipe) -> Iterator[tuple[str, str, PathKey]]:
    """Find every path of a recipe, and of tables in it, that stands for an object.

    Args:
        recipe: The recipe.

    Yields:
        Dotted key, URI and mark.
    """
    for key, path, mark in find_paths(recipe):
        if (uri := uri_of(path)) is not None:
            yield key, uri, mark


def check_writable(name: str, uri: str) -> None:
    """Write a small object where an output goes, and remove it.

    Args:
        name: Recipe key, for the message.
        uri: Of the output.

    Raises:
        InputError: It cannot be written there.
    """
    from wm.files.transfer import BucketError, delete_object, write_object

    # Among the claims of writers: no reader takes it for a part of the output.
    probe = join_uri(uri, f"{WRITERS}/check-{secrets.token_hex(8)}")
    try:
        write_object(probe, b"?", patience_s=CHECK_S)
        delete_object(probe, patience_s=CHECK_S)
    except BucketError as error:
        raise InputError(f"{name} = {uri!r}: {error.detail}") from error


def fetch_input(name: str, uri: str, *, is_lazy: bool = False, is_model: bool = False) -> Path:
    """Make the local copy of an input.

    Args:
        name: Recipe key, for the message.
        uri: Of the file or folder.
        is_lazy: Leave Parquet files to who reads them.
        is_model: Leave all files to who loads the model: a run's folder has more than that.

    Raises:
        InputError: It cannot be read.
    """
    from wm.files.transfer import BucketError, list_objects

    try:
        # Asked for briefly, so that a wrong bucket or login is reported soon.
        list_objects(uri, patience_s=CHECK_S)
        return mirrored_path(uri) if is_model else fetch(uri, leave=LARGE if is_lazy else ())
    except BucketError as error:
        inner = "" if error.uri == uri else f"{error.uri}: "
        raise InputError(f"{name} = {uri!r}: {inner}{error.detail}") from error


def localise(recipe: RecipeT) -> RecipeT:
    """Return a recipe of another node with this node's paths; its inputs in buckets are fetched.

    Args:
        recipe: As a worker got it from the process that handed out the work.

    Raises:
        BucketError: An input cannot be read from here.
    """
    changes: dict[str, object] = {}
    for name, field in type(recipe).model_fields.items():
        changes[name] = _localise(getattr(recipe, name), path_key(field.metadata))
    return recipe.model_copy(update=changes)


def _localise(value: object, mark: PathKey | None) -> object:
    if isinstance(value, Recipe):
        return localise(value)
    if isinstance(value, list):
        return [_localise(item, mark) for item in value]
    if isinstance(value, dict):
        return {key: _localise(item, mark) for key, item in value.items()}
    if mark is None or not isinstance(value, str) or uri_of(value) is None:
        return value
    # Whoever loads a model fetches what it needs.
    if mark.is_output or mark.is_model:
        return str(on_this_node(value))
    return str(fetch(value, leave=LARGE if mark.is_lazy else ()))


class _UriStream:
    """A text stream that writes URIs for the local copies of buckets."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(shown(text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def show_uris(recipe: Recipe) -> Iterator[None]:
    """Let what is printed inside name URIs for local copies of buckets; does nothing for a recipe without a bucket.

    Args:
        recipe: Of the command that prints.
    """
    if next(find_bucket_paths(recipe), None) is None:
        yield
        return
    out, error = (cast(TextIO, _UriStream(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(error):
        yield
