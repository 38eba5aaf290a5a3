"""Load strict recipes: a pydantic class per job, a TOML file, ``key=value`` overrides. An unknown key is an error.

Not known here: which jobs there are.
"""

import difflib
import hashlib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wm.errors import InputError
from wm.paths import absolute_path, check_output, path_key


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

    @model_validator(mode="after")
    def _need_required_texts(self) -> Self:
        # An empty path would silently mean the current folder.
        for name, field in type(self).model_fields.items():
            if field.is_required() and getattr(self, name) == "":
                raise ValueError(f"{name} is empty")
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, str) and not _is_text(value):
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
            path: The file, or None for defaults only.
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
        """Validate ``values``; ``where`` names their origin in errors."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: " + "; ".join(_describe(cls, item) for item in error.errors())) from error

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
        return _drop_keys(_rename_keys(cls, values), cls.RESUMABLE_KEYS)

    def digest(self) -> str:
        """16 hexadecimal digits of the resolved recipe: what ``run.json`` compares."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rename_keys(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Move recorded values to today's keys, those of tables in them too."""
    renamed: dict[str, Any] = {}
    moved: list[tuple[str, Any]] = []
    for name, value in values.items():
        is_known = name in cls.model_fields
        if not is_known and name in cls.RENAMED_KEYS:
            moved.append((cls.RENAMED_KEYS[name], value))
        elif not is_known and isinstance(value, Mapping):
            # A table that is gone: each of its keys may have gone elsewhere.
            moved += [(cls.RENAMED_KEYS.get(f"{name}.{key}", f"{name}.{key}"), item) for key, item in value.items()]
        else:
            renamed[name] = _rename_in_value(_field_class(cls, name), value)
    for path, value in moved:
        *tables, leaf = path.split(".")
        target, owner = renamed, cls
        for table_name in tables:
            target = target.setdefault(table_name, {})
            owner = _field_class(owner, table_name)
        target[leaf] = _rename_in_value(_field_class(owner, leaf), value)
    return renamed


def _rename_in_value(annotation: Any, value: Any) -> Any:
    """Move recorded keys of a field's value, where it is a table or a list of tables."""
    for kind in _alternatives(annotation):
        if _is_recipe(kind) and isinstance(value, Mapping):
            return _rename_keys(kind, value)
        if get_origin(kind) is list and isinstance(value, list):
            return [_rename_in_value(get_args(kind)[0], item) for item in value]
    return value


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


def _is_recipe(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Recipe)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    """Parse a TOML file; :class:`InputError` names the file and the place of a mistake."""
    if not path.is_file():
        raise InputError(f"no such recipe file: {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: no TOML, no UTF-8, a number of too many digits
        raise InputError(f"{path} is not valid TOML: {error}") from error


def _apply_override(values: dict[str, Any], override: str, cls: type[BaseModel]) -> None:
    key, separator, text = override.partition("=")
    *tables, leaf = key.strip().split(".")
    if not separator or not leaf or not all(tables):
        raise InputError(f"override {override!r}: expected key=value")
    owner: Any = cls
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {table!r} is a value, not a table")
        owner = _field_class(owner, table)
    # Without quotes, as a shell passes it: the field's type says whether it is a text.
    values[leaf] = text if _is_text_field(owner, leaf) else _toml_value(text)


def _field_class(owner: Any, name: str) -> Any:
    """Return the annotation of a field of ``owner``: a recipe class, an optional one, a dict or list of them."""
    for kind in _alternatives(owner):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            return kind.model_fields[name].annotation
        if get_origin(kind) in (dict, list):
            return get_args(kind)[-1]
    return None


def table_class(annotation: Any) -> type[Recipe] | None:
    """Return the recipe class of the tables that a field holds, itself or in a list or dict; None if it holds none."""
    for kind in _alternatives(annotation):
        item = get_args(kind)[-1] if get_origin(kind) in (dict, list) else kind
        if _is_recipe(item):
            found: type[Recipe] = item
            return found
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; for any other annotation, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _is_text_field(owner: Any, name: str) -> bool:
    """Return whether a field takes text and no number."""
    # It keeps key=5 as the text "5": a folder may be called 5.
    kinds = _alternatives(_field_class(owner, name))
    return str in kinds and not any(kind in (int, float, bool) for kind in kinds)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # ValueError: no TOML, a number of too many digits
        return text


def _describe(cls: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "recipe"
    # The keys of the table in which the unknown one is, not of the recipe.
    if item["type"] == "extra_forbidden":
        owner: Any = cls
        for part in item["loc"][:-1]:
            owner = _field_class(owner, str(part))
        table = next((kind for kind in _alternatives(owner) if _is_recipe(kind)), Recipe)
        return _describe_unknown_key(table, key, nested=len(item["loc"]) > 1, value=item["input"])
    if item["type"] == "missing":
        return f"{key} is missing; give it in the file or as {key}=VALUE"
    if item["type"] == "value_error":  # a recipe's own check; that of a table names the keys itself
        problem = str(item["ctx"]["error"])
        # A table's own check names its keys; a field's check is told by key and value.
        if not isinstance(item["input"], dict):
            return f"{key} = {item['input']!r:.80}: {problem}"
        return f"{key}: {problem}" if item["loc"] else problem
    return f"{key} = {item['input']!r:.80}: {item['msg'].lower()}"


def _describe_unknown_key(table: type[Recipe], key: str, *, nested: bool, value: Any) -> str:
    """Say what an unknown key is called today, or which key is nearest, or which there are."""
    prefix, _, leaf = key.rpartition(".")
    prefix = f"{prefix}." if prefix else ""
    renamed = table.RENAMED_KEYS
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
    paths = {path.rpartition(".")[2]: path for path in reversed(_key_paths(table))}
    nearest = difflib.get_close_matches(leaf, paths, n=1, cutoff=0.75)
    hint = f"; did you mean {prefix}{paths[nearest[0]]}?" if nearest else ""
    return f"unknown key {key!r}; the keys{' there' if nested else ''} are {', '.join(table.model_fields)}{hint}"


def _key_paths(table: type[Recipe]) -> list[str]:
    """List the dotted keys of a recipe, those of its tables after its own."""
    own, nested = list(table.model_fields), []
    for name in own:
        for kind in _alternatives(table.model_fields[name].annotation):
            if _is_recipe(kind):
                nested += [f"{name}.{path}" for path in _key_paths(kind)]
    return own + nested
