"""Checks that all requests share. What is wrong is an :class:`ApiError` that names the field."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from serve_apps.openai.base64_images import decode_base64, find_digits
from serve_apps.openai.body_structure import MAX_VALUES, check_structure
from serve_apps.openai.errors import ApiError, Limits

MAX_SEED = 2**31 - 1
"""Seeds are 31-bit: every JSON reader and every generator takes them whole."""
IGNORED_OF_IMAGES = ("type", "detail", "format")
"""What clients say of an image beside where it is: images are read in one size, and their format from their bytes."""
_MAX_HEAD_CHARS = 1024
"""Of an image given as text: a data URL's head, or an address with its scheme."""
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def object_of(body: bytes, limits: Limits, *, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """Return the JSON object that a body is. Its texts are Unicode: halves of surrogate pairs, which JSON can spell,
    could be given back in no answer."""
    check_structure(body, max_values + limits.max_actions + limits.max_scores)
    try:
        text = body.decode("utf-8-sig")  # RFC 8259: a reader may pass over a byte-order mark
        values = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ApiError("the body is not valid Unicode: it holds half a surrogate pair", code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise ApiError(f"the body is not valid JSON: {error}; JSON is UTF-8", code="invalid_json") from error
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError("the body is not a JSON object", code="invalid_json")
    return values


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value: null is the same as left out, in every request."""
    return {name: value for name, value in values.items() if value is not None}


def check_action(text: str, name: str) -> None:
    """Raise :class:`ApiError` unless an action has words, and nothing that is no text."""
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
    """Decode an image that is given as text: a data URL or base64. Addresses are refused: nothing is fetched.

    Args:
        reference: The text, or ``{"image_url": text}``, or OpenAI's ``{"image_url": {"url": text}}``.
        name: The field, for the message of an error.

    Returns:
        The encoded image.

    Raises:
        ApiError: It is none of these, or not base64.
    """
    for key in ("image_url", "url"):
        if isinstance(reference, dict):
            reference = _reference_in(reference, key, name)
    if not isinstance(reference, str):
        raise ApiError(f"{name}: expected a data URL or base64 text, got {type(reference).__name__}", param=name)
    # Only the head is looked at: a pattern that goes through megabytes of base64 holds up all threads meanwhile.
    head = reference[:_MAX_HEAD_CHARS].lstrip()
    if re.match(r"(?ai)[a-z][a-z0-9+.-]*://", head):
        raise ApiError(f"{name} is an address; this server fetches nothing: send the bytes or a data URL", param=name)
    start = find_digits(reference)
    if start is None and (head[:5].lower() == "data:" or "," in reference):
        raise ApiError(f"{name}: expected a data URL that starts with data:image/…;base64,", param=name)
    return decode_base64(reference, name, start or 0)


def _reference_in(reference: Mapping[str, Any], key: str, name: str) -> Any:
    """Return what an object says of where the image is, under ``key`` or, where that is left out, as a whole."""
    if key not in reference and key == "image_url" and "url" in reference:
        return reference
    named = {field for field, value in reference.items() if value is not None}
    if key not in reference or not named <= {key, *IGNORED_OF_IMAGES}:
        raise ApiError(f"{name}: expected {{'image_url': 'data:image/png;base64,…'}}", param=name)
    return reference[key]


def check_names(values: Iterable[str], known: Collection[str], *, inside: str = "", shown: Iterable[str] = ()) -> None:
    """Raise :class:`ApiError` for the first name of a field that is not known.

    Pydantic makes an error of every unknown field before it reports the first: for a body of many names that takes
    seconds and a gigabyte.

    Args:
        values: Names of the fields of a body.
        known: Names that are accepted.
        inside: Field that holds them, for the message; empty for the body itself.
        shown: Names that the message lists.
    """
    unknown = next((name for name in values if name not in known), None)
    if unknown is None:
        return
    name = (f"{inside}.{unknown}" if inside else unknown)[:80]
    listed = ", ".join(shown)
    raise ApiError(
        f"unknown field {name!r:.80}" + (f"; the fields are {listed}" if listed else ""),
        param=name,
        code="unknown_parameter",
    )


def explained(error: ValidationError, fields: Iterable[str]) -> ApiError:
    """Return the first mistake pydantic found, in OpenAI's words; ``fields``: the names that are known."""
    item = error.errors()[0]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    name = "".join(parts).removeprefix(".")[:80] or None
    if item["type"] == "extra_forbidden":
        known = "; the fields are " + ", ".join(fields) if len(item["loc"]) == 1 else ""
        return ApiError(f"unknown field {name!r:.80}{known}", param=name, code="unknown_parameter")
    if item["type"] == "missing":
        return ApiError(f"{name} is missing", param=name, code="missing_required_parameter")
    return ApiError(f"{name} = {item['input']!r:.80}: {item['msg'].lower()}", param=name, code="invalid_value")
