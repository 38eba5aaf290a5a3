"""Which stages wait for which, by what their recipes read, and which fit side by side."""

from pathlib import Path

import pytest

from jobs.bootstrap import BootstrapRecipe, plan, run
from jobs.bootstrap.graph import Demand, GpuPool, Graph, build_graph, find_demand, find_inputs
from jobs.bootstrap.times import Times, digest_of_settings, load_expected
from tests.helpers.recipes import ROOT
from wm.errors import InputError


def load(*settings: str) -> BootstrapRecipe:
    return BootstrapRecipe.load(ROOT / "jobs/recipes/nano/demo.toml", ["out=o/demo", "base_model=b", *settings])


def order(graph: Graph) -> list[set[str]]:
    """The stages of each step, if all of a step began and ended together."""
    finished, steps = set[str](), list[set[str]]()
    while started := {stage.name for stage in graph.list_startable(finished, set())}:
        steps.append(started)
        finished |= started
    return steps


def test_what_a_stage_reads_is_what_it_waits_for() -> None:
    stages = plan(load("seeds=[0, 3]"))
    inputs = find_inputs(stages, Path("o/demo"))
    assert inputs["world"] == inputs["clips"] == set()
    assert inputs["triplets"] == inputs["test"] == {"world"}
    assert inputs["idm"] == inputs["fdm-ft"] == {"triplets"}
    assert inputs["annotated-seed3"] == {"clips", "idm-seed3"} and inputs["selected-seed3"] == {"annotated-seed3"}
    assert inputs["fdm"] == inputs["fdm-unweighted"] == {"triplets", "annotated", "selected"}
    assert inputs["preview"] == {"test", "idm", "fdm"}
    models = {f"{name}{tail}" for name in ("idm", "fdm-ft", "fdm", "fdm-unweighted") for tail in ("", "-seed3")}
    assert inputs["evaluate"] == {"test", "preview"} | models
    assert inputs["judge"] == inputs["score"] == {"test", "evaluate"}
    assert inputs["paper"] == {"test", "evaluate", "judge", "score"}
    assert inputs["report"] == {stage.name for stage in stages} - {"report"}


def test_independent_stages_start_together() -> None:
    graph = build_graph(plan(load()), Path("o/demo"), max_stages=2)
    assert order(graph) == [
        {"world", "clips"},
        {"triplets", "test"},
        {"idm", "fdm-ft"},
        {"annotated"},
        {"selected"},
        {"fdm", "fdm-unweighted"},
        {"preview"},
        {"evaluate"},
        {"judge", "score"},
        {"paper"},
        {"report"},
    ]
    assert all(len(step) == 1 for step in order(build_graph(plan(load()), Path("o/demo"), max_stages=1)))


def test_what_is_made_of_the_predicted_images_can_be_switched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def names(*settings: str) -> set[str]:
        return {stage.name for stage in plan(load(*settings))}

    after = {"judge", "score", "paper"}
    assert after <= names() and not after & names("evaluate.keep_images=false")
    assert after & names("scoring.judge=false", "scoring.paper=false") == {"score"}
    recipes = {stage.name: stage.recipe for stage in plan(load("scoring.score=false", "evaluate.subset=split"))}
    assert recipes["paper"].model_dump()["results"] == ["o/demo/evaluate", "o/demo/judge"]
    judge, evaluation = recipes["judge"].model_dump(), recipes["evaluate"].model_dump()
    assert (judge["model"], judge["num_candidates"], judge["subset"]) == ("nano:oracle", [1, 2, 4, 8], "split")
    assert evaluation["keep_images"] is True
    # Data of one's own is judged when that is asked for, and by a model that may cost money.
    own = "data.supervised_root=root"
    assert not after & names(own)
    recipes = {stage.name: stage.recipe for stage in plan(load(own, "scoring.judge=true"))}
    assert recipes["judge"].model_dump()["model"] == "gpt-4o-2024-11-20"
    assert recipes["evaluate"].model_dump()["keep_images"] is True
    # Its key is looked for before the first stage, not when the judge's turn comes.
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set, and the judge 'm' asks OpenAI's API"):
        run(load(f"out={tmp_path}", "base_model=nano:base", "judge.model=m"), dry_run=True)
    with pytest.raises(InputError, match=r"scoring\.score = true needs the images"):
        plan(load("scoring.score=true", "evaluate.keep_images=false"))


