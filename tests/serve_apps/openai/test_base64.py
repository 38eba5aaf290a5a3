"""Base64 as encoders write it, in every field that takes it; the right bytes are those that were encoded."""

import base64
import itertools
import json
import re
import subprocess
from email.base64mime import body_encode
from urllib.parse import quote

import numpy as np
import pytest

from serve_apps.openai.chat import chat_from_json
from serve_apps.openai.edits import edit_from_form, edit_from_json
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.images import _has_blank_in_line, decode_base64
from serve_apps.openai.rollouts import rollout_from_json
from serve_apps.openai.score import score_from_json

LIMITS = Limits()
DATA = np.random.default_rng(3).bytes(301)  # with a + and a / among its digits, and padding
STANDARD = base64.b64encode(DATA).decode()
LINES = base64.encodebytes(DATA).decode()
HEAD = "data:image/png;base64,"
ENCODED = {
    "standard": STANDARD,
    "line_end": STANDARD + "\n",
    "windows_line_end": STANDARD + "\r\n",
    "space_around": f" \t{STANDARD} \n",
    "lines": LINES,
    "lines_of_mail": body_encode(DATA, maxlinelen=76, eol="\r\n"),
    "lines_of_64": "\n".join(STANDARD[start : start + 64] for start in range(0, len(STANDARD), 64)),
    "indented_lines": LINES.replace("\n", "\n    "),
    "lines_joined_by_a_shell": " ".join(LINES.split()),
    "without_padding": STANDARD.rstrip("="),
    "url_safe": base64.urlsafe_b64encode(DATA).decode(),
    "url_safe_without_padding": base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "percent_encoded": quote(STANDARD, safe=""),
    "percent_encoded_in_small_letters": STANDARD.replace("+", "%2b").replace("/", "%2f").replace("=", "%3d"),
    "percent_encoded_lines": quote(LINES, safe=""),
}
HEADS = {
    "plain": HEAD,
    "charset": "data:image/png;charset=utf-8;base64,",
    "capitals": "DATA:IMAGE/PNG;BASE64,",
    "no_type": "data:;base64,",
    "name": "data:image/png;name=a%2C1.png;base64,",
    "quoted_name": 'data:image/png;name="a,1.png";base64,',
    "blanks": "data:image/png; charset=utf-8; base64 ,",
    "blanks_before": "\n " + HEAD,
}


def of_edit(text):
    return edit_from_json(json.dumps({"image": text, "prompt": "x"}).encode(), LIMITS)[1]


def of_form(text):
    return edit_from_form([("image", text), ("prompt", "x")], LIMITS)[1]


def of_rollout(text):
    return rollout_from_json(json.dumps({"image": text, "actions": ["x"]}).encode(), LIMITS)[1]


def of_score(text):
    body = {"image": text, "targets": [text, text], "actions": ["x"]}
    images = {data for _, data in score_from_json(json.dumps(body).encode(), LIMITS)[1]}
    return images.pop() if len(images) == 1 else images


def of_chat(text):
    parts = [{"type": "image_url", "image_url": url} for url in (text, {"url": text})]
    _, named = chat_from_json(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode(), LIMITS)
    images = {data for _, data in named}
    return images.pop() if len(images) == 1 else images


READERS = {"edit": of_edit, "form": of_form, "rollout": of_rollout, "score": of_score, "chat": of_chat}
BARE = ("edit", "form", "rollout")


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("reader", READERS)
def test_every_encoding_is_read_by_every_request(reader, name):
    assert "+" in STANDARD and "/" in STANDARD and STANDARD.endswith("==")
    assert READERS[reader](HEAD + ENCODED[name]) == DATA
    if reader in BARE:
        assert READERS[reader](ENCODED[name]) == DATA


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("reader", READERS)
def test_every_head_of_a_data_url_is_read(reader, name):
    assert READERS[reader](HEADS[name] + LINES) == DATA


@pytest.mark.parametrize("options", [[], ["-w0"], ["-w64"]])
def test_lines_of_coreutils(options, tmp_path):
    (tmp_path / "image").write_bytes(DATA)
    lines = subprocess.run(["base64", *options, tmp_path / "image"], capture_output=True, text=True, check=True).stdout
    assert decode_base64(lines, "image") == DATA


@pytest.mark.parametrize("length", range(12))
def test_lengths_of_every_remainder(length):
    data = DATA[:length]
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode().rstrip("=")):
        assert decode_base64(text, "image") == data


