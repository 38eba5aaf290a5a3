"""Parse JSON bodies, and bound what they are made of before: values, nesting, the length of a number.

A parsed value takes up to 40 times the bytes of its text, and a check of each may make an error of each. The text of a
string is not bounded here: it costs what it takes. What the values mean is not known here.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence

from serve_apps.openai.errors import ApiError, Limits

# Values and names of a body, beside those that the limits of a request allow.
MAX_VALUES = 10_000
# Texts, numbers with the sign after them, brackets, commas and colons for each value: a text takes two, an object's
# member two for the name and two for the value, a bracket one.
TOKENS_A_VALUE = 3
MAX_DEPTH = 64
MAX_NUMBER_CHARS = 1000

# Up to the next quote or bracket: JSON outside of strings has no other character that counts.
_GAP = re.compile(rb'[^"\[\]{},:]*+')
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def parse_object(body: bytes, limits: Limits, *, max_values: int = MAX_VALUES) -> dict[str, object]:
    """Parse a JSON object, without the fields that are null: null is the same as left out, in every request.

    Args:
        body: UTF-8 text. Halves of surrogate pairs, which JSON can spell, could be given back in no answer.
        limits: Their actions and scores may come beside ``max_values``.
        max_values: Values and names that it may hold.

    Raises:
        ApiError: It is none, or holds too much.
    """
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
    return {name: value for name, value in values.items() if value is not None}


def check_structure(body: bytes, max_values: int) -> None:
    """Raise :class:`ApiError` if a JSON body has too many values, or nests or spells them too long.

    The body is gone through once, and only as far as it is acceptable: the work is bounded by its bytes and by
    ``max_values``. What is no JSON may pass: the parser finds it.

    Args:
        body: UTF-8 text.
        max_values: Values in lists and objects, names among them, at most.
    """
    position = depth = num_tokens = 0
    while position < len(body):
        gap = _GAP.match(body, position)
        assert gap is not None
        if gap.end() - position > MAX_NUMBER_CHARS and len(gap[0].strip()) > MAX_NUMBER_CHARS:
            raise _refusal(f"a number or word of more than {MAX_NUMBER_CHARS:,} characters")
        position = gap.end()
        character = body[position : position + 1]
        if character in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise _refusal(f"values nested more than {MAX_DEPTH} deep")
        elif character in (b"]", b"}"):
            depth -= 1
        # Every sign counts, not values alone: a body of nothing but commas, or of texts side by side, ends here too.
        num_tokens += 1
        if num_tokens > TOKENS_A_VALUE * max_values:
            raise _refusal(f"more than {max_values:,} values")
        position = _end_of_string(body, position) if character == b'"' else position + 1


def _end_of_string(body: bytes, start: int) -> int:
    """Return the place after the string that begins at ``start``; the end of the body for one that does not end."""
    end = body.find(b'"', start + 1)
    if end < 0:
        return len(body)
    # Most strings hold no escapes, so that two searches at the speed of memory find their end.
    if body.find(b"\\", start + 1, end) < 0:
        return end + 1
    string = _STRING.match(body, start)
    return len(body) if string is None else string.end()


def _refusal(content: str) -> ApiError:
    return ApiError(f"the body holds {content}", code="invalid_json")


def check_names(
    values: Collection[str],
    names: Collection[str],
    *,
    inside: str = "",
    listed_names: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Raise :class:`ApiError` for the first name of a field that is not known; where fields were renamed, it names the
    new names of all that are given.

    Pydantic makes an error of every unknown field before it reports the first: for a body of many names that takes
    seconds and a gigabyte.

    Args:
        values: Names of the fields of a body.
        names: Those that are accepted.
        inside: Field that holds them, for the message; empty for the body itself.
        listed_names: Those that the message lists.
        renamed: Names of earlier versions, and today's.
    """
    # Fields of an earlier version first, all of them, so that a client is mended in one go: there are few such names.
    old_names = [name for name in values if name not in names and name in (renamed or {})]
    if renamed and old_names:
        raise ApiError(
            "; ".join(f"unknown field {name!r}; it is called {renamed[name]} now" for name in old_names),
            param=old_names[0],
            code="unknown_parameter",
        )
    unknown = next((name for name in values if name not in names), None)
    if unknown is None:
        return
    name = (f"{inside}.{unknown}" if inside else unknown)[:80]
    hint = f"; the fields are {', '.join(listed_names)}" if listed_names else ""
    raise ApiError(
        f"unknown field {name!r:.80}{hint}",
        param=name,
        code="unknown_parameter",
    )
