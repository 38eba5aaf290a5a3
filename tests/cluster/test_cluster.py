"""Files for clusters that name real things, and several Ray nodes on one machine."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.local_nodes import main

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "cluster").rglob("*.yaml"))


def load(name):
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def test_ray_up_config_passes_rays_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(load("cluster.yaml"), schema)


def test_ray_up_takes_the_file_as_it_is():
    """By what ``ray up`` itself does first: the schema alone lets pass a file that it refuses."""
    config = prepare_config(load("cluster.yaml"))
    validate_config(config)
    (node_type,) = config["available_node_types"].values()
    num_workers = len(config["provider"]["worker_ips"])
    assert (node_type["min_workers"], node_type["max_workers"], config["max_workers"]) == (num_workers,) * 3
    head = config["head_start_ray_commands"][-1]
    assert "RAY_enable_autoscaler_v2=0 ray start --head" in head and "--disable-usage-stats" in head
    # The container's user may read the token, which the ssh user brings.
    (token,) = config["file_mounts"]
    name = config["docker"]["container_name"]
    assert config["setup_commands"] == [
        f"docker exec --user 0 {name} {command} {token}" for command in ("chgrp 1000", "chmod 640")
    ]


def test_both_kinds_of_cluster_run_one_image():
    (image,) = load("kubernetes/overlays/cpu/kustomization.yaml")["images"]
    assert f"{image['newName']}:{image['newTag']}" == load("cluster.yaml")["docker"]["image"]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.relative_to(ROOT / "cluster")))
def test_modules_and_recipes_that_are_named_exist(file):
    text = file.read_text()
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    for recipe in re.findall(r"jobs/recipes/[\w/-]+\.toml", text):
        assert (ROOT / recipe).is_file(), recipe


def test_the_image_copies_every_package():
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    copied = {part for line in re.findall(r"^COPY (.+)$", text, re.M) for part in line.split()[:-1]}
    assert {"wm", "jobs", "serve_apps", "pyproject.toml"} <= copied


SPREAD = """
import sys, time
import ray

ray.init(logging_level="ERROR")

@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def where():
    time.sleep(0.5)  # or one node would do both
    return ray.get_runtime_context().get_node_id()

nodes = set(ray.get([where.remote() for _ in range(2)]))
sys.exit(10 * int(ray.cluster_resources()["CPU"]) + len(nodes))
"""


@pytest.mark.slow
def test_a_command_runs_on_the_nodes_and_its_status_comes_back(tmp_path):
    """In a TMPDIR without a folder of Ray's, in which none is made: the user's own cluster has its address there.

    That a node may go is held by test_loop.py.
    """
    command = ["-m", "cluster.local_nodes", "--nodes", "2", "--cpus", "1", "--", sys.executable, "-c", SPREAD]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    environment["TMPDIR"] = str(tmp_path / ("x" * 100))
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 22, ended.stderr
    assert ended.stdout.startswith("2 nodes with 1 CPUs each at 127.0.0.1:") and ended.stdout.count("\n") == 1
    assert ended.stderr.startswith(f"note: TMPDIR = '{environment['TMPDIR']}' is too long")
    assert list(tmp_path.rglob("*")) == [], ended.stderr


def test_impossible_sizes_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--nodes", "0", "--", "true"])
    assert "--nodes and --cpus must be at least 1" in capsys.readouterr().err
