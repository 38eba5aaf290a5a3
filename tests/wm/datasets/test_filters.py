"""Filters: what each takes out when on, and that off and score take nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.config import Recipe
from wm.datasets.filters import (
    MODES,
    Filters,
    action_findings,
    code_findings,
    image_findings,
    is_phrase,
    reason_of,
    repeat_bits,
)
from wm.errors import InputError

GOOD = {"difference": 20.0, "cut": 0.0, "luma": 120.0, "sharpness": 300.0, "repeat_bits": 20}
BAD = {
    "static": ("static", {"difference": 1.4}, {"difference": 1.5}),
    "cut": ("hard_cut", {"cut": 3.0}, {"cut": 2.99}),
    "dark": ("dark_frame", {"luma": 15.9}, {"luma": 16.0}),
    "blurred": ("blurred_frame", {"sharpness": 14.9}, {"sharpness": 15.0}),
    "near_duplicate": ("near_duplicate", {"repeat_bits": 4}, {"repeat_bits": 5}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_picture_filter_finds_what_is_beyond_its_threshold_and_takes_it_out_when_on(name):
    reason, beyond, just_within = BAD[name]
    for mode, findings, taken in (("on", [reason], reason), ("score", [reason], ""), ("off", [], "")):
        filters = Filters(**{name: mode})
        assert image_findings(GOOD | beyond, filters) == findings
        assert reason_of(findings, filters) == taken
        assert image_findings(GOOD | just_within, filters) == []
    assert image_findings(dict.fromkeys(GOOD), Filters(**{name: "on"})) == []  # not measured


def test_all_findings_are_told_and_the_first_that_is_on_is_the_reason():
    filters = Filters(static="score", cut="on", dark="on")
    findings = image_findings(GOOD | {"difference": 0.0, "cut": 9.0, "luma": 1.0}, filters)
    assert findings == ["static", "hard_cut", "dark_frame"]
    assert reason_of(findings, filters) == "hard_cut"


@pytest.mark.parametrize(
    ("settings_", "changed", "findings", "reason"),
    [
        ({}, 0, ["unchanged_codes"], "unchanged_codes"),  # on by default
        ({}, 1, [], ""),
        ({"min_changed_codes": 3}, 2, ["unchanged_codes"], "unchanged_codes"),
        ({"min_changed_codes": 3}, 3, [], ""),
        ({"unchanged": "score"}, 0, ["unchanged_codes"], ""),
        ({"unchanged": "off"}, 0, [], ""),
    ],
)
def test_pairs_with_too_few_changed_codes(settings_, changed, findings, reason):
    filters = Filters(**settings_)
    assert code_findings(changed, filters) == findings
    assert reason_of(findings, filters) == reason


def test_actions():
    def reason(text, mean, finished, filters):
        return reason_of(action_findings(text, mean, finished, filters), filters)

    on = Filters(action="on", likelihood="on", min_likelihood=-2.0)
    assert reason("move the cup", -1.0, True, on) == ""
    assert reason("move the cup", -2.0, True, on) == ""
    assert reason("move the cup", -2.1, True, on) == "unlikely_action"
    assert reason("move the cup", -1.0, False, on) == "unparsed_action"
    assert action_findings("12 !!", -9.0, True, on) == ["unparsed_action", "unlikely_action"]
    lenient = Filters(action="score", likelihood="score", min_likelihood=-2.0)
    assert action_findings("12 !!", -9.0, True, lenient) == ["unparsed_action", "unlikely_action"]
    assert reason("12 !!", -9.0, False, lenient) == ""
    none = Filters(action="off", likelihood="off")
    assert action_findings("12 !!", -9.0, False, none) == []
    assert reason(" \n", -1.0, True, none) == "empty_action"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("open the door", True),
        ("öffne die Tür", True),
        ("カップを動かす", True),
        ("the the the", True),
        ("the the the the", False),
        ("pull it pull it pull it pull it", False),
        ("pull it up pull it down pull it up", True),
        ("42 ... 17", False),
        ("_ _", False),
        ("开开开开开", False),
        ("打开左边的门", True),
        ("慢慢打开门", True),
    ],
)
def test_what_a_phrase_is(text, phrase):
    assert is_phrase(text) is phrase


pairs = st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(pairs, st.sampled_from(MODES[1:]), st.integers(0, 3), st.data())
def test_repeats_equal_the_loop(hashes, mode, bits, data):
    kept = data.draw(st.lists(st.booleans(), min_size=len(hashes), max_size=len(hashes)))
    filters = Filters(near_duplicate=mode, near_duplicate_bits=bits)
    earlier, expected = [], []
    for (source, target), keep in zip(hashes, kept, strict=True):
        distances = [max((source ^ a).bit_count(), (target ^ b).bit_count()) for a, b in earlier]
        nearest = min(distances, default=None)
        expected.append(nearest)
        repeated = mode == "on" and nearest is not None and nearest <= bits
        if keep and not repeated:
            earlier.append((source, target))
    assert repeat_bits(hashes, filters, kept) == expected


def test_hashes_use_all_64_bits():
    top = 2**64 - 1
    assert repeat_bits([(top, 0), (0, 0), (top, 1)], Filters()) == [None, 64, 1]


def test_a_wrong_mode_names_key_and_value():
    class Outer(Recipe):
        filters: Filters = Filters()
        """Filters."""

    assert Outer.load(None, ["filters.static=on"]).filters.static == "on"
    with pytest.raises(InputError, match=r"filters\.static = 'maybe'"):
        Outer.load(None, ["filters.static=maybe"])
