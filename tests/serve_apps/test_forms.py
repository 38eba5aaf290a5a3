"""Forms and JSON as clients write them, over the app in this process: large fields, files without names, headers."""

import base64
import json

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_hostile import BODIES, PNG, saved
from tests.helpers.serve_local import local_app
from wm.images import encode_png

EDITS = "/v1/images/edits"
LARGE = encode_png(np.random.default_rng(1).integers(0, 256, (700, 800, 3), np.uint8))
MAX_BODY = 4_000_000


@pytest.fixture(scope="module")
def http(tiny_base):
    recipe = ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), num_candidates=2, max_body_bytes=MAX_BODY)
    with TestClient(local_app(recipe)) as client:
        yield client


def post(http, *parts, kind="multipart/form-data; boundary=b", fields=(("prompt", b"move it"), ("seed", b"1"))):
    """The pictures of a form whose parts are written out here: (what stands behind form-data, bytes)."""
    named = [(f'; name="{name}"', value) for name, value in fields]
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data" + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        for head, data in [*parts, *named]
    )
    return http.post(EDITS, content=body + b"--b--\r\n", headers={"content-type": kind})


def data_of(reply):
    assert reply.status_code == 200, reply.text[:300]
    return reply.json()["data"]


@pytest.fixture(scope="module")
def expected(http):
    """By the image: the answer to it as a file, asked by the unmodified client."""
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
    return {
        image: [
            entry.model_dump(exclude_unset=True)
            for entry in client.images.edit(image=image, prompt="move it", extra_body={"seed": 1}).data
        ]
        for image in (PNG, LARGE)
    }


def test_a_field_of_more_than_a_megabyte(http, expected):
    text = base64.encodebytes(LARGE)
    assert 2_000_000 < len(text) < MAX_BODY
    for value in (text, b"data:image/png;base64," + text):
        assert data_of(post(http, ('; name="image"', value))) == expected[LARGE]
    refused = post(http, ('; name="image"', text), ('; name="user"', b"a" * 1_500_000)).json()["error"]
    assert refused["param"] == "user" and len(refused["message"]) < 300
    too_large = post(http, ('; name="image"', text * 2))
    assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "head",
    [
        '; name="image"; filename="a.png"\r\nContent-Type: image/png',
        '; name="image"; filename="a.png"',
        '; name="image"; filename=""',
        '; name="image"; filename=""\r\nContent-Type: application/octet-stream',
        '; name="image"; filename="a"\r\nContent-Type: text/plain; charset=utf-16',
        '; name="image"',
        '; name="image"\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: binary',
        '; name="image[]"; filename="a.png"',
        '; name="image[0]"; filename="a.png"',
        '; name="images"; filename="a.png"',
        "; name=image; filename=a.png",
    ],
)
def test_an_image_in_a_form_with_or_without_a_name(http, expected, head):
    assert data_of(post(http, (head, PNG))) == expected[PNG]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_file_without_a_name_is_read_as_its_bytes(http, kind):
    image = saved(kind)
    assert data_of(post(http, ('; name="image"', image))) == data_of(
        post(http, ('; name="image"; filename="a"', image))
    )


def test_a_file_input_that_was_left_empty_is_no_file(http, expected):
    empty = '; name="{}"; filename=""\r\nContent-Type: application/octet-stream'
    assert data_of(post(http, ('; name="image"', PNG), (empty.format("mask"), b""))) == expected[PNG]
    error = post(http, (empty.format("image"), b"")).json()["error"]
    assert (error["param"], error["code"]) == ("image", "missing_required_parameter")


@pytest.mark.parametrize(
    "names", [("image", "image"), ("image[]", "image[]"), ("image", "image[]"), ("images", "image")]
)
def test_two_images_are_refused_however_they_are_named(http, names):
    error = post(http, *[(f'; name="{name}"; filename="a.png"', PNG) for name in names]).json()["error"]
    assert error["param"] == "image" and "2 images are given; expected exactly one" in error["message"]


def test_a_field_from_a_file_with_a_byte_order_mark(http, expected):
    fields = (("prompt", "\ufeffmove it".encode()), ("seed", b"\xef\xbb\xbf1"))
    assert data_of(post(http, ('; name="image"', PNG), fields=fields)) == expected[PNG]


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=b",
        "Multipart/Form-Data; Boundary=b",
        'multipart/form-data; charset=utf-8; boundary="b"',
    ],
)
def test_headers_of_a_form(http, expected, kind):
    assert data_of(post(http, ('; name="image"', PNG), kind=kind)) == expected[PNG]


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON", "application/json;charset=UTF-8", "application/json ; charset=utf-8"],
)
@pytest.mark.parametrize("path", BODIES)
def test_headers_and_a_byte_order_mark_of_json(http, kind, path):
    for codec in ("utf-8", "utf-8-sig"):
        body = json.dumps(BODIES[path]).encode(codec)
        assert http.post(path, content=body, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("charset", ["punycode", "idna", "hex", "unicode_escape", "UTF_7"])
def test_texts_in_a_codec_that_may_take_hours_are_refused(http, charset):
    """300 kB of punycode are decoded in half a minute, twice as many in four times as long."""
    slow = b"a" * 500_000 + b"-" + b"9a" * 250_000
    reply = post(http, ('; name="user"', slow), kind=f"multipart/form-data; boundary=b; charset={charset}")
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "invalid_form") and f"charset = '{charset}'" in error["message"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "us-ascii", "ISO-8859-1", "windows-1252", "nonsense"])
def test_charsets_of_clients(http, expected, charset):
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    assert data_of(post(http, ('; name="image"; filename="a.png"', PNG), kind=kind)) == expected[PNG]
