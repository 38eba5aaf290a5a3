"""Rotated, mirrored and anamorphic videos, against what ffmpeg itself shows of them."""

import gc
import io
import struct
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.annotate_data import decode, recipe
from tests.helpers.video_files import ffmpeg_images, marked_frame, run_ffmpeg, write_video
from wm.images import decode_image
from wm.video import ClipReader, ClipSettings, VideoError, scan_video
from wm.video.decode import frames
from wm.video.ends import segment_ends
from wm.video.fetch import fetch_decord, fetch_pyav, same_frame
from wm.video.geometry import parse_display_matrix, sample_aspect, square_width
from wm.video.walk import thumbnail

pytest.importorskip("imageio_ffmpeg")

SIZE_PX = (96, 128)
"""Both sides are multiples of 64: decord cannot read others once it turns them."""
COUNT = 24
LEVELS = 2.5
"""Grey levels of 255 by which two programs' scaling may differ, on average over a frame."""
LAYINGS = [(degrees, mirrored) for degrees in (0, 90, 180, 270) for mirrored in (False, True)]


def shot(index):
    """A marked frame with a small red square that moves: like none of its mirror images."""
    pixels = marked_frame(index, *SIZE_PX)
    left = 3 * index % (SIZE_PX[1] - 12)
    pixels[52:64, left : left + 12] = (250, 30, 30)
    return pixels


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("stored") / "a.mp4", [shot(index) for index in range(COUNT)])


def lay(source, path, degrees=0, mirrored=False, ratio=""):
    """Copy a video with a display matrix, and a sample aspect ratio in its H.264 stream."""
    if ratio:
        run_ffmpeg("-i", source, "-c", "copy", "-bsf:v", f"h264_metadata=sample_aspect_ratio={ratio}", path)
        source, path = path, path.with_name(f"laid-{path.name}")
    flips = ["-display_hflip:v"] if mirrored else []
    run_ffmpeg("-display_rotation:v", str(degrees), *flips, "-i", source, "-c", "copy", path)
    return path


def assert_same(image, shown):
    assert image.shape == shown.shape
    assert np.abs(image.astype(float) - shown).mean() < LEVELS


def check_readers(path, *, decord=True):
    """Both readers, the motion pass's sizes and the ends of a segment against ffmpeg's square pixels; the scan."""
    shown = ffmpeg_images(path, "scale=iw*sar:ih")
    scan = scan_video(path, min_interval_frames=4, rule="greedy_spacing")
    assert (scan.num_frames, scan.size_px) == (COUNT, shown.shape[1:3])
    assert len(scan.keyframes) >= 3
    for fetch in (fetch_pyav, fetch_decord) if decord else (fetch_pyav,):
        for image, frame in zip(fetch(path, scan), scan.keyframes, strict=True):
            assert_same(image, shown[frame])
    ends = segment_ends(path, None, None, 0)
    for png, number in ((ends.source_png, 0), (ends.target_png, -1)):
        assert_same(decode_image(png, "frame"), shown[number])
    return scan


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_all_eight_orientations(stored, tmp_path, name):
    seen = set()
    for degrees, mirrored in LAYINGS:
        path = lay(stored, tmp_path / name, degrees, mirrored)
        scan = check_readers(path)
        # What the row says is what ffmpeg would have been told to do by hand.
        (laid,) = {orientation.filters for orientation in scan.orientations}
        by_hand = ffmpeg_images(path, laid or "null", "-noautorotate")
        assert np.array_equal(by_hand[:2], ffmpeg_images(path)[:2])
        seen.add(laid)
    assert len(seen) == 8


def test_the_reported_file(shared_data):
    path = shared_data / "cases" / "hflip.mov"
    shown, scan = ffmpeg_images(path), scan_video(path, min_interval_frames=3)
    for fetch in (fetch_pyav, fetch_decord):
        for image, frame in zip(fetch(path, scan), scan.keyframes, strict=True):
            assert_same(image, shown[frame])


