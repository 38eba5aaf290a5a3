"""Filters: what each takes out when on, and that off and score take nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.config import Recipe
from wm.datasets.filters import MODES, Filters, action_reason, is_phrase, picture_reason, repeat_bits
from wm.errors import InputError

GOOD = {"difference": 20.0, "cut": 0.0, "luma": 120.0, "sharpness": 300.0}
BAD = {
    "static": ("static", {"difference": 1.4}, {"difference": 1.5}),
    "cut": ("hard_cut", {"cut": 3.0}, {"cut": 2.99}),
    "dark": ("dark_frame", {"luma": 15.9}, {"luma": 16.0}),
    "blurred": ("blurred_frame", {"sharpness": 14.9}, {"sharpness": 15.0}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_picture_filter_takes_out_what_is_beyond_its_threshold_and_only_when_on(name):
    reason, beyond, just_within = BAD[name]
    on = Filters(**{name: "on"})
    assert picture_reason(GOOD | beyond, on) == reason
    assert picture_reason(GOOD | just_within, on) == ""
    for mode in ("off", "score"):
        assert picture_reason(GOOD | beyond, Filters(**{name: mode})) == ""
    assert picture_reason(dict.fromkeys(GOOD), on) == ""  # not measured


def test_actions():
    on = Filters(action="on", likelihood="on", min_likelihood=-2.0)
    assert action_reason("move the cup", -1.0, True, on) == ""
    assert action_reason("move the cup", -2.0, True, on) == ""
    assert action_reason("move the cup", -2.1, True, on) == "unlikely_action"
    assert action_reason("move the cup", -1.0, False, on) == "unparsed_action"
    lenient = Filters(action="score", likelihood="score", min_likelihood=-2.0)
    assert action_reason("12 !!", -9.0, False, lenient) == ""
    assert action_reason(" \n", -1.0, True, Filters(action="off")) == "empty_action"


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
