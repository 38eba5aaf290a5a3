"""Requests in OpenAI's form, checked; no HTTP and no Ray here."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from serve_apps.openai import ApiError, Limits, edit_from_form, edit_from_json
from serve_apps.openai.edit_replies import edit_reply, encode_picture, unchanged_share
from wm.images import decode_image, encode_png

LIMITS = Limits(max_prompt_chars=50, max_best_of=16, default_best_of=4)
PNG = encode_png(np.full((4, 4, 3), 7, np.uint8))
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def form(**fields):
    return edit_from_form([("image", PNG), *{"prompt": "move it", **fields}.items()], LIMITS)


def body(**fields):
    return edit_from_json(json.dumps({"prompt": "move it", **fields}).encode(), LIMITS)


def test_defaults():
    edit = form()
    assert (edit.image, edit.prompt, edit.n, edit.best_of, edit.verify) == (PNG, "move it", 1, 4, True)
    assert (edit.side_px, edit.output_format, edit.output_compression, edit.model) == (None, "png", 100, None)
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
    edit = form(guidance="3.5", guidance_image="1.2")
    assert (edit.guidance, edit.guidance_image) == (3.5, 1.2)
    assert body(image=DATA_URL, guidance=0).guidance == 0
    assert (form().guidance, form().guidance_image) == (None, None)


def test_best_of_follows_n():
    assert form(n="10").best_of == 10
    assert form(n="3", verify="false").best_of == 3


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_image_field_names_of_the_client(name):
    assert edit_from_form([(name, PNG), ("prompt", "x")], LIMITS).image == PNG


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
    assert body(**fields).image == PNG


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
        ({"guidance": "-1"}, "guidance", "guidance = '-1'"),
        ({"guidance": "101"}, "guidance", "less than or equal to 100"),
        ({"guidance_image": "inf"}, "guidance_image", "guidance_image = 'inf'"),
        ({"guidance_image": "much"}, "guidance_image", "guidance_image = 'much'"),
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
        ({"guidance": "2", "guidance_scale": "3"}, "guidance", "guidance = 2 and guidance_scale = 3 are two names"),
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


def test_pictures_and_sizes():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert np.array_equal(decode_image(encode_picture(pixels, "png", 100, None), "png"), pixels)
    for output_format in ("jpeg", "webp"):
        data = encode_picture(pixels, output_format, 80, 16)
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size) == (output_format.upper(), (16, 16))


def test_reply_counts_tokens():
    edit = form(n="1", best_of="4", seed="7", user="someone")
    facts = {"model": "fdm", "side_px": 8, "tokens_per_image": 9, "action_tokens": 2, "drawn": 4, "distinct": 3}
    reply = edit_reply(edit, pictures=[(PNG, {"rank": 0})], facts=facts, created_s=1)
    assert base64.b64decode(reply["data"][0]["b64_json"]) == PNG
    assert reply["data"][0]["verification"] == {"rank": 0}
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
