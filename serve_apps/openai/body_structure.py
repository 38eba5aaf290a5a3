"""Bound what a JSON body is made of before it is parsed: values, nesting, the length of a number.

A parsed value takes up to 40 times the bytes of its text, and a check of each may make an error of each. The text of a
string is not bounded here: it costs what it takes. What the values mean is not known here.
"""

import re

from serve_apps.openai.errors import ApiError

MAX_VALUES = 10_000
"""Values and names of a body, beside those that the limits of a request ask for."""
TOKENS_A_VALUE = 3
"""Texts, numbers with the sign after them, brackets, commas and colons for each value: a text takes two, an object's
member two for the name and two for the value, a bracket one."""
MAX_DEPTH = 64
MAX_NUMBER_CHARS = 1000

# Up to the next quote or bracket: JSON outside of strings has no other character that counts.
_GAP = re.compile(rb'[^"\[\]{},:]*+')
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


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


def _refusal(found: str) -> ApiError:
    return ApiError(f"the body holds {found}", code="invalid_json")
