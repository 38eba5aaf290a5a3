"""Figures of a run against the rows they are of, trackers read back, arithmetic counted by torch."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.event_files import read_events
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.errors import InputError
from wm.models import load_model
from wm.training import METRICS, RankInfo, TrainRecipe, fit, open_tokens, prepare
from wm.training.data.batches import NUM_QUANTILES
from wm.training.monitoring.metrics import WEIGHT_EDGES, source_names
from wm.training.monitoring.trackers import Histogram, Trackers, check_trackers, open_trackers
from wm.training.planning.flops import peak_of, step_work
from wm.training.planning.plan import order_of

HERE = RankInfo(0, 1, torch.device("cpu"))
STEPS, BATCH, EVERY = 6, 8, 3


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two sources, the second's images change more."""
    root = tmp_path_factory.mktemp("triplets")
    write_triplets(random_rows(tiny_base, 20), root / "people")
    rows = random_rows(tiny_base, 12, seed=1)
    for row in rows:
        row["change"] = [5 * value for value in row["change"]]
    write_triplets(rows, root / "videos")
    return [str(root / "people"), str(root / "videos")]


def recipe_of(base: Path, triplets: list[str], out: Path, **values: Any) -> TrainRecipe:
    out.mkdir(exist_ok=True)
    sources = [{"path": path} for path in triplets]
    common = {
        "task": "fdm",
        "base": str(base),
        "triplets": sources,
        "out": str(out),
        "max_steps": STEPS,
        "resources": {"num_workers": 0},
    }
    settings = {
        "global_batch_size": BATCH,
        "logging": {"every_steps": EVERY},
        "checkpoint": {"every_steps": 3},
        "lora": {"dropout": 0.0},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def train(recipe: TrainRecipe) -> list[dict[str, Any]]:
    """From the last checkpoint on, if there is one."""
    fit(recipe, HERE, digest="d")
    return [json.loads(line) for line in (Path(recipe.out) / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_base: Path, triplets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = recipe_of(
        tiny_base,
        triplets,
        tmp_path_factory.mktemp("runs") / "out",
        optim={"lr": 1e-9},
        resources={"peak_tflops": 0.001},
    )
    return recipe, train(recipe)


def test_losses_by_source_and_change_are_those_of_their_rows(tiny_base: Path, trained: Any) -> None:
    recipe, lines = trained
    vlm = load_model(tiny_base)
    tokens = open_tokens(recipe.triplets, vlm, "fdm", recipe.recognition, root=Path(recipe.out) / "again", seed=0)
    order = order_of(recipe, tokens.facts)
    sums: dict[str, list[float]] = {}
    mean_of_all = change_of_all(recipe)
    edges = np.quantile(list(mean_of_all.values()), [0.25, 0.5, 0.75])
    for step in range(EVERY):
        for row in order.batch(step, BATCH).tolist():
            ids, is_completion, _ = tokens.batch(np.array([row]))
            with torch.no_grad():
                logits = vlm.head(vlm.body(ids[:, :-1]))[0].double().log_softmax(-1)
            positions = is_completion[0, 1:].nonzero()[:, 0].tolist()
            nll = [-float(logits[position, ids[0, position + 1]]) for position in positions]
            name = tokens.names(np.array([row]))[0]
            quarter = 1 + sum(mean_of_all[name] > edge for edge in edges)
            for key in (("people", "videos")[row >= 20], str(quarter)):
                sums.setdefault(key, []).extend(nll)
    means = lines[EVERY - 1]["loss_by_source"] | lines[EVERY - 1]["loss_by_change"]
    assert set(means) == set(sums) and len(sums) == 2 + NUM_QUANTILES
    for key, values in sums.items():
        assert means[key] == pytest.approx(np.mean(values), abs=2e-5), key


def change_of_all(recipe: TrainRecipe) -> dict[str, float]:
    import pyarrow.parquet as pq

    result = {}
    for source in recipe.triplets:
        for row in pq.read_table(Path(source.path) / "part.parquet", columns=["triplet_id", "change"]).to_pylist():
            result[row["triplet_id"]] = float(np.mean(row["change"]))
    return result


def test_a_window_has_its_figures_in_its_last_line(trained: Any) -> None:
    _, lines = trained
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert ["tokens_per_s" in line for line in lines] == [False, False, True] * 2
    for line in (lines[2], lines[5]):
        tokens_per_s, samples_per_s = line["tokens_per_s"], line["samples_per_s"]
        assert 14 < tokens_per_s / samples_per_s < 32  # a row has 4 + 4 image tokens, 2 to 4 words and structure
        assert 0 < line["mfu"] < 100 and line["memory_peak_bytes"] > 1e7
        # Weights of 8 rows of 4 image tokens, by definition of mean 1 over an image.
        assert sum(line["weight_counts"]) == BATCH * 4
    assert lines[0]["epoch"] == pytest.approx(BATCH / 32) and lines[-1]["epoch"] == pytest.approx(1.5)


def test_tensorboard_shows_the_values_of_metrics_jsonl(trained: Any) -> None:
    recipe, lines = trained
    events = read_events(Path(recipe.out) / "tensorboard")
    for name in ("loss", "lr", "grad_norm"):
        assert events.scalars[f"train/{name}"] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines
        ]
    last = lines[-1]
    for tag, value in (
        ("speed/samples_per_s", last["samples_per_s"]),
        ("speed/tokens_per_s", last["tokens_per_s"]),
        ("speed/mfu", last["mfu"]),
        ("memory/peak_gib", last["memory_peak_bytes"] / 2**30),
        ("loss_by_source/videos", last["loss_by_source"]["videos"]),
        ("loss_by_change/quarter_4", last["loss_by_change"]["4"]),
    ):
        assert events.scalars[tag][-1] == (STEPS, pytest.approx(value, rel=1e-5)), tag
    (first, last_histogram) = events.histograms["recognition_weights"]
    assert (first[0], last_histogram[0]) == (EVERY, STEPS)
    histogram = last_histogram[1]
    assert list(histogram.bucket) == last["weight_counts"] and histogram.num == BATCH * 4
    assert histogram.sum == pytest.approx(BATCH * 4, rel=1e-5)  # mean 1


def test_an_inverse_model_has_no_recognition_weights(tiny_base: Path, triplets: list[str], tmp_path: Path) -> None:
    lines = train(recipe_of(tiny_base, triplets, tmp_path / "out", task="idm", max_steps=2, logging={"every_steps": 2}))
    assert "weight_counts" not in lines[-1] and "mfu" not in lines[-1]
    assert "recognition_weights" not in read_events(tmp_path / "out" / "tensorboard").histograms


def test_after_a_resume_every_step_is_logged_once(tiny_base: Path, triplets: list[str], tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out")
    uninterrupted = train(recipe)
    resumed = train(recipe)
    logged = read_events(tmp_path / "out" / "tensorboard").scalars["train/loss"]
    assert [step for step, _ in logged] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in resumed] == [line["loss"] for line in uninterrupted]


def test_without_trackers_no_event_file_is_written(tiny_base: Path, triplets: list[str], tmp_path: Path) -> None:
    train(recipe_of(tiny_base, triplets, tmp_path / "out", logging={"trackers": []}, max_steps=1))
    assert not (tmp_path / "out" / "tensorboard").exists()


@pytest.mark.parametrize("place", ["mlflow", "wandb"])
def test_a_tracker_whose_package_is_missing_is_named(
    tiny_base: Path, triplets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import importlib.util

    result = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == place else result(name))
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", logging={"trackers": ["tensorboard", place]})
    with pytest.raises(InputError, match=f"logging.trackers = '{place}': the package {place} is not installed"):
        open_trackers(recipe, 0)
    check_trackers(["tensorboard"])
    assert place not in sys.modules


def test_mlflow_has_the_figures(
    tiny_base: Path, triplets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", logging={"trackers": ["mlflow"]})
    lines = train(recipe)
    run = (tmp_path / "out" / ".mlflow_run").read_text()
    client: Any = MlflowClient()
    assert [(one.step, one.value) for one in client.get_metric_history(run, "train/loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
    assert client.get_run(run).data.params["task"] == "fdm"
    train(recipe)
    assert len(client.get_metric_history(run, "train/loss")) == STEPS


def test_wandb_has_the_figures(
    tiny_base: Path, triplets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines = train(recipe_of(tiny_base, triplets, tmp_path / "out", logging={"trackers": ["wandb"]}))
    (path,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    content = path.read_bytes()
    assert b"train/loss" in content and str(lines[0]["loss"]).encode()[:8] in content
    assert wandb.run is None


def test_a_tracker_that_fails_is_left_out_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    text: list[int] = []

    class Whole:
        def log(self, step: int, values: Any) -> None:
            text.append(step)

    class Gone:
        def log(self, step: int, values: Any) -> None:
            raise ConnectionError("no server")

    trackers = Trackers([Gone(), Whole()])  # type: ignore[list-item]
    trackers.log(1, {"a": 1.0})
    trackers.log(2, {"a": 1.0})
    assert text == [1, 2] and caplog.text.count("Gone is no longer logged to (ConnectionError: no server)") == 1


def test_histograms_count_from_edge_to_edge() -> None:
    values = np.array([0.0, 0.01, 0.5, 1.0, 1.99, 2.0, 200.0], np.float32)
    result = Histogram.count(WEIGHT_EDGES, values)
    expected = [sum(low <= value < high for value in values) for low, high in itertools.pairwise(WEIGHT_EDGES)]
    assert result.counts.tolist() == expected and sum(expected) == 7
    again = Histogram.from_vector(WEIGHT_EDGES, result.to_vector() * 2)
    assert again.total == pytest.approx(2 * values.sum()) and again.counts.sum() == 14
    assert result.limits() == (0.0, 128.0)


@pytest.mark.parametrize("lora", [True, False])
def test_arithmetic_is_what_torch_counts(tiny_base: Path, lora: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from wm.training import Lora

    vlm = load_model(tiny_base)
    vlm.inner.set_attn_implementation("eager")  # of the fused kernels for CPUs torch counts nothing
    prepare(vlm, Lora(enabled=lora, dropout=0.0, fast=False), 0)
    work = step_work(vlm)
    rows, length, learned = 2, 41, 7
    ids = torch.zeros(rows, length, dtype=torch.int64)
    read = length - 1  # the last token is predicted and not read
    with FlopCounterMode(display=False) as counter:
        logits = vlm.head(vlm.body(ids[:, :read])[:, -learned:])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -learned:].flatten()).backward()
    ours = work.flops(np.full(rows, read), rows * learned)
    # Nothing under the first layer's queries, keys and values is trained: their input has no gradient.
    width, rank = vlm.inner.config.hidden_size, 16
    spared = 2 * rows * read * 3 * width * (width + rank) if lora else 0
    assert ours - spared == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_known_devices_have_a_peak() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989.0
    assert peak_of("NVIDIA H100 PCIe") == 756.0
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312.0
    assert peak_of("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None
    assert peak_of("Tesla T4") is None


def test_sources_of_one_name_are_numbered() -> None:
    assert source_names(["a/x/triplets", "b/x", "c", "d/x"]) == ["x", "x#2", "c", "x#3"]
