"""Checks that all requests share. What is wrong is an :class:`ApiError` that names the field."""

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from wm.api.errors import ApiError, Limits
from wm.api.structure import MAX_VALUES, check_structure

MAX_SEED = 2**31 - 1
"""Seeds are 31-bit: every JSON reader and every generator takes them whole."""
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def object_of(body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object that a body is. Its texts are Unicode: halves of surrogate pairs, which JSON can spell, could be
    given back in no answer."""
    check_structure(body, MAX_VALUES + limits.max_actions + limits.max_scores)
    try:
        text = body.decode()
        values = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ApiError("the body is not valid Unicode: it holds half a surrogate pair", code="invalid_json") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError("the body is not a JSON object", code="invalid_json")
    return values


def check_action(text: str, name: str) -> None:
    """An action has words, and nothing that is no text."""
    if not text.strip():
        raise ApiError(f"{name} is empty; expected the action to take in the image, in words", param=name)
    if "\0" in text:
        raise ApiError(f"{name} contains a NUL character", param=name, code="invalid_value")
    if _HALF_PAIR.search(text):
        raise ApiError(f"{name} is not valid Unicode: it holds half a surrogate pair", param=name)


def check_length(text: str, name: str, limits: Limits) -> None:
    """At most ``limits.max_prompt_chars``."""
    if len(text) > limits.max_prompt_chars:
        raise ApiError(
            f"{name} has {len(text):,} characters; at most {limits.max_prompt_chars:,} are accepted",
            param=name,
            code="string_above_max_length",
        )


def image_bytes(reference: Any, name: str) -> bytes:
    """Bytes of an image given as text: a data URL or base64. Addresses are refused: nothing is fetched."""
    if isinstance(reference, dict):
        if set(reference) != {"image_url"}:
            raise ApiError(f"{name}: expected {{'image_url': 'data:image/png;base64,…'}}", param=name)
        reference = reference["image_url"]
    if not isinstance(reference, str):
        raise ApiError(f"{name}: expected a data URL or base64 text, got {type(reference).__name__}", param=name)
    if re.match(r"(?i)[a-z][a-z0-9+.-]*://", reference):
        raise ApiError(f"{name} is an address; this server fetches nothing: send the bytes or a data URL", param=name)
    head, comma, text = reference.partition(",")
    if comma and not re.fullmatch(r"(?i)data:[^,]*;base64", head):
        raise ApiError(f"{name}: expected a data URL that starts with data:image/…;base64,", param=name)
    try:
        return base64.b64decode(text if comma else reference, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(f"{name} is not valid base64: {error}", param=name) from error


def explained(error: ValidationError, fields: Iterable[str]) -> ApiError:
    """The first mistake pydantic found, in OpenAI's words; ``fields``: the names that are known."""
    item = error.errors()[0]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    name = "".join(parts).removeprefix(".")[:80] or None
    if item["type"] == "extra_forbidden":
        known = "; the fields are " + ", ".join(fields) if len(item["loc"]) == 1 else ""
        return ApiError(f"unknown field {name!r:.80}{known}", param=name, code="unknown_parameter")
    if item["type"] == "missing":
        return ApiError(f"{name} is missing", param=name, code="missing_required_parameter")
    return ApiError(f"{name} = {item['input']!r:.80}: {item['msg'].lower()}", param=name, code="invalid_value")
