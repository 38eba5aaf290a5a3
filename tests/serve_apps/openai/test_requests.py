"""Requests in OpenAI's form, checked; no HTTP and no Ray here."""

import asyncio
import base64
import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from serve_apps.openai.edits import edit_from_form, edit_from_json
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.images import encode_image
from serve_apps.openai.rollouts import rollout_from_json
from serve_apps.openai.score import score_from_json
from serve_apps.recipe import ServeRecipe
from serve_apps.results import EditResult
from serve_apps.routes.edits import build_reply
from wm.dynamics import Sampling, Search
from wm.images import decode_image, encode_png
from wm.judging import unchanged_share

LIMITS = Limits(max_prompt_chars=50, max_best_of=16, default_best_of=4)
PNG = encode_png(np.full((4, 4, 3), 7, np.uint8))
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def form(**fields):
    request, image = edit_from_form([("image", PNG), *{"prompt": "move it", **fields}.items()], LIMITS)
    assert image == PNG
    return request


def body(**fields):
    request, image = edit_from_json(json.dumps({"prompt": "move it", **fields}).encode(), LIMITS)
    assert image == PNG
    return request


def test_defaults():
    edit = form()
    assert (edit.prompt, edit.n, edit.best_of, edit.verify) == ("move it", 1, 4, True)
    assert (edit.side_px, edit.output_format, edit.output_compression, edit.model) == (None, "png", 100, "fdm")
    assert 0 <= edit.seed < 2**31
    assert form().seed != edit.seed, "two requests without a seed draw different ones"


def test_text_fields_of_a_form_become_numbers():
    edit = form(n="2", best_of="8", seed="7", temperature="0.5", top_k="3", top_p="0.9", verify="true")
    assert (edit.n, edit.best_of, edit.seed, edit.temperature, edit.top_k, edit.top_p) == (
        2,
        8,
        7,
        0.5,
        3,
        0.9,
    )
    assert edit.verify is True


def test_guidance_is_two_scales():
    edit = form(guidance_scale="3.5", image_guidance_scale="1.2")
    assert (edit.guidance_scale, edit.image_guidance_scale) == (3.5, 1.2)
    assert body(image=DATA_URL, guidance_scale=0).guidance_scale == 0
    assert (form().guidance_scale, form().image_guidance_scale) == (None, None)


RECIPE = ServeRecipe(fdm="a", idm="b", temperature=0.5, top_k=3, guidance_scale=2.0, min_gain_nats=0.25)


def test_settings_are_the_requests_and_else_the_recipes():
    edit = body(image=DATA_URL, top_k=7, image_guidance_scale=1.5, n=2, best_of=4)
    assert edit.to_sampling(RECIPE) == Sampling(temperature=0.5, top_k=7, guidance_scale=2.0, image_guidance_scale=1.5)
    assert edit.to_search(RECIPE) == Search(num_candidates=4, min_gain_nats=0.25, min_candidates=2)
    assert body(image=DATA_URL, temperature=0).to_sampling(RECIPE).greedy
    assert body(image=DATA_URL, verify=False, n=3).to_search(RECIPE) == Search(num_candidates=3)
    rollout, _ = rollout_from_json(
        json.dumps({"image": DATA_URL, "actions": ["a"], "num_beams": 6, "best_of": 4, "min_gain_nats": 1}).encode(),
        LIMITS,
    )
    assert rollout.to_search(RECIPE) == Search(num_candidates=4, num_beams=6, min_gain_nats=1.0, min_candidates=4)


def test_a_request_travels_as_it_is():
    edit = body(image=DATA_URL, metadata={"run": "7"}, seed=3)
    assert pickle.loads(pickle.dumps(edit)) == edit
    assert edit.metadata is None, "what has no effect is not kept"
    score, images = score_from_json(
        json.dumps({"image": DATA_URL, "targets": [DATA_URL], "actions": [" a "]}).encode(), LIMITS
    )
    assert (score.image, score.targets, score.actions) == ("", [], ["a"])
    assert images == [("image", PNG), ("targets[0]", PNG)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("guidance", "guidance_scale"),
        ("guidance_image", "image_guidance_scale"),
        ("margin", "min_gain_nats"),
        ("beam", "num_beams"),
    ],
)
def test_an_old_field_name_is_answered_with_the_new_one(old, new):
    asked = json.dumps({"image": DATA_URL, "actions": ["a"], old: 1}).encode()
    for parse in (
        lambda: form(**{old: "1"}),
        lambda: body(image=DATA_URL, **{old: 1}),
        lambda: rollout_from_json(asked, LIMITS),
    ):
        with pytest.raises(ApiError, match=f"unknown field '{old}'; it is called {new} now") as caught:
            parse()
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, old, "unknown_parameter")