@pytest.mark.parametrize("name", ["a.ts", "a.mp4"])
@pytest.mark.parametrize("flip", ["", ":flip=horizontal", ":flip=vertical"])
def test_a_codec_s_own_matrix_holds_until_the_next(stored, tmp_path, name, flip):
    """H.264 has it in a message beside its key-frames."""
    for degrees in (0, 90):
        path = tmp_path / name
        change = f"h264_metadata=display_orientation=insert:rotate={degrees}{flip}"
        run_ffmpeg("-i", stored, "-c", "copy", "-bsf:v", change, path)
        check_readers(path, decord=path.suffix == ".mp4")  # in transport streams decord seeks wrong
        by_segment = [raw.rgb() for raw in frames(path, start_s=frames_time(path, 5), end_s=None)]
        shown = ffmpeg_images(path)[5:]
        for image, wanted in zip(by_segment, shown, strict=True):
            assert_same(image, wanted)


def frames_time(path, index):
    return next(raw.time_s for raw in frames(path) if raw.index == index)


@pytest.mark.parametrize("direction", range(1, 9))
def test_jpeg_frames_lie_as_their_exif_says(tmp_path, direction):
    """Beside its matrix such a frame has side data that PyAV has no name for. Pillow is the other program."""
    exif = Image.Exif()
    exif[0x112] = direction
    buffer = io.BytesIO()
    Image.fromarray(shot(5)).save(buffer, "JPEG", exif=exif, quality=95)
    (tmp_path / "a.mjpeg").write_bytes(buffer.getvalue() * 3)
    from PIL import ImageOps

    wanted = np.asarray(ImageOps.exif_transpose(Image.open(buffer)).convert("RGB"))
    images = [raw.rgb() for raw in frames(tmp_path / "a.mjpeg")]
    assert len(images) == 3
    for image in images:
        assert_same(image, wanted)


def test_exact_motion_sees_upright_square_pixels(stored, tmp_path):
    """The same motion and key-frames as of a video that ffmpeg has laid and scaled beforehand."""
    path = lay(stored, tmp_path / "a.mp4", 90, True, "4/3")
    baked = tmp_path / "baked.mkv"
    run_ffmpeg("-i", path, "-vf", "scale=iw*sar:ih", "-c:v", "ffv1", "-pix_fmt", "yuv420p", baked)
    for motion in ("dis", "farneback"):
        one, other = (scan_video(file, motion=motion, min_interval_frames=6) for file in (path, baked))
        assert one.size_px == other.size_px == (128, 72)
        assert one.motion[one.measured].mean() == pytest.approx(other.motion[other.measured].mean(), rel=0.15)


def test_a_mirrored_frame_is_not_the_frame(stored, tmp_path, monkeypatch):
    scan = scan_video(stored, min_interval_frames=4)
    # A dark room with one small lamp: mirrored it differs by less than two conversions of colour may.
    lamp = np.full((48, 64), 30, np.uint8)
    lamp[20:25, 4:9] = 90
    noise = np.random.default_rng(0).integers(-1, 2, lamp.shape)
    seen = (lamp + noise).astype(np.uint8)
    assert same_frame(seen, lamp[None])
    for laid in (seen[:, ::-1], seen[::-1], seen[::-1, ::-1]):
        assert np.abs(laid.astype(float) - lamp).mean() < 3
        assert not same_frame(laid, lamp[None])
    square = np.ascontiguousarray(lamp[:, :48])
    assert same_frame(square, square[None]) and not same_frame(square.T, square[None])
    # decord's frames, mirrored on their way.
    import decord

    fetched = decord.VideoReader.get_batch

    class Mirrored:
        def __init__(self, batch):
            self.batch = batch

        def asnumpy(self):
            return self.batch.asnumpy()[:, :, ::-1]

    monkeypatch.setattr(decord.VideoReader, "get_batch", lambda *args: Mirrored(fetched(*args)))
    with pytest.raises(VideoError, match="lies in another way"):
        fetch_decord(stored, scan)
    first = scan.keyframes[0]
    mirrored = scan.checks | {first: scan.checks[first][:, :, ::-1]}
    with pytest.raises(VideoError, match="frame_mismatch"):
        fetch_pyav(stored, replace(scan, checks=mirrored))


