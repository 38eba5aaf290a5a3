"""Answers as both readings take them."""

import pytest

from wm.evaluation.questions.items import ImagePlace, Question
from wm.evaluation.questions.parsing import parse_answer
from wm.evaluation.questions.wording import PROMPTS, check_prompt, list_replies, write_prompt

SIDES = ("on/above", "below", "in front of", "behind", "left of", "right of")
THINGS = ("table", "coffee table", "The Door", "lamp")


def read(text, answer, options=SIDES, style="words"):
    published, strict = (
        parse_answer(text, options, options.index(answer), style=style, reading=reading)
        for reading in ("published", "one_option")
    )
    return (published.is_parsed, published.is_right), (strict.is_parsed, strict.is_right)


@pytest.mark.parametrize(
    ("text", "answer", "published", "strict"),
    [
        ("left of", "left of", (True, True), (True, True)),
        ("Left of.", "left of", (True, True), (True, True)),
        ("The cup is left of the bowl", "left of", (True, True), (True, True)),
        ("right of", "left of", (True, False), (True, False)),
        # Part of a reference: right to the authors' letter, and to a stricter reader where it is a word of its own.
        ("above", "on/above", (True, True), (True, True)),
        ("on", "on/above", (True, True), (True, True)),
        ("left", "left of", (True, True), (False, False)),
        ("o", "on/above", (True, True), (False, False)),
        # Both, or all: the authors find the reference among them.
        ("left of or right of", "left of", (True, True), (False, False)),
        (", ".join(SIDES), "behind", (True, True), (False, False)),
        ("", "left of", (False, False), (False, False)),
        (" ", "left of", (False, False), (False, False)),
        ("no idea", "left of", (False, False), (False, False)),
        ("it lies on the left of it", "left of", (True, True), (True, True)),
        ("A", "on/above", (True, True), (True, True)),
        ("E) left of", "left of", (True, True), (True, True)),
        ("A) left of", "left of", (True, True), (False, False)),
    ],
)
def test_words(text, answer, published, strict):
    assert read(text, answer) == (published, strict)


@pytest.mark.parametrize(
    ("text", "answer", "published", "strict"),
    [
        ("B", "coffee table", (True, True), (True, True)),
        ("(b) coffee table", "coffee table", (True, True), (True, True)),
        (" c.", "The Door", (True, True), (True, True)),
        ("E", "lamp", (False, False), (False, False)),
        # The leading letter is read, whatever word it begins.
        ("coffee table", "coffee table", (True, False), (True, True)),
        ("the door", "The Door", (False, False), (True, True)),
        ("", "lamp", (False, False), (False, False)),
        ("7", "lamp", (False, False), (False, False)),
        # The longer name does not name the shorter one.
        ("it is the coffee table", "coffee table", (False, False), (True, True)),
        ("the table or the lamp", "lamp", (False, False), (False, False)),
    ],
)
def test_letters(text, answer, published, strict):
    assert read(text, answer, THINGS, "letters") == (published, strict)


def test_prompts():
    question = Question("1", "Where is {options}?", ("left", "right"), 0, "", "", ImagePlace("x"))
    words = write_prompt(question, PROMPTS["words"], "words")
    assert words.endswith("Question: Where is {options}? Options: left; right.\nAnswer:")
    letters = write_prompt(question, PROMPTS["letters"], "letters")
    assert letters.endswith("Where is {options}?\nA) left\nB) right\nAnswer:")
    assert list_replies(question.options, "words") == ["left", "right"]
    assert list_replies(question.options, "letters") == ["A", "B"]
    assert write_prompt(question, "{options} {question}", "words") == "left; right Where is {options}?"
    twice = write_prompt(question, "{question} {options}. Again: {question}", "words")
    assert twice == "Where is {options}? left; right. Again: Where is {options}?"
    with pytest.raises(ValueError, match=r"expected a text with \{question\}"):
        check_prompt("{options}")
