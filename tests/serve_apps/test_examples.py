"""Example images: what a folder may hold, what clients get of it, and which models bring their own."""

import base64
import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve_apps import examples
from serve_apps.checks import is_toy
from serve_apps.examples import MAX_EXAMPLES, load_examples
from serve_apps.graph import Graph
from serve_apps.ingress import build_app
from serve_apps.openai.errors import Limits
from serve_apps.recipe import ServeRecipe
from serve_apps.world_model import bind
from wm.errors import InputError
from wm.images import decode_image, encode_png
from wm.models import read_manifest
from wm.packaged import SHIPPED

LIMITS = Limits()
WIDE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
ALICE = {"authorization": "Bearer wm-alice"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.png").write_bytes(encode_png(WIDE))
    Image.fromarray(WIDE).resize((400, 300)).save(tmp_path / "a.jpg", exif=Image.Exif())
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "actions.json").write_text(json.dumps({"b.png": ["move it", "take it"]}))
    return tmp_path


def test_images_are_middle_squares_in_the_order_of_their_names(folder, monkeypatch):
    monkeypatch.setattr(examples, "MAX_SIDE_PX", 256)
    first, second = load_examples(str(folder), LIMITS)
    assert (first.name, first.actions, first.thumbnail_type) == ("a.jpg", (), "image/webp")
    assert decode_image(first.png, "a").shape == (256, 256, 3)
    assert decode_image(first.thumbnail, "a").shape == (192, 192, 3)
    assert (second.name, second.actions, second.thumbnail_type) == ("b.png", ("move it", "take it"), "image/png")
    assert np.array_equal(decode_image(second.png, "b"), WIDE[:, 5:25]) and second.thumbnail == second.png


def test_actions_may_be_a_table(folder):
    (folder / "actions.json").unlink()
    with (folder / "actions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["image", "action"], ["b.png", "move it, slowly"], ["a.jpg", "x"], ["b.png", "y"]]
        )
    assert [example.actions for example in load_examples(str(folder), LIMITS)] == [("x",), ("move it, slowly", "y")]


def test_a_folder_is_not_needed():
    assert load_examples(None, LIMITS) == ()


def _write_many(folder):
    for number in range(MAX_EXAMPLES):
        (folder / f"{number}.png").write_bytes(encode_png(WIDE))


def _unlink_images(folder):
    for file in folder.glob("*.*g"):
        file.unlink()


def _write_actions(text):
    return lambda folder: (folder / "actions.json").write_bytes(text)


def _link_to(target):
    return lambda folder: (folder / "c.png").symlink_to(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "b.png").write_bytes(b"GIF89a"), "'b.png' is no readable image"),
        (lambda folder: (folder / "c.png").write_bytes(b""), "'c.png' is empty"),
        (lambda folder: (folder / "c.PNG").mkdir(), "'c.PNG' is not a file"),
        (_link_to("/etc/hostname"), "'c.png' is a link that leads out of the folder"),
        (_link_to("c.png"), "'c.png' cannot be read"),
        (_write_many, "26 images; at most 24 are offered"),
        (_unlink_images, "no image"),
        (lambda folder: (folder / "actions.csv").touch(), "actions.json and actions.csv are both there"),
        (_write_actions(b"{"), "actions.json is no JSON"),
        (_write_actions(b'{"b.png": "move it"}'), "'b.png' has \"move it\"; expected"),
        (_write_actions(b'{"d.png": []}'), "actions of 'd.png', and no such image"),
        (_write_actions(b'{"b.png": ["a\\nb"]}'), r"action 'a\\nb'; expected one line"),
        (_write_actions(b"\xff"), "actions.json is not UTF-8"),
    ],
)
def test_what_cannot_be_offered_is_named(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_examples(str(folder), LIMITS)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_is_within_the_limits_of_requests(folder):
    with pytest.raises(InputError, match=r"'a.jpg' has 400 x 300 pixels; at most 1,000 are accepted"):
        load_examples(str(folder), Limits(max_pixels=1000))
    with pytest.raises(InputError, match="no such folder"):
        load_examples(str(folder / "none"), LIMITS)


@pytest.fixture
def http(folder):
    keys = folder / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{hashlib.sha256(b"wm-alice").hexdigest()}"\n')
    recipe = ServeRecipe(fdm="none", idm="none", keys=str(keys), examples=str(folder))
    with TestClient(build_app(Graph(recipe, None, None))) as client:  # no model is asked
        yield client


def test_examples_are_for_those_who_may_ask(http, folder):
    for path in ("/v1/examples", "/v1/examples/b.png"):
        assert http.get(path).status_code == 401
    reply = http.get("/v1/examples", headers=ALICE)
    first, second = reply.json()["data"]
    assert (first["id"], second["id"], second["actions"]) == ("a.jpg", "b.png", ["move it", "take it"])
    assert reply.headers["cache-control"] == "private, no-cache"
    kind, _, digits = second["thumbnail"].partition(";base64,")
    image = http.get("/v1/examples/b.png", headers=ALICE)
    assert (kind, base64.b64decode(digits)) == ("data:image/png", image.content)
    assert (image.headers["content-type"], image.headers["x-content-type-options"]) == ("image/png", "nosniff")
    assert image.headers["content-security-policy"].startswith("default-src 'none'")
    # What has not changed is not sent again.
    again = http.get("/v1/examples/b.png", headers={**ALICE, "if-none-match": image.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    # All was read at the start.
    (folder / "b.png").write_bytes(encode_png(255 - WIDE))
    assert http.get("/v1/examples/b.png", headers=ALICE).content == image.content


def test_nothing_but_the_images_is_served(http):
    for name in ("actions.json", "keys.toml", ".hidden.png", "..%2Fb.png", "%2e%2e/keys.toml", "B.PNG"):
        reply = http.get(f"/v1/examples/{name}", headers=ALICE)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found"), name


def test_the_toy_models_bring_images_of_their_world(tiny_base):
    codec_id = read_manifest(SHIPPED / "base").codec_id
    assert is_toy(codec_id) and not is_toy(read_manifest(tiny_base).codec_id)
    recipe = ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base))
    (served,) = bind(recipe, codec_id)._bound_deployment.init_args[:1]
    shipped = load_examples(served.examples, LIMITS)
    assert len(shipped) >= 4 and all(example.actions for example in shipped)
    (served,) = bind(recipe, "another")._bound_deployment.init_args[:1]
    assert served.examples is None
