"""HTTP around ``wm.api``: the body read under a limit, forms taken apart, every error in OpenAI's shape."""

import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware

from serve_apps.openapi import DescribedApp
from wm.api import ApiError, Edit, EditFields, Limits, edit_from_form, edit_from_json
from wm.api.ignored import IgnoredFields, json_schema
from wm.api.pictures import DATA_URL_SCHEMA, PIXEL_URL

logger = logging.getLogger("ray.serve")

MAX_FIELDS = 64


def create_app(title: str, layers: Sequence[Middleware] = ()) -> FastAPI:
    """A FastAPI app that answers every error with ``{"error": {message, type, param, code}}``; ``layers`` around it,
    outermost first."""
    app = DescribedApp(title=title, middleware=layers, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _server_error)
    return app


async def read_edit(request: Request, limits: Limits) -> Edit:
    """The checked request; :class:`ApiError` (400, 413 or 415) names what is wrong with it."""
    kind = _content_type(request)
    if kind == "application/json":
        return edit_from_json(await read_json(request, limits), limits)
    if kind != "multipart/form-data":
        raise ApiError(
            f"content-type {kind!r:.80} is not supported; send multipart/form-data or application/json",
            status=415,
            code="unsupported_media_type",
        )
    parser = MultiPartParser(
        request.headers,
        limited_body(request, limits),
        max_files=MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=limits.max_body_bytes,  # a text may be an image in base64
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(f"the form cannot be read: {error.message}", code="invalid_form") from error
    try:
        items = [
            (name, await value.read() if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
            if not _is_no_file(value)
        ]
    finally:
        await form.close()
    return edit_from_form(items, limits)


def _is_no_file(value: UploadFile | str) -> bool:
    """Whether a part is what a browser sends where no file was chosen: empty and without a name."""
    return isinstance(value, UploadFile) and not value.filename and not value.size


async def read_json(request: Request, limits: Limits) -> bytes:
    """The body of a request that must be JSON; :class:`ApiError` (413 or 415) for one that is not."""
    kind = _content_type(request)
    if kind != "application/json":
        raise ApiError(
            f"content-type {kind!r:.80} is not supported; send application/json",
            status=415,
            code="unsupported_media_type",
        )
    return b"".join([chunk async for chunk in limited_body(request, limits)])


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def limited_body(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Too large by its header or by what has come: 413, and no more is read."""
    too_large = ApiError(
        f"the request is larger than {limits.max_body_bytes:,} bytes", status=413, code="request_too_large"
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.max_body_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_body_bytes:
            raise too_large
        yield chunk


def edit_openapi() -> dict[str, object]:
    """The request body of an edit for the OpenAPI page (the handler reads the body by itself)."""
    form_fields, fields = EditFields.model_json_schema(), json_schema(EditFields)
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


def json_openapi(fields: type[IgnoredFields], images: Iterable[str], example: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON body of a request for the OpenAPI page: ``fields``, and its ``images`` as data URLs, all needed."""
    schema = json_schema(fields, ref_template="#/components/schemas/{model}")
    schema["properties"] = dict.fromkeys(images, DATA_URL_SCHEMA) | schema["properties"]
    schema["required"] = [*images, *schema.get("required", [])]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def error_response(error: ApiError) -> JSONResponse:
    """An error as it is sent."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    method = "GET" if request.method == "HEAD" else request.method  # whose answers are equally long
    message = {
        404: f"no such path: {method} {request.url.path}",
        405: f"method {method} is not allowed for {request.url.path}",
    }.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    answer = ApiError(message, status=error.status_code, code=code, headers=error.headers)
    return await _api_error(request, answer)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    item = error.errors()[0]
    name = ".".join(str(part) for part in item["loc"])
    return await _api_error(request, ApiError(f"{name}: {item['msg']}", param=name, code="invalid_value"))


async def _server_error(request: Request, error: Exception) -> JSONResponse:
    """What went wrong goes to the log, not to the stranger who asked."""
    logger.error("%s %s failed: %r", request.method, request.url.path, error)
    return await _api_error(request, ApiError.internal())
