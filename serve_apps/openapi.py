"""Describe what the OpenAPI page says beside each route's own: request bodies, errors, keys, streams."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI

from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import JsonObject
from serve_apps.openai.images import DATA_URL_SCHEMA, PIXEL_URL
from serve_apps.openai.requests import ApiRequest, json_schema

ERRORS = {
    "400": "What was asked is wrong: the message says how",
    "401": "No API key is given, or one that is not known",
    "403": "The API key may not use this model",
    "404": "There is no such model, example or comparison",
    "408": "The request took longer than the server's time limit",
    "413": "The request is too large",
    "415": "The content type is not supported",
    "429": "The API key's limits are reached; Retry-After says how many seconds to wait",
    "503": "Too many requests wait, or a model cannot be reached; Retry-After says how many seconds to wait",
}
OF_PAGES = ("400", "503")
OF_BODIES = ("413", "415")
_NULLABLE = {"type": ["string", "null"]}
ERROR_SCHEMA: JsonObject = {
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


EVENT_SCHEMA: JsonObject = {
    "title": "Event",
    "description": "Of a stream, each server-sent event; its data is JSON, or in a chat's last one [DONE].",
    "type": "object",
    "required": ["data"],
    "additionalProperties": False,
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}


class DescribedApp(FastAPI):
    """A FastAPI app whose schema has the errors too."""

    def openapi(self) -> JsonObject:
        """Return the schema; it is built once."""
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
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    _describe(path, operation)
        return self.openapi_schema or {}


def _describe(path: str, operation: JsonObject) -> None:
    responses = operation["responses"]
    # FastAPI's own status for what is answered 400 here.
    responses.pop("422", None)
    is_page = not path.startswith("/v1/")
    for status, description in ERRORS.items():
        if (is_page and status not in OF_PAGES) or (status in OF_BODIES and "requestBody" not in operation):
            continue
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        # One schema for all: clients need to know one form of error.
        responses[status] = {"description": description, "content": content}
    # Where no key file is given, none is needed: both are possible.
    if not is_page:
        operation["security"] = [{}, {"key": []}]
    if _streams(operation):
        responses["200"]["content"]["text/event-stream"] = {"schema": {"$ref": "#/components/schemas/Event"}}


def _streams(operation: JsonObject) -> bool:
    content = operation.get("requestBody", {}).get("content", {})
    return any("stream" in kind["schema"].get("properties", {}) for kind in content.values())


def edit_openapi() -> dict[str, object]:
    """Describe the request body of an edit for the OpenAPI page (the handler reads the body by itself)."""
    form_fields, fields = EditRequest.model_json_schema(), json_schema(EditRequest)
    source = {
        "type": "string",
        "format": "binary",
        "description": "The source image: PNG, JPEG, WebP or BMP.",
    }
    reference = {
        "type": "object",
        "required": ["image_url"],
        "additionalProperties": False,
        "properties": {"image_url": DATA_URL_SCHEMA},
    }
    references = {"type": "array", "minItems": 1, "maxItems": 1, "items": reference}
    required = fields["required"]
    # A form has the image as a file, JSON as a data URL in OpenAI's list.
    form = form_fields | {
        "properties": {"image": source} | form_fields["properties"],
        "required": ["image", *required],
    }
    json = fields | {
        "properties": {"images": references} | fields["properties"],
        "required": ["images", *required],
    }
    example = {"images": [{"image_url": PIXEL_URL}], "prompt": "move the red cup left", "best_of": 8, "seed": 7}
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": json, "example": example},
    }
    return {"requestBody": {"required": True, "content": content}}


def json_openapi(request: type[ApiRequest], images: Iterable[str], example: Mapping[str, Any]) -> JsonObject:
    """Describe the JSON body of a request for the OpenAPI page.

    Args:
        request: Its fields.
        images: Fields beside them, all required, that are data URLs.
        example: A body.
    """
    schema = json_schema(request, ref_template="#/components/schemas/{model}")
    schema["properties"] = dict.fromkeys(images, DATA_URL_SCHEMA) | schema["properties"]
    schema["required"] = [*images, *schema.get("required", [])]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}
