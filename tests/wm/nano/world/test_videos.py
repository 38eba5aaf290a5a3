"""Clips of the tabletop: what is planned is what the frames show, before and after a video codec."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.nano.world import videos
from wm.nano.world.actions import KINDS
from wm.nano.world.oracle import action_is_right, read_states
from wm.nano.world.scenes import MARGIN_PX, SIDE_PX, State
from wm.nano.world.triplets import write_triplets
from wm.nano.world.videos import CLASSES, Clip, clip_path, plan_clip, write_clip

CENTRE = np.s_[:, :, MARGIN_PX : MARGIN_PX + SIDE_PX]


def resting_states(clip: Clip) -> dict[int, State]:
    """Frames outside every action's window of at most 4 frames, and the state each must show."""
    result = {}
    for number, moment in enumerate(clip.moments):
        last = len(clip.moments) - 1
        end = clip.num_frames if number == last else clip.moments[number + 1].frame - 4
        result |= dict.fromkeys(range(moment.frame, end + (number < last)), moment.state)
    return result


def test_a_seed_gives_one_clip() -> None:
    assert plan_clip(7) == plan_clip(7) and plan_clip(7) != plan_clip(11)
    frames = [np.stack(list(plan_clip(7).frames())) for _ in range(2)]
    np.testing.assert_array_equal(*frames)
    assert frames[0].shape == (plan_clip(7).num_frames, 48, 64, 3) and frames[0].dtype == np.uint8


def test_plans_keep_their_promises() -> None:
    clips = [plan_clip(seed) for seed in range(400)]
    assert {len(clip.moments) - 1 for clip in clips} == {4, 5, 6, 7}
    own: dict[str, list[bool]] = {label: [] for label in CLASSES.values()}
    for clip in clips:
        assert clip.class_label == CLASSES[KINDS[clip.seed % 4]]
        assert clip.moments[0].frame == 0 and clip.moments[0].action is None
        frames = [*(moment.frame for moment in clip.moments), clip.num_frames]
        assert all(10 <= rest <= 18 for rest in np.diff(frames))
        for before, moment in zip(clip.moments, clip.moments[1:], strict=False):
            assert moment.action is not None and moment.action.apply(before.state) == moment.state != before.state
            own[clip.class_label].append(CLASSES[moment.action.kind] == clip.class_label)
        assert np.abs(clip.drift_px).max() <= 1 and clip.camera.shift_px == (0.0, 0.0)
    # 60 % are drawn of the class, but a table that is full (or bare) turns an adding (a removing) into a move.
    assert min(np.mean(shares) for shares in own.values()) > 0.3
    assert np.mean([np.mean(shares) for shares in own.values()]) > 0.5
    assert abs(np.mean([clip.drift_px != (0.0, 0.0) for clip in clips]) - 0.3) < 0.08
    assert abs(np.mean([bool(clip.camera.crumbs) for clip in clips]) - 0.3) < 0.08


def test_frames_show_the_planned_states() -> None:
    for seed in range(12):
        clip = plan_clip(seed)
        frames = np.stack(list(clip.frames()))[CENTRE]
        displayed = read_states(frames)
        resting = resting_states(clip)
        assert len(resting) > 0.6 * clip.num_frames
        assert [displayed[frame] for frame in resting] == list(resting.values())
        for before, moment in zip(clip.moments, clip.moments[1:], strict=False):
            assert displayed[moment.frame] == moment.state and displayed[moment.frame - 4] == before.state
            assert moment.action is not None
            assert action_is_right(frames[moment.frame - 4], frames[moment.frame], moment.action.text(seed % 2))


def test_some_frames_show_half_an_action_and_pauses_are_still() -> None:
    half_way, actions = 0, 0
    for seed in range(40):
        clip = replace(plan_clip(seed), camera=replace(plan_clip(seed).camera, noise=0.0), drift_px=(0.0, 0.0))
        frames = np.stack(list(clip.frames())).astype(int)
        moved = np.abs(np.diff(frames, axis=0)).sum((1, 2, 3)) > 0
        for moment in clip.moments[1:]:
            actions += 1
            assert moved[moment.frame - 1]
            half_way += bool(moved[moment.frame - 2])
        resting = sorted(resting_states(clip))
        still = [frame for frame in resting if frame + 1 in resting]
        assert not moved[still].any()
    assert 0.05 < half_way / actions < 0.4


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_codec_leaves_resting_frames_readable(tmp_path: Path, suffix: str) -> None:
    right, total = 0, 0
    for seed in (0, 1, 2, 3, 5):
        clip = plan_clip(seed)
        path = tmp_path / f"clip{seed}{suffix}"
        write_clip(clip, path)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == videos.FPS and (stream.width, stream.height) == (64, 48)
            assert stream.codec_context.name == {".mp4": "h264", ".avi": "mpeg4"}[suffix]
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert len(frames) == clip.num_frames
        displayed = read_states(frames[CENTRE])
        resting = resting_states(clip)
        right += sum(displayed[frame] == state for frame, state in resting.items())
        total += len(resting)
    assert right / total >= 0.95, f"{right} of {total}"


def test_clips_are_written_where_the_recipe_says(tmp_path: Path) -> None:
    paths = [clip_path(tmp_path, plan_clip(seed)) for seed in range(12)]
    assert paths[0] == tmp_path / "moving" / "clip_000000.mp4"
    assert paths[5] == tmp_path / "adding" / "clip_000005.avi"
    assert [path.suffix for path in paths].count(".avi") == 4
    pairs = {(path.parent.name, path.suffix) for path in paths}
    assert pairs == {(label, suffix) for label in CLASSES.values() for suffix in (".mp4", ".avi")}


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_failure_in_the_middle_leaves_no_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    clip, path = plan_clip(0), tmp_path / "moving" / f"clip{suffix}"
    complete = list(clip.frames())

    def half(_: Clip) -> object:
        yield from complete[:20]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Clip, "frames", half)
    with pytest.raises(OSError, match="No space left"):
        write_clip(clip, path)
    assert list(path.parent.iterdir()) == []


def test_what_a_kill_leaves_behind_is_no_video(tmp_path: Path) -> None:
    (tmp_path / ".123.clip_000000.mp4").write_bytes(b"half")
    with pytest.raises(InputError, match="is an empty folder"):
        list_videos(str(tmp_path))


def test_supervised_pairs_depend_on_the_seed_alone(tmp_path: Path) -> None:
    for folder, split, seed in (("a", "train", 0), ("b", "train", 0), ("c", "test", 0), ("d", "train", 1)):
        write_triplets(tmp_path / folder, split, 5, seed)
    data = {
        folder: b"".join(file.read_bytes() for file in sorted((tmp_path / folder).rglob("*.png"))) for folder in "abcd"
    }
    assert data["a"] == data["b"] and len(set(data.values())) == 3
    lists = [(tmp_path / folder / "data" / "tabletop" / "train.json").read_text() for folder in "ab"]
    assert lists[0] == lists[1]
    assert len(list((tmp_path / "a").rglob("*.png"))) == 10
