"""Motion on a device: batches, self-test, and the CPU's way where the device fails. ``cpu:0`` stands for a GPU."""

from itertools import pairwise
from queue import SimpleQueue

import numpy as np
import pytest
import torch

from tests.wm.test_torch_flow import opencv_motion
from tests.wm.video.test_bounded import moving_clip
from wm import torch_flow
from wm.torch_flow import make_moving_texture
from wm.video import ClipReader, ClipSettings, VideoError, choose_keyframes, device_flow, scan_video
from wm.video.decode import frames
from wm.video.device_flow import DeviceFlow, FlowError, batch_size, check_device, measure_frames
from wm.video.farneback import compile_flow, describe_program
from wm.video.fetch import fetch_encoded
from wm.video.isolation import IsolatedProcess

DEVICE = "cpu:0"
SETTINGS = {"motion": "farneback", "min_interval_frames": 5}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return moving_clip(tmp_path_factory.mktemp("clip") / "moving.mp4", 14, (84, 100))


@pytest.fixture(autouse=True)
def restore_tests(monkeypatch):
    monkeypatch.setattr(device_flow, "_TESTS", dict(device_flow._TESTS))
    monkeypatch.setattr(device_flow, "TEST_PX", (66, 81))


@pytest.fixture(scope="module")
def curve(clip):
    """OpenCV's motion of every frame."""
    greys = [raw.grey() for raw in frames(clip)]
    return np.array([0.0] + [opencv_motion(*pair) for pair in pairwise(greys)])


@pytest.mark.parametrize("pairs_at_once", [1, 3, 100])
def test_batches_of_any_size_give_opencv_s_motion(pairs_at_once):
    clip = make_moving_texture(64, 80, 5)
    # A video may change its size: no flow leads to the first frame after that.
    greys = [*clip, *clip[:3, :48]]
    meter = DeviceFlow(DEVICE, batch_bytes=device_flow.BYTES_PER_PX * 64 * 80 * (pairs_at_once + 1))
    for grey in greys:
        meter.add(np.ascontiguousarray(grey))
    expected = [
        opencv_motion(before, after) if before.shape == after.shape else 0.0 for before, after in pairwise(greys)
    ]
    assert meter.motion() == pytest.approx([0.0, *expected], rel=1e-5)
    assert meter.motion() == meter.motion()


def test_batches_keep_to_their_memory():
    assert batch_size(320 * 240, 2**30) == 2**30 // (320 * 320 * 240) - 1
    assert batch_size(7680 * 4320, 2**20) == 1
    assert batch_size(1, 2**30) == device_flow.MAX_BATCH - 1


def test_a_scan_on_a_device_measures_every_frame(clip, curve, monkeypatch):
    # Thumbnails are dropped by the motion so far, which is measured then.
    monkeypatch.setattr("wm.video.walk.MAX_THUMBS", 12)
    monkeypatch.setattr(device_flow, "MAX_BATCH", 8)
    scan = scan_video(clip, device=DEVICE, max_keyframes=2, **SETTINGS)
    assert scan.measured.all()
    assert scan.motion == pytest.approx(curve, rel=1e-4)
    assert scan.keyframes == choose_keyframes(curve, max_keyframes=2, min_interval_frames=5)
    assert scan.checks.keys() == set(scan.keyframes)
    assert scan.measured_on == DEVICE


def test_small_clips_and_dis_stay_on_the_cpu(clip, tmp_path):
    small = moving_clip(tmp_path / "small.mp4", 8, (48, 64))
    scan = scan_video(small, device=DEVICE, **SETTINGS)
    assert scan.motion.tolist() == scan_video(small, **SETTINGS).motion.tolist()
    assert scan.measured_on == f"cpu by {describe_program()}"
    scan = scan_video(clip, device=DEVICE)
    assert scan.motion.tolist() == scan_video(clip).motion.tolist()
    assert scan.measured_on == "cpu"


