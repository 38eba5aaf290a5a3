"""Flow of a texture that was moved by a known distance."""

from itertools import chain

import cv2
import numpy as np
import pytest

from wm.video.motion import MotionMeter


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.0), None, 0, 255, cv2.NORM_MINMAX)


@pytest.mark.parametrize("kind", ["dis", "farneback"])
@pytest.mark.parametrize("shape", [(48, 64), (120, 160), (90, 160)])
def test_mean_flow_is_the_shift_in_pixels(kind, shape):
    height, width = shape
    wide = texture(height, width + 20)
    meter = MotionMeter(kind)
    actual = [meter.next(np.ascontiguousarray(wide[:, left : left + width])) for left in (0, 0, 1, 4, 2)]
    assert actual[0] == 0
    assert actual[1] == pytest.approx(0, abs=0.02)
    assert actual[2:] == pytest.approx([1, 3, 2], rel=0.15)


FLAT = [(1, 1), (2, 300), (16, 300), (20, 160), (24, 160), (31, 129), (300, 9), (12, 12)]


@pytest.mark.parametrize("shape", FLAT)
@pytest.mark.parametrize("kind", ["dis", "farneback"])
def test_flat_and_tiny_frames_have_a_finite_motion(kind, shape):
    meter = MotionMeter(kind)
    values = [meter.next(texture(*shape, seed=seed)) for seed in range(3)]
    assert values[0] == 0
    assert np.isfinite(values).all()


@pytest.mark.parametrize("kind", ["dis", "farneback"])
def test_motion_is_the_same_to_the_bit_at_any_address(kind):
    shots = [texture(48, 64, seed) for seed in range(6)]
    curves = []
    for shift in range(0, 64, 7):
        rooms = [np.zeros(48 * 64 + 64, np.uint8) for _ in shots]
        meter, curve = MotionMeter(kind), []
        for room, shot in zip(rooms, shots, strict=True):
            moved = room[shift : shift + shot.size].reshape(shot.shape)
            moved[:] = shot
            curve.append(meter.next(moved))
        curves.append(curve)
    assert all(curve == curves[0] for curve in curves)


def test_a_change_of_size_is_no_motion():
    meter = MotionMeter("dis")
    meter.next(texture(48, 64))
    assert meter.next(texture(64, 64)) == 0
    assert meter.next(texture(64, 64, seed=1)) > 0


@pytest.mark.parametrize("kind", ["dis", "farneback"])
@pytest.mark.parametrize("shape", [(30, 40), (12, 90), (96, 128)])
def test_batches_of_any_size_measure_the_same_to_the_bit(kind, shape):
    shots = [texture(*shape, seed) for seed in range(7)]
    meter = MotionMeter(kind)
    expected = [meter.next(shot) for shot in shots]
    for size in (2, 3, 7):
        meter = MotionMeter(kind)
        batches = [meter.measure(shots[begin : begin + size]) for begin in range(0, len(shots), size)]
        assert list(chain(*batches)) == expected


def test_the_mean_length_is_that_of_the_flow_of_opencv():
    before, after = texture(30, 40), texture(30, 40, seed=1)
    meter = MotionMeter("farneback")
    flow_HW2 = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    assert meter.measure([before, after])[1] == pytest.approx(np.hypot(*flow_HW2.T).mean(), rel=1e-6)
