"""Contradicting actions: what is asked, under which key, and which replies are none."""

from dataclasses import replace

import pytest

from wm.evaluation.contradictions import (
    CONTRADICT_TEMPLATE,
    ContradictionError,
    ContradictSettings,
    build_body,
    contradiction_key,
    parse_contradiction,
)
from wm.evaluation.judge.template import Template

TEMPLATE, SETTINGS = Template(CONTRADICT_TEMPLATE), ContradictSettings("m")


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("close the door", "close the door"),
        (' \n"close the door"\n', "close the door"),
        ("“‘close’ it”", "‘close’ it"),
        ("'t is closed", "'t is closed"),
        ("ドアを閉める", "ドアを閉める"),
    ],
)
def test_replies_with_an_action(reply: str, action: str) -> None:
    assert parse_contradiction(reply, "open the door") == action


@pytest.mark.parametrize(
    ("reply", "action", "expected"),
    [
        # What the model alone has added is taken away: a full stop, a capital, the prompt's own label.
        ("Close the door.", "open the door", "close the door"),
        ("Instruction: Close it", "open it", "close it"),
        ('Contradicting instruction: "close it."', "open it", "close it"),
        ("close the door", "Open the door.", "Close the door"),
        # What may be meant stays.
        ("Close the door.", "Open the door.", "Close the door."),
        ("TV off", "tv on", "TV off"),
        ("I sit down", "i stand up", "I sit down"),
        ("wait...", "go", "wait..."),
        ("Öffne die Tür.", "schließe die Tür", "öffne die Tür"),
    ],
)
def test_a_reply_has_the_form_of_the_action(reply: str, action: str, expected: str) -> None:
    assert parse_contradiction(reply, action) == expected


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "empty"),
        (" \n ", "empty"),
        ('""', "empty"),
        ("close it\nbecause", "more than one line"),
        ("Open   the DOOR.", "same action"),
        ("“open the door”", "same action"),
        ("Instruction: open the door", "same action"),
        ("Instruction:", "empty"),
    ],
)
def test_replies_without_one(reply: str | None, reason: str) -> None:
    with pytest.raises(ContradictionError, match=f"^{reason}$"):
        parse_contradiction(reply, "open the door")
    with pytest.raises(ContradictionError, match="cut off"):
        parse_contradiction("close the", "open the door", is_cut_off=True)


def test_the_key_depends_on_all_that_decides_a_reply() -> None:
    keys = [contradiction_key("a", TEMPLATE, SETTINGS), contradiction_key("b", TEMPLATE, SETTINGS)]
    keys.append(contradiction_key("a", Template("say {instruction}"), SETTINGS))
    for change in ({"model": "n"}, {"max_tokens": 9}, {"temperature": 0.0}):
        keys.append(contradiction_key("a", TEMPLATE, replace(SETTINGS, **change)))
    assert len(set(keys)) == 6
    assert keys[0] == contradiction_key("a", TEMPLATE, SETTINGS)


def test_the_request_is_one_message() -> None:
    body = build_body("open {it}", TEMPLATE, replace(SETTINGS, temperature=0.7))
    assert body["messages"] == [{"role": "user", "content": TEMPLATE.fill("open {it}")}]
    assert TEMPLATE.fill("open {it}").endswith("Instruction: open {it}\n")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 64, 0.7)
