"""``annotate`` under kill -9 of a worker, of the driver, of a node: what comes out is what an undisturbed run gives."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.local_nodes import local_nodes
from jobs.annotate.counts import summarise
from jobs.annotate.job import AnnotateRecipe
from jobs.shared.processes import actor_processes
from tests.helpers.annotate_data import annotate_here
from tests.helpers.video_files import marked_frame, write_video
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.tables import read_table

NUM_GOOD, NUM_BAD = 44, 4
MARK = "WM_TEST_RUN"
LIMIT_S = 180.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Forty-four clips and four files that are none, of the same names in two folders."""
    root = tmp_path_factory.mktemp("clips")
    result = [write_video(root / f"source{n}.mp4", [marked_frame(n + 3 * i) for i in range(50)]) for n in range(4)]
    for number in range(NUM_GOOD):
        path = root / "videos" / f"class {number % 2}" / f"clip{number // 2:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(result[number % 4], path)
    for number in range(NUM_BAD):
        bad = root / "videos" / f"class {number % 2}" / f"poison{number}.mp4"
        bad.write_bytes(result[0].read_bytes()[: 200 + 50 * number] + np.random.default_rng(number).bytes(3000))
    return root / "videos"


def arguments_of(clips, idm, out, **more):
    settings = {"videos": clips, "idm": idm, "out": out, "keyframes.min_interval_frames": 8, "filters.action": "score"}
    settings |= {"filters.unchanged": "score"}
    settings |= {
        "resources.idm_batch_size": 1
    } | more  # so slow that there is something left to disturb after the first shard
    return [f"{key}={value}" for key, value in settings.items()]


def command(*given, **more):
    return [sys.executable, "-m", "jobs.annotate", *arguments_of(*given, **more)]


def start(arguments, mark):
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    message, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, message
    return message


def workers(mark, actor):
    """Process ids of this run's actors of one kind."""
    return actor_processes(MARK, mark, actor)


def actors_of(node):
    """Process ids of the actors on one of several nodes."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [process.pid for process in raylet.children() if "MapWorker" in "".join(process.cmdline())]


def wait_for(condition, process):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.03)  # to look at all processes takes milliseconds, for which the others wait


def num_marks(out):
    return len(list((out / "shards").glob("shard-*.json")))


def contents(out):
    """Everything an annotation says, in order; asserts that no id occurs twice."""
    triplets = read_table(out / "triplets", TRIPLET_SCHEMA).to_pylist()
    rejects = read_table(out / "rejects", REJECT_SCHEMA).to_pylist()
    for rows, name in ((triplets, "triplet_id"), (rejects, "reject_id")):
        assert len({row[name] for row in rows}) == len(rows)
        rows.sort(key=lambda row, name=name: row[name])
    counts = summarise(out)
    assert counts.pop("stage_s")
    assert not list(out.rglob("*.tmp")) and not (out / "run.unfinished.json").exists()
    return triplets, rejects, counts


@pytest.fixture(scope="module")
def undisturbed(clips, tiny_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    annotate_here(AnnotateRecipe.load(None, arguments_of(clips, tiny_base, out)))
    triplets, rejects, counts = contents(out)
    assert (counts["videos"], counts["failed"], counts["videos_with_triplets"]) == (
        NUM_GOOD + NUM_BAD,
        NUM_BAD,
        NUM_GOOD,
    )
    return triplets, rejects, counts


def test_killed_driver_resumes_and_killed_workers_cost_nothing(clips, tiny_base, tmp_path, undisturbed):
    process = start(command(clips, tiny_base, tmp_path / "out"), uuid.uuid4().hex)
    wait_for(lambda: num_marks(tmp_path / "out") >= 3, process)
    process.kill()
    process.wait()
    finished = num_marks(tmp_path / "out")
    assert 3 <= finished < 14
    mark = uuid.uuid4().hex
    process = start(
        command(clips, tiny_base, tmp_path / "out", **{"resources.num_decoders": 1, "resources.max_decoders": 3}), mark
    )
    for actor, marks in (("Decoder", finished), ("Annotator", finished + 1)):
        wait_for(lambda marks=marks: num_marks(tmp_path / "out") >= marks, process)
        wait_for(lambda actor=actor: workers(mark, f"({actor})).submit"), process)
        os.kill(workers(mark, f"({actor}))")[0], signal.SIGKILL)
    assert num_marks(tmp_path / "out") < 16
    assert "videos are finished" in finish(process)
    assert contents(tmp_path / "out") == undisturbed


# Of every commit tests/cluster/test_loop.py loses one, on nodes that share a bucket alone.
@pytest.mark.soak
def test_a_lost_node_costs_nothing(clips, tiny_base, tmp_path, undisturbed):
    mark, address = uuid.uuid4().hex, os.environ.get("RAY_ADDRESS")
    with local_nodes(2, cpus_per_node=2) as cluster:
        # Ray fills half of a node before it takes the next: two of the four are on each, and all fit on one.
        more = {"resources.num_decoders": 2, "resources.num_annotators": 2}
        process = start(command(clips, tiny_base, tmp_path / "out", **more), mark)
        (node,) = cluster.worker_nodes
        wait_for(lambda: num_marks(tmp_path / "out") >= 2 and actors_of(node), process)
        cluster.remove_node(node, allow_graceful=False)
        assert num_marks(tmp_path / "out") < 16
        finish(process)
    assert os.environ.get("RAY_ADDRESS") == address
    assert contents(tmp_path / "out") == undisturbed