def test_all_old_field_names_are_answered_at_once():
    with pytest.raises(ApiError) as caught:
        body(image=DATA_URL, colour=1, margin=0.1, guidance=2)
    assert str(caught.value) == (
        "unknown field 'margin'; it is called min_gain_nats now; unknown field 'guidance'; it is called guidance_scale "
        "now"
    )
    assert (caught.value.param, caught.value.code) == ("margin", "unknown_parameter")


def test_best_of_follows_n():
    assert form(n="10").best_of == 10
    assert form(n="3", verify="false").best_of == 3


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_image_field_names_of_the_client(name):
    assert edit_from_form([(name, PNG), ("prompt", "x")], LIMITS)[1] == PNG


@pytest.mark.parametrize(
    "fields",
    [
        {"images": [{"image_url": DATA_URL}]},
        {"images": [DATA_URL]},
        {"image": DATA_URL},
        {"image": base64.b64encode(PNG).decode()},
        {"images": [{"image_url": {"url": DATA_URL, "detail": "high"}}], "image": None},
        {"images": [{"type": "input_image", "image_url": DATA_URL, "file_id": None}]},
        {"image": {"url": DATA_URL}},
    ],
)
def test_json_images(fields):
    assert body(**fields).prompt == "move it"


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "prompt is empty"),
        ({"prompt": " \n\t"}, "prompt", "prompt is empty"),
        ({"prompt": "a\0b"}, "prompt", "NUL"),
        ({"prompt": "x" * 51}, "prompt", "prompt has 51 characters; at most 50"),
        ({"n": "0"}, "n", "n = '0'"),
        ({"n": "11"}, "n", "less than or equal to 10"),
        ({"n": "two"}, "n", "n = 'two'"),
        ({"n": "3", "best_of": "2"}, "n", "n = 3 is more than best_of = 2"),
        ({"best_of": "17"}, "best_of", "best_of = 17: at most 16"),
        ({"best_of": "3", "verify": "false"}, "best_of", "must equal n = 1"),
        ({"seed": "-1"}, "seed", "seed = '-1'"),
        ({"seed": str(2**31)}, "seed", "less than or equal"),
        ({"temperature": "nan"}, "temperature", "finite"),
        ({"temperature": "-0.5"}, "temperature", "temperature = '-0.5'"),
        ({"top_p": "0"}, "top_p", "greater than 0"),
        ({"top_k": "-1"}, "top_k", "top_k = '-1'"),
        ({"guidance_scale": "-1"}, "guidance_scale", "guidance_scale = '-1'"),
        ({"guidance_scale": "101"}, "guidance_scale", "less than or equal to 100"),
        ({"image_guidance_scale": "inf"}, "image_guidance_scale", "image_guidance_scale = 'inf'"),
        ({"image_guidance_scale": "much"}, "image_guidance_scale", "image_guidance_scale = 'much'"),
        ({"prompt": "left " * 5000}, "prompt", "prompt has 25,000 characters; at most 50"),
        ({"best_of": "0"}, "best_of", "best_of = '0'"),
        ({"verify": "perhaps"}, "verify", "verify = 'perhaps'"),
        ({"size": "big"}, "size", "size = 'big'"),
        ({"size": "512x256"}, "size", "a square of at most"),
        ({"size": "4096x4096"}, "size", "a square of at most"),
        (
            {"response_format": "url"},
            "response_format",
            "response_format = 'url': input should be 'b64_json'",
        ),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": "101"}, "output_compression", "less than or equal to 100"),
        ({"partial_images": "2"}, "partial_images", "partial_images = 2 needs stream = true"),
        ({"background": "transparent"}, "background", "input should be 'auto' or 'opaque'"),
        ({"colour": "red"}, "colour", "unknown field 'colour'; the fields are image, prompt"),
    ],
)
def test_bad_fields(fields, param, says):
    with pytest.raises(ApiError) as caught:
        form(**fields)
    error = caught.value.body()["error"]
    assert caught.value.status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 500


