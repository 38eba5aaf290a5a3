"""Every form of reply that a judge gives, and that a mean must never take for a 0."""

import pytest

from wm.evaluation.judge.replies import Judgement, ReplyError, parse_reply


@pytest.mark.parametrize(
    "text",
    [
        '{"score": [7, 9.5], "reasoning": "moved"}',
        "{'score': [7, 9.5], 'reasoning': 'moved'}",
        '```json\n{"score": [7, 9.5], "reasoning": "moved"}\n```',
        "Sure!\n```python\n{'score': (7, 9.5), 'reasoning': 'moved'}\n```\nAnything else?",
        'The answer is {"reasoning": "moved", "score": [7.0, 9.5]}.',
        "\n  {'score': [7, 9.5],\n   'reasoning': 'moved'}  ",
    ],
)
def test_scores_are_read_from_every_usual_form(text: str) -> None:
    assert parse_reply(text) == Judgement(7.0, 9.5, "moved")
    assert parse_reply(text).final == 7.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "refusal"),
        ("  ", "refusal"),
        ("I'm sorry, I cannot help with that.", "not a dictionary"),
        ("[7, 9]", "not a dictionary"),
        ("{score: [7, 9]}", "not a dictionary"),
        ('{"scores": [7, 9]}', "no score"),
        ('{"score": 7}', "not two scores"),
        ('{"score": [7]}', "not two scores"),
        ('{"score": [7, 9, 1]}', "not two scores"),
        ('{"score": "79"}', "not two scores"),
        ('{"score": ["7", 9]}', "not a number"),
        ('{"score": [true, 9]}', "not a number"),
        ('{"score": [NaN, 9]}', "not a number"),
        ('{"score": [null, 9]}', "not a number"),
        ('{"score": [11, 9]}', "out of range"),
        ('{"score": [-0.5, 9]}', "out of range"),
        ("{" * 3000, "not a dictionary"),
        ("(" * 3000, "not a dictionary"),
    ],
)
def test_anything_else_is_a_named_failure(text: str | None, reason: str) -> None:
    with pytest.raises(ReplyError) as caught:
        parse_reply(text)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 120


def test_code_in_a_reply_is_never_run() -> None:
    with pytest.raises(ReplyError, match="not a dictionary"):
        parse_reply("{'score': [__import__('os').getpid(), 1]}")
