"""Check the images of a study before anybody sees them: all there, of one size and format, with nothing beside pixels.

What the number of bytes of an image says, the image itself says as well: it is encoded from the pixels alone.
"""

from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from wm.errors import InputError
from wm.study.study import IMAGES, STUDY_FILE, Study

_SUFFIXES: Final = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
_HARMLESS: Final = frozenset({"dpi", "jfif", "jfif_density", "jfif_unit", "jfif_version", "loop", "background"})
"""Entries of Pillow's ``info`` that every file of a format has."""


def check_images(study: Study, folder: Path) -> None:
    """Check every image of a study.

    Args:
        study: The study.
        folder: Its folder.

    Raises:
        InputError: An image is missing, damaged or outside of the folder, differs from the others in size or format, or
            has text or EXIF data, which could say whose it is.
    """
    if not study.items or len(study.systems) < 2:
        raise InputError(f"{folder / STUDY_FILE}: expected items of two or more systems")
    # All of them, which takes seconds: a broken image would be met by a participant in the middle of the study.
    formats = {}
    for item in study.items:
        if len(item.candidates) < 2:
            raise InputError(f"{folder / STUDY_FILE}: item {item.item_id} has {len(item.candidates)} images to compare")
        for name in (item.source, *item.candidates.values()):
            formats[name] = _check_image(folder / IMAGES / name, name, study.image_px)
    # A system with a format of its own would be known by it.
    if len(set(formats.values())) > 1:
        kinds = {kind: name for name, kind in formats.items()}
        raise InputError(f"{folder / IMAGES}: images of several formats, such as {', '.join(kinds.values())}")


def _check_image(path: Path, name: str, side_px: int) -> str:
    """Return the format of an image, which must be as all are."""
    # study.json may come from somewhere else: it must not lead to other files of this machine.
    if Path(name).name != name:
        raise InputError(f"{path}: the name of an image leads out of its folder")
    try:
        with Image.open(path) as image:
            size, kind, has_exif = image.size, image.format or "", bool(image.getexif())
            extra = sorted(set(map(str, image.info)) - _HARMLESS)
            image.load()  # the header alone does not say that all pixels are there
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such image; wm study make writes all of them again") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error
    if size != (side_px, side_px):
        raise InputError(
            f"{path}: {size[0]} x {size[1]} px; expected {side_px} x {side_px}, as all images of the study"
        )
    if _SUFFIXES.get(kind) != path.suffix:
        raise InputError(f"{path}: holds {kind}; expected a PNG as .png, a JPEG as .jpg or a WebP as .webp")
    if has_exif or extra:
        raise InputError(
            f"{path}: has data beside its pixels ({', '.join(extra) or 'EXIF'}), which could name a system"
        )
    return kind