@pytest.mark.parametrize(
    ("items", "param", "says"),
    [
        ([("prompt", "x")], "image", "0 images are given"),
        ([("image", PNG), ("image", PNG), ("prompt", "x")], "image", "2 images are given"),
        ([("image", PNG)], "prompt", "prompt is missing"),
        ([("image", PNG), ("prompt", "x"), ("prompt", "y")], "prompt", "more than once"),
        ([("image", PNG), ("prompt", b"x")], "prompt", "field 'prompt' is a file"),
        ([("image", PNG), ("prompt", "x"), ("mask", PNG)], "mask", "takes no mask"),
        ([("image", "https://example.org/a.png"), ("prompt", "x")], "image", "fetches nothing"),
        ([("image", "file:///etc/passwd"), ("prompt", "x")], "image", "fetches nothing"),
        ([("image", "../secret.png"), ("prompt", "x")], "image", "not valid base64"),
    ],
)
def test_bad_parts(items, param, says):
    with pytest.raises(ApiError, match=says) as caught:
        edit_from_form(items, LIMITS)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"image": 3, "prompt": "x"}', "expected a data URL or base64 text, got int"),
        (b'{"images": [{"file_id": "f"}], "prompt": "x"}', "image_url"),
        (b'{"image": "data:text/plain,hello", "prompt": "x"}', "data URL that starts"),
        (json.dumps({"image": DATA_URL, "prompt": "x", "n": "2"}).encode(), "n = '2'"),
        (json.dumps({"image": DATA_URL, "prompt": "x", "n": True}).encode(), "n = True"),
        (json.dumps({"image": DATA_URL, "prompt": 3}).encode(), "prompt = 3"),
        (b'{"image": "aaaa", "prompt": "raw \xed\xa0\x80"}', "not valid JSON: 'utf-8' codec can't decode"),
        ('{"image": "aaaa", "prompt": "x"}'.encode("utf-16"), "not valid JSON: 'utf-8' codec can't decode"),
        (b'{"\\uDC00": "aaaa", "prompt": "x"}', "surrogate"),
        (b'{"image": "aaaa", "prompt": "half \\ud800"}', "surrogate"),
    ],
)
def test_bad_json(text, says):
    with pytest.raises(ApiError, match=says):
        edit_from_json(text, LIMITS)


def test_files_of_each_format_and_size():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(decode_image(encode_image(pixels, "png", 100, 8), "png"), pixels)
    for output_format in ("jpeg", "webp"):
        data = encode_image(pixels, output_format, 80, 16)
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == (output_format.upper(), (16, 16))


class Encoder:
    """Encodes as the graph of an app does."""

    async def encode(self, request, pixels_HWC):
        data = encode_image(pixels_HWC, request.output_format, request.output_compression, len(pixels_HWC))
        return base64.b64encode(data).decode()


def test_reply_counts_tokens():
    edit = form(n="1", best_of="4", seed="7", user="someone")
    model = {"id": "fdm", "side_px": 8, "tokens_per_image": 9}
    verifications = [{"rank": rank, "duplicate_of": None} for rank in range(4)]
    result = EditResult(verifications, np.full((1, 4, 4, 3), 7, np.uint8), action_tokens=2, num_distinct=3)
    reply = asyncio.run(build_reply(Encoder(), edit, model, result))
    assert base64.b64decode(reply["data"][0]["b64_json"]) == PNG
    assert reply["data"][0]["verification"] == verifications[0]
    assert reply["usage"] == {
        "input_tokens": 11,
        "input_tokens_details": {"image_tokens": 9, "text_tokens": 2},
        "output_tokens": 36,
        "output_tokens_details": {"image_tokens": 36, "text_tokens": 0},
        "total_tokens": 47,
    }
    assert (reply["seed"], reply["best_of"], reply["distinct"], reply["size"]) == (7, 4, 3, "8x8")
    assert reply["drawn"] == 4
    assert reply["safety_identifier"] == "someone"


def test_unchanged_share():
    assert unchanged_share([1, 2, 3, 4], [1, 0, 3, 0]) == 0.5
