"""Images in requests and replies: data URLs and base64 as clients write them, decoded under limits that hold for all
images of a request together; files of predictions.

Every step over a text is one pass in compiled code: it comes from an untrusted client.
"""

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from PIL import Image

from serve_apps.openai.errors import ApiError, Limits
from wm.errors import InputError
from wm.images import Pixels, decode_image, encode_png, fit_square, read_size

# A grey image of one pixel, for examples.
PIXEL_URL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4XmNoaGgAAAMEAYGyFkehAAAAAElFTkSuQmCC"
)
DATA_URL_SCHEMA = {
    "type": "string",
    "pattern": "^data:image/[a-z]+;base64,[A-Za-z0-9+/]+={0,2}$",
    "description": "A data URL of PNG, JPEG, WebP or BMP: data:image/png;base64,… Also read: base64 in lines, without "
    "padding, URL-safe.",
    "examples": [PIXEL_URL],
}
# All images of a request may have so many times the pixels of one.
MAX_PIXELS_FACTOR = 2
# What clients say of an image beside where it is: images are read in one size, and their format from their bytes.
IGNORED_OF_IMAGES = ("type", "detail", "format")

_WHITESPACE = b" \t\r\n\f\v"
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
# What percent-encoders escape in base64; a letter or a figure they leave as it is.
_ESCAPED = b"+/=-_ \t\r\n"
# The mark of base64 is a data URL's last parameter; a quoted parameter may hold a comma.
_DATA_URL = re.compile(r'[ \t\r\n\f\v]*data:(?:[^,"]|"[^"]*")*;[ \t]*base64[ \t]*,', re.IGNORECASE)
# Of an image given as text: a data URL's head, or an address with its scheme.
_MAX_HEAD_CHARS = 1024
_BLANK_IN_LINE = re.compile(rb"\S([ \t]+)\S")
_TO_BLANKS_AND_LINE_ENDS = bytes.maketrans(b"\t\r\f\v", b" \n\n\n")
_NO_DIGIT = re.compile(rb"[^A-Za-z0-9+/=\s_-]")
_MIN_LINE_CHARS = 16
# Of a text with a blank too many, for the index in the message: a pattern holds up all threads while it searches.
_MAX_SEARCHED_BYTES = 2**20


# The field that holds an image, for errors, and its encoded bytes.
NamedImage = tuple[str, bytes]


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
    # Runs of blanks shrink to one, so that what is left beside a line end differs from what is within a line.
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


def image_bytes(reference: object, name: str) -> bytes:
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


def _reference_in(reference: Mapping[str, object], key: str, name: str) -> object:
    """Return what an object says of where the image is, under ``key`` or, where that is left out, the object itself."""
    if key not in reference and key == "image_url" and "url" in reference:
        return reference
    filled = {field for field, value in reference.items() if value is not None}
    if key not in reference or not filled <= {key, *IGNORED_OF_IMAGES}:
        raise ApiError(f"{name}: expected {{'image_url': 'data:image/png;base64,…'}}", param=name)
    return reference[key]


def data_url_bytes(reference: object, name: str) -> bytes:
    """Decode a data URL; addresses, paths and bare base64 are refused.

    Args:
        reference: The value of the field, as sent.
        name: The field, for the message of an error.
    """
    if isinstance(reference, str) and not re.match(r"(?ai)\s*data:", reference) and "://" not in reference[:64]:
        raise ApiError(f"{name}: expected a data URL that starts with data:image/…;base64,", param=name)
    if not isinstance(reference, str):
        raise ApiError(f"{name}: expected a data URL, got {type(reference).__name__}", param=name)
    return image_bytes(reference, name)


def count_pixels_of(images: Sequence[NamedImage], limits: Limits) -> list[int]:
    """Read the sizes of named images, without decoding a pixel.

    Args:
        images: The name of each, for errors, and its bytes.
        limits: One image may have ``max_pixels``, all of them :data:`MAX_PIXELS_FACTOR` times as many.

    Returns:
        Width x height of each.

    Raises:
        ApiError: It names the image that cannot be read or is too large.
    """
    # Headers only: a kilobyte may hold gigabytes of pixels.
    counts: list[int] = []
    for name, data in images:
        try:
            counts.append(prod(read_size(data, name, limits.max_pixels)))
        except InputError as error:
            raise ApiError(str(error), param=name, code="invalid_image") from error
        if sum(counts) > MAX_PIXELS_FACTOR * limits.max_pixels:
            raise _too_many(name, limits)
    return counts


def prepare_image(name: str, data: bytes, side_px: int, limits: Limits) -> Pixels:
    """Decode an image and fit it to the model.

    Args:
        name: Of the image, for errors.
        data: Its encoded bytes.
        side_px: Pixels a side that the model reads.
        limits: One image may have ``max_pixels``.

    Returns:
        uint8 (side_px, side_px, 3).

    Raises:
        ApiError: It names the image that cannot be read.
    """
    try:
        return fit_square(decode_image(data, name, limits.max_pixels), side_px)
    except InputError as error:
        raise ApiError(str(error), param=name, code="invalid_image") from error


def encode_image(pixels_HWC: Pixels, output_format: str, quality: int, side_px: int) -> bytes:
    """Scale a square image, uint8 (side, side, 3), to ``side_px`` (Lanczos) and encode it.

    Args:
        pixels_HWC: The image.
        output_format: png, jpeg or webp.
        quality: Of jpeg and webp, 0 to 100.
        side_px: Pixels a side of the file.
    """
    if len(pixels_HWC) != side_px:
        image = Image.fromarray(pixels_HWC).resize((side_px, side_px), Image.Resampling.LANCZOS)
        pixels_HWC = np.asarray(image)
    # The encoder of every other image of this project: the same pixels give the same bytes.
    if output_format == "png":
        return encode_png(pixels_HWC)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, output_format.upper(), quality=quality)
    return buffer.getvalue()


def _too_many(name: str, limits: Limits) -> ApiError:
    message = f"the images up to {name} have more than {MAX_PIXELS_FACTOR * limits.max_pixels:,} pixels together"
    return ApiError(message, param=name, code="invalid_image")
