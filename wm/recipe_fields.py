"""Read the annotations of a recipe's fields: which tables they hold, which keys those have.

Not known here: values.
"""

import types
from typing import Union, get_args, get_origin

from pydantic import BaseModel


def list_alternatives(annotation: object) -> tuple[object, ...]:
    """List the members of a union; of any other annotation, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def table_class(annotation: object) -> type[BaseModel] | None:
    """Return the class of the table that a field is, required or optional; None for a value, a list or a dict."""
    for kind in list_alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def item_class(annotation: object) -> type[BaseModel] | None:
    """Return the class of the tables in a list or a dict; None for any other field."""
    # Of a dict's two arguments the last is that of its values.
    return table_class(get_args(annotation)[-1]) if get_origin(annotation) in (list, dict) else None


def field_annotation(owner: object, name: str) -> object:
    """Return the annotation of a key.

    Args:
        owner: Annotation of its table: a recipe class, an optional one, a dict or list of them.
        name: The key; in a dict or list, any.

    Returns:
        The annotation, or None where there is no such key.
    """
    for kind in list_alternatives(owner):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            return kind.model_fields[name].annotation
        if get_origin(kind) in (dict, list):
            return get_args(kind)[-1]
    return None


def takes_value(annotation: object) -> bool:
    """Return whether a key takes no table, and nothing with keys below it."""
    # object takes anything, and so keys below it.
    kinds = [get_origin(kind) or kind for kind in list_alternatives(annotation)]
    return annotation is not None and table_class(annotation) is None and not {dict, list, object} & {*kinds}


def takes_text(annotation: object) -> bool:
    """Return whether a key takes text, and numbers only as text."""
    kinds = list_alternatives(annotation)
    return str in kinds and not any(kind in (int, float, bool) for kind in kinds)


def list_key_paths(table: type[BaseModel]) -> list[str]:
    """List the dotted keys of a recipe, those of its tables after its own."""
    # Its own keys first: of two of one name, the outer one is suggested.
    own, nested = list(table.model_fields), []
    for name in own:
        if (kind := table_class(table.model_fields[name].annotation)) is not None:
            nested += [f"{name}.{path}" for path in list_key_paths(kind)]
    return own + nested