def test_a_device_that_disagrees_is_not_used(clip, monkeypatch):
    expected = scan_video(clip, **SETTINGS)
    monkeypatch.setattr(torch_flow, "_ITERATIONS", 2)
    device_flow._TESTS.clear()
    test = check_device(DEVICE)
    assert test.error > device_flow.MAX_ERROR
    assert "self-test of cpu:0: its flow differs from OpenCV's by" in test.problem
    scan = scan_video(clip, device=DEVICE, **SETTINGS)
    assert scan.measured_on == f"cpu ({test.problem}) by {describe_program()}"
    assert scan.motion.tolist() == expected.motion.tolist()
    assert scan.keyframes == expected.keyframes


def test_a_device_that_gives_nan_or_does_not_exist_is_not_used(monkeypatch):
    assert check_device("cuda").problem.startswith("no cuda: ")
    assert check_device("abacus").problem.startswith("no abacus: ")
    monkeypatch.setattr(torch_flow, "_REGULARISER", float("nan"))
    device_flow._TESTS.clear()
    assert check_device(DEVICE).problem == "self-test of cpu:0: motion on cpu:0 is not finite"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease"),
            "The NVIDIA driver on your system is too old (found version 11040).",
        ),
        (OSError("libcudart.so.13: cannot open shared object file"), "libcudart.so.13: cannot open shared object file"),
        (torch.cuda.DeferredCudaCallError("CUDA call failed lazily\n\nat"), "CUDA call failed lazily"),
    ],
)
def test_a_driver_that_fails_is_one_line(monkeypatch, error, problem):
    def name(device):
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    assert check_device("cuda").measured_on == f"cpu (no cuda: {problem})"


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel"),
            "AcceleratorError on cpu:0: CUDA error: all CUDA-capable devices are busy or unavailable",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "no memory on cpu:0 for two frames: CUDA out of memory.",
        ),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_card_that_others_fill_or_hold_is_one_line(monkeypatch, error, problem):
    def measure(frames_THW):
        raise error

    monkeypatch.setattr(torch_flow, "measure_motion", measure)
    device_flow._TESTS.clear()
    assert check_device(DEVICE).measured_on == f"cpu (self-test of cpu:0: {problem})"


def test_memory_that_ends_halves_the_batch_and_then_gives_up(monkeypatch):
    clip = make_moving_texture(40, 40, 5)
    expected = measure_frames(clip, DEVICE)
    sizes, limit, measure = [], 2, torch_flow.measure_motion

    def measure_within(frames_THW):
        sizes.append(len(frames_THW))
        if len(frames_THW) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")
        return measure(frames_THW)

    monkeypatch.setattr(torch_flow, "measure_motion", measure_within)
    assert measure_frames(clip, DEVICE) == pytest.approx(expected, rel=1e-9)
    assert sizes == [5, 3, 2, 2, 2, 2]
    limit = 1
    with pytest.raises(FlowError, match=r"no memory on cpu:0 for two frames: CUDA out of memory. Tried$"):
        measure_frames(clip, DEVICE)


def test_a_device_that_fails_midway_leaves_the_clip_to_the_cpu(clip, monkeypatch):
    expected = scan_video(clip, **SETTINGS)
    check_device(DEVICE)

    def fail(frames_THW):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch_flow, "measure_motion", fail)
    for _ in range(2):
        scan = scan_video(clip, device=DEVICE, **SETTINGS)
        problem = "RuntimeError on cpu:0: CUDA error: unspecified launch failure"
        assert scan.measured_on == f"cpu ({problem}) by {describe_program()}"
        assert scan.motion.tolist() == expected.motion.tolist()


def test_a_reader_s_child_measures_on_the_device(clip, curve):
    reader = ClipReader(ClipSettings(device=DEVICE, **SETTINGS))
    try:
        scan = reader.read(clip).scan
        assert scan.motion == pytest.approx(curve, rel=1e-4)
        assert scan.measured_on == DEVICE
        assert reader.process.starts == 1
        # Above what torch holds, and no limit of address space.
        assert reader.process.resident_limit_mib > 1024
        assert reader.process.memory_limit_mib == 0
    finally:
        reader.close()


