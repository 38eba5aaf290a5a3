"""HTTP around ``serve_apps.openai``: the body read under a limit, forms parsed, every error in OpenAI's shape."""

import codecs
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.types import Scope

from serve_apps.openai.edits import EditRequest, edit_from_form, edit_from_json
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openapi import DescribedApp

logger = logging.getLogger("ray.serve")

MAX_FIELDS = 64
# Of a form: one before each file and each field, one at the end, and one more.
MAX_BOUNDARIES = 2 * MAX_FIELDS + 2
MAX_PADDING_BYTES = 1000
# Of a form's texts, as Python names them. Decoding takes a time that grows with the text, and no faster.
CHARSETS = ("utf-8", "utf-8-sig", "ascii", "iso8859-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be")
PAGES = ("/", "/health", "/docs", "/openapi.json", "/playground")
# Read without a key, with all paths below these: they say nothing of anybody and ask no model to work.
BELOW = ("/playground/", "/docs/files/")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,512}")
T = TypeVar("T")
ParsedEdit: TypeAlias = tuple[EditRequest, bytes]
# Calls a blocking function, whose cost in bytes is given, off the event loop.
RunBlocking: TypeAlias = Callable[[float, Callable[[], ParsedEdit]], Awaitable[ParsedEdit]]


def create_app(title: str, middlewares: Sequence[Middleware] = ()) -> FastAPI:
    """Build a FastAPI app that answers every error with ``{"error": {message, type, param, code}}``.

    Args:
        title: Of the API.
        middlewares: Around it, outermost first.
    """
    app = DescribedApp(
        title=title,
        middleware=middlewares,
        docs_url=None,
        redoc_url=None,
        # FastAPI's own traces begin anew in each process; Ray Serve's, of the same requests, do not.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _server_error)
    return app


async def read_edit(request: Request, limits: Limits, run_blocking: RunBlocking) -> ParsedEdit:
    """Read and check an edit, a form or JSON; the body is parsed off the event loop.

    Args:
        request: Its body is read here.
        limits: What one request may ask for.
        run_blocking: Where the body is parsed.

    Returns:
        The request, and the encoded source image.

    Raises:
        ApiError: 400, 413 or 415; it names what is wrong.
    """
    kind = _content_type(request)
    # Before the body is read: what nobody could parse is not received.
    if kind not in ("application/json", "multipart/form-data"):
        raise ApiError(
            f"content-type {kind!r:.80} is not supported; send multipart/form-data or application/json",
            status=415,
            code="unsupported_media_type",
        )
    body = await _read_body(request, limits)
    parse = edit_from_json if kind == "application/json" else partial(_edit_from_form_body, request.headers)
    return await run_blocking(len(body), partial(parse, body, limits))


def _edit_from_form_body(headers: Headers, body: bytes, limits: Limits) -> ParsedEdit:
    _check_charset(headers)
    _check_boundaries(headers, body)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # The body is in memory: the parser never waits, so that it needs no event loop.
    parser = _InMemoryParser(
        headers,
        stream(),
        max_files=MAX_FIELDS,
        max_fields=MAX_FIELDS,
        max_part_size=limits.max_body_bytes,  # a text may be an image in base64
    )
    try:
        form = _run_to_end(parser.parse())
    except MultiPartException as error:
        raise ApiError(f"the form cannot be read: {error.message}", code="invalid_form") from error
    try:
        items = [
            (name, value.file.read() if isinstance(value, UploadFile) else value)
            for name, value in form.multi_items()
            if not _is_no_file(value)
        ]
    finally:
        _run_to_end(form.close())
    return edit_from_form(items, limits)


def _is_no_file(value: UploadFile | str) -> bool:
    """Return whether a part is what a browser sends where no file was chosen: empty and without a name."""
    return isinstance(value, UploadFile) and not value.filename and not value.size


def _check_charset(headers: Headers) -> None:
    """Refuse a form whose texts are not in one of :data:`CHARSETS`: Python has codecs that take hours for 1 MB."""
    _, parameters = parse_options_header(headers["content-type"])
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1")
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        return  # the parser reads the texts as Latin-1 then
    if name not in CHARSETS:
        raise ApiError(f"the form cannot be read: charset = {charset!r:.80}; expected utf-8", code="invalid_form")


def _check_boundaries(headers: Headers, body: bytes) -> None:
    """Refuse a form that the parser would go through byte by byte: seconds for a body of boundaries, or of the spaces
    that may follow one."""
    _, parameters = parse_options_header(headers["content-type"])
    if not parameters.get(b"boundary"):
        return  # the parser says so
    boundary = b"--" + parameters[b"boundary"]
    count, position = 0, body.find(boundary)
    while position >= 0:
        count += 1
        end = position + len(boundary)
        padding = body[end : end + MAX_PADDING_BYTES + 1]
        if len(padding) > MAX_PADDING_BYTES and not padding.strip(b" \t"):
            raise ApiError("the form cannot be read: too many spaces after a boundary", code="invalid_form")
        if count > MAX_BOUNDARIES:
            raise ApiError(
                f"the form cannot be read: more than {MAX_BOUNDARIES} boundaries between its parts", code="invalid_form"
            )
        position = body.find(boundary, end)


class _InMemoryParser(MultiPartParser):
    """Starlette's parser for a body that is in memory already: no part goes to a file on disk, none is waited for."""

    spool_max_size = 2**63 - 1


def _run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits, in a thread without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits for something")


async def read_json(request: Request, limits: Limits) -> bytes:
    """Return the body of a request that must be JSON.

    Args:
        request: Its body is read here.
        limits: The size of a body.

    Raises:
        ApiError: 413 for one that is too large, 415 for another content type.
    """
    kind = _content_type(request)
    if kind != "application/json":
        raise ApiError(
            f"content-type {kind!r:.80} is not supported; send application/json",
            status=415,
            code="unsupported_media_type",
        )
    return await _read_body(request, limits)


async def _read_body(request: Request, limits: Limits) -> bytes:
    # A buffer, not a list: a body of many small pieces costs no more than its bytes.
    body = bytearray()
    async for chunk in limited_body(request, limits):
        body += chunk
    return bytes(body)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def limited_body(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives.

    Args:
        request: Its body is read here.
        limits: The size of a body.

    Raises:
        ApiError: 413, too large by its header or by what has come; no more is read.
    """
    # By its header already, where it has one: then not a byte is read.
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.max_body_bytes:
        raise _too_large(limits)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_body_bytes:
            raise _too_large(limits)
        yield chunk


def _too_large(limits: Limits) -> ApiError:
    message = f"the request is larger than {limits.max_body_bytes:,} bytes"
    return ApiError(message, status=413, code="request_too_large")


def is_page(scope: Scope) -> bool:
    """Return whether a request reads one of :data:`PAGES`; whatever else there is is guarded and limited."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path.removeprefix(root) or "/"
    return scope["method"] in ("GET", "HEAD") and (path in PAGES or path.startswith(BELOW))


def request_id_of(scope: Scope) -> str | None:
    """Return the ``x-request-id`` that a client sent, if it sent one."""
    return Headers(scope=scope).get("x-request-id")


def find_request_id_error(scope: Scope) -> ApiError | None:
    """Say what is wrong with a client's own request id. OpenAI refuses the same: what is long or not ASCII."""
    request_id = request_id_of(scope)
    if request_id is None or _REQUEST_ID.fullmatch(request_id):
        return None
    message = "x-request-id: expected at most 512 printable ASCII characters, no spaces"
    headers = {"x-request-id": str(uuid.uuid4())}
    return ApiError(message, param="x-request-id", code="invalid_value", headers=headers)


def error_response(error: ApiError) -> JSONResponse:
    """Return an error as it is sent."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    method = "GET" if request.method == "HEAD" else request.method  # whose answers are equally long
    # Starlette's own texts say less.
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
    """Log what went wrong; an untrusted client is not shown it."""
    logger.error("%s %s failed: %r", request.method, request.url.path, error)
    return await _api_error(request, ApiError.internal())