def test_a_simulated_study_is_asked_for() -> None:
    assert not {"study", "study-votes", "study-report"} & {stage.name for stage in plan(load())}
    stages = plan(load("scoring.study=true", "study.participants=5", "study_votes.noise=2.0"))
    inputs = find_inputs(stages, Path("o/demo"))
    assert inputs["study"] == {"test", "evaluate"} and inputs["study-votes"] == {"study", "judge"}
    assert inputs["study-report"] == {"study", "study-votes", "judge"}
    assert inputs["paper"] == {"test", "evaluate", "judge", "score", "study-report"}
    recipes = {stage.name: stage.recipe.model_dump() for stage in stages}
    assert recipes["study"]["systems"] == ["C-ZS", "C-FT", "C-FDM, no weights", "C-FDM"]
    assert (recipes["study"]["per_subset"], recipes["study"]["participants"]) == (25, 5)
    # Empty: the paper's, C-FDM.
    assert recipes["study-votes"]["noise"] == 2.0 and recipes["study-report"]["reference"] == ""
    few = {stage.name: stage.recipe.model_dump() for stage in plan(load("scoring.study=true", "evaluate.limit=4"))}
    assert few["study"]["per_subset"] == 4
    with pytest.raises(InputError, match=r"needs the scores of the judge"):
        plan(load("scoring.study=true", "scoring.judge=false"))
    with pytest.raises(InputError, match=r"scoring\.study = true needs the images"):
        plan(load("scoring.study=true", "evaluate.keep_images=false"))


def test_gpus_and_cpus_that_stages_ask_for_bound_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    gpu = "resources = { num_workers = 1, use_gpu = true }"
    stages = plan(load(f"idm={{ max_steps = 2, {gpu} }}", f"fdm={{ max_steps = 2, {gpu} }}"))
    graph = build_graph(stages, Path("o/demo"), max_stages=4)
    assert graph.demands["idm"] == Demand(1, 1) and graph.demands["test"] == Demand(1, 0)
    assert [step for step in order(graph) if {"idm", "fdm-ft"} <= step] == []
    # One that names its device may use any: it has them all.
    named = {stage.name: stage.recipe for stage in plan(load("evaluate.resources.device=cuda:1"))}
    assert find_demand(named["evaluate"]) == find_demand(named["preview"]) == Demand(1, 0, names_device=True)
    many = plan(load("idm={ max_steps = 2, global_batch_size = 64, resources = { num_workers = 64 } }"))
    assert build_graph(many, Path("o/demo"), max_stages=4).demands["idm"].cpus <= graph.capacity.cpus


def test_a_gpu_is_one_stages_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7,9")
    pool = GpuPool(3)
    first, second = pool.take(Demand(1, 1)), pool.take(Demand(1, 2))
    assert (first, second, pool.take(Demand(1, 3, names_device=True))) == (["4"], ["7", "9"], [])
    pool.give_back(first)
    assert pool.take(Demand(1, 1)) == ["4"]


def test_the_rest_of_a_run_is_estimated_by_a_measured_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    stages = plan(load())
    seconds = {stage.name: 10.0 for stage in stages} | {"clips": 30.0}
    times = Times(build_graph(stages, Path("o/demo"), max_stages=2), seconds)
    # world 10, triplets 20, test 30 beside the clips; the pairs of trainings, three of 10 alone, judge
    # beside scores, the paper's tables, the report.
    assert times.estimate_s(set()) == 30 + 10 + 20 + 10 + 10 + 10 + 10 + 20
    times.begin("world", set(), set())
    times.begin("clips", set(), {"world"})
    now_s = 120.0
    # The first took twice as long as there: so will the others. The clips have run for 20 of their 60 seconds.
    times.end("world")
    assert times.estimate_s({"world"}) == 40 + 2 * 90
    assert times.begin("triplets", {"world"}, {"clips"}) == (
        "\n[3/16] triplets, beside clips (0:20 so far, about 3:40 left)"
    )
    assert Times(build_graph(stages, Path("o/demo"), max_stages=2), {"world": 1.0}).estimate_s(set()) is None
    # Only a run of the same recipe says how long this one takes, wherever it was written to.
    assert digest_of_settings(load()) == digest_of_settings(load("out=elsewhere"))
    assert load_expected(load("tabletop.videos=3")) == {}
