"""Both readings of the key-frame rule against a plain reading of their words."""

import numpy as np
import pytest

from wm.errors import InputError
from wm.video.keyframes import KEYFRAME_RULES, choose_keyframes, find_rule, frame_pairs
from wm.video.scan import scan_video


def read_top_then_spacing(motion, max_keyframes, min_interval_frames):
    order = sorted(range(len(motion)), key=lambda frame: (-motion[frame], frame))
    return take_spaced(order[:max_keyframes], max_keyframes, min_interval_frames)


def read_greedy_spacing(motion, max_keyframes, min_interval_frames):
    order = sorted(range(len(motion)), key=lambda frame: (-motion[frame], frame))
    return take_spaced(order, max_keyframes, min_interval_frames)


def take_spaced(order, max_keyframes, min_interval_frames):
    keyframes = []
    for frame in order:
        if len(keyframes) < max_keyframes and all(abs(frame - other) >= min_interval_frames for other in keyframes):
            keyframes.append(frame)
    return sorted(keyframes)


READINGS = {"top_then_spacing": read_top_then_spacing, "greedy_spacing": read_greedy_spacing}
"""Each rule as a person would do it with a list."""


@pytest.mark.parametrize("rule", KEYFRAME_RULES)
def test_rules_equal_brute_force_on_random_curves_with_ties(rule):
    rng = np.random.default_rng(0)
    for _ in range(400):
        motion = rng.integers(0, 6, size=rng.integers(0, 90)).astype(float).tolist()
        most, gap = int(rng.integers(1, 9)), int(rng.integers(1, 25))
        chosen = choose_keyframes(motion, max_keyframes=most, min_interval_frames=gap, rule=rule)
        assert chosen == READINGS[rule](motion, most, gap)


def test_readings_differ_as_the_paper_s_table_says():
    motion = np.zeros(100)
    motion[[10, 11, 12, 13, 14, 15]] = [1, 2, 9, 8, 7, 6]  # one burst holds all six of most motion
    motion[[40, 70]] = [0.5, 0.4]
    assert choose_keyframes(motion) == [12]
    assert choose_keyframes(motion, rule="greedy_spacing") == [12, 40, 70, 90]


def test_spacing_is_at_least_the_interval_and_exactly_the_interval_is_allowed():
    motion = [5.0, 0, 0, 4.0, 0, 0, 3.0]
    assert choose_keyframes(motion, min_interval_frames=3) == [0, 3, 6]
    assert choose_keyframes(motion, min_interval_frames=4, max_keyframes=3) == [0, 6]


def test_equal_motion_takes_the_lower_frame():
    assert choose_keyframes([1.0] * 50, max_keyframes=2, min_interval_frames=1) == [0, 1]


def test_expected_counts_follow_the_paper_s_table_7():
    rule = find_rule("top_then_spacing")
    lengths_s = (1.0, 3.04, 7.24, 9.02, 60.0)
    assert [rule.expected_keyframes(length_s) for length_s in lengths_s] == [2.05, 2.05, 3.00, 2.71, 2.71]
    assert rule.expected_keyframes(5.14) == pytest.approx((2.05 + 3.00) / 2)
    assert find_rule("greedy_spacing").expected_keyframes(7.24) == 5.9


@pytest.mark.parametrize("rule", KEYFRAME_RULES.values(), ids=KEYFRAME_RULES)
def test_candidates_hold_the_choice_within_the_bound_on_ranks(rule):
    rng = np.random.default_rng(1)
    for _ in range(100):
        motion = rng.integers(0, 9, size=rng.integers(1, 120)).astype(float)
        most, gap = int(rng.integers(1, 7)), int(rng.integers(1, 25))
        chosen = rule.choose(motion, most, gap)
        candidates = rule.list_candidates(motion, most, gap)
        assert set(chosen) <= set(candidates)
        assert candidates == sorted(candidates, key=lambda frame: (-motion[frame], frame))
        ranked = np.argsort(-motion, kind="stable").tolist()
        assert max(map(ranked.index, chosen)) < rule.max_candidates(most, gap)


def test_an_unknown_rule_is_refused_with_the_names_of_all():
    expected = "'best'; expected top_then_spacing or greedy_spacing"
    for call in (lambda: find_rule("best"), lambda: scan_video("clip.mp4", rule="best")):
        with pytest.raises(InputError, match=expected):
            call()


def test_pairs_are_consecutive_in_time():
    assert frame_pairs([30, 3, 90]) == [(3, 30), (30, 90)]
    assert frame_pairs([7]) == []


@pytest.mark.parametrize(
    ("motion", "settings", "named"),
    [
        ([0.0, float("nan")], {}, "frame 1"),
        ([[0.0]], {}, "shape"),
        ([0.0], {"min_interval_frames": 0}, "min_interval_frames = 0"),
        ([0.0], {"rule": "best"}, "'best'"),
    ],
)
def test_bad_input_is_named(motion, settings, named):
    with pytest.raises(InputError, match=named):
        choose_keyframes(motion, **settings)
