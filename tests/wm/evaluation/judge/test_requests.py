"""What is asked: order of text and images, keys, and the estimate of its price."""

import base64
from dataclasses import replace

import pytest

from wm.errors import InputError
from wm.evaluation.judge.requests import JudgeSettings, Question, build_body, count_image_tokens, judgement_key
from wm.evaluation.judge.template import DEFAULT_TEMPLATE, Template, load_template

QUESTION = Question("move {the} cup → left", "ab12", "cd34")
IMAGES = ("move {the} cup → left", b"source", b"prediction")
SETTINGS = JudgeSettings("gpt-4o-2024-11-20")


def test_text_then_source_then_prediction() -> None:
    body = build_body(*IMAGES, Template("Rate {instruction} {x}"), SETTINGS)
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert message["content"][0] == {"type": "text", "text": "Rate move {the} cup → left {x}"}
    urls = [part["image_url"]["url"] for part in message["content"][1:]]
    assert [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls] == [b"source", b"prediction"]
    assert body["max_tokens"] == 300
    assert "temperature" not in body and "response_format" not in body
    full = build_body(*IMAGES, Template("{instruction}"), replace(SETTINGS, temperature=0.0, structured=True))
    assert full["temperature"] == 0.0
    assert full["response_format"]["json_schema"]["strict"] is True


def test_the_key_names_all_that_decides_a_reply() -> None:
    template = load_template()
    keys = [judgement_key(QUESTION, template, SETTINGS)]
    for change in (
        {"action": "x"},
        {"source_sha256": "x"},
        {"prediction_sha256": "x"},
        {"source_sha256": "cd34", "prediction_sha256": "ab12"},
        {"repeat": 1},
    ):
        keys.append(judgement_key(replace(QUESTION, **change), template, SETTINGS))
    for change in ({"model": "x"}, {"detail": "low"}, {"max_tokens": 1}, {"temperature": 0.0}):
        keys.append(judgement_key(QUESTION, template, replace(SETTINGS, **change)))
    keys.append(judgement_key(QUESTION, Template("{instruction}"), SETTINGS))
    assert len(set(keys)) == len(keys)
    assert judgement_key(QUESTION, template, replace(SETTINGS, structured=True)) == keys[0]


@pytest.mark.parametrize(
    ("size_px", "detail", "tokens"),
    [
        ((1024, 1024), "high", 765),  # the example of OpenAI's guide: scaled to 768 x 768, 4 tiles
        ((2048, 4096), "high", 1105),  # 768 x 1536, 6 tiles
        ((4096, 8192), "low", 85),
        ((512, 512), "auto", 255),
        ((48, 48), "high", 255),
    ],
)
def test_image_tokens_are_those_of_the_guide(size_px: tuple[int, int], detail: str, tokens: int) -> None:
    assert count_image_tokens(*size_px, detail) == tokens


def test_a_template_needs_its_placeholder_once(tmp_path) -> None:
    assert load_template().text == DEFAULT_TEMPLATE
    assert DEFAULT_TEMPLATE.count("{instruction}") == 1
    path = tmp_path / "template.txt"
    for text, message in (("no place", "0 times"), ("{instruction}{instruction}", "2 times")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_template(path)
    path.write_bytes(b"\xff{instruction}")
    with pytest.raises(InputError, match="UTF-8"):
        load_template(path)
    path.write_text("Rate: {instruction}")
    assert load_template(path).fill("a") == "Rate: a"
    assert load_template(path).digest != load_template().digest
