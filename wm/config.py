"""Load strict recipes: a pydantic class per job, a TOML file, ``key=value`` overrides. An unknown key is an error.

Not known here: which jobs there are.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wm.errors import InputError
from wm.files.uris import is_text
from wm.packaged import find_recipe
from wm.paths import absolute_path, check_output, path_key
from wm.recipe_errors import describe_error
from wm.recipe_fields import field_annotation, item_class, table_class, takes_text, takes_value


class Recipe(BaseModel):
    """Base of every recipe. Types are strict (``"3"`` is not 3), unknown keys are refused, and the string
    under a field is its help text. Numbers are finite; texts are Unicode, which a name from the command line need not
    be; a required text is not empty (as a path it would silently mean the current folder)."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Runtime settings (workers, batches), which do not change the result: a run may resume with others. Keys of tables
    are dotted, such as ``optim.lr``; the name of a table stands for all of it."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions: old name (dotted in a table that is gone) to today's dotted name, from this class on.
    A recipe that uses one is refused with the new name; a record of an earlier run is read under it."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys of this table that earlier versions did not have and whose default is what these did: at its default such a
    key is no part of what a run is, so that a run begun before is still the same run."""

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        # An empty path would silently mean the current folder.
        for name, field in type(self).model_fields.items():
            if field.is_required() and getattr(self, name) == "":
                raise ValueError(f"{name} is empty")
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, str) and not is_text(value):
                    raise ValueError(f"{name} = {value!r:.200} is not UTF-8; rename the file or folder")
        return self

    @model_validator(mode="after")
    def _check_output_paths(self) -> Self:
        # Here and not in the jobs: whatever runs a job, no output of a submitted one may go where it is lost.
        for name, field in type(self).model_fields.items():
            mark = path_key(field.metadata)
            if mark is not None and mark.is_output:
                check_output(name, getattr(self, name), takes_uri=mark.takes_uri)
        return self

    def with_absolute_paths(self) -> Self:
        """Return the same recipe for a process in another working directory: every path of it, and of the tables in
        it, is absolute."""
        marks = {name: path_key(field.metadata) is not None for name, field in type(self).model_fields.items()}
        return self.model_copy(update={name: _absolute(getattr(self, name), marks[name]) for name in marks})

    @classmethod
    def load(cls, path: str | Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML file (or none: defaults only) and apply ``key=value`` overrides (dots go into tables).

        Args:
            path: The file or the name of a packaged recipe, such as ``nano/demo``; None for defaults only.
            overrides: Texts; values are read as TOML, and as text where they are none.

        Raises:
            InputError: It names the key, the value, the file and what was expected.
        """
        values = read_toml(Path(path)) if path is not None else {}
        where = str(path) if path is not None else "the command line"
        for override in overrides:
            _apply_override(values, override, cls)
        return cls.parse(values, where)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validate values.

        Args:
            values: Keys and values, tables as dicts.
            where: Their origin for messages.

        Raises:
            InputError: It names each wrong key, its value and what was expected.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: " + "; ".join(describe_error(cls, item) for item in error.errors())) from error

    @classmethod
    def identity_settings(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that make a run what it is, from a recipe or the record of an earlier version's.

        Args:
            values: A recipe as plain values (``model_dump``), perhaps under names that were changed since.

        Returns:
            The values under today's names, without the runtime settings, and without keys that are null and tables that
            are then empty: not to give a key is the same as not to know it, so that a run begun before a key was added
            is still the same run.
        """
        return _drop_keys(_drop_later_keys(cls, _rename_keys(cls, values)), cls.RESUMABLE_KEYS)

    def digest(self) -> str:
        """Compute 16 hexadecimal digits of the resolved recipe: what ``run.json`` compares."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rename_keys(table: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Move recorded values to today's keys, those of tables in them too."""
    renames: Mapping[str, str] = getattr(table, "RENAMED_KEYS", {})
    renamed: dict[str, Any] = {}
    moved: list[tuple[str, Any]] = []
    for name, value in values.items():
        is_known = name in table.model_fields
        if not is_known and name in renames:
            moved.append((renames[name], value))
        elif not is_known and isinstance(value, Mapping):
            # A table that is gone: each of its keys may have gone elsewhere.
            moved += [(renames.get(f"{name}.{key}", f"{name}.{key}"), item) for key, item in value.items()]
        else:
            renamed[name] = _rename_in_value(field_annotation(table, name), value)
    # After all others: the tables that they move into may be given too.
    for path, value in moved:
        *tables, leaf = path.split(".")
        target, owner = renamed, cast(object, table)
        for table_name in tables:
            target = target.setdefault(table_name, {})
            owner = field_annotation(owner, table_name)
        target[leaf] = _rename_in_value(field_annotation(owner, leaf), value)
    return renamed


def _rename_in_value(annotation: object, value: Any) -> Any:
    """Move recorded keys of a field's value, where it is a table or a list of tables."""
    table, item = table_class(annotation), item_class(annotation)
    if table is not None and isinstance(value, Mapping):
        return _rename_keys(table, value)
    if item is not None and isinstance(value, list):
        return [_rename_in_value(item, entry) for entry in value]
    return value


def _drop_later_keys(table: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded values without the later keys that have their default, in tables and lists of tables too."""
    later: frozenset[str] = getattr(table, "LATER_KEYS", frozenset())
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if name in later:
            default = table.model_fields[name].get_default(call_default_factory=True)
            if value == (default.model_dump(mode="json") if isinstance(default, BaseModel) else default):
                continue
        # Tables in it have later keys of their own.
        annotation = field_annotation(table, name)
        inner, item = table_class(annotation), item_class(annotation)
        if inner is not None and isinstance(value, Mapping):
            rest[name] = _drop_later_keys(inner, value)
        elif isinstance(item, type) and issubclass(item, BaseModel) and isinstance(value, list):
            rest[name] = [_drop_later_keys(item, entry) if isinstance(entry, Mapping) else entry for entry in value]
        else:
            rest[name] = value
    return rest


def _drop_keys(values: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """Return nested values without dotted keys, null values and the tables left empty by that."""
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if name in keys or value is None:
            continue
        if isinstance(value, Mapping):
            inner_keys = frozenset(key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}."))
            # A table of runtime settings only is left out, as it is where it was never given.
            if table := _drop_keys(value, inner_keys):
                rest[name] = table
        else:
            rest[name] = value
    return rest


def _absolute(value: Any, is_path: bool) -> Any:
    """Make the paths in a field's value absolute, if its texts are paths; those of tables in it always."""
    if isinstance(value, Recipe):
        return value.with_absolute_paths()
    if isinstance(value, list):
        return [_absolute(item, is_path) for item in value]
    if isinstance(value, dict):
        return {key: _absolute(item, is_path) for key, item in value.items()}
    return absolute_path(value) if is_path and isinstance(value, str) else value


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file, or the packaged recipe of that name; :class:`InputError` names the file and the place of a
    mistake."""
    path = find_recipe(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, a number of too many digits
        raise InputError(f"{path} is not valid TOML: {error}") from error


def _apply_override(values: dict[str, Any], override: str, recipe_class: type[BaseModel]) -> None:
    """Set a key of nested values in place."""
    key, separator, text = override.partition("=")
    *tables, leaf = key.strip().split(".")
    if not separator or not leaf or not all(tables):
        raise InputError(f"override {override!r}: expected key=value")
    owner: object = recipe_class
    for table in tables:
        owner = field_annotation(owner, table)
        values = {} if takes_value(owner) else values.setdefault(table, {})
        if takes_value(owner) or not isinstance(values, dict):
            raise InputError(f"override {override!r}: {table!r} is a value, not a table")
    # Without quotes, as a shell passes it: where the key takes text, 5 is the text "5", as a folder may be called 5.
    values[leaf] = text if takes_text(field_annotation(owner, leaf)) else _toml_value(text)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # ValueError: no TOML, a number of too many digits
        return text
