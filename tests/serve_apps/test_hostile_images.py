"""Pictures from strangers: broken, of other kinds, bombs, unusual ones, and references to what is not theirs."""

import base64

import pytest

from tests.helpers.serve_hostile import (
    BAD_IMAGES,
    BODIES,
    FRAMES,
    GOOD_IMAGES,
    PATHS,
    hostile_client,
    refused,
    saved,
    url_of,
    with_image,
)
from wm.images import decode_image, encode_png


@pytest.fixture(scope="module")
def http(tiny_base):
    with hostile_client(tiny_base) as client:
        yield client


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("path", PATHS)
def test_bytes_that_are_no_image(http, path, name):
    error = refused(http.post(path, json=with_image(path, url_of(BAD_IMAGES[name]))))
    assert "image" in error["message"]


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bytes_that_are_no_picture_in_a_form(http, name):
    reply = http.post("/v1/images/edits", files={"image": ("a.png", BAD_IMAGES[name])}, data={"prompt": "move it"})
    assert refused(reply)["param"] == "image"


@pytest.mark.parametrize("name", GOOD_IMAGES)
@pytest.mark.parametrize("path", PATHS)
def test_unusual_pictures_are_pictures(http, path, name):
    reply = http.post(path, json=with_image(path, url_of(GOOD_IMAGES[name])))
    assert reply.status_code == 200, reply.text[:300]


def test_an_animation_is_its_first_frame_and_exif_turns_upright(http):
    def answer(data):
        return http.post("/v1/images/edits", json=BODIES["/v1/images/edits"] | {"image": url_of(data)}).json()["data"]

    assert answer(GOOD_IMAGES["animated_png"]) == answer(saved("PNG", FRAMES[0]))
    assert answer(GOOD_IMAGES["animated_png"]) != answer(saved("PNG", FRAMES[1]))
    upright = decode_image(GOOD_IMAGES["turned"], "turned")
    assert upright.shape == (30, 20, 3)
    assert answer(GOOD_IMAGES["turned"]) == answer(encode_png(upright))


REFERENCES = [
    "http://169.254.169.254/latest/meta-data/",
    "https://example.org/a.png",
    "ftp://example.org/a.png",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "gopher://localhost:6379/_INFO",
    "/etc/passwd",
    "../../etc/passwd",
    "C:\\Windows\\win.ini",
    "~/.ssh/id_rsa",
    "data:image/png;base64",
    "data:image/png,hello",
    "data:text/html;base64," + base64.b64encode(b"<html>").decode(),
    "data:;base64,",
    "data:image/png;base64,%89PNG",
    "data:image/png;base64,====",
    "javascript:alert(1)",
    "",
    "\0",
    "é" * 100,
    "a" * 100_000,
]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda text: text[:24])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_fetched_and_nothing_is_read(http, path, reference, monkeypatch):
    def never(*arguments, **keywords):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr("socket.create_connection", never)
    monkeypatch.setattr("urllib.request.urlopen", never)
    error = refused(http.post(path, json=with_image(path, reference)))
    assert "root:" not in error["message"]