@pytest.mark.parametrize("degrees", ["30", "-10", "45", "178"])
def test_an_odd_angle_is_refused_by_name(stored, tmp_path, degrees):
    path = lay(stored, tmp_path / "a.mp4", degrees)
    with pytest.raises(VideoError, match=rf"a\.mp4.* turns it by -?{degrees.strip('-')} degrees, expected") as caught:
        scan_video(path)
    assert caught.value.reason == "odd_orientation"


@pytest.mark.parametrize("degrees", ["0.3", "89.7", "-90.4"])
def test_angles_are_rounded_to_degrees_as_by_ffmpeg(stored, tmp_path, degrees):
    check_readers(lay(stored, tmp_path / "a.mp4", degrees))


def test_matrices_by_their_numbers():
    def filters(a, b, c, d):
        return parse_display_matrix(struct.pack("=9i", a, b, 0, c, d, 0, 7, -3, 1 << 30)).filters

    assert filters(65536, 0, 0, 65536) == filters(3, 0, 0, 900) == ""
    assert filters(-65536, 0, 0, 65536) == "hflip"
    assert filters(0, 2, 1, 0) == "transpose=cclock_flip"
    assert filters(0, 0, 0, 0) == filters(65536, 0, 0, 0) == filters(0, 0, 5, 5) == ""  # flat: none, as in ffmpeg


def test_a_matrix_of_zeros_is_none(stored, tmp_path):
    data = bytearray(lay(stored, tmp_path / "a.mp4", 180).read_bytes())
    matrix = struct.pack(">9i", -65536, 0, 0, 0, -65536, 0, 128 << 16, 96 << 16, 1 << 30)
    at = data.index(matrix[:20])
    data[at : at + 36] = bytes(36)
    (tmp_path / "flat.mp4").write_bytes(data)
    check_readers(tmp_path / "flat.mp4")


@pytest.mark.parametrize("ratio", ["16/11", "64/45", "8/9"])
def test_anamorphic_pixels_become_square(stored, tmp_path, ratio):
    for degrees, mirrored in ((0, False), (90, False), (270, True)):
        scan = check_readers(lay(stored, tmp_path / "a.mp4", degrees, mirrored, ratio))
        assert scan.sample_aspect.ratio == Fraction(ratio)


