"""Whole clips through the child: pictures, who served them, and what happens when decord fails."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.images import fit_square
from wm.video import ClipReader, ClipSettings, VideoError
from wm.video import clips as clips_module
from wm.video.clips import limit_short_side
from wm.video.decode import frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "c.mp4", [marked_frame(i) for i in range(60)])


def marks(images):
    return [read_mark(np.asarray(Image.open(io.BytesIO(png)))) for png in images]


@pytest.mark.parametrize(("reader", "served"), [("auto", "decord"), ("decord", "decord"), ("pyav", "pyav")])
def test_the_pictures_are_the_key_frames(clip, reader, served):
    one = ClipReader(ClipSettings(reader=reader, min_interval_frames=5, rule="greedy_spacing"))
    found = one.read(clip)
    assert found.reader == served
    assert found.fallback == ""
    assert len(found.images_png) == 6
    assert marks(found.images_png) == found.scan.keyframes
    assert one.process.starts == 1
    one.close()


def test_pyav_serves_where_decord_hangs_or_lies(clip, monkeypatch):
    settings = ClipSettings(min_interval_frames=5)
    one = ClipReader(settings)
    direct = one.process.call
    calls = []

    def call(limit_s, function, *args, **kwargs):
        if args[0] == "decord":
            calls.append(limit_s)
            return direct(0.3, time.sleep, 60)
        return direct(limit_s, function, *args, **kwargs)

    monkeypatch.setattr(one.process, "call", call)
    found = one.read(clip)
    assert (found.reader, found.fallback) == ("pyav", "time_out: no answer within 0.3 s")
    assert marks(found.images_png) == found.scan.keyframes
    assert calls == [clips_module.DECORD_LIMIT_S]
    assert one.process.starts == 2
    one.close()


def test_decord_alone_is_not_helped_out(clip, tmp_path):
    path = tmp_path / "hole.mp4"
    data = bytearray(clip.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 600] = bytes(600)
    path.write_bytes(data)
    for reader, works in (("decord", False), ("auto", True)):
        one = ClipReader(ClipSettings(reader=reader, min_interval_frames=5))
        if works:
            found = one.read(path)
            decoded = [read_mark(raw.rgb()) for raw in frames(path)]  # the hole swallowed some
            assert (found.reader, bool(found.fallback)) == ("pyav", True)
            assert marks(found.images_png) == [decoded[index] for index in found.scan.keyframes]
        else:
            with pytest.raises(VideoError):
                one.read(path)
        one.close()


def test_a_clip_with_one_key_frame_has_no_pictures(clip):
    one = ClipReader(ClipSettings(min_interval_frames=100))
    found = one.read(clip)
    assert (len(found.scan.keyframes), found.images_png, found.reader) == (1, [], "")
    one.close()


def test_the_time_limit_is_of_the_video(clip):
    one = ClipReader(ClipSettings(time_limit_s=0.0001))
    with pytest.raises(VideoError, match="time_out"):
        one.read(clip)
    one.close()


def test_stored_pictures_have_the_short_side_asked_for_and_a_codec_sees_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 121, 3)).astype(np.uint8)
    assert limit_short_side(pixels, 0) is pixels
    assert limit_short_side(pixels, 90) is pixels
    assert limit_short_side(pixels, 32).shape == (32, 43, 3)
    assert np.array_equal(fit_square(limit_short_side(pixels, 32), 32), fit_square(pixels, 32))
