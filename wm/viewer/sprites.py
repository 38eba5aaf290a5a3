"""Encode the images of the page: the rows of a block as one sprite, two cells a row, never the stored bytes.

Not known here: where the images come from, and the page.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wm.errors import InputError
from wm.images import Pixels, decode_image

EDGE_PX = 1
"""An image's edge is repeated around it, so that scaling does not draw in its neighbour."""


@dataclass(frozen=True)
class Sprite:
    """The images of a block in one; column 0 holds sources, column 1 targets, each ``EDGE_PX`` inside its cell."""

    data: bytes  # WebP
    size_px: tuple[int, int]  # width and height of all of it
    cell_px: tuple[int, int]  # width and height from one cell to the next
    sizes_px: list[tuple[int, int, int, int]]  # each row's source and target, width and height; 0 0: unreadable


def shrink(data: bytes | None, side_px: int) -> Pixels | None:
    """Decode an image and shrink it.

    Args:
        data: The encoded image.
        side_px: Max long side.

    Returns:
        uint8 RGB (H, W, 3); None if there is no readable image.
    """
    if not data:
        return None
    try:
        pixels_HWC = decode_image(data, "image")
    except InputError:
        return None  # counted by the caller and shown as missing
    if max(pixels_HWC.shape[:2]) <= side_px:
        return pixels_HWC
    small = Image.fromarray(pixels_HWC)
    # The gap lets Pillow shrink in two steps, of which the first is quick.
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return np.asarray(small)


def build_sprite(pairs: Sequence[tuple[bytes | None, bytes | None]], side_px: int, quality: int) -> Sprite:
    """Draw all images of a block into one.

    Args:
        pairs: Encoded source and target of each row.
        side_px: Max long side of an image.
        quality: WebP's, 1 to 100.

    Returns:
        The image, and where each row's images are in it.
    """
    # 1. Images, and a cell that holds the largest of them.
    cells = [[shrink(data, side_px) for data in pair] for pair in pairs]
    sizes = [[(cell.shape[1], cell.shape[0]) if cell is not None else (0, 0) for cell in row] for row in cells]
    width = max(1, *(size[0] for row in sizes for size in row)) + 2 * EDGE_PX
    height = max(1, *(size[1] for row in sizes for size in row)) + 2 * EDGE_PX
    # 2. One canvas, sources left and targets right.
    canvas_HWC = np.zeros((height * len(cells), width * 2, 3), dtype=np.uint8)
    for number, row in enumerate(cells):
        for column, cell in enumerate(row):
            if cell is not None:
                # The browser scales the sprite as one image and would blend neighbours at the edges.
                edged = np.pad(cell, ((EDGE_PX, EDGE_PX), (EDGE_PX, EDGE_PX), (0, 0)), mode="edge")
                top, start_px = number * height, column * width
                canvas_HWC[top : top + edged.shape[0], start_px : start_px + edged.shape[1]] = edged
    buffer = io.BytesIO()
    Image.fromarray(canvas_HWC).save(buffer, "WEBP", quality=quality, method=3)
    return Sprite(
        data=buffer.getvalue(),
        size_px=(canvas_HWC.shape[1], canvas_HWC.shape[0]),
        cell_px=(width, height),
        sizes_px=[(*source, *target) for source, target in sizes],
    )
