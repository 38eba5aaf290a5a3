"""Frame by frame against what ffmpeg itself puts out: number, times, brightness and colour."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.video_files import marked_frame, write_video
from wm.video import ClipReader, ClipSettings, VideoError, scan_video
from wm.video.decode import frames
from wm.video.fetch import fetch_pyav
from wm.video.luma import shrink

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

SIDE_PX = 40
MEAN_LEVELS, WORST_LEVELS = 1.5, 8
"""Grey levels of 255 that two conversions may differ: on average over a frame, and the 99th percentile. Of the
brightness it is rounding; of colour, taken at a quarter of the size, also how chroma is scaled up."""


def ffmpeg_frames(path, kind):
    """(pictures, times in s) as ffmpeg gives them: every frame once, upright. ``kind``: gray, the luma plane with the
    range it has in the file, or rgb24, in square pixels."""
    plane = ",extractplanes=y" if kind == "gray" else ""
    square = "" if kind == "gray" else "scale=iw*sar:ih,"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-copyts", "-i", str(path), "-map", "0:v:0"]
    command += ["-vf", square + "showinfo" + plane, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", kind, "-"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    lines = [line for line in done.stderr.decode(errors="replace").splitlines() if "showinfo" in line]
    times = [float(found[1]) for line in lines if (found := re.search(r"pts_time:(\S+)", line))]
    sizes = [(int(f[2]), int(f[1])) for line in lines if (f := re.search(r" s:(\d+)x(\d+)", line))]
    assert len(set(sizes)) == 1, sizes
    shape = (*sizes[0], 3) if kind == "rgb24" else sizes[0]
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape)
    assert len(pictures) == len(times)
    return pictures, times


NOISY_COLOUR = ("h264_10bits.mp4", "h265_10bits.mp4")
"""A fractal whose colour changes with every pixel: how chroma is scaled up is all one sees."""


def check_against_ffmpeg(path):
    """Every frame: its time, its brightness as motion sees it, its colour. Returns how many there are."""
    looser = 8 if path.name in NOISY_COLOUR else 1
    planes, times = ffmpeg_frames(path, "gray")
    colour, _ = ffmpeg_frames(path, "rgb24")
    found = 0
    for raw, plane, rgb in zip(frames(path), planes, colour, strict=True):
        assert raw.time_s == pytest.approx(times[found], abs=1e-4)
        small = shrink(np.ascontiguousarray(plane), SIDE_PX)
        full_range = raw.frame.color_range == 2
        widened = small if full_range else np.clip((small - 16.0) * (255 / 219), 0, 255)
        assert_close(raw.luma(SIDE_PX), widened, (found, "luma"))
        assert raw.rgb().shape == rgb.shape
        for channel in range(3):
            one, other = (np.ascontiguousarray(image[..., channel]) for image in (raw.rgb(), rgb))
            side = max(one.shape) // 4
            assert_close(shrink(one, side), shrink(other, side), (found, "colour", channel), looser)
        found += 1
    return found


def assert_close(one, other, where, looser=1):
    assert one.shape == other.shape, where
    difference = np.abs(one.astype(float) - other)
    assert difference.mean() < looser * MEAN_LEVELS, (where, difference.mean())
    assert np.quantile(difference, 0.99) <= looser * WORST_LEVELS, (where, np.quantile(difference, 0.99))


def picture(index, height=144, width=176):
    """A marked frame with a shade that moves."""
    shade = np.linspace(-30, 30, width)[None, :, None] + np.linspace(-20, 20, height)[:, None, None]
    return np.clip(marked_frame(index, height, width) + np.roll(shade, 3 * index, axis=1), 0, 255).astype(np.uint8)


CASES = {
    "plain.mp4": {},
    "turned.mp4": {"rotation": 90},
    "upside_down.mp4": {"rotation": 180},
    "turned_back.mov": {"rotation": -90},
    "varying.mkv": {"pts": [index + (index // 5) * 4 for index in range(24)]},
    "late.mkv": {"pts": [90 + index for index in range(24)]},
    "deep.mkv": {"pix_fmt": "yuv420p10le"},
    "deep_hevc.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    "wide_range.mkv": {"full_range": True},
    "chroma.mkv": {"pix_fmt": "yuv444p"},
    "xvid.avi": {"codec": "mpeg4"},
    "old.mpg": {"codec": "mpeg2video", "options": {"b": "3M"}},
    "stream.ts": {},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3", "crf": "10"}},
}


@pytest.mark.parametrize("name", CASES)
def test_written_clips(tmp_path, name):
    path = write_video(tmp_path / name, [picture(index) for index in range(24)], **CASES[name])
    assert check_against_ffmpeg(path) == 24


@pytest.mark.parametrize("size", [(71, 99), (33, 41), (145, 179)])
def test_odd_sizes(tmp_path, size):
    shots = [picture(index, *size) for index in range(10)]
    assert check_against_ffmpeg(write_video(tmp_path / "odd.mkv", shots, pix_fmt="yuv444p")) == 10


def test_a_cut_by_copying_leaves_what_its_edit_list_leaves(tmp_path):
    path = write_video(tmp_path / "whole.mp4", [picture(index) for index in range(60)], gop=25)
    cut = tmp_path / "cut.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "0.6", "-i", str(path), "-t", "1"]
    subprocess.run([*command, "-c", "copy", str(cut)], check=True, timeout=60)
    assert check_against_ffmpeg(cut) == len(ffmpeg_frames(cut, "gray")[1]) < 60
    scan = scan_video(cut, min_interval_frames=4)
    whole = {raw.index: raw.rgb() for raw in frames(cut)}
    for image, frame in zip(fetch_pyav(cut, scan), scan.keyframes, strict=True):
        assert np.array_equal(image, whole[frame])


REAL = [
    *[
        "arm_wrestling.mp4",
        "bikes.mp4",
        "carphone.mp4",
        "flipping_a_pancake.mkv",
        "mmaction_test.avi",
        "v_GGSY1Qvo990.mp4",
    ],
    *["h264_10bits.mp4", "h265_10bits.mp4", "h265_video.mp4", "nasa_13013_rotated.mp4", "rotated_90.mov"],
    *["test_non_zero_start.mp4", "testsrc2_mpeg4.avi", "testsrc2_odd_height_vp9.mp4", "av1_video.mkv"],
    *["decord_hang_25.mp4", "decord_hang_110.mp4", "unordered.mov", "discard_first_keyframe.mp4", "nasa_13013.mp4"],
]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_clips(shared_data, name):
    folder = shared_data / "videos"
    check_against_ffmpeg(next(path for path in (folder / "clips" / name, folder / "odd" / name) if path.exists()))


ODD = {
    "x_audio_only.mp4": "no_video_stream",
    "x_empty.mp4": "empty_file",
    "x_zero_frames.mp4": ("no_frames", "no_video_stream", "decode_error", "not_a_video"),
    "x_trunc60_faststart.mp4": 167,
    "x_hole.mp4": 278,
    "corrupted.mp4": 49,
}
"""What becomes of files that are not whole: the reason, or how many frames are good."""


@pytest.mark.slow
def test_every_odd_file_ends_in_right_frames_or_a_reason(shared_data):
    one = ClipReader(ClipSettings(min_interval_frames=3, time_limit_s=60))
    seen = {}
    for path in sorted((shared_data / "videos" / "odd").iterdir()):
        try:
            found = one.read(path)
        except VideoError as error:
            seen[path.name] = error.reason
            continue
        seen[path.name] = found.scan.num_frames
        by_index = {raw.index: raw.rgb() for raw in frames(path) if raw.index in found.scan.keyframes}
        assert len(found.images_png) in (0, len(found.scan.keyframes))
        assert set(by_index) == set(found.scan.keyframes), path.name
    one.close()
    for name, wanted in ODD.items():
        assert seen[name] in wanted if isinstance(wanted, tuple) else seen[name] == wanted, (name, seen[name])
    whole = [name for name in seen if name not in ODD]
    assert all(isinstance(seen[name], int) for name in whole), seen


def test_a_directory_and_a_dangling_link_have_reasons(tmp_path):
    (tmp_path / "x.mp4").mkdir()
    (tmp_path / "y.mp4").symlink_to(tmp_path / "nothing.mp4")
    for name, reason in (("x.mp4", "not_a_file"), ("y.mp4", "missing_file")):
        with pytest.raises(VideoError) as caught:
            scan_video(Path(tmp_path / name))
        assert caught.value.reason == reason
