"""Complete runs of annotate on Ray: counted, killed and resumed, on a full disk, over real clips."""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import pytest

from jobs.annotate.job import run
from tests.helpers.annotate_data import annotate_here, recipe, rows, write_videos
from tests.helpers.video_files import write_video
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


def prometheus(enough):
    """What Ray's exporter serves, once there is enough of it."""
    import ray

    (node,) = ray.nodes()
    end, text = time.monotonic() + 60, ""
    while not enough(text) and time.monotonic() < end:
        time.sleep(0.5)
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=60) as answer:
            text = answer.read().decode()
    return text


def total(text, name, *tags):
    """Sum over processes of one counter."""
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{") and all(tag in line for tag in tags)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.mark.slow
def test_job_end_to_end_resumes_after_a_kill_with_its_listing(ray_session, videos, tiny_base, tmp_path, capsys):
    """One run and its folder, through all that may befall it: each run on Ray reads the models anew, for seconds."""
    videos, out = shutil.copytree(videos, tmp_path / "videos"), tmp_path / "out"
    one = recipe(videos, tiny_base, out, dataset="metered")
    record = run(one)
    triplets, rejects = rows(out)
    counts = record["counts"]
    assert counts["videos"] == counts["listed"] == 6
    assert (counts["triplets"], counts["filtered"] + counts["failed"]) == (len(triplets), len(rejects))
    accounted = {row["video_uri"] for row in triplets} | {row["uri"] for row in rejects}
    assert accounted == set(list_videos(str(videos)).column("uri").to_pylist())
    assert counts["failed"] == 3
    assert "failed/empty_file: 1" in capsys.readouterr().out
    totals = {
        ("videos", 'outcome="failed"'): 3,
        ("pairs", 'outcome="ok"'): counts["triplets"],
        ("rejects", 'reason="failed/empty_file"'): 1,
    }

    def read_totals(text):
        return {name: total(text, f"ray_wm_annotate_{name[0]}_total", 'dataset="metered"', name[1]) for name in totals}

    # Each process reports in its own time.
    assert read_totals(prometheus(lambda text: read_totals(text) == totals)) == totals
    assert run(one) == {"videos": 6, "whole": True}  # complete: not done again

    with pytest.raises(InputError, match="holds another run"):
        run(recipe(videos, tiny_base, out, dataset="metered", keyframes={"min_interval_frames": 9}))

    # What failed may be tried again, when the world has changed.
    assert run(recipe(videos, tiny_base, out, dataset="metered", retry=["time_out"])) == {"videos": 6, "whole": True}

    # As kill -9 leaves it: shards committed, one with its rows but no mark, nothing of another. What failed in a third
    # is tried again and fails again.
    (out / "run.json").rename(out / "run.unfinished.json")
    marks = sorted((out / "shards").glob("*.json"))
    assert len(marks) == 6
    marks[3].unlink()
    for path in out.rglob(f"{marks[4].stem}.*"):
        path.unlink()
    capsys.readouterr()
    # How it is done may change.
    resources = {"num_decoders": 2, "idm_batch_size": 3}
    again = run(recipe(videos, tiny_base, out, dataset="metered", resources=resources, retry=["empty_file"]))
    assert "3 of 6 videos are finished" in capsys.readouterr().out
    assert again["annotated_now"] == 3 and rows(out) == (triplets, rejects)
    without_times = {name: value for name, value in counts.items() if name != "stage_s"}
    assert {name: value for name, value in again["counts"].items() if name != "stage_s"} == without_times

    # The folder has grown, and what failed has been mended.
    shutil.copy(videos / "wave" / "good.mp4", videos / "odd" / "empty.mp4")
    shutil.copy(videos / "wave" / "good.mp4", videos / "wave" / "new.mp4")
    with pytest.raises(InputError, match="holds another run"):
        run(one)
    capsys.readouterr()
    mended = run(recipe(videos, tiny_base, out, dataset="metered", retry=["empty_file"]))
    assert "resumes with the 6 videos that were listed then" in capsys.readouterr().out
    now = mended["counts"]
    assert (mended["annotated_now"], now["videos"], now["failed"]) == (1, 6, 2)
    assert now["videos_with_triplets"] == counts["videos_with_triplets"] + 1


def read_marks(out):
    return {path.name: path.read_text() for path in (out / "shards").glob("*.json")}


@contextlib.contextmanager
def small_disk(folder, size):
    """A disk of its own of ``size`` bytes; skipped where none can be made."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_full_disk_ends_the_run_and_loses_nothing(ray_session, tiny_base, tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (40, 96, 128, 3), dtype=np.uint8)
    for number in range(16):
        write_video(tmp_path / "set" / f"{number}.mp4", list(np.roll(noise, number, axis=0)), options={"crf": "40"})
    disk = tmp_path / "disk"
    one = recipe(tmp_path / "set", tiny_base, disk / "out")
    with small_disk(disk, 700_000):
        with pytest.raises(OSError, match="No space left"):
            run(one)
        marks = read_marks(disk / "out")
        assert 0 < len(marks) < 16
        assert subprocess.run(["mount", "-o", "remount,size=60m", disk], check=False).returncode == 0
        run(one)
        assert (
            marks.items() <= {path.name: path.read_text() for path in (disk / "out" / "shards").glob("*.json")}.items()
        )
        annotate_here(recipe(tmp_path / "set", tiny_base, tmp_path / "out"))
        assert rows(disk / "out") == rows(tmp_path / "out")


@pytest.mark.slow
def test_real_clips_all_end_in_triplets_or_rejects(ray_session, shared_data, tiny_base, tmp_path):
    record = run(recipe(shared_data / "videos", tiny_base, tmp_path / "out", keyframes={"min_interval_frames": 20}))
    triplets, rejects = rows(tmp_path / "out")
    files = set(list_videos(str(shared_data / "videos")).column("uri").to_pylist())
    assert {row["video_uri"] for row in triplets} | {row["uri"] for row in rejects} == files
    failed = {row["uri"].rsplit("/", 1)[1]: row["reason"] for row in rejects if row["outcome"] == "failed"}
    assert failed == {
        "x_audio_only.mp4": "no_video_stream",
        "x_empty.mp4": "empty_file",
        "x_zero_frames.mp4": "no_video_stream",
    }
    assert record["counts"]["readers"]["pyav"] >= 4  # where decord is wrong or gives up
    used = {row["video_uri"].rsplit("/", 1)[1] for row in triplets}
    assert {"decord_hang_110.mp4", "x_hole.mp4", "av1_video.mkv"} <= used
