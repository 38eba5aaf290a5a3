"""Key-frames by few measurements: the choice that measuring every frame would give."""

import cv2
import numpy as np
import pytest

from tests.helpers.video_files import write_video
from wm.video import KEYFRAME_RULES, bounded, choose_keyframes, scan_video
from wm.video import walk as walk_module
from wm.video.bounded import search_keyframes
from wm.video.decode import frames
from wm.video.errors import VideoError
from wm.video.motion import farneback_motion

SETTINGS = {"max_keyframes": 6, "min_interval_frames": 20}


def curve(seed, num_frames=300):
    """A motion curve, and stand-ins that follow it to a power with slow and fast errors."""
    rng = np.random.default_rng(seed)
    slow = cv2.GaussianBlur(rng.normal(size=(1, num_frames)), (0, 0), 6)[0] * 5
    motion = np.exp(slow - 0.5)
    drift = cv2.GaussianBlur(rng.normal(size=(1, num_frames)), (0, 0), 8)[0]
    standin = [np.exp(0.9 * slow + drift * 0.3 + rng.normal(0, noise, num_frames)) for noise in (0.05, 0.1)]
    motion[0] = 0
    return motion, standin


@pytest.mark.parametrize("batch", [1, 24])
@pytest.mark.parametrize("rule", KEYFRAME_RULES)
def test_search_chooses_as_the_complete_curve_by_few_measures(rule, batch):
    agree, captured, share, calls = [], [], [], []
    for seed in range(12):
        motion, (flow, step) = curve(seed)
        asked = []

        def measure(frame_numbers, motion=motion, asked=asked):
            assert 0 not in frame_numbers and not set(frame_numbers) & {frame for frames in asked for frame in frames}
            asked.append(frame_numbers)
            return motion[frame_numbers]

        actual, measured = search_keyframes(flow, step, measure, rule=KEYFRAME_RULES[rule], batch=batch, **SETTINGS)
        assert measured[0] and measured.sum() == 1 + sum(map(len, asked))
        assert np.array_equal(actual[measured], motion[measured])
        selected = choose_keyframes(actual, rule=rule, **SETTINGS)
        assert measured[selected].all()
        truth = choose_keyframes(motion, rule=rule, **SETTINGS)
        near = sum(min(abs(frame - other) for other in truth) <= 2 for frame in selected)
        agree.append(near / max(len(selected), len(truth)))
        captured.append(motion[selected].sum() / motion[truth].sum())
        share.append(measured.mean())
        calls.append(len(asked))
    assert np.mean(agree) >= 0.85
    assert np.mean(captured) >= 0.98
    assert np.mean(share) < 0.3
    assert batch == 1 or max(calls) <= 8


def test_what_is_not_measured_is_expected_close_to_what_it_is():
    motion, (flow, step) = curve(3)
    rule = KEYFRAME_RULES["greedy_spacing"]
    actual, measured = search_keyframes(
        flow,
        step,
        lambda frame_numbers: motion[frame_numbers],
        rule=rule,
        **SETTINGS,
    )
    error = np.log(actual[~measured] + 0.02) - np.log(motion[~measured] + 0.02)
    assert np.sqrt((error**2).mean()) < 0.35


def test_regression_equals_the_textbook_s_formula():
    rng = np.random.default_rng(0)
    logs, at = rng.normal(size=(30, 2)), [4, 9, 17, 25]
    search = bounded._Search(np.exp(logs[:, 0]), np.exp(logs[:, 1]))
    search.order, search.motion_T[at] = at, [0.5, 1.0, 2.0, 0.7]
    mean, upper = search._regress()
    x = search.logs_T2 - search.logs_T2[at].mean(axis=0)

    def kernel(a, b):
        return 9 + 0.1**2 * x[a] @ x[b] + 0.2**2 * np.exp(-abs(a - b) / 16)

    noisy = np.array([[kernel(a, b) + (a == b) * 0.2**2 for b in at] for a in at])
    prior = x[:, 0]
    surprise = np.log(search.motion_T[at] + 0.02) - prior[at]
    scale = np.clip(np.sqrt((surprise @ np.linalg.solve(noisy, surprise) + 4) / 8), 0.5, 2)
    for frame in range(30):
        across = np.array([kernel(frame, other) for other in at])
        expected = prior[frame] + across @ np.linalg.solve(noisy, surprise)
        variance = kernel(frame, frame) + 0.2**2 - across @ np.linalg.solve(noisy, across)
        assert mean[frame] == pytest.approx(expected)
        assert upper[frame] == pytest.approx(expected + 2 * scale * np.sqrt(variance))


