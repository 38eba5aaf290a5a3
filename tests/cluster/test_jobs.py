"""Stages as Ray jobs on two nodes, with a token: their status, their log, and that the same command resumes one that
was stopped."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.chaos.outcomes import digest_rows
from cluster.local_nodes import local_nodes
from tests.helpers.video_files import marked_frame, write_video

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240.0

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def address():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    with local_nodes(2, cpus_per_node=2, dashboard=True) as cluster:
        yield f"http://{cluster.webui_url}"
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for number in range(40):
        write_video(root / f"clip{number:02d}.mp4", [marked_frame(number % 5 + 3 * i) for i in range(40)])
    return root


def ray_job(address, *words, **options):
    program = str(Path(sys.executable).parent / "ray")
    command = [program, "job", words[0], "--address", address, *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, **options)


def annotation(clips, idm, out):
    keys = {"videos": clips, "idm": idm, "out": out, "keyframes.min_interval_frames": 8, "videos_per_shard": 2}
    keys |= {"filters.action": "score", "filters.unchanged": "score", "resources.idm_batch_size": 1}
    return [sys.executable, "-m", "jobs.annotate", *(f"{key}={value}" for key, value in keys.items())]


def test_status_log_and_resumption_of_jobs(address, clips, tiny_base, tmp_path):
    # 1. Success: status 0, lines of progress and the summary, nothing of Ray's own.
    done = ray_job(address, "submit", "--", *annotation(clips, tiny_base, tmp_path / "whole"))
    assert done.returncode == 0, done.stdout + done.stderr
    log = done.stdout.partition("Tailing logs")[2]
    assert re.search(r"^annotate: +100% 40/40 \[", log, re.MULTILINE) and "annotate: 40 videos" in log
    assert "\r" not in log and not re.search(r"raylet|autoscaler|retries|WARNING|Traceback", log), log
    # What a cluster holds is used where the command says nothing: 4 CPUs.
    assert '"max_annotators": 4' in (tmp_path / "whole" / "run.json").read_text()
    # 2. Bad input: status 1, the reason in one line.
    wrong = ray_job(address, "submit", "--", *annotation(clips, tmp_path / "none", tmp_path / "wrong"))
    assert wrong.returncode == 1 and f"error: idm = '{tmp_path / 'none'}'" in wrong.stdout
    # 3. Nobody is let in without the token.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    stranger = ray_job(address, "list", env=environment | {"RAY_AUTH_MODE": "disabled"})
    assert stranger.returncode != 0 and "token" in (stranger.stdout + stranger.stderr).lower()
    # 4. Stopped in the middle.
    out = tmp_path / "stopped"
    name = ["--submission-id", "stopped"]
    assert ray_job(address, "submit", "--no-wait", *name, "--", *annotation(clips, tiny_base, out)).returncode == 0
    end_s = time.monotonic() + LIMIT_S
    while len(list((out / "shards").glob("shard-*.json"))) < 2:
        assert time.monotonic() < end_s
        time.sleep(0.1)
    assert ray_job(address, "stop", "stopped").returncode == 0
    status = ray_job(address, "status", "stopped")
    assert "STOPPED" in (status.stdout + status.stderr).upper()
    log = ray_job(address, "logs", "stopped").stdout
    assert "stopping (SIGTERM); what is finished is kept, the same command resumes" in log and "Traceback" not in log
    assert not (out / "run.json").exists() and len(list((out / "shards").glob("shard-*.json"))) < 20
    # 5. The same command resumes, to the same rows.
    done = ray_job(address, "submit", "--", *annotation(clips, tiny_base, out))
    assert done.returncode == 0 and "annotate: resuming, " in done.stdout, done.stdout
    assert digest_rows(out) == digest_rows(tmp_path / "whole")
