"""Farnebäck's flow as a torch program, against OpenCV's."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from wm.torch_flow import compute_flow, count_levels, make_moving_texture, measure_motion
from wm.video.farneback import opencv_flow


def opencv_motion(before, after):
    """Smaller frames are padded to 16 px, and cut again."""
    height, width = before.shape
    padding = ((0, max(0, 16 - height)), (0, max(0, 16 - width)))
    flow = opencv_flow(*(np.pad(frame, padding, mode="edge") for frame in (before, after)))
    return np.linalg.norm(flow[:height, :width].astype(np.float64), axis=2).mean()


@pytest.mark.parametrize("size", [(258, 301), (131, 257), (64, 64), (63, 65), (33, 250), (16, 17)])
def test_each_pixel_s_flow_is_opencv_s(size):
    frames = make_moving_texture(*size, 2)
    flow = compute_flow(torch.from_numpy(frames)).numpy()
    expected = np.stack([opencv_flow(*pair).transpose(2, 0, 1) for pair in pairwise(frames)])
    assert flow.shape == (1, 2, *size)
    assert np.abs(expected).max() > 1
    assert np.abs(flow - expected).max() < 1e-4
    assert np.abs(flow - expected).mean() < 5e-5


@pytest.mark.parametrize("size", [(130, 97), (15, 40), (5, 9), (1, 1)])
def test_motion_is_that_of_the_cpu_way(size):
    frames = make_moving_texture(*size, 4)
    expected = [opencv_motion(*pair) for pair in pairwise(frames)]
    assert measure_motion(torch.from_numpy(frames)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_frames_that_rest_or_are_flat_do_not_move():
    flat = compute_flow(torch.full((2, 48, 80), 200, dtype=torch.uint8))
    assert flat.abs().max() < 1e-9
    # The last row and column count as moved out of the frame, as in OpenCV.
    rest = compute_flow(torch.from_numpy(np.repeat(make_moving_texture(96, 160, 1), 2, axis=0)))
    assert not rest[:, :, 10:30, 10:60].any()


def test_noise_and_a_flow_out_of_the_frame_agree_too():
    frames = np.random.default_rng(3).integers(0, 256, (3, 70, 90), dtype=np.uint8)
    frames[2] = np.roll(frames[1], 30, axis=1)
    expected = [opencv_motion(*pair) for pair in pairwise(frames)]
    assert measure_motion(torch.from_numpy(frames)) == pytest.approx(expected, rel=1e-5)


def test_a_frame_s_motion_does_not_depend_on_its_batch():
    frames = torch.from_numpy(make_moving_texture(96, 130, 5))
    together = measure_motion(frames)
    alone = [measure_motion(frames[index : index + 2]).item() for index in range(4)]
    assert together == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize(("size", "levels"), [((256, 256), 3), ((255, 400), 2), ((64, 64), 1), ((63, 900), 0)])
def test_levels_keep_32_px_a_side(size, levels):
    assert count_levels(*size) == levels
