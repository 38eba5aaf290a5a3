"""Base64 as clients write it. Knows nothing of images, and of requests only the name of the field it reads.

Every step is one pass over the text in compiled code: the text comes from an untrusted client.
"""

import base64
import binascii
import re

from serve_apps.openai.errors import ApiError

_WHITESPACE = b" \t\r\n\f\v"
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_ESCAPED = b"+/=-_ \t\r\n"
"""What percent-encoders escape in base64; a letter or a figure they leave as it is."""
# The mark of base64 is a data URL's last parameter; a quoted parameter may hold a comma.
_DATA_URL = re.compile(r'[ \t\r\n\f\v]*data:(?:[^,"]|"[^"]*")*;[ \t]*base64[ \t]*,', re.IGNORECASE)
_MAX_HEAD_CHARS = 1024
_BLANK_IN_LINE = re.compile(rb"\S([ \t]+)\S")
_TO_BLANKS_AND_LINE_ENDS = bytes.maketrans(b"\t\r\f\v", b" \n\n\n")
_NO_DIGIT = re.compile(rb"[^A-Za-z0-9+/=\s_-]")
_MIN_LINE_CHARS = 16
_MAX_SEARCHED_BYTES = 2**20
"""Of a text with a blank too many, for the index in the message: a pattern holds up all threads while it searches."""


def find_digits(text: str) -> int | None:
    """Return the index of the first base64 digit of a data URL; None for a text that is no data URL in base64."""
    match = _DATA_URL.match(text[:_MAX_HEAD_CHARS])
    return match.end() if match else None


def decode_base64(text: str, name: str, start: int = 0) -> bytes:
    """Decode base64 text, in any of the forms that encoders write.

    Those are the standard and the URL-safe alphabet, with and without padding, in lines, with white space around it,
    and percent-encoded. Whatever else there is in the text makes it invalid: nothing is skipped.

    Args:
        text: The value of the field, as sent.
        name: The field, for the message of an error.
        start: Index in ``text`` of the first digit.

    Returns:
        The decoded bytes.

    Raises:
        ApiError: The text is not base64; the message says where.
    """
    raw = text[start:].encode("utf-8", "surrogatepass")
    if b"%" in raw:
        raw, start, suffix = _unescape(raw), 0, " of its digits, percent-decoded"
    else:
        suffix = ""
    if _has_blank_in_line(raw) and not _is_folded(raw):
        # A form that was decoded once too often has a blank for each +: without them the bytes would be others.
        blank = _BLANK_IN_LINE.search(raw[:_MAX_SEARCHED_BYTES])
        position = "" if blank is None else f" at index {start + blank.start(1):,}"
        raise _invalid(name, f"a blank in the middle of a line{position}{suffix}")
    digits = raw.translate(_TO_STANDARD, _WHITESPACE)
    unpadded = digits.rstrip(b"=")
    num_padding = len(digits) - len(unpadded)
    if unpadded.translate(None, _DIGITS):
        raise _invalid(name, _describe_bad_character(raw, start) + suffix)
    if len(unpadded) % 4 == 1 or (num_padding and (num_padding > 2 or len(digits) % 4)):
        raise _invalid(name, f"{len(unpadded):,} digits with {num_padding} of padding; is it cut off?")
    try:
        return base64.b64decode(unpadded + b"=" * (-len(unpadded) % 4), validate=True)
    except binascii.Error as error:
        raise _invalid(name, str(error)) from error


def _unescape(raw: bytes) -> bytes:
    for code in _ESCAPED:
        for escape in {f"%{code:02X}", f"%{code:02x}"}:
            raw = raw.replace(escape.encode(), bytes([code]))
    return raw


def _has_blank_in_line(raw: bytes) -> bool:
    """Return whether blanks stand between two characters of a line, in passes at the speed of memory."""
    blanks_and_line_ends = raw.translate(_TO_BLANKS_AND_LINE_ENDS).strip()
    if b" " not in blanks_and_line_ends:
        return False
    # Runs of blanks shrink to one, so that what is left beside a line end can be told from what is within a line.
    while b"  " in blanks_and_line_ends:
        blanks_and_line_ends = blanks_and_line_ends.replace(b"  ", b" ")
    return b" " in blanks_and_line_ends.replace(b" \n", b"\n").replace(b"\n ", b"\n")


def _is_folded(raw: bytes) -> bool:
    """Return whether blanks stand for line ends, as a shell joins lines of ``base64``: each of equal length."""
    width = len(raw.split(None, 1)[0])
    if width < _MIN_LINE_CHARS or width % 4:
        return False
    digits = raw.translate(None, _WHITESPACE)
    return b" ".join(digits[row : row + width] for row in range(0, len(digits), width)) == raw.strip(_WHITESPACE)


def _describe_bad_character(raw: bytes, start: int) -> str:
    """Name the first character that no encoder writes, or padding before the end, and its index in the text as sent."""
    match = _NO_DIGIT.search(raw)
    index = match.start() if match else raw.find(b"=")
    return f"{raw[index : index + 4].decode(errors='replace')[0]!r} at index {start + index:,}"


def _invalid(name: str, reason: str) -> ApiError:
    return ApiError(f"{name} is not valid base64: {reason}", param=name, code="invalid_value")
