"""Read the example images of the playground and what can be done in each, once, when a server starts.

All of it is held in memory: no request leads to a file.
"""

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_apps.openai.errors import Limits
from serve_apps.openai.images import encode_image
from wm.errors import InputError
from wm.files.mirror import fetch, uri_of
from wm.images import Pixels, decode_image, encode_png, fit_square
from wm.models.remote import to_local

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ACTIONS_JSON, ACTIONS_CSV = "actions.json", "actions.csv"
MAX_EXAMPLES = 24
MAX_IMAGE_BYTES = 20_000_000
MAX_ACTIONS_BYTES = 1_000_000
# Of an image.
MAX_ACTIONS = 12
# Sides of what is served: no model here reads larger images, and no page shows larger thumbnails.
MAX_SIDE_PX, THUMBNAIL_PX = 1024, 192
THUMBNAIL_QUALITY = 80

# Example actions by the name of the image's file.
ActionsByName = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Example:
    """An example image and actions that can happen in it."""

    name: str
    """Of its file."""
    png: bytes
    """Its middle square, at most :data:`MAX_SIDE_PX` a side; pixels alone, no metadata."""
    thumbnail: bytes
    """The same, smaller: PNG up to :data:`THUMBNAIL_PX` a side, else WebP."""
    thumbnail_type: str
    """Its media type."""
    actions: tuple[str, ...]
    """The first is what one click predicts; there may be none."""


def load_examples(folder: str | None, limits: Limits) -> tuple[Example, ...]:
    """Read the examples of a folder, in the order of their names.

    Args:
        folder: With images, and :data:`ACTIONS_JSON` or :data:`ACTIONS_CSV`; None: there are no examples.
        limits: Of requests: an example must be one that a client may send.

    Returns:
        The examples; none for None.

    Raises:
        InputError: The folder holds no image, too many or too large ones, one that cannot be read or is elsewhere, or
            actions that are of no image there. The message names the file.
    """
    if folder is None:
        return ()
    local = to_local(folder)
    uri = uri_of(local)
    where = f"examples = {uri or folder!r:.300}"
    if uri is not None:
        fetch(local)
    # 1. Which files: whatever is no image, or hidden, is passed over.
    try:
        root = local.resolve(strict=True)
        files = sorted(file for file in root.iterdir() if _is_image_name(file.name))
    except OSError as error:
        raise InputError(f"{where}: no such folder, or it cannot be read: {error.strerror}") from error
    if not files:
        raise InputError(f"{where}: no image ({', '.join(SUFFIXES)}) in it")
    if len(files) > MAX_EXAMPLES:
        raise InputError(f"{where}: {len(files)} images; at most {MAX_EXAMPLES} are offered")
    # 2. What can be done in them.
    actions = _read_actions(root, where, limits)
    unknown = sorted(set(actions) - {file.name for file in files})
    if unknown:
        raise InputError(f"{where}: actions of {unknown[0]!r:.200}, and no such image is there")
    # 3. Their pixels.
    return tuple(_read_example(file, root, where, actions.get(file.name, ()), limits) for file in files)


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _read_example(file: Path, root: Path, where: str, actions: tuple[str, ...], limits: Limits) -> Example:
    label = f"{where}: {file.name!r:.200}"
    if not file.name.isprintable():  # also a name that is no UTF-8: no address could name it
        raise InputError(f"{label}: a name of printable characters is expected")
    square_HWC = _middle_square(decode_image(_read_file(file, root, label, MAX_IMAGE_BYTES), label, limits.max_pixels))
    is_small = len(square_HWC) <= THUMBNAIL_PX
    kind = "png" if is_small else "webp"
    thumbnail = encode_image(square_HWC, kind, THUMBNAIL_QUALITY, min(len(square_HWC), THUMBNAIL_PX))
    return Example(file.name, encode_png(square_HWC), thumbnail, f"image/{kind}", actions)


def _middle_square(pixels_HWC: Pixels) -> Pixels:
    """Cut the middle square that the models would read, at most :data:`MAX_SIDE_PX` a side."""
    return fit_square(pixels_HWC, min(*pixels_HWC.shape[:2], MAX_SIDE_PX))


def _read_file(file: Path, root: Path, label: str, max_bytes: int) -> bytes:
    """Read a file that is within a folder, also where links are followed, and not too large."""
    try:
        target = file.resolve(strict=True)
        # A link to another image of the folder is no harm; one that leads out would publish what nobody put there.
        if not target.is_relative_to(root):
            raise InputError(f"{label} is a link that leads out of the folder; copy the file")
        if not target.is_file():  # a pipe would be waited for
            raise InputError(f"{label} is not a file")
        with target.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise InputError(f"{label} cannot be read: {error}") from error
    if len(data) > max_bytes:
        raise InputError(f"{label} is larger than {max_bytes:,} bytes")
    return data


def _read_actions(root: Path, where: str, limits: Limits) -> ActionsByName:
    """Read the example actions of a folder, from one of the two files or none."""
    files = [root / name for name in (ACTIONS_JSON, ACTIONS_CSV) if (root / name).exists()]
    if len(files) > 1:
        raise InputError(f"{where}: {ACTIONS_JSON} and {ACTIONS_CSV} are both there; expected one of them")
    if not files:
        return {}
    label = f"{where}: {files[0].name}"
    data = _read_file(files[0], root, label, MAX_ACTIONS_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not UTF-8: {error}") from error
    actions = _parse_json(text, label) if files[0].name == ACTIONS_JSON else _parse_csv(text, label)
    for name, texts in actions.items():
        _check_actions(texts, f"{label}: {name!r:.200}", limits)
    return actions


def _parse_json(text: str, label: str) -> ActionsByName:
    expected = 'expected {"NAME.png": ["an action", …], …}'
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label} is no JSON: {error}; {expected}") from error
    if not isinstance(table, dict):
        raise InputError(f"{label}: {expected}")
    for name, texts in table.items():
        if not isinstance(texts, list) or not all(isinstance(action, str) for action in texts):
            raise InputError(f"{label}: {name!r:.200} has {json.dumps(texts):.200}; {expected}")
    return {name: tuple(texts) for name, texts in table.items()}


def _parse_csv(text: str, label: str) -> ActionsByName:
    actions: dict[str, tuple[str, ...]] = {}
    try:
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if not {"image", "action"} <= set(rows.fieldnames or ()):
            raise InputError(f"{label}: expected a first line with the columns image and action")
        for row in rows:
            actions[row["image"] or ""] = (*actions.get(row["image"] or "", ()), row["action"] or "")
    except csv.Error as error:
        raise InputError(f"{label}, line {rows.line_num}: {error}") from error
    return actions


def _check_actions(actions: tuple[str, ...], label: str, limits: Limits) -> None:
    if len(actions) > MAX_ACTIONS:
        raise InputError(f"{label} has {len(actions)} actions; at most {MAX_ACTIONS} are offered")
    for action in actions:
        # A line each: in the page's box two lines are two actions.
        if not action.strip() or re.search(r"[\r\n]", action) or len(action) > limits.max_prompt_chars:
            raise InputError(
                f"{label}: action {action!r:.200}; expected one line of 1 to {limits.max_prompt_chars} characters"
            )