ENCODERS = {
    "a.mpg": ("-c:v", "mpeg2video", "-q:v", "2", "-aspect", "16:9"),
    "a.avi": ("-c:v", "mpeg4", "-q:v", "2", "-vf", "setsar=16/11"),
    "a.mkv": ("-c:v", "ffv1", "-vf", "setsar=8/9"),
    "container.mp4": ("-c", "copy", "-aspect", "2:1"),
    "unknown.mp4": ("-c:v", "libx264", "-crf", "10", "-vf", "setsar=0"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_ratio_of_container_and_codec(stored, tmp_path, name):
    run_ffmpeg("-i", stored, *ENCODERS[name], tmp_path / name)
    scan = check_readers(tmp_path / name, decord=name != "a.mpg")
    assert (scan.sample_aspect.ratio == 1) == (name == "unknown.mp4")


def test_columns_that_the_codec_crops_are_left_out(stored, tmp_path):
    """On the left too, by less than the 32 bytes to which decoders keep their rows aligned."""
    crop = "h264_metadata=crop_left=16:crop_right=8:crop_top=4"
    run_ffmpeg("-i", stored, "-c", "copy", "-bsf:v", crop, tmp_path / "a.mp4")
    for path in (tmp_path / "a.mp4", lay(tmp_path / "a.mp4", tmp_path / "laid.mp4", 90, True)):
        scan = check_readers(path, decord=False)
        assert sorted(scan.size_px) == [92, 104]
        clips = ClipReader(ClipSettings(min_interval_frames=4))
        clip = clips.read(path)
        clips.close()
        assert clip.reader == "pyav" and "frame_mismatch" in clip.fallback


def test_ratios_beyond_bounds_are_left_alone():
    assert str(sample_aspect(Fraction(64, 45))) == "64:45" and str(sample_aspect(None)) == "1:1"
    assert str(sample_aspect(Fraction(65535))) == "65535:1 (not applied)"
    for ratio in (Fraction(65535), Fraction(1, 65535), Fraction(9), Fraction(1, 9)):
        assert sample_aspect(ratio).as_stored == sample_aspect(ratio).transposed == 1
    assert [sample_aspect(Fraction(8)).as_stored, sample_aspect(Fraction(8)).transposed] == [8, Fraction(1, 8)]
    # ffmpeg cuts decimals off, and leaves a width that nothing would be left of.
    assert [square_width(720, Fraction(16, 11)), square_width(3, Fraction(1, 8))] == [1047, 3]


def test_rows_tell_size_orientation_and_ratio(stored, tmp_path):
    (tmp_path / "set").mkdir()
    lay(stored, tmp_path / "set" / "b.mp4", 90, True, "16/11")
    (tmp_path / "set" / "b.mp4").unlink()
    lay(stored, tmp_path / "set" / "tilted.mp4", 30)
    run_ffmpeg(
        "-i", stored, "-c", "copy", "-bsf:v", "h264_metadata=sample_aspect_ratio=1/30", tmp_path / "set" / "c.mp4"
    )
    rows = decode(recipe(tmp_path / "set", "none", tmp_path / "out")).to_pylist()
    by_key = {row["key"]: row for row in rows}
    assert by_key["tilted.mp4"]["reason"] == "odd_orientation"
    laid, absurd = by_key["laid-b.mp4"], by_key["c.mp4"]
    assert (laid["height_px"], laid["width_px"]) == (128, int(96 * 11 / 16))
    assert (laid["orientation"], laid["sample_aspect_ratio"]) == ("transpose=clock_flip", "16:11")
    assert (absurd["height_px"], absurd["width_px"], absurd["orientation"]) == (*SIZE_PX, "")
    assert absurd["sample_aspect_ratio"] == "1:30 (not applied)"
    for png, frame in zip(laid["images"], laid["keyframes"], strict=True):
        shown = ffmpeg_images(tmp_path / "set" / "laid-b.mp4", "scale=iw*sar:ih")[frame]
        assert_same(decode_image(png, "frame"), shown)


@pytest.mark.parametrize("reader", ["auto", "decord", "pyav"])
def test_the_reader_of_clips_lays_frames(stored, tmp_path, reader):
    path = lay(stored, tmp_path / "a.mov", 0, True)
    one = ClipReader(ClipSettings(reader=reader, min_interval_frames=4))
    clip = one.read(path)
    one.close()
    assert clip.reader == ("pyav" if reader == "pyav" else "decord") and clip.fallback == ""
    shown = ffmpeg_images(path)
    for png, frame in zip(clip.images_png, clip.scan.keyframes, strict=True):
        assert_same(decode_image(png, "frame"), shown[frame])


def test_reading_the_matrix_keeps_no_frame_alive(stored, tmp_path):
    """A frame and its list of side data hold each other in PyAV."""
    path = lay(stored, tmp_path / "a.mp4", 180)
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in frames(path)) == COUNT
        alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 2


def test_lumas_lie_as_colours_do(stored, tmp_path):
    for degrees, mirrored in LAYINGS:
        path = lay(stored, tmp_path / "a.mp4", degrees, mirrored)
        raw = next(frames(path))
        luma, colour = raw.luma(40), raw.rgb()
        small = thumbnail(
            np.asarray(Image.fromarray(colour).convert("L").resize(luma.shape[::-1], Image.Resampling.BOX))
        )
        assert np.abs(luma.astype(float) - small).mean() < 4
