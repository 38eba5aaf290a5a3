"""Segments by time: the frames that a walk from the beginning gives, wherever seeking lands; lists that round times."""

import csv
import json
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.datasets.videos.videos import list_videos
from wm.video import ClipReader, ClipSettings, VideoError, scan_video
from wm.video import decode as decode_module
from wm.video.decode import frames
from wm.video.ends import segment_ends
from wm.video.fetch import fetch_decord, fetch_pyav

COUNT = 100
STEP_S = 1 / 25
SEGMENTS = [(0.0, 1.0), (0.5, 2.0), (1.96, 2.04), (1.97, 3.0), (3.2, None), (None, 0.4), (-5.0, 0.2), (3.96, 50.0)]


def wanted(times, start_s, end_s):
    """Frames of a half-open segment within half a frame step: the plain formula."""
    low, high = -np.inf if start_s is None else start_s, np.inf if end_s is None else end_s
    return [index for index, time_s in enumerate(times) if low - STEP_S / 2 <= time_s < high - STEP_S / 2]


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
    scan = scan_video(clip, start_s=1.0 + shift, end_s=3.0 + shift, min_interval_frames=5, rule="greedy_spacing")
    marks = [read_mark(raw.rgb()) for raw in frames(clip, start_s=scan.start_s, end_s=scan.end_s)]
    chosen = [marks[frame] for frame in scan.keyframes]
    assert len(chosen) >= 3
    assert [read_mark(image) for image in fetch_pyav(clip, scan)] == chosen
    try:
        assert [read_mark(image) for image in fetch_decord(clip, scan)] == chosen
    except VideoError as error:  # where decord seeks wrong, or keeps other times
        assert clip.name in ("a.ts", "b-frames.avi"), error
    assert scan.times_s[0] >= scan.start_s - STEP_S / 2 and scan.times_s[-1] < scan.end_s - STEP_S / 2


def test_the_reader_of_clips_reads_segments(clip):
    shift = next(iter(frames(clip))).time_s
    one = ClipReader(ClipSettings(min_interval_frames=5))
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
        (0.221, 0.239, r"no frame from 0\.221 s to 0\.239 s; there is one at 0\.240 s"),
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


def test_segments_that_share_boundaries_share_no_frame(clip):
    """Any boundaries: on a frame, between two, a hair beside, doubled in float32."""
    whole = [(raw.time_s, read_mark(raw.rgb())) for raw in frames(clip)]
    times = [time_s for time_s, _ in whole]
    rng = np.random.default_rng(7)
    on_frames = rng.choice(times, 6) + rng.choice([-1e-6, 0.0, 1e-6], 6)
    between = rng.uniform(times[0], times[-1], 6)
    boundaries = [None, *np.unique([*on_frames, *between, float(np.float32(times[33]))]).tolist(), None]
    parts = []
    for start_s, end_s in pairwise(boundaries):
        try:
            parts.append([read_mark(raw.rgb()) for raw in frames(clip, start_s=start_s, end_s=end_s)])
        except VideoError as error:
            assert error.reason == "no_frames"
    assert [mark for part in parts for mark in part] == [mark for _, mark in whole]


def test_a_boundary_beside_a_frame_is_meant_for_that_frame(clip):
    """Where the rate varies too: what a list rounds is a frame's time."""
    times = [raw.time_s for raw in frames(clip)]
    for first, last in ((1, 30), (7, 14), (20, 21), (47, 99)):
        for slip_s in (-5e-3, -5e-7, 5e-7, 5e-3):
            segment = frames(clip, start_s=times[first] + slip_s, end_s=times[last] - slip_s)
            assert [raw.time_s for raw in segment] == times[first:last]


RATES = {"30": Fraction(30), "29.97": Fraction(30000, 1001), "59.94": Fraction(60000, 1001), "90": Fraction(90)}


@pytest.fixture(scope="module", params=RATES)
def episodes(request, tmp_path_factory):
    """40 episodes one after the other in one file, as LeRobot v3 stores them: (rate, lengths, folder)."""
    rate, folder = RATES[request.param], tmp_path_factory.mktemp("episodes")
    lengths = np.random.default_rng(0).integers(4, 29, 40).tolist()
    shots = [marked_frame(index % 256) for index in range(sum(lengths))]
    write_video(folder / "file-000.mp4", shots, fps=rate, options={"crf": "20", "preset": "ultrafast"})
    return rate, lengths, folder


def write_list(folder, kind, ends_s):
    """Episodes as a list in one of the precisions that people's tools write; the path of the list."""
    spans = list(pairwise([0.0, *ends_s]))
    path = folder / f"episodes.{kind}"
    if kind == "jsonl":  # sums of floats in full
        rows = [{"uri": "file-000.mp4", "start_s": start, "end_s": end} for start, end in spans]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":  # six digits
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("uri", "start_s", "end_s"))
            writer.writerows(("file-000.mp4", f"{start:.6f}", f"{end:.6f}") for start, end in spans)
    else:
        columns = {"uri": ["file-000.mp4"] * len(spans)}
        for place, name in enumerate(("start_s", "end_s")):
            columns[name] = pa.array(np.array([span[place] for span in spans], np.float32))
        pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_episodes_of_one_file_have_the_lengths_of_their_list(episodes, kind):
    rate, lengths, folder = episodes
    # The sum of the episodes' durations, each rounded to a float: what LeRobot does.
    ends_s = list(accumulate(float(length / rate) for length in lengths))
    listing = list_videos(str(write_list(folder, kind, ends_s))).to_pylist()
    segments = sorted((row["start_s"], row["end_s"]) for row in listing)
    path, firsts = folder / "file-000.mp4", [0, *accumulate(lengths)]
    for (start_s, end_s), length, first in zip(segments, lengths, firsts, strict=False):
        numbers = [round(raw.time_s * rate) for raw in frames(path, start_s=start_s, end_s=end_s)]
        assert numbers == list(range(first, first + length))
    # The motion pass and the ends of a narrated segment see the same frames.
    for place in (0, 17, 39):
        (start_s, end_s), length = segments[place], lengths[place]
        assert scan_video(path, start_s=start_s, end_s=end_s).num_frames == length
        ends = segment_ends(path, start_s, end_s, 0)
        times = [round(time_s * rate) for time_s in (ends.source_time_s, ends.target_time_s)]
        assert (ends.num_frames, times) == (length, [firsts[place], firsts[place] + length - 1])


def test_the_episodes_that_were_reported(shared_data, tmp_path):
    import runpy
    import sys

    path = tmp_path / "file-000.mp4"
    argv, sys.argv = sys.argv, ["lerobot_episodes.py", str(path)]
    try:
        runpy.run_path(str(shared_data / "cases" / "lerobot_episodes.py"))
    finally:
        sys.argv = argv
    rows = pq.read_table(tmp_path / "episodes.parquet").to_pylist()
    for exactly in (float, lambda time_s: round(time_s, 6), lambda time_s: float(np.float32(time_s))):
        spans = [(exactly(row["start_s"]), exactly(row["end_s"])) for row in rows]
        counts = [sum(1 for _ in frames(path, start_s=start_s, end_s=end_s)) for start_s, end_s in spans]
        assert counts == [row["length"] for row in rows]