def test_a_new_child_is_prepared_before_it_decodes(clip, monkeypatch):
    """Until then it has no limit of memory; decord that hangs ends the child which was prepared."""
    scan = scan_video(clip, max_keyframes=2, **SETTINGS)
    reader = ClipReader(ClipSettings(device="cuda", **SETTINGS))
    calls = []

    def answer(limit_s, function, *args, **kwargs):
        calls.append((function.__name__, *args[:1]) if function is fetch_encoded else function.__name__)
        if args[:1] == ("decord",):
            raise VideoError("time_out", "no answer")
        results = {"prepare_device": ("", 700.0), "scan_rules": {scan_rule: scan}, "fetch_encoded": []}
        return results.get(function.__name__)

    scan_rule = reader.settings.rule
    monkeypatch.setattr(reader.process, "call", answer)
    assert reader.read(clip).reader == "pyav"
    fetches = ["prepare_device", ("fetch_encoded", "decord"), "prepare_device", ("fetch_encoded", "pyav")]
    assert calls == ["prepare_device", "compile_flow", "scan_rules", *fetches]


def test_a_prepared_child_is_watched_from_what_it_takes_then(monkeypatch):
    limits = SimpleQueue()
    monkeypatch.setattr(device_flow, "_end_beyond", limits.put)
    monkeypatch.setattr(device_flow, "resident_mib", lambda pid: 700.0)
    device_flow._TESTS.clear()
    assert device_flow.prepare_device(6000, DEVICE) == ("", 700.0)
    assert limits.get(timeout=60) == 6700.0
    # Once a child; and none without a limit.
    device_flow.prepare_device(6000, DEVICE)
    device_flow._TESTS.clear()
    device_flow.prepare_device(0, DEVICE)
    assert limits.empty()


def test_a_child_beyond_its_memory_says_so_and_ends():
    with IsolatedProcess() as process, pytest.raises(VideoError) as caught:
        process.call(60, device_flow._end_beyond, 0.5)
    assert caught.value.reason == "crashed"
    assert caught.value.detail.endswith("ended with status 1; last words: more than 0 MiB of memory taken")


def test_a_watch_ends_nothing_below_its_limit(monkeypatch):
    resident, waits, ends = iter([100.0, 6700.0, 6700.5]), [], []
    monkeypatch.setattr(device_flow, "resident_mib", lambda pid: next(resident))
    monkeypatch.setattr(device_flow.time, "sleep", waits.append)
    monkeypatch.setattr(device_flow.os, "_exit", ends.append)
    device_flow._end_beyond(6700.0)
    assert (waits, ends) == ([device_flow._WATCH_S] * 2, [1])


def test_a_reader_drops_a_device_that_fails_or_crashes(clip, monkeypatch):
    reader = ClipReader(ClipSettings(device="cuda", **SETTINGS))
    calls, call, problem = [], reader.process.call, "no cuda"
    try:

        def crash_on_device(limit_s, function, *args, **kwargs):
            if function is device_flow.prepare_device:
                return problem, 700.0
            if function is compile_flow:
                return None  # as each child does when it scans
            if "device" in kwargs:
                calls.append(kwargs["device"])
            if kwargs.get("device") == "cuda":
                raise VideoError("crashed", "the process ended with status -11")
            return call(limit_s, function, *args, **kwargs)

        monkeypatch.setattr(reader.process, "call", crash_on_device)
        assert reader.read(clip).scan.measured_on == f"cpu (no cuda) by {describe_program()}"
        assert reader.process.memory_limit_mib == reader.settings.memory_limit_mib
        # A crash that the CPU does not share is the device's.
        reader._use_device("cuda")
        calls.clear()
        problem = ""
        crash = "cuda: the process ended with status -11"
        assert reader.read(clip).scan.measured_on == f"cpu ({crash}) by {describe_program()}"
        assert calls[:2] == ["cuda", "cpu"]
        # One that it shares is the video's.
        reader._use_device("cuda")
        with pytest.raises(VideoError, match="missing_file"):
            reader.read("missing.mp4")
        assert reader.device == "cuda"
    finally:
        reader.close()