WRONG = {
    "letter": (STANDARD[:40] + "*" + STANDARD[40:], "'*' at index 62"),
    "end": (STANDARD + "*", f"'*' at index {22 + len(STANDARD)}"),
    "line": (LINES[:100] + "!" + LINES[100:], "'!' at index 122"),
    "not_ascii": (STANDARD[:4] + "é" + STANDARD[4:], "'é' at index 26"),
    "not_ascii_blank": (STANDARD[:4] + "\u00a0" + STANDARD[4:], "'\\xa0' at index 26"),
    "nul": (STANDARD[:4] + "\0" + STANDARD[4:], "'\\x00' at index 26"),
    "mark": ("\ufeff" + STANDARD, "'\\ufeff' at index 22"),
    "percent": (STANDARD[:4] + "%" + STANDARD[4:], "'%' at index 4 of its digits, percent-decoded"),
    "escaped_letter": (STANDARD[:4] + "%C3%A9" + STANDARD[4:], "'%' at index 4"),
    "escaped_twice": (quote(quote(STANDARD, safe=""), safe=""), "'%' at index"),
    "padding_in_the_middle": (STANDARD[:40] + "=" + STANDARD[40:], "'=' at index 62"),
    "two_texts": (STANDARD + STANDARD, "'=' at index"),
    "much_padding": (STANDARD + "=", "with 3 of padding"),
    "cut_off": (STANDARD[:-3], "401 digits with 0 of padding; is it cut off?"),
    "plus_as_blank": (STANDARD.replace("+", " "), "a blank in the middle of a line at index"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("reader", READERS)
def test_what_no_encoder_writes_is_refused_where_it_is(reader, name):
    text, says = WRONG[name]
    with pytest.raises(ApiError, match="is not valid base64") as caught:
        READERS[reader](HEAD + text)
    assert says in caught.value.message and "\n" not in caught.value.message
    assert caught.value.param in caught.value.message


@pytest.mark.parametrize("head", ["data:image/png,", "data:image/png;base64;charset=utf-8,", "data,", HEAD[:-1]])
def test_a_data_url_without_base64_is_refused(head):
    with pytest.raises(ApiError, match="expected a data URL that starts with"):
        of_edit(head + STANDARD)


def test_a_plus_lost_in_a_form_never_makes_other_bytes():
    """Of every position alone: without the blank the rest would be valid base64 too, of another image."""
    for position in range(20, 300):
        text = STANDARD[:position] + " " + STANDARD[position + 1 :]
        with pytest.raises(ApiError, match="not valid base64"):
            decode_base64(text, "image")


@pytest.mark.parametrize("piece", [" ", "\n", "A ", "AAAA ", "A" * 16 + " ", "%", "%2B", "%2", "=", "\n ", "= ", "-_"])
def test_long_texts_take_no_more_than_their_length(piece):
    """Where a rule looked back from each character, these would not end."""
    text = piece * (4_000_000 // len(piece))
    try:
        assert len(decode_base64(text, "image")) <= len(text)
    except ApiError as error:
        assert len(error.message) < 200


@pytest.mark.parametrize("read", [edit_from_json, rollout_from_json, score_from_json, chat_from_json])
def test_a_byte_order_mark_before_json_is_passed_over(read):
    image = {"type": "image_url", "image_url": HEAD + STANDARD}
    bodies = {
        edit_from_json: {"image": STANDARD, "prompt": "x é", "seed": 1},
        rollout_from_json: {"image": STANDARD, "actions": ["x é"], "seed": 1},
        score_from_json: {"image": HEAD + STANDARD, "targets": [HEAD + STANDARD], "actions": ["x é"]},
        chat_from_json: {"messages": [{"role": "user", "content": [image, image]}], "seed": 1},
    }
    text = json.dumps(bodies[read], ensure_ascii=False)
    assert read(text.encode("utf-8-sig"), LIMITS) == read(text.encode(), LIMITS)
    for codec in ("utf-16", "utf-32", "latin-1"):
        with pytest.raises(ApiError, match="the body is not valid JSON"):
            read((text + "é").encode(codec), LIMITS)
    with pytest.raises(ApiError, match="the body is not valid JSON"):
        read(b"\xef\xbb\xbf" + text.encode("utf-8-sig"), LIMITS)


def test_blanks_within_lines_are_found_as_a_pattern_finds_them():
    """The pattern is right, and holds up all threads for a second where the text is 20 MB."""
    for length in range(7):
        for characters in itertools.product(b"a \t\n\r", repeat=length):
            raw = bytes(characters)
            assert _has_blank_in_line(raw) == (re.search(rb"\S[ \t]+\S", raw) is not None), raw
