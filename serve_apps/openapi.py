"""What the OpenAPI page says beside each route's own: every error an endpoint can answer with, keys, streams."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

ERRORS = {
    "400": "What was asked is wrong: the message says how",
    "401": "No API key is given, or one that is not known",
    "403": "The API key may not use this model",
    "404": "There is no such model",
    "408": "The request took longer than the server's time limit",
    "413": "The request is too large",
    "415": "The content type is not supported",
    "429": "The API key's limits are reached; Retry-After says how many seconds to wait",
    "503": "Too many requests wait, or a model cannot be reached; Retry-After says how many seconds to wait",
}
OF_PAGES = ("400", "503")
OF_BODIES = ("413", "415")
_NULLABLE = {"type": ["string", "null"]}
ERROR_SCHEMA: dict[str, Any] = {
    "title": "Error",
    "description": "OpenAI's form of an error.",
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE | {"description": "The field that is wrong."},
                "code": _NULLABLE,
            },
        }
    },
}


EVENT_SCHEMA: dict[str, Any] = {
    "title": "Event",
    "description": "Of a stream, each server-sent event; its data is JSON, or in a chat's last one [DONE].",
    "type": "object",
    "required": ["data"],
    "additionalProperties": False,
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}


class DescribedApp(FastAPI):
    """A FastAPI app whose schema tells the errors too."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema; it is made once."""
        if self.openapi_schema is None:
            schema = super().openapi()
            components = schema.setdefault("components", {})
            components.setdefault("schemas", {})["Error"] = ERROR_SCHEMA
            components["schemas"]["Event"] = EVENT_SCHEMA
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this server never sends
                components["schemas"].pop(name, None)
            components["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer", "description": "Where the server was given a key file."}
            }
            for path, operation in _operations(schema):
                _describe(path, operation)
        return self.openapi_schema or {}


def _operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            yield path, operation


def _describe(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    is_page = not path.startswith("/v1/")
    for status, description in ERRORS.items():
        if (is_page and status not in OF_PAGES) or (status in OF_BODIES and "requestBody" not in operation):
            continue
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        responses[status] = {"description": description, "content": content}
    if not is_page:
        operation["security"] = [{}, {"key": []}]
    if _streams(operation):
        responses["200"]["content"]["text/event-stream"] = {"schema": {"$ref": "#/components/schemas/Event"}}


def _streams(operation: dict[str, Any]) -> bool:
    content = operation.get("requestBody", {}).get("content", {})
    return any("stream" in kind["schema"].get("properties", {}) for kind in content.values())
