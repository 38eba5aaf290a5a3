"""The tabletop's judge sees no target, and gives the oracle's scores all the same."""

import base64
import json

import numpy as np
import pytest

from wm.evaluation.judge.replies import parse_reply
from wm.evaluation.judge.requests import JudgeSettings, build_body
from wm.evaluation.judge.template import Template, load_template
from wm.images import encode_png
from wm.nano.judge_endpoint import answer
from wm.nano.world.oracle import judge
from wm.nano.world.triplets import sample_triplet

SETTINGS = JudgeSettings("judge")


def ask(action: str, source: bytes, predicted: bytes, template: Template) -> str:
    return answer(json.dumps(build_body(action, source, predicted, template, SETTINGS)).encode())


def test_scores_are_the_oracles_with_the_target() -> None:
    rng = np.random.default_rng(5)
    triplets = [sample_triplet(rng) for _ in range(24)]
    scores = set()
    for number, (source, action, target) in enumerate(triplets):
        # The target, a copy, and an image of another scene.
        for predicted in (target, source, triplets[number - 1][2]):
            expected = judge(source, target, predicted)
            template = Template("Rate: {instruction}") if number % 2 else load_template()
            judgement = parse_reply(ask(action, encode_png(source), encode_png(predicted), template))
            assert judgement.editing_success == expected.editing_success
            assert judgement.minimal_editing == expected.minimal_editing
            scores.add((expected.editing_success, expected.minimal_editing))
    assert {(10.0, 10.0), (0.0, 10.0)} < scores


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no JSON", "I expected"),
        (b"[]", "I expected"),
        (b'{"messages": []}', "I expected"),
        (
            json.dumps({"messages": [{"content": [{"type": "text", "text": "add a red circle at the top"}]}]}).encode(),
            "I expected",
        ),
    ],
)
def test_a_body_of_another_form_is_answered_in_words(body: bytes, words: str) -> None:
    assert answer(body).startswith(words)


def test_what_cannot_be_judged_is_said() -> None:
    source, action, target = sample_triplet(np.random.default_rng(0))
    images = encode_png(source), encode_png(target)
    assert ask("fly to the moon", *images, load_template()).startswith("I find no instruction")
    noise = encode_png(np.random.default_rng(1).integers(0, 256, (48, 48, 3), np.uint8))
    assert "does not show the tabletop" in ask(action, noise, images[1], load_template())
    body = build_body(action, *images, load_template(), SETTINGS)
    body["messages"][0]["content"][1]["image_url"]["url"] = "data:image/png;base64," + base64.b64encode(b"x").decode()
    assert answer(json.dumps(body).encode()).startswith("I cannot judge this: image 1 is no readable image")
