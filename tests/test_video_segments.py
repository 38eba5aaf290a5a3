"""Segments by time: the frames that a walk from the beginning gives, wherever seeking lands."""

import numpy as np
import pytest
from video_files import marked_frame, read_mark, write_video

from wm.video import ClipReader, ClipSettings, VideoError, scan_video
from wm.video import decode as decode_module
from wm.video.decode import frames
from wm.video.fetch import fetch_decord, fetch_pyav

COUNT = 100
SEGMENTS = [(0.0, 1.0), (0.5, 2.0), (1.96, 2.04), (1.97, 3.0), (3.2, None), (None, 0.4), (-5.0, 0.2), (3.96, 50.0)]


def wanted(times, start_s, end_s):
    low, high = -np.inf if start_s is None else start_s, np.inf if end_s is None else end_s
    return [index for index, time_s in enumerate(times) if low <= time_s < high]


@pytest.fixture(
    scope="module",
    params=["a.mp4", "a.avi", "b-frames.avi", "a.mkv", "a.ts", "late.mkv", "varying.mkv", "open-gop.mp4"],
)
def clip(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / request.param
    how = {"codec": "mpeg4"} if path.suffix == ".avi" else {}
    if path.stem == "b-frames":
        how["options"] = {"bf": "2"}
    if path.stem == "late":
        how = {"pts": [50 + index for index in range(COUNT)]}
    if path.stem == "varying":
        how = {"pts": [index + (index // 7) * 5 for index in range(COUNT)]}
    if path.stem == "open-gop":
        how = {"options": {"x264-params": "open-gop=1:bframes=3", "crf": "8"}}
    return write_video(path, [marked_frame(index) for index in range(COUNT)], **how)


@pytest.mark.parametrize(("start_s", "end_s"), SEGMENTS)
def test_a_segment_has_the_frames_of_its_times(clip, start_s, end_s):
    whole = [(raw.time_s, read_mark(raw.rgb())) for raw in frames(clip)]
    assert [mark for _, mark in whole] == list(range(COUNT))
    assert [time_s for time_s, _ in whole] == sorted({time_s for time_s, _ in whole})
    shift = whole[0][0]
    start_s = None if start_s is None else start_s + shift
    end_s = None if end_s is None else end_s + shift
    found = [(raw.time_s, read_mark(raw.rgb())) for raw in frames(clip, start_s=start_s, end_s=end_s)]
    assert found == [whole[index] for index in wanted([time_s for time_s, _ in whole], start_s, end_s)]
    assert [raw.index for raw in frames(clip, start_s=start_s, end_s=end_s)] == list(range(len(found)))


def test_both_readers_fetch_a_segment_s_key_frames(clip):
    shift = next(iter(frames(clip))).time_s
    scan = scan_video(clip, start_s=1.0 + shift, end_s=3.0 + shift, min_interval=5, rule="greedy_spacing")
    marks = [read_mark(raw.rgb()) for raw in frames(clip, start_s=scan.start_s, end_s=scan.end_s)]
    chosen = [marks[frame] for frame in scan.keyframes]
    assert len(chosen) >= 3
    assert [read_mark(image) for image in fetch_pyav(clip, scan)] == chosen
    try:
        assert [read_mark(image) for image in fetch_decord(clip, scan)] == chosen
    except VideoError as error:  # where decord seeks wrong, or keeps other times
        assert clip.name in ("a.ts", "b-frames.avi"), error
    assert (scan.times_s[0] >= scan.start_s).all() and (scan.times_s < scan.end_s).all()


def test_the_reader_of_clips_reads_segments(clip):
    shift = next(iter(frames(clip))).time_s
    one = ClipReader(ClipSettings(min_interval=5))
    whole, part = one.read(clip), one.read(clip, 1.0 + shift, 2.0 + shift)
    one.close()
    assert part.scan.num_frames < whole.scan.num_frames == COUNT
    assert part.images_png and part.reader == "pyav"


@pytest.mark.parametrize("late", [True, False])
def test_a_seek_that_lands_late_or_fails_is_made_up_by_walking(tmp_path, monkeypatch, late):
    path = write_video(tmp_path / "a.mp4", [marked_frame(index) for index in range(COUNT)])

    class Wrong:
        """A container whose seeking is of no use."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def seek(self, offset, *, stream):
            if not late:
                raise decode_module.av.error.PermissionError(1, "no seeking here")
            self.inner.seek(offset + int(2 / stream.time_base), stream=stream)

    opened = decode_module.av.open
    monkeypatch.setattr(decode_module.av, "open", lambda name: Wrong(opened(name)))
    found = [read_mark(raw.rgb()) for raw in frames(path, start_s=1.0, end_s=1.2)]
    assert found == [25, 26, 27, 28, 29]


@pytest.mark.parametrize(
    ("start_s", "end_s", "told"),
    [
        (100.0, None, r"no frame from 100 s to inf s; the last is at 3\.960 s"),
        (1.0, 1.0, "the segment from 1.0 s to 1.0 s is empty"),
        (2.0, float("nan"), "is empty"),
        (0.201, 0.239, r"no frame from 0\.201 s to 0\.239 s; there is one at 0\.240 s"),
        (None, -1.0, r"there is one at 0\.000 s"),
    ],
)
def test_a_segment_without_frames_says_why(tmp_path, start_s, end_s, told):
    path = write_video(tmp_path / "a.mp4", [marked_frame(index) for index in range(COUNT)])
    with pytest.raises(VideoError, match=told) as caught:
        scan_video(path, start_s=start_s, end_s=end_s)
    assert caught.value.reason == "no_frames"


def test_one_frame_is_no_pair(tmp_path):
    path = write_video(tmp_path / "a.mp4", [marked_frame(index) for index in range(COUNT)])
    with pytest.raises(VideoError, match="one_frame"):
        scan_video(path, start_s=1.0, end_s=1.03)
