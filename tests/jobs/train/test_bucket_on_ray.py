"""Training on Ray nodes that share nothing but a bucket: killed, it resumes to the model of an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.local_nodes import OBJECT_STORE_BYTES, local_nodes
from tests.helpers.bucket_models import bucket, keys, upload
from tests.helpers.training_data import merge_tables, random_rows, to_arguments, write_triplets
from wm.models import load_model
from wm.training import METRICS

ROOT = Path(__file__).resolve().parents[3]
STEPS, EVERY = 60, 10


def arguments(out: str, **values: Any) -> list[str]:
    paths = {"base": "s3://data/base", "triplets": "s3://data/triplets", "out": out}
    settings = {
        "task": "fdm",
        "max_steps": STEPS,
        "global_batch_size": 8,
        "micro_batch_size": 1,
        "checkpoint": {"every_steps": EVERY},
        "resources": {"num_workers": 2},
    }
    return to_arguments(merge_tables(paths, settings, values))


def start(cache: Path, settings: list[str]) -> "subprocess.Popen[str]":
    environment = os.environ | {"WM_CACHE": str(cache)}
    command = [sys.executable, "-m", "jobs.train", *settings]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def curve(client: Any, run: str) -> list[tuple[int, float]]:
    text = client.get_object(Bucket="data", Key=f"{run}/{METRICS}")["Body"].read().decode()
    return [(line["step"], line["loss"]) for line in map(json.loads, text.splitlines())]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nodes_that_share_nothing_resume_a_killed_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_triplets(random_rows(tiny_base, 60), tmp_path / "rows" / "triplets")
    with bucket("data") as client:
        upload(client, tiny_base, "data", "base")
        upload(client, tmp_path / "rows", "data", "")
        # Each node, and each driver, has a folder of its own for copies.
        monkeypatch.setenv("WM_CACHE", str(tmp_path / "node1"))
        with local_nodes(1, cpus_per_node=1) as cluster:
            monkeypatch.setenv("WM_CACHE", str(tmp_path / "node2"))
            cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
            cluster.wait_for_nodes()
            undisturbed = start(tmp_path / "driver1", arguments("s3://data/undisturbed"))
            output = undisturbed.communicate(timeout=300)[0]
            assert undisturbed.returncode == 0, output
            # Both nodes have had the base, by themselves.
            for node in ("node1", "node2"):
                assert (tmp_path / node / "wm-buckets" / "s3" / "data" / "base" / "model.safetensors").is_file()
                assert not list((tmp_path / node / "tokens").glob("*"))
            killed = start(tmp_path / "driver2", arguments("s3://data/killed"))
            while not any("checkpoint.json" in key for key in keys(client, "data", "killed/checkpoints/")):
                assert killed.poll() is None
                time.sleep(0.05)
            killed.send_signal(signal.SIGKILL)
            killed.communicate()
            assert not any(key == "killed/run.json" for key in keys(client, "data", "killed/"))
            # The next driver is on a machine that has seen nothing.
            resumed = start(tmp_path / "driver3", arguments("s3://data/killed"))
            output = resumed.communicate(timeout=300)[0]
            assert resumed.returncode == 0, output
            assert f"train fdm: {STEPS} steps" in output and "resumed from step" in output
            assert "s3://data/killed/model" in output and "wm-buckets" not in output
            assert curve(client, "killed") == curve(client, "undisturbed")
            ours, theirs = (load_model(f"s3://data/{name}") for name in ("killed", "undisturbed"))
            for (name, one), other in zip(ours.module.named_parameters(), theirs.module.parameters(), strict=True):
                assert torch.equal(one, other), name
