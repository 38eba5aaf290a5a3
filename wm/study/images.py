"""Prepare the images of a study so that nothing but their content says whose they are: one view, size and encoding.

What a system leaves in its pixels (blur, traces of a codec, another resolution) stays. Not known here: studies, files
of predictions, pages.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wm.evaluation.predictions import View
from wm.files.atomic import replace_file
from wm.images import Pixels, fit_square

MAX_IMAGE_PX = 512
"""Side where none is given: that of the paper's models."""
_ASPECT_TOLERANCE = 0.03
"""As in :mod:`wm.evaluation.aspects`: editors round sides to multiples of 8 or more."""
_MARGIN = 128
"""Grey of what a frame leaves of its square."""
_MODIFIED_AT_S = 946_684_800
"""1 January 2000, 0:00 UTC: one time for all files."""


@dataclass(frozen=True)
class ItemImages:
    """Images of an item as they are stored, before they are brought to one form.

    Attributes:
        source: uint8 RGB, the full frame.
        candidates: System → its prediction.
        views: System → the part of the frame that its prediction shows.
    """

    source: Pixels
    candidates: Mapping[str, Pixels]
    views: Mapping[str, View]

    @property
    def is_square(self) -> bool:
        """Whether some prediction shows the centre square only: then no image of the item shows more."""
        return "square" in self.views.values()


def side_px(width_px: int, height_px: int, *, is_square: bool) -> int:
    """Return the side of the square that an image fills without being enlarged.

    Args:
        width_px: Of the image.
        height_px: Likewise.
        is_square: Whether its centre square is shown; else the full frame.
    """
    return min(width_px, height_px) if is_square else max(width_px, height_px)


def fit_images(images: ItemImages, image_px: int) -> tuple[Pixels, dict[str, Pixels]]:
    """Bring all images of an item to the same view and size.

    Where one prediction shows the centre square, the source and the others are cropped to it: a crop would say whose
    image it is. Else all show the full frame, with grey margins to a square. A full frame of another aspect ratio than
    the source's is stretched to that, as image metrics stretch it.

    Args:
        images: The item's.
        image_px: Width and height of the result.

    Returns:
        The source, and system → prediction; uint8, shape (image_px, image_px, 3).
    """
    fitted = {}
    for system, pixels_HWC in images.candidates.items():
        # A square says nothing of the frame's sides; a full frame has to have them.
        if images.views[system] == "full":
            pixels_HWC = _match_aspect(pixels_HWC, images.source)  # noqa: PLW2901 - the same image
        fitted[system] = fit_view(pixels_HWC, image_px, is_square=images.is_square)
    return fit_view(images.source, image_px, is_square=images.is_square), fitted


def fit_view(pixels_HWC: Pixels, image_px: int, *, is_square: bool) -> Pixels:
    """Bring one image to a square.

    Args:
        pixels_HWC: uint8 RGB of any size.
        image_px: Side of the square.
        is_square: Show the centre square; else the full frame with grey margins.

    Returns:
        uint8, shape (image_px, image_px, 3).
    """
    height, width = pixels_HWC.shape[:2]
    if is_square or height == width:
        return fit_square(pixels_HWC, image_px)
    # The longer side fills the square, the margins are shared by both ends of the shorter one.
    scale = image_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS))
    framed = np.full((image_px, image_px, 3), _MARGIN, np.uint8)
    top_px, left_px = (image_px - size[1]) // 2, (image_px - size[0]) // 2
    framed[top_px : top_px + size[1], left_px : left_px + size[0]] = scaled
    return framed


def _match_aspect(pixels_HWC: Pixels, source_HWC: Pixels) -> Pixels:
    """Stretch a full frame whose sides have clearly another ratio than the source's; its longer side stays."""
    (height, width), (source_height, source_width) = pixels_HWC.shape[:2], source_HWC.shape[:2]
    ratio, expected = width / height, source_width / source_height
    if max(ratio, expected) <= (1 + _ASPECT_TOLERANCE) * min(ratio, expected):
        return pixels_HWC
    # The aspect ratio is the source's, so that a crop shows the same part of the scene.
    long_px = max(height, width)
    size = max(1, round(long_px * min(1.0, expected))), max(1, round(long_px / max(1.0, expected)))
    return np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS))


def spoil_image(pixels_HWC: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Exchange pixels of an image at random, so that everybody sees that it is spoilt; its colours stay.

    Args:
        pixels_HWC: uint8 RGB.
        share: Of the pixels, 0 to 1; all: nothing of the image is left.
        rng: Which, and by which.
    """
    # Each exchanged pixel is that of a random other place: brightness and colours stay those of the image.
    pixels_NC = pixels_HWC.reshape(-1, 3)
    is_exchanged = rng.random(len(pixels_NC)) < share
    spoilt_NC = np.where(is_exchanged[:, None], rng.permutation(pixels_NC), pixels_NC)
    return spoilt_NC.reshape(pixels_HWC.shape)


def encode_plain(pixels_HWC: Pixels) -> bytes:
    """Encode pixels as an uncompressed PNG without metadata: its size depends on width and height alone.

    A compressed file's size would say how smooth an image is, and so, often, which codec it comes from.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def write_images(folder: Path, images: Mapping[str, Pixels]) -> None:
    """Write images whose names and times say nothing; those that are there are left.

    Args:
        folder: It is made.
        images: File name → pixels. They are written in the order of their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(images):
        # Complete if it is there: it got its name after its content.
        path = folder / name
        if path.exists():
            continue
        with replace_file(path) as temporary:
            temporary.write_bytes(encode_plain(images[name]))
            # A server may pass the time on: it would say in which order images were made.
            os.utime(temporary, (_MODIFIED_AT_S, _MODIFIED_AT_S))
