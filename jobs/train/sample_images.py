"""Draw what a model in training predicts as one image."""

import tempfile
import textwrap
from pathlib import Path

from wm.evaluation.report.storyboard import Column, draw_storyboard
from wm.images import Pixels, decode_image

_LETTERS, _LINES = 26, 3


def wrap(text: str) -> list[str]:
    """Split a text into as many lines as fit below an image; the rest is cut.

    Args:
        text: Of any length.
    """
    return textwrap.wrap(text, _LETTERS, max_lines=_LINES, placeholder=" …") or [""]


def draw_image(columns: list[Column]) -> Pixels:
    """Draw columns of images side by side.

    Args:
        columns: From left to right.
    """
    with tempfile.TemporaryDirectory() as folder:
        # matplotlib writes files.
        path = Path(folder) / "samples.png"
        draw_storyboard(columns, path)
        return decode_image(path.read_bytes(), path.name)
