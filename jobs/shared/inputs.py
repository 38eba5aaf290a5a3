"""Bring what a recipe reads from buckets to the node of a worker. Not known here: what the worker does with it."""

from wm.buckets import fetch_input, find_bucket_paths
from wm.config import Recipe
from wm.files.mirror import mirrored_path, uri_of


def fetch_inputs(recipe: Recipe) -> None:
    """Fetch every input of a recipe that is in a bucket: the worker's node may have nothing yet, or old copies.

    Args:
        recipe: As this process has parsed it, with paths of this node.

    Raises:
        InputError: A bucket cannot be read; the message has key and URI.
    """
    for name, uri, mark in find_bucket_paths(recipe):
        if not mark.is_output and not mark.takes_uri:
            fetch_input(name, uri, is_lazy=mark.is_lazy)


def to_own_path(path: str) -> str:
    """Convert the path of a bucket's object on another node to that of this node; other paths stay as they are."""
    uri = uri_of(path)
    return path if uri is None else str(mirrored_path(uri))
