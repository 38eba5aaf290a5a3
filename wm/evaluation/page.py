"""HTML of the report: one page, styles inside, pictures as data URIs, nothing loaded from anywhere."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from wm.evaluation.stats import Floats
from wm.images import decode_image, encode_png

THUMB_PX = 192
"""Pictures larger than this are shrunk and stored as JPEG; smaller ones are kept as they are."""

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbf9; --card: #ffffff; --ink: #1c2024; --soft: #5b636b;
  --line: #dfe2e5; --good: #14713d; --good-bg: #e0f3e7; --bad: #a3271f; --bad-bg: #fbe6e3; --mid: #7a5600;
  --mid-bg: #fbf0d2; --mark: #1667c7; --c0: #1667c7; --c1: #c2560c; --c2: #14804a; --c3: #8b3fb0; --c4:
  #b3204f;
  --c5: #0f7f8c; --hi: 22 103 199; --lo: 194 86 12; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1c2024; --ink: #e8eaec; --soft:
#a3abb3;
  --line: #353b41; --good: #7fdba3; --good-bg: #173524; --bad: #ff9d92; --bad-bg: #41201d; --mid: #f0cd74;
  --mid-bg: #3a2f12; --mark: #6fb1ff; --c0: #6fb1ff; --c1: #ffa263; --c2: #67d298; --c3: #d09bf0; --c4:
  #ff8fae;
  --c5: #62d0dc; --hi: 111 177 255; --lo: 255 162 99; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 8px 0; } h2 { font-size: 1.25rem; margin: 44px 0 6px; }
h3 { font-size: 1rem; margin: 18px 0 6px; } p { margin: 6px 0 12px; max-width: 76ch; } .soft { color:
var(--soft); } .small { font-size: .85rem; } a { color: var(--mark); } nav { display: flex; flex-wrap: wrap;
gap: 4px 16px; } .scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
border-radius: 8px; margin: 10px 0; } table { border-collapse: collapse; width: 100%; font-variant-numeric:
tabular-nums; font-size: .92rem; } th, td { padding: 6px 12px; text-align: right; white-space: nowrap;
border-bottom: 1px solid var(--line); } th:first-child, td:first-child { text-align: left; } thead th {
color: var(--soft); font-weight: 600; vertical-align: bottom; } tr:last-child td { border-bottom: 0; }
tr.first td { border-top: 2px solid var(--line); } tr.dim td { color: var(--soft); } td.best { font-weight:
700; } td .pm { color: var(--soft); font-weight: 400; font-size: .85em; } .claims { display: grid; gap:
12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); margin: 12px 0; } .card {
background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; } .card h3 {
margin: 8px 0 4px; } .card ul { margin: 6px 0; padding-left: 18px; font-size: .9rem; } .badge { display:
inline-block; border-radius: 99px; padding: 1px 10px; font-size: .8rem; font-weight: 600; } .badge.yes {
color: var(--good); background: var(--good-bg); } .badge.no { color: var(--bad); background: var(--bad-bg);
} .badge.open { color: var(--mid); background: var(--mid-bg); } .badge.none { color: var(--soft); border:
1px solid var(--line); } .charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit,
minmax(min(100%, 330px), 1fr)); } figure { margin: 0; } figcaption { font-size: .9rem; font-weight: 600;
margin-bottom: 4px; } svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft);
font-size: 12px; } svg .grid { stroke: var(--line); } svg .axis { stroke: var(--soft); } .legend { display:
flex; flex-wrap: wrap; gap: 2px 14px; font-size: .82rem; color: var(--soft); } .legend i { display:
inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle; margin-right: 5px; }
.legend i.dash { border-top-style: dashed; } .wall { display: grid; gap: 14px; grid-template-columns:
repeat(auto-fit, minmax(min(100%, 520px), 1fr)); } .strip { display: flex; flex-wrap: wrap; gap: 8px;
margin: 6px 0 2px; } .shot { width: 74px; font-size: .72rem; color: var(--soft); line-height: 1.25;
text-align: center; } .shot img { width: 74px; height: 74px; display: block; border-radius: 4px;
image-rendering: pixelated; object-fit: cover; } .shot.chosen img { outline: 3px solid var(--mark);
outline-offset: 1px; } .shot.big, .shot.big img { width: 96px; } .shot.big img { height: 96px; } .heat {
position: relative; } .heat img + img { position: absolute; inset: 0; } .heat img:first-child { filter:
grayscale(1) brightness(.8); } .yes-text { color: var(--good); } .no-text { color: var(--bad); } .model {
border-top: 1px solid var(--line); padding-top: 6px; margin-top: 8px; } .model b { font-size: .88rem; }
.action { font-size: 1.02rem; font-weight: 650; overflow-wrap: anywhere; } .bar { height: 10px;
border-radius: 3px; background: var(--c0); min-width: 1px; } td.barcell { width: 40%; min-width: 120px; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--mark); }
"""


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def section(anchor: str, title: str, *parts: str) -> str:
    """A headed part of the page."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>' + "\n".join(parts) + "</section>"


def prose(text: str, kind: str = "soft") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>'


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], row_classes: Sequence[str] | None = None
) -> str:
    """A table that scrolls sideways where it must. Header: plain text; cells: HTML, each a whole ``<td>``
    if it starts so."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = []
    for index, row in enumerate(rows):
        kind = f' class="{row_classes[index]}"' if row_classes and row_classes[index] else ""
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        lines.append(f"<tr{kind}>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def picture_uri(path: Path) -> str:
    """A PNG file as a data URI, shrunk to :data:`THUMB_PX` if larger."""
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
    """Weights of a square of image tokens (row-major) as a see-through picture, the largest being opaque."""
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
