"""Every key of every recipe: help, defaults, and the names that keys had before."""

import typing
from collections import Counter

import pytest
from pydantic import BaseModel

from tests.helpers.recipes import recipe_classes
from wm.config import Recipe
from wm.errors import InputError
from wm.recipe_fields import field_annotation, item_class, list_key_paths, table_class

RECIPES = recipe_classes()
RENAMES = [(kind, old, new) for kind in RECIPES for old, new in kind.RENAMED_KEYS.items()]


def tables_of(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """The class itself and those of all tables in it."""
    annotations = [field.annotation for field in kind.model_fields.values()]
    inner = {table for kind in annotations if (table := table_class(kind) or item_class(kind)) is not None}
    return {kind}.union(*map(tables_of, inner))


COMMANDS = [kind for kind in RECIPES if kind.__name__.endswith("Recipe")]


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_key_of_a_command_has_a_help_text(kind: type[Recipe]) -> None:
    for table in tables_of(kind):
        for name, field in table.model_fields.items():
            inner = table_class(field.annotation)
            text = (field.description or (inner.__doc__ if inner else "") or "").strip()
            assert len(text) > 4 and text.endswith((".", "]", "…")), f"{table.__name__}.{name}"


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)
def test_a_table_left_out_is_an_empty_table(kind: type[Recipe]) -> None:
    """Else a table with one key would change others, and the help would tell wrong defaults."""
    for name, field in kind.model_fields.items():
        table = table_class(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if table is not None and default is not None:
            assert default == table(), f"{kind.__name__}.{name}"


def test_no_two_recipe_classes_share_a_name() -> None:
    assert [
        name
        for name, count in Counter(
            kind.__name__ for kind in RECIPES if kind.__module__.split(".")[1] != "benchmark"
        ).items()
        if count > 1
    ] == []


def annotation_of(kind: type[Recipe], path: str) -> object:
    """The type under a dotted key; of a key inside a table of Ray's own options, which Ray checks, that table's."""
    annotation: object = kind
    for name in path.split("."):
        if typing.get_origin(annotation) is dict:
            return annotation
        annotation = field_annotation(annotation, name)
    return annotation


@pytest.mark.parametrize(("kind", "old", "new"), RENAMES, ids=lambda value: getattr(value, "__name__", value))
def test_an_old_key_says_todays_key(kind: type[Recipe], old: str, new: str) -> None:
    # An option of several deployments has several new names.
    for path in new.split(" and "):
        assert annotation_of(kind, path) is not None, f"{path} is no key"
    name, _, leaf = old.partition(".")
    assert name not in kind.model_fields, f"{name} is still a key"
    with pytest.raises(InputError, match=rf"{old}.* is called {new} now"):
        kind.parse({name: {leaf: 1} if leaf else 1}, "test")


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)
def test_resumable_keys_are_keys(kind: type[Recipe]) -> None:
    tables = {name for name, field in kind.model_fields.items() if table_class(field.annotation)}
    assert {*list_key_paths(kind), *tables} >= kind.RESUMABLE_KEYS


@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)
def test_an_old_record_has_no_old_key_left(kind: type[Recipe]) -> None:
    """A record of an earlier version: every old key, with today's default under it."""
    record: dict[str, object] = {}
    for old in kind.RENAMED_KEYS:
        name, _, leaf = old.partition(".")
        table = record.setdefault(name, {}) if leaf else record
        assert isinstance(table, dict)
        table[leaf or name] = 1
    settings = kind.identity_settings(record)
    for path in kind.RENAMED_KEYS.values():
        if not any(path == key or path.startswith(f"{key}.") for key in kind.RESUMABLE_KEYS):
            value: object = settings
            for name in path.split("."):
                assert isinstance(value, dict)
                value = value[name]
            assert value == 1
    assert set(settings) <= set(kind.model_fields)
