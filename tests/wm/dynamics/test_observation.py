"""Observations: equality, codes and pixels on demand, and how much of a source is unchanged."""

import numpy as np
import pytest

from wm.dynamics import Observation, codes_of, observe_codes, pixels_of
from wm.dynamics.observation import unchanged_share
from wm.errors import InputError
from wm.images import fit_square
from wm.models import load_codec


@pytest.fixture(scope="module")
def codec(tiny_base):
    return load_codec(tiny_base)


def noise(height_px: int, width_px: int, seed: int = 0):
    return np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)


def test_equal_observations_have_one_origin(codec):
    codes = [1, 2, 3, 4]
    assert Observation.from_codes(codes, codec) == Observation.from_codes(np.array(codes), codec.codec_id)
    assert Observation.from_codes(codes, "a") != Observation.from_codes(codes, "b")
    first, equal, other = (Observation.from_pixels(noise(4, 6, seed)) for seed in (0, 0, 1))
    assert first == equal != other and len({first, equal, other}) == 2
    # Asking for the other form changes nothing.
    before = hash(first)
    codes_of([first], codec)
    assert hash(first) == before and first == equal and first.is_of_pixels
    with pytest.raises(InputError, match="made of pixels"):
        _ = first.codes


def test_codes_of_pixels_are_the_codecs(codec, monkeypatch):
    images = [noise(16, 16), noise(20, 30, 1), noise(16, 16)]
    observations = [Observation.from_pixels(image) for image in images]
    expected = codec.encode(np.stack([fit_square(image, codec.side_px) for image in images])).tolist()
    counts = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda pixels_BHWC: counts.append(len(pixels_BHWC)) or encode(pixels_BHWC))
    assert [list(codes) for codes in codes_of(observations, codec)] == expected
    assert [list(codes) for codes in codes_of(observations, codec)] == expected
    # Equal images are encoded once, and never again.
    assert counts == [2]


def test_pixels_of_codes_are_decoded_once(codec, monkeypatch):
    rows = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]]
    expected = codec.decode(np.array(rows))
    counts = []
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda codes_BN: counts.append(len(codes_BN)) or decode(codes_BN))
    observations = observe_codes(rows, codec)
    assert np.array_equal(pixels_of(observations), expected)
    assert np.array_equal(pixels_of(observations), expected)
    assert counts == [2]
    # Codes of this codec need neither.
    assert codes_of(observations, codec) == [tuple(row) for row in rows]
    with pytest.raises(InputError, match="images are codes of codec other, which is not at hand"):
        pixels_of([Observation.from_codes([1], "other")])


def test_equal_objects_share_what_one_of_them_has(codec):
    """As two requests with one image, of which one was encoded or decoded before."""
    first, second = (Observation.from_pixels(noise(16, 16)) for _ in range(2))
    expected = codes_of([first], codec)[0]
    assert codes_of([first, second], codec) == codes_of([second], codec) * 2 == [expected] * 2
    first, second = (Observation.from_codes([1, 2, 3, 4], codec) for _ in range(2))
    image = pixels_of([first])[0]
    assert all(np.array_equal(pixels, image) for pixels in pixels_of([first, second]))
    # One of them knows the codec by its name alone.
    named, known = (Observation.from_codes([1, 2, 3, 4], of) for of in (codec.codec_id, codec))
    assert np.array_equal(pixels_of([named, known])[0], image)


def test_order_and_batch_change_nothing(codec):
    images = [noise(16, 16, seed) for seed in range(40)]
    together = codes_of([Observation.from_pixels(image) for image in images], codec)
    alone = [codes_of([Observation.from_pixels(image)], codec)[0] for image in reversed(images)]
    assert together == alone[::-1]


def test_unchanged_share_of_codes_counts_tokens(codec):
    source = Observation.from_codes([1, 2, 3, 4], codec)
    assert unchanged_share(source, Observation.from_codes([1, 2, 3, 5], codec)) == 0.75
    # A source of pixels that was encoded counts tokens too.
    encoded = Observation.from_pixels(noise(16, 16))
    codes = list(codes_of([encoded], codec)[0])
    assert unchanged_share(encoded, Observation.from_codes(codes, codec)) == 1.0


@pytest.mark.parametrize(("height_px", "width_px"), [(48, 64), (40, 50)])
def test_unchanged_share_of_pixels_counts_blocks(height_px, width_px):
    """Against a loop over blocks of 16 pixels, those at the edges being smaller."""
    source_HWC = noise(height_px, width_px)
    target_HWC = source_HWC.copy()
    target_HWC[20:30, 5:40] = 255 - target_HWC[20:30, 5:40]
    target_HWC[:3] = np.clip(target_HWC[:3].astype(int) + 3, 0, 255)
    blocks = [
        np.abs(source_HWC[y : y + 16, x : x + 16].astype(int) - target_HWC[y : y + 16, x : x + 16]).mean() <= 4
        for y in range(0, height_px, 16)
        for x in range(0, width_px, 16)
    ]
    share = unchanged_share(Observation.from_pixels(source_HWC), Observation.from_pixels(target_HWC))
    assert share == pytest.approx(np.mean(blocks)) and 0 < share < 1
    assert unchanged_share(Observation.from_pixels(source_HWC), Observation.from_pixels(source_HWC)) == 1.0


def test_sizes_are_compared_at_the_candidates_size():
    flat = np.full((64, 64, 3), 90, np.uint8)
    assert unchanged_share(Observation.from_pixels(flat), Observation.from_pixels(flat[:32, :32].copy())) == 1.0


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(InputError, match=r"expected uint8 pixels \(H, W, 3\)"):
        Observation.from_pixels(image)
