"""Say in a line what is wrong with a recipe: the key, its value, what was expected, what a key is called today.

Not known here: where the values come from.
"""

import difflib
from collections.abc import Mapping

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from wm.recipe_fields import field_annotation, list_key_paths, table_class


def describe_error(recipe_class: type[BaseModel], error: ErrorDetails) -> str:
    """Describe one mistake.

    Args:
        recipe_class: The recipe that was read.
        error: As pydantic reports it.

    Returns:
        A part of a line; it begins with the key.
    """
    *tables, leaf = [str(part) for part in error["loc"]] or ["recipe"]
    key, value = ".".join([*tables, leaf]), error["input"]
    owner: object = recipe_class
    for name in tables:
        owner = field_annotation(owner, name)
    if error["type"] == "extra_forbidden":
        return _describe_unknown_key(table_class(owner) or BaseModel, key, nested=bool(tables), value=value)
    if error["type"] == "missing":
        return f"{key} is missing; give it in the file or as {key}=VALUE"
    if error["type"] == "value_error":
        problem = str(error["ctx"]["error"])
        # A table's own check names its keys; a field's check is reported with key and value.
        if not isinstance(value, dict):
            return f"{key} = {value!r:.80}: {problem}"
        return f"{key}: {problem}" if error["loc"] else problem
    return f"{key} = {value!r:.80}: {_describe_kind(field_annotation(owner, leaf), key, error)}"


def _describe_kind(annotation: object, key: str, error: ErrorDetails) -> str:
    """Say what a value of the wrong kind should be, and how that is written."""
    message, value = error["msg"].lower(), error["input"]
    table = table_class(annotation)
    if table is not None and not isinstance(value, Mapping):
        return f"{key} is a table; give its keys, such as {key}.{next(iter(table.model_fields))}=VALUE"
    if table is None and isinstance(value, Mapping) and error["type"] != "dict_type":
        return f"{key} is a value, not a table: {message}"
    # A shell takes quotes away: what is left is no TOML, and was read as text.
    if isinstance(value, str) and error["type"] in ("list_type", "dict_type"):
        example = '["a", "b"]' if error["type"] == "list_type" else "{ a = 1 }"
        return f"{message}; on a command line it is quoted, such as {key}='{example}'"
    return message


def _describe_unknown_key(table: type[BaseModel], key: str, *, nested: bool, value: object) -> str:
    """Say what an unknown key is called today, or which key is nearest, or which there are."""
    prefix, _, leaf = key.rpartition(".")
    prefix = f"{prefix}." if prefix else ""
    renamed: Mapping[str, str] = getattr(table, "RENAMED_KEYS", {})
    if leaf in renamed:
        return f"unknown key {key!r}: it is called {prefix}{renamed[leaf]} now"
    # A table that is gone: the keys that were given in it are named one by one.
    if isinstance(value, Mapping):
        moves = [
            f"{key}.{name} is called {prefix}{renamed[f'{leaf}.{name}']} now"
            for name in value
            if f"{leaf}.{name}" in renamed
        ]
        if moves:
            return f"unknown key {key!r}: {', '.join(moves)}"
    # A key of a table, given without the table's name, is as near as one that is misspelt.
    paths = {path.rpartition(".")[2]: path for path in reversed(list_key_paths(table))}
    nearest = difflib.get_close_matches(leaf, paths, n=1, cutoff=0.75)
    hint = f"; did you mean {prefix}{paths[nearest[0]]}?" if nearest else ""
    return f"unknown key {key!r}; the keys{' there' if nested else ''} are {', '.join(table.model_fields)}{hint}"
