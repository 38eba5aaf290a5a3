"""The compiled flow against OpenCV's, and key-frames with and without it."""

import os
import sys
import time
from itertools import product

import cv2
import numpy as np
import pytest

from tests.helpers.video_files import write_video
from wm.video import KEYFRAME_RULES, ClipReader, ClipSettings, VideoError, farneback, scan_video
from wm.video.farneback import FlowMeter, load_compiled

pytest.importorskip("numba")

SETTINGS = (0.5, 3, 15, 3, 5, 1.2, 0)


def mean_length(flow_HW2):
    return np.linalg.norm(flow_HW2.astype(np.float64), axis=-1).mean()


def texture(height, width, seed=0, sigma=2.0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), sigma), None, 0, 255, cv2.NORM_MINMAX)


def swirled(image, degrees, shift):
    """An image turned, scaled and moved: flow that differs in every pixel, out of the frame too."""
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.02)
    matrix[:, 2] += shift
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "wm.video.farneback_rows", None)
    monkeypatch.setattr(farneback, "_PROBLEMS", [])
    load_compiled.cache_clear()
    yield
    load_compiled.cache_clear()


# Even, odd, narrow and smallest sizes; a level is left out where it would be smaller than 32.
@pytest.mark.parametrize("shape", [(120, 160), (131, 97), (64, 301), (16, 16), (17, 70), (255, 33)])
@pytest.mark.parametrize(("degrees", "shift"), [(0.0, (0.4, -0.3)), (2.0, (3.0, 1.5)), (9.0, (-25.0, 14.0))])
def test_flow_equals_opencv_s(shape, degrees, shift):
    before = texture(*shape)
    after = swirled(before, degrees, shift)
    flow = FlowMeter().flow(before, after)
    expected = cv2.calcOpticalFlowFarneback(before, after, None, *SETTINGS)
    assert flow.shape == expected.shape
    error = np.abs(flow - expected)
    # Where frames match badly rounding is amplified: the max is of few pixels.
    assert error.max() < 2e-2
    assert error.mean() < 2e-4
    assert mean_length(flow) == pytest.approx(mean_length(expected), rel=1e-4)


@pytest.mark.parametrize("kind", ["noise", "saturated", "dots"])
def test_flow_between_unrelated_frames_equals_opencv_s(kind):
    rng = np.random.default_rng(5)
    for height, width in rng.integers(16, 100, (12, 2)):
        noise = rng.integers(0, 256, (2, height, width)).astype(np.uint8)
        floor = {"noise": 0, "saturated": 128, "dots": 255}[kind]
        before, after = noise if kind == "noise" else np.where(noise >= floor, np.uint8(255), np.uint8(0))
        flow = FlowMeter().flow(before, after)
        expected = cv2.calcOpticalFlowFarneback(before, after, None, *SETTINGS)
        assert np.abs(flow - expected).mean() < 1e-5
        assert mean_length(flow) == pytest.approx(mean_length(expected), rel=1e-5)


def test_flat_and_equal_frames_move_as_little_as_with_opencv():
    flat, image = np.full((48, 64), 90, dtype=np.uint8), texture(48, 64)
    assert not FlowMeter().flow(flat, flat).any()
    # Not zero at the right and lower edge, where OpenCV's own sampling counts as outside.
    for before, after in [(image, image.copy()), (flat, flat + 20), (flat, image)]:
        flow = FlowMeter().flow(before, after)
        expected = cv2.calcOpticalFlowFarneback(before, after, None, *SETTINGS)
        assert np.abs(flow - expected).mean() < 1e-3
        assert mean_length(flow) == pytest.approx(mean_length(expected), abs=1e-3, rel=1e-3)
    assert not FlowMeter().flow(image, image.copy())[:24, :32].any()


def test_a_meter_gives_the_same_in_any_order_of_frames_and_sizes():
    images = [swirled(texture(60, 80), angle, (angle, 0)) for angle in range(4)]
    others = [texture(40, 90, seed) for seed in range(2)]
    pairs = [(0, 1), (1, 2), (0, 3), (3, 0), (2, 1), (0, 1)]
    alone = [FlowMeter().flow(images[a], images[b]) for a, b in pairs]
    meter = FlowMeter()
    for (a, b), expected in zip(pairs, alone, strict=True):
        assert np.array_equal(meter.flow(images[a], images[b]), expected)
        meter.flow(*others)


@pytest.mark.parametrize("rule", KEYFRAME_RULES)
def test_key_frames_are_the_same_without_numba(tmp_path, rule, without_numba, monkeypatch):
    clip = moving_clip(tmp_path / "moving.mp4")
    settings = {"motion": "farneback", "rule": rule, "min_interval_frames": 8, "max_keyframes": 4}
    assert load_compiled() is None
    expected = scan_video(clip, **settings)
    halted = "ModuleNotFoundError: import of wm.video.farneback_rows halted; None in sys.modules"
    assert expected.measured_on == f"cpu by OpenCV ({halted})"
    monkeypatch.undo()
    load_compiled.cache_clear()
    assert load_compiled() is not None
    actual = scan_video(clip, **settings)
    assert actual.measured_on == "cpu by numba"
    assert actual.keyframes == expected.keyframes
    assert np.array_equal(actual.measured, expected.measured)
    assert actual.motion == pytest.approx(expected.motion, rel=1e-3, abs=1e-3)


