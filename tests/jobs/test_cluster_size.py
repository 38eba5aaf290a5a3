"""Stages that leave their numbers of workers out take what the joined cluster has; those that name them keep them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from jobs.annotate.recipe import AnnotateRecipe
from jobs.bootstrap import BootstrapRecipe, plan
from jobs.bootstrap.graph import build_graph, fit_stages
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.shared import cluster_size
from jobs.shared.cluster_size import ClusterSize, fit_to_cluster, read_cluster_size
from tests.helpers.recipes import ROOT
from wm.training import TrainRecipe


@pytest.fixture
def joined(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")


def annotation(**resources):
    return AnnotateRecipe.parse({"videos": "v", "idm": "i", "out": "o", "resources": resources}, "test")


def training(batch=32, micro=0, **resources):
    values = {"task": "idm", "base": "b", "triplets": "t", "out": "o", "max_steps": 1}
    more = {"global_batch_size": batch, "micro_batch_size": micro, "resources": resources}
    return TrainRecipe.parse(values | more, "test")


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "expected"),
    [
        # Half of the CPUs annotate, at half a CPU each; the rest decodes.
        ({}, 12, 0, (12, 12)),
        ({"num_annotators": 2}, 12, 0, (22, 2)),
        ({"num_decoders": 3}, 12, 0, (3, 12)),
        # Two annotators a GPU, whose half CPUs are not left for decoders.
        ({"gpus_per_annotator": 0.5}, 12, 4, (16, 8)),
        ({"num_decoders": 1, "max_annotators": 4}, 12, 4, (1, 4)),
        # The GPUs annotate, but for the share of two decoders; then as many as CPUs and GPUs hold.
        ({"gpus_per_annotator": 0.5, "gpus_per_decoder": 0.25}, 12, 4, (2, 7)),
        ({"num_annotators": 1, "gpus_per_annotator": 1, "gpus_per_decoder": 0.1}, 12, 2, (10, 1)),
        ({"num_decoders": 4, "gpus_per_annotator": 0.2, "gpus_per_decoder": 0.1}, 12, 1, (4, 3)),
        # Never less than what is there from the start.
        ({}, 1, 0, (2, 1)),
    ],
)
def test_an_annotation_grows_to_what_the_cluster_holds(joined, resources, cpus, gpus, expected):
    recipe = annotation(**resources)
    if "gpus_per_decoder" in resources:
        keyframes = recipe.keyframes.model_copy(update={"motion": "farneback", "device": "cuda"})
        recipe = recipe.model_copy(update={"keyframes": keyframes})
    fitted = fit_to_cluster(recipe, ClusterSize(cpus, gpus))
    assert tuple(pool.stop for pool in fitted.resources.pool_sizes(1000)) == expected
    # Once, by whom it may be: the numbers are given then.
    assert fit_to_cluster(fitted, ClusterSize(100, 100)) == fitted


@pytest.mark.parametrize("batch", [1, 8, 12, 30, 32])
@pytest.mark.parametrize("micro", [0, 1, 2])
def test_training_takes_as_many_workers_as_share_the_batch(joined, batch, micro):
    if batch % 2 or (micro == 2 and batch // 2 % 2):
        return  # no batch for the default of two workers
    for cpus in range(1, 20):
        workers = fit_to_cluster(training(batch, micro), ClusterSize(cpus, 0)).resources.num_workers
        possible = []
        for number in range(1, cpus + 1):
            try:
                training(batch, micro, num_workers=number)
            except ValueError:
                continue
            possible.append(number)
        assert workers == max(possible, default=1)


def test_what_is_named_stays_and_a_gpu_is_a_worker(joined):
    assert fit_to_cluster(training(num_workers=0), ClusterSize(8, 8)).resources.num_workers == 0
    assert fit_to_cluster(training(use_gpu=True), ClusterSize(64, 4)).resources.num_workers == 4
    evaluation = EvaluateRecipe(out="o", triplets="t")
    assert fit_to_cluster(evaluation, ClusterSize(6, 0)).resources.num_workers == 6
    on_gpu = EvaluateRecipe.parse({"out": "o", "triplets": "t", "resources": {"device": "cuda"}}, "test")
    assert fit_to_cluster(on_gpu, ClusterSize(6, 1)) == on_gpu


def test_without_a_cluster_defaults_stay(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert fit_to_cluster(annotation(), ClusterSize(100, 0)) == annotation()
    stages = plan(BootstrapRecipe.load(ROOT / "jobs/recipes/nano/demo.toml", ["out=o/demo", "base_model=b"]))
    assert fit_stages(stages) == (stages, None)


def test_the_nodes_that_an_autoscaler_may_add_count(joined, monkeypatch):
    groups = [
        SimpleNamespace(resources={"CPU": 2.0}, max_count=0),
        SimpleNamespace(resources={"CPU": 4.0, "GPU": 1.0}, max_count=5),
        SimpleNamespace(resources={"CPU": 4.0}, max_count=-1),
    ]
    calls = []
    monkeypatch.setattr(cluster_size.ray_session, "connect", lambda: calls.append("connect"))
    monkeypatch.setattr(cluster_size.ray_session, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0})
    state = ray._private.state.state
    monkeypatch.setattr(state, "get_cluster_config", lambda: SimpleNamespace(node_group_configs=groups))
    assert read_cluster_size() == ClusterSize(20.0, 5.0) and calls == ["connect", "shutdown"]
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    assert read_cluster_size() == ClusterSize(6.0, 0.0)


def test_stages_of_a_bootstrap_share_the_cluster(joined, monkeypatch):
    monkeypatch.setattr("jobs.bootstrap.graph.read_cluster_size", lambda: ClusterSize(6.0, 0.0))
    tables = {name: {"max_steps": 2} for name in ("idm", "fdm")}
    recipe = BootstrapRecipe.parse({"out": "o/run", "base_model": "b", "select": {"k": 9}, **tables}, "test")
    stages, size = fit_stages(plan(recipe))
    recipes = {stage.name: stage.recipe for stage in stages}
    assert recipes["idm"].resources.num_workers == 4 and recipes["evaluate"].resources.num_workers == 6
    assert recipes["annotated"].resources.max_annotators == 6
    graph = build_graph(stages, Path("o/run"), 4, size)
    assert graph.capacity.cpus == 6
    assert all(demand.cpus <= 6 for demand in graph.demands.values())
