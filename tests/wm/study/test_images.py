"""Images of a study: one view, one size, one encoding, and nothing else in a file."""

import io

import numpy as np
import pytest
from PIL import Image

from wm.images import fit_square
from wm.study.images import ItemImages, encode_plain, fit_images, fit_view, side_px, spoil_image, write_images


def frame(width: int = 48, height: int = 32) -> np.ndarray:
    """Draw a smooth frame whose colours say where a pixel is."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [columns * 255 / (width - 1), rows * 255 / (height - 1), (rows + columns) * 2]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def test_one_square_prediction_crops_all_others():
    source = frame()
    candidates = {"full": source, "square": fit_square(source, 32)}
    images = ItemImages(source, candidates, {"full": "full", "square": "square"})
    fitted_source, fitted = fit_images(images, 32)
    # Whoever compares the three finds no crop.
    assert fitted_source.shape == (32, 32, 3)
    np.testing.assert_array_equal(fitted_source, fit_square(source, 32))
    np.testing.assert_array_equal(fitted["full"], fitted_source)
    np.testing.assert_array_equal(fitted["square"], fitted_source)


def test_full_frames_keep_all_of_the_frame_in_grey_margins():
    source = frame()
    fitted_source, fitted = fit_images(
        ItemImages(source, {"a": source, "b": 255 - source}, dict.fromkeys("ab", "full")), 48
    )
    np.testing.assert_array_equal(fitted_source[8:40], source)
    np.testing.assert_array_equal(fitted["b"][8:40], 255 - source)
    for pixels in (fitted_source, *fitted.values()):
        assert (pixels[:8] == 128).all() and (pixels[40:] == 128).all()
    tall = fit_view(np.ascontiguousarray(source.transpose(1, 0, 2)), 48, is_square=False)
    np.testing.assert_array_equal(tall, fitted_source.transpose(1, 0, 2))


@pytest.mark.parametrize("view", ["full", "square"])
def test_a_squeezed_frame_is_stretched_to_the_source(view):
    source = frame()
    squeezed = np.asarray(Image.fromarray(source).resize((48, 48), Image.Resampling.LANCZOS))
    images = ItemImages(
        source, {"squeezed": squeezed, "other": fit_square(source, 32)}, {"squeezed": "full", "other": view}
    )
    fitted_source, fitted = fit_images(images, 32)
    difference = np.abs(fitted["squeezed"].astype(int) - fitted_source.astype(int))
    assert difference.mean() < 2 < np.abs(fit_square(squeezed, 32).astype(int) - fit_square(source, 32)).mean()


def test_the_side_at_which_nothing_is_enlarged():
    assert side_px(48, 32, is_square=True) == 32
    assert side_px(48, 32, is_square=False) == side_px(32, 48, is_square=False) == 48


def test_a_file_is_pixels_and_its_size_says_nothing():
    rng = np.random.default_rng(0)
    images = [np.zeros((40, 40, 3), np.uint8), rng.integers(0, 256, (40, 40, 3), np.uint8), frame(40, 40)]
    files = [encode_plain(pixels) for pixels in images]
    assert len({len(data) for data in files}) == 1
    for pixels, data in zip(images, files, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        names, at = set(), 8
        while at < len(data):
            length = int.from_bytes(data[at : at + 4], "big")
            names.add(data[at + 4 : at + 8])
            at += 12 + length
        assert names == {b"IHDR", b"IDAT", b"IEND"}


def test_times_are_one_and_finished_files_stay(tmp_path):
    first = {"b.png": frame(8, 8), "a.png": frame(8, 8)}
    write_images(tmp_path / "images", first)
    write_images(tmp_path / "images", {"a.png": 255 - frame(8, 8), "c.png": frame(8, 8)})
    files = sorted((tmp_path / "images").iterdir())
    assert [file.name for file in files] == ["a.png", "b.png", "c.png"]
    assert {file.read_bytes() for file in files} == {encode_plain(frame(8, 8))}
    assert {file.stat().st_mtime for file in files} == {946_684_800}


def test_spoilt_pixels_are_the_image_s_own():
    pixels = frame()
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(spoil_image(pixels, 0.0, rng), pixels)
    noise = spoil_image(pixels, 1.0, rng)
    assert sorted(map(tuple, noise.reshape(-1, 3))) == sorted(map(tuple, pixels.reshape(-1, 3)))
    assert (noise != pixels).any(axis=-1).mean() > 0.95
    share = (spoil_image(pixels, 0.3, rng) != pixels).any(axis=-1).mean()
    assert 0.25 < share < 0.35
