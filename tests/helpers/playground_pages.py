"""A person's first steps on the playground, for its tests in a browser."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.helpers.browser import Browser
from wm.images import Pixels, decode_image, encode_png

SIDE_PX = 16
NOISE = np.random.default_rng(3).integers(0, 256, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)


@contextmanager
def watched(window: Browser) -> Iterator[Browser]:
    """The window for one test; whatever the test did, no script failed and no policy was violated."""
    window.shape(1300, 900)
    window.console.clear()
    yield window
    assert [line for line in window.console if "Failed to load resource" not in line] == []
    assert window.do("typeof window.pwned") == "undefined"


def start(page: Browser, url: str, tmp_path: Path, pixels: Pixels = NOISE) -> None:
    """The page with a picked source."""
    page.open(url)
    file = tmp_path / "source.png"
    file.write_bytes(encode_png(pixels))
    page.give_file("#file", file)
    page.wait("document.querySelector('#now img')")


def act(page: Browser, text: str, **settings: float) -> None:
    """Ask for one action and wait for its candidates."""
    page.do("document.querySelector('#step details').open = true")
    for name, value in settings.items():
        page.type(f"#set-{name}", str(value))
    page.do("document.querySelector('#found').replaceChildren()")
    page.type("#action", text)
    page.click("#go")
    page.wait("document.querySelector('#found .card')")


def frames(page: Browser) -> list[tuple[str, str]]:
    """The storyboard: (text, picture) of each frame, in the order of the document."""
    found = page.do("""[...document.querySelectorAll("#board .frame")].map((node) =>
        [node.getAttribute("aria-label"), node.querySelector("img")?.getAttribute("src") ?? null])""")
    return [(name, source) for name, source in found]


def pixels_of(data_url: str) -> Pixels:
    """Of a data URL."""
    return decode_image(base64.b64decode(data_url.partition(",")[2]), "picture")
