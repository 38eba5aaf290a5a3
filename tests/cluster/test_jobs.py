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
from wm.runs import read_run

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1200.0
"""Of a wait or a command: bounds what hangs, on a machine that may do other work."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


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


BOOTSTRAP = """
base_model = "nano:base"
tabletop = { train = 24, test = 8, tune = 0, videos = 6, resources = { num_workers = 0 } }
ingest = { resources = { num_workers = 0 } }
idm = { max_steps = 2, global_batch_size = 8, lora = { enabled = false } }
fdm = { max_steps = 2, global_batch_size = 8, lora = { enabled = false } }
select = { k = 10, min_changed_codes = 0 }
variants = { unweighted = false }
[annotate]
filters = { action = "score", unchanged = "score" }
keyframes = { motion = "farneback", min_interval_frames = 8 }
max_new_tokens = 6
[evaluate]
judge = "oracle"
search = { num_candidates = [1, 2] }
limit = 4
max_new_tokens = 6
examples = 2
"""
"""No stage that can use a cluster names a number of workers."""


def test_the_whole_loop_is_one_job_that_stops_and_resumes(address, tmp_path):
    (tmp_path / "loop.toml").write_text(BOOTSTRAP)
    out = tmp_path / "loop"
    command = [sys.executable, "-m", "jobs.bootstrap", str(tmp_path / "loop.toml"), f"out={out}"]
    # 1. Stopped once its first model is trained.
    assert ray_job(address, "submit", "--no-wait", "--submission-id", "loop", "--", *command).returncode == 0
    end_s = time.monotonic() + LIMIT_S
    while not (out / "idm" / "run.json").exists():
        assert time.monotonic() < end_s, ray_job(address, "logs", "loop").stdout
        time.sleep(0.2)
    assert ray_job(address, "stop", "loop").returncode == 0
    log = ray_job(address, "logs", "loop").stdout
    assert "bootstrap: stages that leave their workers out use the cluster's 4 CPUs and 0 GPUs" in log
    assert "stopping (SIGTERM); what is finished is kept" in log and "Traceback" not in log, log
    assert not (out / "report" / "run.json").exists()
    # 2. The same command: what is complete stays, the rest is done.
    done = ray_job(address, "submit", "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report" / "report.html").is_file() and "\r" not in done.stdout.partition("Tailing logs")[2]
    workers = {name: read_run(out / name)["recipe"]["resources"] for name in ("idm", "fdm", "annotated", "evaluate")}
    assert [workers[name].get("num_workers") for name in ("idm", "fdm", "evaluate")] == [4, 4, 4]
    assert workers["annotated"]["max_annotators"] == 4