def test_a_compiler_that_fails_leaves_the_flow_to_opencv(monkeypatch):
    def fail(*args):
        raise OSError("LLVM is broken\nin detail")

    before, after = texture(20, 30), texture(20, 30, seed=1)
    monkeypatch.setattr(load_compiled(), "expand", fail)
    monkeypatch.setattr(farneback, "_PROBLEMS", [])
    load_compiled.cache_clear()
    try:
        flow = FlowMeter().flow(before, after)
        assert np.array_equal(flow, cv2.calcOpticalFlowFarneback(before, after, None, *SETTINGS))
        assert farneback.describe_program() == "OpenCV (OSError: LLVM is broken)"
    finally:
        load_compiled.cache_clear()


def test_a_compiler_that_ends_the_child_is_not_tried_again(tmp_path, monkeypatch):
    clip = moving_clip(tmp_path / "moving.mp4", 12)
    reader = ClipReader(ClipSettings(motion="farneback", min_interval_frames=4))
    call, tries = reader.process.call, []

    def crash_on_compile(limit_s, function, *args, **kwargs):
        if function is farneback.compile_flow:
            tries.append(args)
            if args == ("",):
                return call(limit_s, os.abort)
        return call(limit_s, function, *args, **kwargs)

    monkeypatch.setattr(reader.process, "call", crash_on_compile)
    try:
        problem = "crashed: the process ended with status -6"
        for _ in range(2):
            scan = reader.read(clip).scan
            assert scan.measured_on.startswith(f"cpu by OpenCV ({problem}")
        assert [len(args[0]) > 0 for args in tries] == [False, True, True]
        assert reader.process.starts == 2
        # A caller's deadline says nothing of the compiler.
        reader._compile_problem = ""
        reader.deadline = time.monotonic()
        with pytest.raises(VideoError, match="time_out"):
            reader.read(clip)
        assert reader._compile_problem == ""
    finally:
        reader.close()


HOSTILE = [np.nan, np.inf, -np.inf, 1e38, -3e9, 3e9, 0, -0.5, 0.5, -31.5, -32.5, -33.5, 31.5, 40, -16, 16]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 70), (33, 200)])
def test_no_flow_reads_outside_the_expansion(height, width):
    rows = load_compiled()
    rng = np.random.default_rng(0)
    frac, shift, half = np.empty((2, width), np.float32), np.empty((2, width), np.int32), np.empty(width, np.float32)
    pitch = width + 2 * rows.MARGIN
    near_blocks = 0
    # As it leaves the frame at its corners by as much as the margin; mixed.
    flows = [rng.choice(HOSTILE, (2, width)) for _ in range(8)]
    for x_px, y_px in product((-34, -33, -32.5, -32, -31, 0, 27, 28, 29, 31.5), (-1.5, -1, -0.5, 0, 0.5, 1)):
        flows.append(rng.uniform((x_px, y_px), (x_px + 1, y_px + 1), (width, 2)).T)
    for flow in flows:
        dx, dy = np.ascontiguousarray(flow, dtype=np.float32)
        for y in (0, 1, height - 1):
            rows._locate(dx, dy, y, height, frac, half, shift)
            begin = 0
            while begin < width:
                end, is_near, left, top = rows._find_block(shift, begin)
                first = (y + 1 + top) * pitch + rows.MARGIN + begin + left
                last = first + 2 * pitch + end - begin + 1
                if not is_near:
                    each = (y + 1 + shift[1, begin:end]) * pitch + rows.MARGIN + np.arange(begin, end)
                    each += shift[0, begin:end]
                    first, last = each.min(), each.max() + pitch + 1
                near_blocks += is_near
                assert first >= 0 and last < (height + 2) * pitch
                begin = end
    assert near_blocks > 50


def moving_clip(path, num_frames=60, size=(96, 128)):
    """A texture under a camera whose speed rises and falls."""
    scene = texture(size[0], 700, seed=1, sigma=3.0)
    speed = 2.5 + 2 * np.sin(np.arange(num_frames) / 5.0) + np.random.default_rng(1).normal(0, 0.3, num_frames)
    left = np.cumsum(np.clip(speed, 0, None))
    frames = [cv2.getRectSubPix(scene, size[::-1], (size[1] / 2 + x, size[0] / 2 - 0.5)) for x in left]
    return write_video(path, [np.repeat(frame[..., None], 3, axis=2) for frame in frames])


def test_without_a_writable_folder_it_is_compiled_all_the_same(monkeypatch):
    from wm.video import farneback_expand

    calls = []

    def refuse_cache(**settings):
        calls.append(settings.get("cache", False))
        if settings.get("cache"):
            raise RuntimeError("cannot cache function 'double': no locator available for file 'x.py'")
        return lambda function: function

    monkeypatch.setattr(farneback_expand, "njit", refuse_cache)
    assert farneback_expand.compile_loops(abs)(-3) == 3
    assert calls == [True, False]


def test_expansion_of_a_quadratic_has_its_coefficients():
    y, x = np.mgrid[0:40, 0:50].astype(np.float32)
    image = 3 + 0.5 * y - 0.25 * x + 0.125 * (y - 20) ** 2 + 0.0625 * (x - 25) ** 2 - 0.03125 * (y - 20) * (x - 25)
    compiled = load_compiled()
    planes = np.zeros((5, 42, 50 + 2 * compiled.MARGIN), dtype=np.float32)
    compiled.expand(image, *farneback._filters(), planes.reshape(5, -1), np.empty((3, 60), dtype=np.float32))
    middle = planes[:, 21, compiled.MARGIN + 25]
    assert middle == pytest.approx([0.5, -0.25, 0.125, 0.0625, -0.03125], abs=2e-4)
