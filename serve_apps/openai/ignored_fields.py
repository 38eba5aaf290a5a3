"""Fields that clients send and that change no answer here: accepted whatever they hold, so that no client fails."""

import inspect
from typing import Any

from pydantic import BaseModel, ConfigDict


class IgnoredFields(BaseModel):
    """Fields of every request that nothing depends on: those typed ``object``, here and in what is derived."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    user: object = None
    """Your name for the end user. No effect."""
    safety_identifier: object = None
    """As user. No effect."""
    metadata: object = None
    """Your own notes. No effect: nothing is stored."""
    store: object = None
    """No effect: nothing is stored."""
    service_tier: object = None
    """No effect: all requests are served alike."""
    prompt_cache_key: object = None
    """No effect."""
    prompt_cache_options: object = None
    """No effect."""
    prompt_cache_retention: object = None
    """No effect."""

    @classmethod
    def ignored(cls) -> list[str]:
        """Return the names of the fields that nothing depends on."""
        return [name for name, field in cls.model_fields.items() if field.annotation is object]

    @classmethod
    def effective(cls) -> list[str]:
        """Return the names of all the others, those of the derived class first."""
        declared = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
        ignored = {*cls.ignored()}
        return [name for name in dict.fromkeys(declared) if name in cls.model_fields and name not in ignored]


def json_schema(fields: type[IgnoredFields], **options: Any) -> dict[str, Any]:
    """Return the schema of a JSON body: a field that may be left out may be null, and what has no effect comes last.

    Args:
        fields: The fields of a request.
        options: Those of ``model_json_schema``.
    """
    schema = fields.model_json_schema(**options)
    required = {*schema.get("required", ())}
    properties = {name: schema["properties"][name] for name in (*fields.effective(), *fields.ignored())}
    schema["properties"] = {name: entry if name in required else _nullable(entry) for name, entry in properties.items()}
    return schema


def _nullable(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value, or null. One without a type allows null already."""
    notes = {key: entry[key] for key in ("title", "description", "default", "examples") if key in entry}
    kind = {key: value for key, value in entry.items() if key not in notes}
    choices = kind.get("anyOf", [kind])
    if not kind or {"type": "null"} in choices:
        return entry
    return {"anyOf": [*choices, {"type": "null"}]} | notes
