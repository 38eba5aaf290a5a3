"""Render the HTML of the report: one page, styles inside, images as data URIs, nothing loaded from anywhere."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from wm.evaluation.metrics.stats import Floats
from wm.evaluation.report.style import STYLE
from wm.images import decode_image, encode_png

THUMB_PX = 192
"""Pictures larger than this are shrunk and stored as JPEG; smaller ones are kept as they are."""


def page(title: str, body: Iterable[str]) -> str:
    """Render the complete document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def section(anchor: str, title: str, *parts: str) -> str:
    """Render a headed part of the page."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>' + "\n".join(parts) + "</section>"


def prose(text: str, kind: str = "soft") -> str:
    """Render a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    row_classes: Sequence[str] | None = None,
    *,
    wrap_last: bool = False,
) -> str:
    """Render a table that scrolls sideways where it must.

    Args:
        header: Plain text.
        rows: Cells as HTML, each a complete ``<td>`` if it starts so.
        row_classes: CSS classes of the rows.
        wrap_last: The last column is running text.

    Returns:
        HTML.
    """
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for index, row in enumerate(rows):
        kind = f' class="{row_classes[index]}"' if row_classes and row_classes[index] else ""
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        lines.append(f"<tr{kind}>{cells}</tr>")
    body = "".join(lines)
    kind = "scroll wrap" if wrap_last else "scroll"
    return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def image_uri(path: Path) -> str:
    """Encode a PNG file as a data URI, shrunk to :data:`THUMB_PX` if larger."""
    data = path.read_bytes()
    pixels_HWC = decode_image(data, str(path))
    if max(pixels_HWC.shape[:2]) <= THUMB_PX:
        return data_uri(data, "image/png")
    small = Image.fromarray(pixels_HWC)
    small.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def heat_uri(weights_N: Floats) -> str:
    """Weights of a square of image tokens (row-major) as a see-through image, the largest being opaque."""
    side = round(len(weights_N) ** 0.5)
    if side * side != len(weights_N):
        side = 0
    top = float(weights_N.max()) if len(weights_N) else 0.0
    if not side or top <= 0:
        return data_uri(encode_png(np.zeros((1, 1, 3), dtype=np.uint8)), "image/png")
    share_HW = (weights_N / top).reshape(side, side)
    rgba_HWC = np.empty((side, side, 4), dtype=np.uint8)
    rgba_HWC[..., :3] = (255, 96, 32)
    rgba_HWC[..., 3] = np.round(share_HW * 215)
    buffer = io.BytesIO()
    Image.fromarray(rgba_HWC).save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "image/png")


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as ``data:kind;base64,…``."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
