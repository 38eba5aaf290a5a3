"""Describe the keys of a recipe: type, default, bounds and help text, for ``--help`` and the documentation.

Not known here: values, and which recipes there are.
"""

import json
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wm.paths import path_key
from wm.recipe_fields import item_class, list_alternatives, table_class

_HELP_WIDTH = 100
_TYPE_WORDS: dict[object, str] = {str: "text", int: "integer", float: "number", bool: "true | false", object: "value"}


@dataclass(frozen=True)
class KeyHelp:
    """Describe one key, or the head of a table."""

    path: str
    """Dotted name; ``[]`` stands for an entry of a list, ``NAME`` for a key of one's own choice."""
    depth: int
    """Number of tables that it is in."""
    is_table: bool
    """True for the head of a table: it has no value of its own, the keys that follow are in it."""
    type_words: str
    """What it takes, in words of TOML; empty for a table."""
    default: str
    """As it is written in a recipe; ``required``, ``optional`` or empty for a table."""
    bounds: str
    """Such as ``≥ 1``; empty where every value of the type is allowed."""
    text: str
    """Help text."""


def list_key_help(table: type[BaseModel], prefix: str = "", depth: int = 0) -> Iterator[KeyHelp]:
    """Iterate over every key of a recipe, each table's keys after its head.

    Args:
        table: The recipe's class.
        prefix: Dotted name of the table that it is, with a dot at the end; empty: none.
        depth: Number of tables that it is in.
    """
    for name, field in table.model_fields.items():
        path, text = f"{prefix}{name}", " ".join((field.description or "").split())
        inner, item = table_class(field.annotation), item_class(field.annotation)
        # A table has no value of its own: its keys are listed, each with its default.
        if inner is not None:
            text = text or " ".join((inner.__doc__ or "").split())
            yield KeyHelp(path, depth, True, "", "", "", text)
            yield from list_key_help(inner, f"{path}.", depth + 1)
            continue
        yield KeyHelp(path, depth, False, _describe_type(field), _describe_default(field), describe_bounds(field), text)
        if item is not None:
            entry = f"{path}.NAME." if get_origin(field.annotation) is dict else f"{path}[]."
            yield from list_key_help(item, entry, depth + 1)


def describe_fields(table: type[BaseModel]) -> str:
    """Describe every key of a recipe for ``--help``: name, type and default in a line, help below, tables indented.

    Args:
        table: The recipe's class.

    Returns:
        Lines, their texts wrapped at 100 characters.
    """
    lines = []
    for key in list_key_help(table):
        indent = "  " * (key.depth + 1)
        if key.is_table:
            lines += _wrap(f"[{key.path}] {key.text}", indent)
            continue
        default = f", {key.default}" if key.default in ("required", "optional") else f" = {key.default}"
        lines += [f"{indent}{key.path}: {key.type_words}{default}", *_wrap(key.text, f"{indent}    ")]
    return "\n".join(lines)


def list_renames(table: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """List the names that keys had in earlier versions.

    Args:
        table: The recipe's class.
        prefix: Dotted name of the table that it is, with a dot at the end; empty: none.

    Returns:
        Old dotted name to today's, those of the recipe's tables too.
    """
    renames: Mapping[str, str] = getattr(table, "RENAMED_KEYS", {})
    names = {f"{prefix}{old}": f"{prefix}{new}" for old, new in renames.items()}
    for name, field in table.model_fields.items():
        inner, item = table_class(field.annotation), item_class(field.annotation)
        if inner is not None:
            names |= list_renames(inner, f"{prefix}{name}.")
        elif item is not None:
            names |= list_renames(item, f"{prefix}{name}[].")
    return names


def describe_bounds(field: FieldInfo) -> str:
    """Describe which values of its type a key takes, those of a list's entries included.

    Args:
        field: The key.

    Returns:
        Such as ``≥ 0, < 1``; empty where all are allowed.
    """
    return ", ".join(dict.fromkeys([*_list_bounds(field.metadata), *_nested_bounds(field.annotation)]))


def _nested_bounds(annotation: object) -> Iterator[str]:
    # Of a list of numbers that are annotated each, or an optional one.
    if get_origin(annotation) is Annotated:
        yield from _list_bounds(get_args(annotation)[1:])
    for argument in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _nested_bounds(argument)


def _list_bounds(metadata: object) -> Iterator[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    counts = {"min_length": "at least", "max_length": "at most"}
    for mark in metadata if isinstance(metadata, list | tuple) else ():
        # An entry of a list has its own FieldInfo.
        yield from _list_bounds(getattr(mark, "metadata", ()))
        for name, sign in signs.items():
            if (value := getattr(mark, name, None)) is not None:
                yield f"{sign} {_format_number(value)}"
        for name, words in counts.items():
            if (value := getattr(mark, name, None)) is not None:
                yield "not empty" if (name, value) == ("min_length", 1) else f"{words} {value} long"
        if (pattern := getattr(mark, "pattern", None)) is not None:
            yield f"matches {pattern}"


def _format_number(value: float) -> str:
    """Write a bound; large powers of two and ten as such."""
    number = int(value)
    if number != value:
        return f"{value}"
    if number >= 2**20 and number & (number - 1) == 0:
        return f"2^{number.bit_length() - 1}"
    digits = f"{number}"
    return f"10^{len(digits) - 1}" if len(digits) > 6 and digits.strip("0") == "1" else digits


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _HELP_WIDTH, initial_indent=indent, subsequent_indent=indent)


def _describe_type(field: FieldInfo) -> str:
    """Say what a key takes, in words of TOML."""
    if path_key(field.metadata) is not None:
        return "list of paths" if get_origin(field.annotation) is list else "path"
    return _type_words(field.annotation)


def _type_words(kind: object) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_words(arguments[0])
    if origin is Literal:
        return " | ".join(json.dumps(value) if isinstance(value, bool) else str(value) for value in arguments)
    alternatives = list_alternatives(kind)
    if len(alternatives) > 1:
        return " | ".join(_type_words(member) for member in alternatives if member is not types.NoneType)
    if origin is list:
        words = _type_words(arguments[0])
        return f"list of {words}s" if words.isalpha() else f"list of {words}"
    if origin is dict or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return "table"
    return _TYPE_WORDS.get(kind, str(kind))


def _describe_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    # As it is written in a recipe: true, "text", ["a", "b"].
    return "optional" if default is None else json.dumps(default, ensure_ascii=False, default=str)
