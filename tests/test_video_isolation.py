"""What a hang, a crash, a memory overrun and an orphan do: cost one call, and no more."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from video_files import decord_frame

from wm.video import isolation
from wm.video.errors import VideoError
from wm.video.isolation import IsolatedProcess


@pytest.fixture(scope="module")
def process():
    with IsolatedProcess() as one:
        yield one


def child_id(process):
    return process.call(10, os.getpid)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_child_serves_many_calls(process):
    first = child_id(process)
    assert first != os.getpid()
    assert process.call(10, np.add, np.arange(3), 1).tolist() == [1, 2, 3]
    assert process.call(10, sorted, [2, 1], reverse=True) == [2, 1]
    assert child_id(process) == first


def test_a_hang_ends_at_its_limit_and_the_next_call_is_served(process):
    old = child_id(process)
    begin = time.monotonic()
    with pytest.raises(VideoError, match=r"time_out: no answer within 0\.3 s"):
        process.call(0.3, time.sleep, 60)
    assert time.monotonic() - begin < 5
    assert not is_running(old)
    assert child_id(process) != old


@pytest.mark.parametrize(("end", "told"), [((os.abort,), "status -6"), ((os._exit, 7), "status 7")])
def test_a_crash_is_told_with_its_status(process, end, told):
    with pytest.raises(VideoError, match=rf"crashed: .*{told}"):
        process.call(10, *end)
    assert process.call(10, abs, -2) == 2


def test_a_child_killed_between_two_calls_is_replaced(process):
    os.kill(child_id(process), signal.SIGKILL)
    time.sleep(0.2)
    assert process.call(10, abs, -2) == 2


def test_exceptions_keep_their_reason_or_are_named(process):
    from wm.video.scan import scan_video

    old = child_id(process)
    with pytest.raises(VideoError) as caught:
        process.call(10, scan_video, "/nowhere/x.mp4")
    assert (caught.value.reason, caught.value.detail) == ("missing_file", "/nowhere/x.mp4: no such file")
    with pytest.raises(VideoError, match="unexpected_error: ZeroDivisionError"):
        process.call(10, divmod, 1, 0)
    assert child_id(process) == old


def test_memory_limit_costs_the_call_only():
    with IsolatedProcess(memory_limit_mb=1500) as small:
        with pytest.raises(VideoError, match="out_of_memory"):
            small.call(20, np.zeros, 2**31)
        assert small.call(10, abs, -2) == 2


def test_a_child_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(isolation, "_BOOT", "raise SystemExit('no such luck')")
    with IsolatedProcess() as broken, pytest.raises(RuntimeError, match="no such luck"):
        broken.call(5, abs, -2)


def test_a_spinning_child_ends_when_its_owner_is_killed(tmp_path):
    note = tmp_path / "child"
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\n"
            "from wm.video.isolation import IsolatedProcess\n"
            "p = IsolatedProcess()\n"
            f"open({str(note)!r}, 'w').write(str(p.call(10, os.getpid)))\n"
            "p.call(100, time.sleep, 100)\n",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    deadline = time.monotonic() + 30
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(note.read_text())
    assert is_running(child)
    owner.kill()
    owner.wait()
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)


@pytest.mark.slow
def test_decord_s_own_endless_loop_is_ended(process, shared_data):
    """decord counts 276 frames in this cut, and 67 exist: asked for the 110th it often spins for ever."""
    path = str(shared_data / "videos" / "odd" / "decord_hang_110.mp4")
    for _ in range(3):
        try:
            assert process.call(2, decord_frame, path, 110) == (1, 240, 426, 3)
        except VideoError as error:
            assert error.reason == "time_out"
        assert process.call(20, decord_frame, path, 25) == (1, 240, 426, 3)
