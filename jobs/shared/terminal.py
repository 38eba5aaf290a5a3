"""Show an image in the terminal, where it is one that can: by kitty's graphics, iTerm2's inline images or sixels.

Terminals are recognised by their environment variables: asking one would need its keyboard, and an answer.
"""

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

Protocol: TypeAlias = Literal["kitty", "iterm2", "sixel"]

_KITTY_CHUNK = 4096
"""Letters of base64 in one escape sequence at most."""
_ROWS = 32
"""Lines of text as high as which the image is shown."""
_SIXEL_COLOURS = 64
_SIXEL_ROWS = 6
"""Rows of pixels that one line of sixels holds."""
_HEIGHT_PX = 640
_KITTY_TERMINALS = ("xterm-kitty", "xterm-ghostty")
_ITERM2_PROGRAMS = ("iTerm.app", "WezTerm", "mintty")  # codespell:ignore iterm
_SIXEL_TERMINALS = ("foot", "foot-extra", "mlterm")


def find_protocol(environment: Mapping[str, str]) -> Protocol | None:
    """Find how the terminal of these environment variables shows images.

    Args:
        environment: Such as ``os.environ``.

    Returns:
        The protocol; None: it shows none, or nothing is known of it.
    """
    terminal, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    # A multiplexer keeps escape sequences that it does not know to itself.
    if "TMUX" in environment or "STY" in environment or terminal.startswith(("tmux", "screen")):
        return None
    if "KITTY_WINDOW_ID" in environment or terminal in _KITTY_TERMINALS or program == "ghostty":
        return "kitty"
    # LC_TERMINAL is passed on by ssh.
    if program in _ITERM2_PROGRAMS or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if terminal in _SIXEL_TERMINALS else None


def show_image(path: Path) -> bool:
    """Write an image to standard output, if that is a terminal which shows images.

    Args:
        path: PNG file.

    Returns:
        Whether it was written.
    """
    protocol = find_protocol(os.environ) if sys.stdout.isatty() else None
    if protocol is None:
        return False
    sys.stdout.write(encode_image(path.read_bytes(), protocol) + "\n")
    sys.stdout.flush()
    return True


def encode_image(png: bytes, protocol: Protocol) -> str:
    """Build the escape sequences that show an image.

    Args:
        png: The image, a PNG file's content.
        protocol: Of the terminal.
    """
    # Two take the file as it is; sixels are encoded here.
    if protocol == "iterm2":
        data = base64.b64encode(png).decode()
        return f"\x1b]1337;File=inline=1;size={len(png)};height={_ROWS};preserveAspectRatio=1:{data}\a"
    return "".join(_kitty_chunks(png)) if protocol == "kitty" else _encode_sixels(png)


def _kitty_chunks(png: bytes) -> Iterator[str]:
    data = base64.b64encode(png).decode()
    starts = range(0, len(data), _KITTY_CHUNK)
    for start in starts:
        # a=T: transmit and show; f=100: PNG; q=2: no answer, which would look like keys; r: rows; m=1: more follows.
        control = f"a=T,f=100,q=2,r={_ROWS}," if start == 0 else ""
        more = int(start != starts[-1])
        yield f"\x1b_G{control}m={more};{data[start : start + _KITTY_CHUNK]}\x1b\\"


def _encode_sixels(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    if image.height > _HEIGHT_PX:
        image = image.resize((round(image.width * _HEIGHT_PX / image.height), _HEIGHT_PX), Image.Resampling.LANCZOS)
    # Flat colours without dithering stay long runs, which are short to write.
    indexed = image.quantize(_SIXEL_COLOURS, dither=Image.Dither.NONE)
    palette = indexed.getpalette() or []
    pixels = indexed.tobytes()
    # 1. The palette, in percent.
    colours = sorted(set(pixels))
    parts = [f'\x1bPq"1;1;{image.width};{image.height}']
    parts += [
        "#{};2;{};{};{}".format(colour, *(round(value / 2.55) for value in palette[3 * colour : 3 * colour + 3]))
        for colour in colours
    ]
    # 2. Six rows at a time, one pass over them for each colour that they have: a letter a column.
    for top in range(0, image.height, _SIXEL_ROWS):
        rows = [
            pixels[row * image.width : (row + 1) * image.width]
            for row in range(top, min(top + _SIXEL_ROWS, image.height))
        ]
        passes = []
        for colour in sorted(set(b"".join(rows))):
            bits = (
                sum((row[column] == colour) << bit for bit, row in enumerate(rows)) for column in range(image.width)
            )
            passes.append(
                f"#{colour}" + "".join(_repeat(chr(63 + value), len(list(run))) for value, run in groupby(bits))
            )
        parts.append("$".join(passes) + "-")
    return "".join([*parts, "\x1b\\"])


def _repeat(letter: str, count: int) -> str:
    return f"!{count}{letter}" if count > 3 else letter * count
