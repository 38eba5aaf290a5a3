"""What the tests of chat completions and of scores ask about: pictures, actions, an IDM of its own."""

import base64

import numpy as np

from tests.helpers.models_reference import lively
from wm.images import encode_png, fit_square
from wm.models import load_codec, load_model, save_model

GENERATOR = np.random.default_rng(5)
IMAGES = [GENERATOR.integers(0, 256, shape, np.uint8) for shape in ((16, 16, 3), (20, 30, 3), (16, 16, 3))]
URLS = ["data:image/png;base64," + base64.b64encode(encode_png(image)).decode() for image in IMAGES]
ACTIONS = ["put", "move the red cup to the left of the blue bowl", "take the block up", "down"]


def folders_of(base, place):
    """The two models: the base as FDM, an IDM with its own weights."""
    save_model(lively(load_model(base), seed=8), place / "idm", task="idm")
    return {"fdm": str(base), "idm": str(place / "idm")}


def library_of(folders):
    """The IDM, and the codes of the images."""
    codec = load_codec(folders["idm"])
    pixels = np.stack([fit_square(image, codec.side_px) for image in IMAGES])
    return load_model(folders["idm"]), codec.encode(pixels).tolist()


def messages(source=0, target=1):
    """A question about two of the images, as OpenAI's clients ask it."""
    parts = [{"type": "image_url", "image_url": {"url": URLS[row]}} for row in (source, target)]
    return [{"role": "user", "content": [{"type": "text", "text": "What happened?"}, *parts]}]


def score(http, **fields):
    """The answer to a request for scores of two targets with four actions."""
    asked = {"image": URLS[0], "targets": URLS[1:], "actions": ACTIONS, **fields}
    return http.post("/v1/score", json=asked)
