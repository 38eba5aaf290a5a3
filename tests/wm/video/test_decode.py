"""Frames, times and faults, against videos whose every frame says which one it is."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.video.decode import Tally, frames
from wm.video.errors import VideoError
from wm.video.fetch import fetch_decord, fetch_pyav, same_frame
from wm.video.luma import luma_plane, small_size
from wm.video.scan import scan_video
from wm.video.walk import thumbnail

COUNT = 60


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "plain.mp4", [marked_frame(i) for i in range(COUNT)])


def all_frames(path):
    return [(raw.index, raw.time_s, raw.rgb(), raw.luma(160)) for raw in frames(path)]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.mkv", {"pix_fmt": "yuv444p"}),
        ("deep.mkv", {"pix_fmt": "yuv420p10le"}),
        ("full.mkv", {"full_range": True}),
        ("rgb.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
    ],
)
def test_every_frame_once_in_order_with_its_brightness(tmp_path, name, how):
    frame_numbers = [marked_frame(i) for i in range(40)]
    actual = all_frames(write_video(tmp_path / name, frame_numbers, **how))
    assert [index for index, *_ in actual] == list(range(40))
    assert [read_mark(rgb) for _, _, rgb, _ in actual] == list(range(40))
    assert [time for _, time, *_ in actual] == pytest.approx([i / 25 for i in range(40)], abs=1e-6)
    weights = np.array([0.299, 0.587, 0.114])
    for pixels, (_, _, _, luma) in zip(frame_numbers, actual, strict=True):
        assert np.abs(luma - pixels @ weights).mean() < 4  # range widened: 16 levels off without


def test_times_are_the_file_s_at_a_varying_rate_and_late_start(tmp_path):
    pts = [50, 51, 55, 56, 70, 71]
    path = write_video(tmp_path / "late.mkv", [marked_frame(i) for i in range(6)], pts=pts)
    assert [time for _, time, *_ in all_frames(path)] == pytest.approx([p / 25 for p in pts], abs=2e-3)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_metadata_is_applied_to_both_readers(tmp_path, degrees):
    upright = [marked_frame(i) for i in range(12)]
    lying = [np.ascontiguousarray(np.rot90(pixels, -degrees // 90)) for pixels in upright]
    path = write_video(tmp_path / "turned.mp4", lying, rotation=degrees)
    for index, _, rgb, luma in all_frames(path):
        assert rgb.shape == upright[0].shape
        assert luma.shape == rgb.shape[:2]
        assert read_mark(rgb) == index
        assert rgb[2, 2].mean() > 200
    scan = scan_video(path, min_interval_frames=3)
    by_pyav, by_decord = fetch_pyav(path, scan), fetch_decord(path, scan)
    assert [read_mark(rgb) for rgb in by_pyav] == scan.keyframes
    assert [read_mark(rgb) for rgb in by_decord] == scan.keyframes


@pytest.mark.parametrize("side", [160, 40])
def test_chosen_frames_are_the_right_ones_by_both_readers(clip, side):
    scan = scan_video(clip, min_interval_frames=5, rule="greedy_spacing", motion_side_px=side)
    assert len(scan.keyframes) == 6
    for images in (fetch_decord(clip, scan), fetch_pyav(clip, scan)):
        assert [read_mark(rgb) for rgb in images] == scan.keyframes
        assert all(rgb.shape == (48, 64, 3) and rgb.dtype == np.uint8 for rgb in images)


def test_another_frame_is_distinguished_from_the_key_frame(clip):
    scan = scan_video(clip, min_interval_frames=5)
    lumas = [thumbnail(raw.luma(160)) for raw in frames(clip)]
    frame = scan.keyframes[1]
    for other, thumb in enumerate(lumas):
        assert same_frame(thumb, scan.checks[frame]) == (other == frame)
    moved_on = [*scan.keyframes[1:], scan.keyframes[0]]
    shifted = {frame: scan.checks[other] for frame, other in zip(scan.keyframes, moved_on, strict=True)}
    for fetch in (
        lambda: fetch_decord(clip, replace(scan, checks=shifted)),
        lambda: fetch_pyav(clip, replace(scan, checks=shifted)),
        lambda: fetch_decord(clip, replace(scan, num_frames=scan.num_frames + 1)),
    ):
        with pytest.raises(VideoError, match="frame_mismatch"):
            fetch()


def test_a_constant_offset_of_colour_conversion_is_no_difference():
    check = np.stack([np.full((4, 4), 100, np.uint8), np.full((4, 4), 130, np.uint8)])
    assert same_frame(np.full((4, 4), 101, np.uint8), check)
    assert not same_frame(np.full((4, 4), 128, np.uint8), check)
    assert not same_frame(np.full((4, 5), 100, np.uint8), check)


def test_a_hole_costs_frames_and_not_the_video(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 600] = bytes(600)
    (tmp_path / "hole.mp4").write_bytes(data)
    tally = Tally()
    actual = list(frames(tmp_path / "hole.mp4", tally))
    assert tally.errors >= 1
    assert COUNT // 2 < len(actual) < COUNT
    assert scan_video(tmp_path / "hole.mp4").errors == tally.errors


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


FAULTS = ["missing_file", "not_a_file", "empty_file", "not_a_video", "no_video_stream"]


@pytest.mark.parametrize("reason", [*FAULTS, "one_frame", "no_frames", "decode_error"])
def test_each_fault_has_its_reason_and_names_the_file(tmp_path, clip, reason):
    path = tmp_path / "x.mp4"
    if reason == "not_a_file":
        path.mkdir()
    elif reason == "empty_file":
        path.touch()
    elif reason == "not_a_video":
        path.write_bytes(b"no video at all " * 99)
    elif reason == "no_video_stream":
        write_sound(path)
    elif reason == "one_frame":
        write_video(path, [marked_frame(0)])
    elif reason == "no_frames":
        data = write_video(tmp_path / "x.avi", [marked_frame(0)] * 3, codec="mpeg4").read_bytes()
        path.write_bytes(data[: data.index(b"movi") + 4])
    elif reason == "decode_error":
        data = bytearray(clip.read_bytes())
        start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
        data[start:stop] = bytes(stop - start)
        path.write_bytes(data)
    with pytest.raises(VideoError, match=str(path)) as caught:
        scan_video(path)
    assert caught.value.reason == reason


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(VideoError, match="unreadable"):
        scan_video(path)


def test_files_are_closed(clip):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        next(frames(clip))
        scan_video(clip)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_the_luma_of_a_frame_that_is_stored_from_the_bottom_up():
    frame = av.VideoFrame.from_ndarray(marked_frame(5), format="rgb24").reformat(format="yuv420p")
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    graph.link_nodes(source, graph.add("vflip"), graph.add("buffersink")).configure()
    graph.push(frame)
    flipped = graph.pull()
    assert flipped.planes[0].line_size < 0
    assert np.array_equal(luma_plane(flipped)[0], luma_plane(frame)[0][::-1])


def test_sizes_never_grow():
    assert small_size(480, 640, 160) == (120, 160)
    assert small_size(48, 64, 160) == (48, 64)
    assert small_size(1, 5000, 160) == (1, 5000)
    assert small_size(255, 341, 40) == (31, 42)


def test_motion_is_in_pixels_of_the_full_frame(tmp_path):
    rng = np.random.default_rng(0)
    import cv2

    wide = cv2.GaussianBlur(rng.integers(0, 256, (240, 480)).astype(np.uint8), (0, 0), 4)
    wide = cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX)
    shots = [np.repeat(wide[:, 4 * i : 4 * i + 320, None], 3, axis=2) for i in range(6)]
    path = write_video(tmp_path / "pan.mp4", shots)
    for side in (320, 160):
        scan = scan_video(path, motion_side_px=side)
        assert scan.motion[0] == 0
        assert scan.motion[1:] == pytest.approx([4] * 5, rel=0.15)
        assert scan.size_px == (240, 320)
        assert scan.duration_s == pytest.approx(6 / 25)