def test_still_frames_and_short_clips_end():
    for num_frames in (2, 3, 7, 60):
        for rule in KEYFRAME_RULES.values():
            zeros = np.zeros(num_frames)
            actual, measured = search_keyframes(
                zeros, zeros, lambda frame_numbers: [0.0] * len(frame_numbers), rule=rule, **SETTINGS
            )
            assert not actual.any() and measured.any()


def moving_clip(path, num_frames=90, size=(120, 176)):
    """A textured place under a camera whose speed rises and falls."""
    rng = np.random.default_rng(1)
    position = cv2.GaussianBlur(rng.integers(0, 256, (size[0], 1200)).astype(np.uint8), (0, 0), 3)
    position = cv2.normalize(position, None, 0, 255, cv2.NORM_MINMAX)
    speed = 2.5 + 2 * np.sin(np.arange(num_frames) / 7.0) + rng.normal(0, 0.4, num_frames)
    left = np.cumsum(np.clip(speed, 0, None))
    shots = [
        cv2.getRectSubPix(position, (size[1], size[0]), (size[1] / 2 + x, size[0] / 2 - 0.5)).astype(np.uint8)
        for x in left
    ]
    return write_video(path, [np.repeat(shot[..., None], 3, axis=2) for shot in shots])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return moving_clip(tmp_path_factory.mktemp("clip") / "moving.mp4", size=(240, 352))


@pytest.fixture(scope="module")
def complete_curve(clip):
    """Farneback at full size on every frame, of what OpenCV itself reads."""
    capture, greys = cv2.VideoCapture(str(clip)), []
    while (read := capture.read())[0]:
        greys.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2GRAY))
    return np.array([0.0] + [farneback_motion(*greys[index : index + 2]) for index in range(len(greys) - 1)])


@pytest.mark.parametrize("limits", ["held", "walked"])
@pytest.mark.parametrize("rule", KEYFRAME_RULES)
def test_scan_chooses_as_full_farneback_on_every_frame(clip, complete_curve, rule, limits, monkeypatch):
    if limits == "walked":
        monkeypatch.setattr(walk_module, "MAX_HELD_BYTES", 10**6)
        monkeypatch.setattr(walk_module, "WALK_BATCH", 10)
    scan = scan_video(clip, motion="farneback", rule=rule, min_interval_frames=8)
    assert scan.motion[scan.measured] == pytest.approx(complete_curve[scan.measured], rel=1e-5)
    assert scan.keyframes == choose_keyframes(complete_curve, rule=rule, min_interval_frames=8)
    assert scan.measured[scan.keyframes].all()
    assert scan.measured.mean() < 0.6


def test_small_clips_are_measured_at_full_size_by_their_luma(tmp_path):
    path = moving_clip(tmp_path / "small.mp4", 12, (48, 64))
    scan = scan_video(path, motion="farneback")
    lumas = [raw.luma(64) for raw in frames(path)]
    expected = [0.0] + [farneback_motion(*lumas[index : index + 2]) for index in range(11)]
    assert scan.measured.all()
    assert scan.motion == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("motion", ["dis", "farneback"])
@pytest.mark.parametrize("rule", KEYFRAME_RULES)
def test_a_long_clip_keeps_few_thumbnails_and_gives_the_same(clip, monkeypatch, motion, rule):
    settings = {"motion": motion, "rule": rule, "max_keyframes": 2, "min_interval_frames": 3}
    plenty = scan_video(clip, **settings)
    monkeypatch.setattr(walk_module, "MAX_THUMBS", 40)
    monkeypatch.setattr(walk_module, "BATCH_BYTES", 1)
    few = scan_video(clip, **settings)
    assert np.array_equal(few.motion, plenty.motion)
    assert few.keyframes == plenty.keyframes
    assert few.checks.keys() == plenty.checks.keys()
    for frame, check in plenty.checks.items():
        assert np.array_equal(few.checks[frame], check)
    assert few.cuts == plenty.cuts


def test_a_second_walk_that_ends_early_is_a_reason(clip, monkeypatch):
    monkeypatch.setattr(walk_module, "MAX_THUMBS", 20)
    walk = walk_module.Walk(clip, "dis", 40, max_candidates=1)
    walk.read()
    assert 1 not in walk.thumbs
    monkeypatch.setattr(walk_module, "frames", lambda *_, **__: (raw for raw in frames(clip) if raw.index < 3))
    with pytest.raises(VideoError, match=r"frame_mismatch: .*moving\.mp4: no frame 5 on second reading"):
        walk.checks([1])
