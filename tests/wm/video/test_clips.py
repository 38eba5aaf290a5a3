"""Complete clips through the child: images, who served them, and what happens when decord fails."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.images import fit_square
from wm.video import ClipReader, ClipSettings, VideoError
from wm.video import clips as clips_module
from wm.video.decode import frames
from wm.video.fetch import limit_short_side


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "c.mp4", [marked_frame(i) for i in range(60)])


def marks(images):
    return [read_mark(np.asarray(Image.open(io.BytesIO(png)))) for png in images]


@pytest.mark.parametrize(("reader", "served"), [("auto", "decord"), ("decord", "decord"), ("pyav", "pyav")])
def test_the_images_are_the_key_frames(clip, reader, served):
    one = ClipReader(ClipSettings(reader=reader, min_interval_frames=5, rule="greedy_spacing"))
    actual = one.read(clip)
    assert actual.reader == served
    assert actual.fallback == ""
    assert len(actual.images_png) == 6
    assert marks(actual.images_png) == actual.scan.keyframes
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
    actual = one.read(clip)
    assert (actual.reader, actual.fallback) == ("pyav", "time_out: no answer within 0.3 s")
    assert marks(actual.images_png) == actual.scan.keyframes
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
            actual = one.read(path)
            decoded = [read_mark(raw.rgb()) for raw in frames(path)]  # the hole swallowed some
            assert (actual.reader, bool(actual.fallback)) == ("pyav", True)
            assert marks(actual.images_png) == [decoded[index] for index in actual.scan.keyframes]
        else:
            with pytest.raises(VideoError):
                one.read(path)
        one.close()


def test_a_clip_with_one_key_frame_has_no_images(clip):
    one = ClipReader(ClipSettings(min_interval_frames=100))
    actual = one.read(clip)
    assert (len(actual.scan.keyframes), actual.images_png, actual.reader) == (1, [], "")
    one.close()


def test_the_time_limit_is_of_the_video(clip):
    one = ClipReader(ClipSettings(time_limit_s=0.0001))
    with pytest.raises(VideoError, match="time_out"):
        one.read(clip)
    one.close()


def test_stored_images_have_the_short_side_and_suit_the_codec():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 121, 3)).astype(np.uint8)
    assert limit_short_side(pixels, 0) is pixels
    assert limit_short_side(pixels, 90) is pixels
    assert limit_short_side(pixels, 32).shape == (32, 43, 3)
    assert np.array_equal(fit_square(limit_short_side(pixels, 32), 32), fit_square(pixels, 32))


@pytest.mark.parametrize("motion", ["dis", "farneback"])
def test_several_rules_after_one_pass_give_what_each_gives_alone(tmp_path, motion):
    path = write_video(tmp_path / "c.mp4", [marked_frame(index, 96, 160) for index in range(50)])
    rules = ["greedy_spacing", "top_then_spacing"]
    settings = ClipSettings(motion=motion, min_interval_frames=9, max_keyframes=6)
    one = ClipReader(settings)
    together = one.read_rules(path, rules)
    assert together["greedy_spacing"].scan.keyframes != together["top_then_spacing"].scan.keyframes
    for rule in rules:
        one.settings = replace(settings, rule=rule)
        alone = one.read(path)
        assert together[rule].images_png == alone.images_png and together[rule].scan.cuts == alone.scan.cuts
        assert together[rule].scan.keyframes == alone.scan.keyframes
        np.testing.assert_array_equal(together[rule].scan.motion, alone.scan.motion)
        np.testing.assert_array_equal(together[rule].scan.measured, alone.scan.measured)
    one.deadline = time.monotonic()
    with pytest.raises(VideoError, match="time_out"):
        one.read(path)
    one.close()
