"""Strict recipes: a pydantic class per job, a TOML file, ``key=value`` overrides. Unknown key = error."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from wm.errors import InputError


class Recipe(BaseModel):
    """Base of every recipe. Types are strict (``"3"`` is not 3), unknown keys are refused, and the string
    under a field is its help text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @classmethod
    def load(cls, path: str | Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML file (or none: defaults only) and apply ``key=value`` overrides (dots go into tables).

        Raises :class:`InputError` that names the key, the value, the file and what was expected.
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

    def digest(self) -> str:
        """16 hexadecimal digits of the resolved recipe: what ``run.json`` compares."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; :class:`InputError` names the file and the place of a mistake."""
    if not path.is_file():
        raise InputError(f"no such recipe file: {path}")
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error


def _apply_override(values: dict[str, Any], override: str, cls: type[BaseModel]) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"override {override!r}: expected key=value")
    *tables, leaf = key.strip().split(".")
    owner: Any = cls
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"override {override!r}: {table!r} is a value, not a table")
        owner = _field_class(owner, table)
    values[leaf] = text if _is_text_field(owner, leaf) else _toml_value(text)


def _field_class(owner: Any, name: str) -> Any:
    field = getattr(owner, "model_fields", {}).get(name)
    return field.annotation if field is not None else None


def _is_text_field(owner: Any, name: str) -> bool:
    """A field that takes text and no number keeps ``key=5`` as the text "5" (a folder may be called 5)."""
    annotation = _field_class(owner, name)
    kinds = get_args(annotation) or (annotation,)
    return str in kinds and not {int, float, bool} & set(kinds)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _describe(cls: type[BaseModel], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}; the keys are {', '.join(cls.model_fields)}"
    if item["type"] == "missing":
        return f"{key} is missing; give it in the file or as {key}=VALUE"
    return f"{key} = {item['input']!r:.80}: {item['msg'].lower()}"
