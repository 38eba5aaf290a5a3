"""Manifests that name real things, and several Ray nodes on one machine."""

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
from ray.serve.schema import ServeDeploySchema

from cluster.local_nodes import local_nodes, main
from serve_apps.recipe import ServeRecipe

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "cluster").rglob("*.yaml"))


def load(name):
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def cluster_specs():
    yield load("kuberay/raycluster.yaml")["spec"]
    yield load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    yield load("kuberay/rayservice.yaml")["spec"]["rayClusterConfig"]


def test_ray_up_config_passes_rays_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(load("cluster.yaml"), schema)


def test_ray_version_and_authentication():
    for spec in cluster_specs():
        assert spec["rayVersion"] == ray.__version__
        assert spec["authOptions"] == {"mode": "token"}
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        images = {box["image"] for group in groups for box in group["template"]["spec"]["containers"]}
        assert images == {load("cluster.yaml")["docker"]["image"]}


def test_served_arguments_are_known():
    config = ServeDeploySchema.model_validate(yaml.safe_load(load("kuberay/rayservice.yaml")["spec"]["serveConfigV2"]))
    (application,) = config.applications
    ServeRecipe.model_validate(application.args)
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
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


@pytest.mark.slow
def test_tasks_spread_over_nodes_and_one_may_go(no_ray_session):
    before = os.environ.get("RAY_ADDRESS")
    with local_nodes(2, cpus_per_node=1) as cluster:
        ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
        try:

            @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
            def where():
                import time

                time.sleep(0.5)
                return ray.get_runtime_context().get_node_id()

            assert len(set(ray.get([where.remote() for _ in range(2)]))) == 2
            (worker,) = cluster.worker_nodes
            cluster.remove_node(worker, allow_graceful=False)
            assert len(set(ray.get([where.remote() for _ in range(2)]))) == 1
        finally:
            ray.shutdown()
    assert os.environ.get("RAY_ADDRESS") == before


@pytest.mark.slow
def test_a_command_runs_on_the_nodes_and_its_status_comes_back(tmp_path):
    """In a TMPDIR without a folder of Ray's, in which none is made: the user's own cluster has its address there."""
    script = "import ray, sys; ray.init(logging_level='ERROR'); sys.exit(int(ray.cluster_resources()['CPU']))"
    command = ["-m", "cluster.local_nodes", "--nodes", "1", "--cpus", "3", "--", sys.executable, "-c", script]
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_TMPDIR", "RAY_ADDRESS")}
    environment["TMPDIR"] = str(tmp_path / ("x" * 100))
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.startswith("1 nodes with 3 CPUs each at 127.0.0.1:") and ended.stdout.count("\n") == 1
    assert ended.stderr.startswith(f"note: TMPDIR = '{environment['TMPDIR']}' is too long")
    assert list(tmp_path.rglob("*")) == [], ended.stderr


def test_impossible_sizes_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--nodes", "0", "--", "true"])
    assert "--nodes and --cpus must be at least 1" in capsys.readouterr().err
