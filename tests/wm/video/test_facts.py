"""Brightness, sharpness, hash and cuts against direct formulas, and against images whose answer is known."""

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.video.facts import cut_scores, frame_facts, pair_difference, perceptual_hash


def scene(seed, height=120, width=160):
    """A smooth image with some things in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def bits(a, b):
    return (a ^ b).bit_count()


def test_flat_images_have_brightness_no_sharpness_and_one_hash():
    black, grey = (frame_facts(np.full((50, 70, 3), value, np.uint8)) for value in (0, 90))
    assert (black.luma, grey.luma) == (0.0, 90.0)
    assert black.sharpness == grey.sharpness == 0.0
    assert pair_difference(black, grey) == 90.0
    assert black.phash == 0  # no frequency stands out
    assert bits(black.phash, grey.phash) <= 1  # brightness alone is one coefficient


def test_sharpness_is_the_variance_of_the_laplacian_at_one_size():
    picture = scene(1, 256, 300)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(float)
    padded = np.pad(grey, 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    assert frame_facts(picture).sharpness == pytest.approx(laplacian.var(), rel=1e-9)
    noise = np.random.default_rng(0).integers(0, 256, (256, 300, 3), dtype=np.uint8)
    blurred = cv2.GaussianBlur(noise, (0, 0), 4)
    assert frame_facts(noise).sharpness > 100 * frame_facts(blurred).sharpness
    large = cv2.resize(picture, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    assert frame_facts(large).sharpness == pytest.approx(frame_facts(picture).sharpness, rel=0.3)


def test_the_hash_follows_the_definition():
    grey = cv2.cvtColor(scene(2, 32, 32), cv2.COLOR_RGB2GRAY)
    frequency, position = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    basis = np.sqrt(2 / 32) * np.cos(np.pi * (2 * position + 1) * frequency / 64)
    basis[0] /= np.sqrt(2)
    low = (basis @ grey.astype(float) @ basis.T)[:8, :8].ravel()
    expected = 0
    for value in low:
        expected = expected << 1 | int(value > np.median(low))
    assert perceptual_hash(grey) == expected
    assert 0 <= perceptual_hash(grey) < 2**64


@pytest.mark.parametrize("seed", range(8))
def test_the_hash_forgives_noise_and_size_but_not_another_scene(seed):
    picture = scene(seed)
    noisy = np.clip(picture + np.random.default_rng(seed).normal(0, 4, picture.shape), 0, 255).astype(np.uint8)
    smaller = cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    ours = frame_facts(picture).phash
    assert bits(ours, frame_facts(noisy).phash) <= 4
    assert bits(ours, frame_facts(smaller).phash) <= 4
    assert bits(ours, frame_facts(scene(seed + 100)).phash) > 12


def brute_cuts(thumbs, window=2, least=12.0):
    steps = [float(np.abs(b.astype(int) - a).mean()) for a, b in itertools.pairwise(thumbs)]
    scores = [0.0]
    for at, step in enumerate(steps):
        around = steps[max(0, at - window) : at] + steps[at + 1 : at + 1 + window]
        mean = sum(around) / len(around) if around else 0.0
        scores.append(step / max(mean, 1.0) if step >= least else 0.0)
    return scores if len(thumbs) else []


def scores_of(thumbs_THW):
    """Scores from the thumbnails of all frames, as the scan makes them from its steps."""
    steps = [0.0, *np.abs(np.diff(thumbs_THW.astype(np.int16), axis=0)).mean(axis=(1, 2))]
    return cut_scores(np.asarray(steps, dtype=np.float64))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_cut_scores_equal_the_loop(seed, frames):
    thumbs = np.random.default_rng(seed).integers(0, 256, (frames, 5, 6), dtype=np.uint8)
    assert scores_of(thumbs).tolist() == pytest.approx(brute_cuts(thumbs), rel=1e-5)


def test_a_cut_stands_out_and_a_fast_pan_does_not():
    wide = cv2.cvtColor(scene(3, 48, 400), cv2.COLOR_RGB2GRAY)
    pan = np.stack([wide[:, 12 * t : 12 * t + 64] for t in range(20)])
    other = cv2.cvtColor(scene(4, 48, 400), cv2.COLOR_RGB2GRAY)[:, :64]
    cut = np.concatenate([pan[:10], np.repeat(other[None], 10, axis=0)])
    assert scores_of(pan).max() < 3
    assert (int(scores_of(cut).argmax()), scores_of(cut)[10] > 3) == (10, True)
    assert scores_of(cut[:1]).tolist() == [0.0]
