"""Read the image of a question, with limits: files and base64 texts come from anybody."""

import base64
import binascii
from pathlib import Path

from wm.errors import InputError
from wm.evaluation.questions.items import ImagePlace, UnusableError
from wm.evaluation.questions.json_entries import MAX_ENTRY_BYTES, Span, read_span
from wm.images import Pixels, decode_image


def load_image(root: Path, image_place: ImagePlace) -> Pixels:
    """Load an image.

    Args:
        root: Folder that its file is relative to.
        image_place: Where it is.

    Returns:
        uint8 RGB, shape (height, width, 3).

    Raises:
        UnusableError: It is outside of the folder, missing, too large or no image.
    """
    data = _read_file(root, image_place.file) if image_place.offset < 0 else _read_entry(root, image_place)
    try:
        return decode_image(data, image_place.file)
    except InputError as error:
        raise UnusableError("not_an_image", str(error)) from error


def _read_file(root: Path, name: str) -> bytes:
    folder = root.resolve()
    try:
        # Links are followed first: a file from elsewhere may name any file of this machine.
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            raise UnusableError("path_outside", f"image {name!r:.200} leads out of {root}")
        if not path.is_file():
            raise UnusableError("missing_image", f"no image {name!r:.200} in {root}")
        size = path.stat().st_size
        if size > MAX_ENTRY_BYTES:
            raise UnusableError("too_large", f"image {name} has {size:,} bytes; at most {MAX_ENTRY_BYTES:,} are read")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        # A name with a null byte or too long, a loop of links, a file that may not be read.
        if isinstance(error, UnusableError):
            raise
        raise UnusableError("missing_image", f"cannot read image {name!r:.200}: {error}") from error


def _read_entry(root: Path, image_place: ImagePlace) -> bytes:
    entry = read_span(root / image_place.file, Span(image_place.offset, image_place.length))
    text = entry.get("image") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise UnusableError(
            "missing_image", f"{image_place.file}, byte {image_place.offset:,}: no field 'image' with base64 text"
        )
    # A data URL, as web pages have it, is the same behind its comma.
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableError(
            "not_an_image", f"{image_place.file}, byte {image_place.offset:,}: no base64 text: {error}"
        ) from error
