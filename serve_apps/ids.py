"""Request ids: one for each request, in its answer and in the log lines of whatever worked on it."""

import re
import uuid

from starlette.datastructures import Headers
from starlette.types import Scope

from serve_apps.openai import ApiError

_ID = re.compile(r"[\x21-\x7e]{1,512}")


def given_id(scope: Scope) -> str | None:
    """Return the client's own, if it sent one."""
    return Headers(scope=scope).get("x-request-id")


def wrong_id(scope: Scope) -> ApiError | None:
    """Says what is wrong with the client's own id. OpenAI refuses the same: what is long or not ASCII."""
    given = given_id(scope)
    if given is None or _ID.fullmatch(given):
        return None
    message = "x-request-id: expected at most 512 printable ASCII characters, no spaces"
    one = {"x-request-id": str(uuid.uuid4())}
    return ApiError(message, param="x-request-id", code="invalid_value", headers=one)
