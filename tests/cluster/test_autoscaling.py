"""Ray's autoscaler adds nodes for an annotation and for a server, from one to three and back; nothing is lost."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.autoscaling_nodes import autoscaling_nodes, build_config, wait_for_nodes
from cluster.chaos.clients import Load
from cluster.chaos.outcomes import digest_rows
from jobs.annotate.job import AnnotateRecipe
from jobs.shared import ray_session
from tests.helpers.annotate_data import annotate_here
from tests.helpers.video_files import marked_frame, write_video
from wm.ports import find_free_port

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300.0
SHARE = "gpu_share"
"""Stands for GPUs, of which an annotator takes a half: this machine has none."""


def test_the_configuration_names_no_file_that_ray_lacks():
    config = build_config(
        "127.0.0.1:6379", 2, head_resources={"CPU": 1, SHARE: 1}, worker_resources={"CPU": 1, SHARE: 1}, idle_s=30
    )
    # As the autoscaler reads it.
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert {name: (node["min_workers"], node["max_workers"]) for name, node in types.items()} == {
        "ray.head.default": (0, 0),
        "worker": (0, 2),
    }
    assert config["provider"]["type"] == "external" and config["idle_timeout_minutes"] == 0.5
    assert config["available_node_types"]["ray.head.default"]["resources"] == {"CPU": 1, SHARE: 1}
    assert config["available_node_types"]["worker"]["max_workers"] == config["max_workers"] == 2


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve_apps.middleware.proxy:build_middlewares")
    node = {"CPU": 2, SHARE: 1}
    with autoscaling_nodes(2, worker_resources=node, head_resources={SHARE: 1}, idle_s=8) as started:
        ray_session.connect()
        yield started
        ray_session.shutdown()


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_an_annotation_grows_to_three_nodes_and_back(cluster, tiny_base, tmp_path):
    for number in range(60):
        write_video(tmp_path / "clips" / f"{number:02d}.mp4", [marked_frame(number % 5 + 3 * i) for i in range(50)])
    keys = ["keyframes.min_interval_frames=8", "filters.action=score", "filters.unchanged=score", "videos_per_shard=1"]
    keys += ["resources.idm_batch_size=1", "resources.num_annotators=6", f"resources.custom_per_annotator.{SHARE}=0.5"]
    common = [f"videos={tmp_path / 'clips'}", f"idm={tiny_base}", *keys]
    annotate_here(AnnotateRecipe.load(None, [*common, f"out={tmp_path / 'here'}"]))
    assert wait_for_nodes(1, LIMIT_S) >= 0
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.annotate", *common, f"out={tmp_path / 'out'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    up_s = wait_for_nodes(3, LIMIT_S)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    down_s = wait_for_nodes(1, LIMIT_S)
    print(f"annotation: 1 to 3 nodes in {up_s:.0f} s, back {down_s:.0f} s after its end\n{output}")
    # On more than one node it worked, and nothing was lost.
    assert "  decoders passed on " in output
    assert digest_rows(tmp_path / "out") == digest_rows(tmp_path / "here")


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_server_grows_to_three_nodes_and_back(cluster, tmp_path):
    port = find_free_port()
    scaling = (
        "autoscaling_config={min_replicas=1, max_replicas=3, target_ongoing_requests=1, upscale_delay_s=1, "
        "downscale_delay_s=5, metrics_interval_s=1, look_back_period_s=3}"
    )
    options = [f"fdm_server={{{scaling}, ray_actor_options={{num_cpus=1.5}}}}"]
    options += ["idm_server={ray_actor_options={num_cpus=0.1}}", "ingress={ray_actor_options={num_cpus=0.1}}"]
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "serve_apps", f"port={port}", *options], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        load = Load(f"http://127.0.0.1:{port}", 6)
        end_s = time.monotonic() + LIMIT_S
        while b"open http" not in (tmp_path / "log").read_bytes():
            assert server.poll() is None and time.monotonic() < end_s, (tmp_path / "log").read_text()
            time.sleep(0.2)
        assert wait_for_nodes(1, LIMIT_S) >= 0
        load.learn()
        with load:
            up_s = wait_for_nodes(3, LIMIT_S)
        down_s = wait_for_nodes(1, LIMIT_S)
        print(
            f"server: 1 to 3 nodes in {up_s:.0f} s under load, back {down_s:.0f} s after it; {load.num_answers} answers"
        )
        assert load.num_answers > 0 and load.failures == [] and load.wrong == []
        # What is left answers as before.
        assert load.ask(0) == load.expected[0]
    finally:
        server.terminate()
        server.wait(LIMIT_S)
        log.close()
