"""Images in terminals: which protocol by the environment, and that what is written is the image."""

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.shared.terminal import encode_image, find_protocol, show_image
from wm.images import encode_png

KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")


def noise(height: int, width: int) -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),  # codespell:ignore iterm
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
        ({"TERM": "screen.foot"}, None),
        ({}, None),
    ],
)
def test_the_environment_says_how_images_are_shown(environment: dict[str, str], protocol: str | None) -> None:
    assert find_protocol(environment) == protocol


def test_kitty_gets_the_file_in_short_chunks() -> None:
    png = noise(60, 60)
    text = encode_image(png, "kitty")
    parts = KITTY.findall(text)
    assert "".join(KITTY.sub("", text)) == "" and len(parts) == -(-len(base64.b64encode(png)) // 4096) > 2
    assert base64.b64decode("".join(data for _, data in parts)) == png
    assert [control for control, _ in parts] == ["a=T,f=100,q=2,r=32,m=1", *["m=1"] * (len(parts) - 2), "m=0"]
    assert all(len(data) <= 4096 for _, data in parts)
    assert KITTY.findall(encode_image(noise(2, 2), "kitty"))[0][0] == "a=T,f=100,q=2,r=32,m=0"


def test_iterm2_gets_the_file() -> None:
    png = noise(5, 7)
    control, data = re.fullmatch(r"\x1b\]1337;File=([^:]*):([^\a]*)\a", encode_image(png, "iterm2")).groups()  # type: ignore[union-attr]
    assert base64.b64decode(data) == png and f"size={len(png)}" in control and "inline=1" in control


def test_sixels_are_the_image() -> None:
    # Four colours, in runs that are repeated, and a height that is no multiple of six.
    pixels = np.zeros((13, 40, 3), np.uint8)
    pixels[:7, :20], pixels[:7, 20:], pixels[7:, 5:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    text = encode_image(encode_png(pixels), "sixel")
    assert text.startswith('\x1bPq"1;1;40;13#0;2;') and text.endswith("-\x1b\\") and "!20" in text
    assert np.array_equal(draw_sixels(text), pixels)
    tall = encode_image(encode_png(np.zeros((1280, 90, 3), np.uint8)), "sixel")
    assert tall.startswith('\x1bPq"1;1;45;640')


def draw_sixels(text: str) -> np.ndarray:
    """What a terminal draws."""
    head, body = re.fullmatch(r'\x1bPq"1;1;(\d+;\d+)(.*)\x1b\\', text).groups()  # type: ignore[union-attr]
    width, height = map(int, head.split(";"))
    canvas = np.zeros((height + 5, width, 3), np.uint8)
    palette, colour, row, column = {}, 0, 0, 0
    for name, values, count, letter, control in re.findall(r"#(\d+)((?:;\d+){4})?|!(\d+)([?-~])|([$\-?-~])", body):
        if values:
            palette[int(name)] = [round(int(value) * 2.55) for value in values.split(";")[2:]]
        elif name:
            colour = int(name)
        elif control == "$":
            column = 0
        elif control == "-":
            row, column = row + 6, 0
        else:
            bits, end = ord(letter or control) - 63, column + int(count or 1)
            for bit in range(6):
                if bits >> bit & 1:
                    canvas[row + bit, column:end] = palette[colour]
            column = end
    return canvas[:height]


def test_only_a_terminal_is_shown_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(noise(3, 3))
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert not show_image(path) and capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert show_image(path)
    assert Image.open(io.BytesIO(base64.b64decode(KITTY.findall(capsys.readouterr().out)[0][1]))).size == (3, 3)
    monkeypatch.setenv("TERM", "dumb")
    for name in ("KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    assert not show_image(path)
