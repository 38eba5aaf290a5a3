"""The job in process: what it refuses, prints and leaves."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.util import construct_user_exception_with_traceback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs.train.job import main, run
from jobs.train.worker import fit_worker
from tests.helpers.release_config import VOCABULARY, write_release_config
from tests.helpers.training_data import merge_tables, random_rows, small_training, to_arguments, write_triplets
from wm.errors import InputError
from wm.models import load_model
from wm.records import triplet_row
from wm.training import DivergedError, TrainRecipe
from wm.training.settings import OptimSettings

ROOT = Path(__file__).resolve().parents[3]


def recipe_of(*args: Any, **values: Any) -> TrainRecipe:
    return TrainRecipe.parse(small_training(*args, **values), "test")


def test_a_run_leaves_model_curve_and_record_and_is_not_repeated(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(
        tiny_base, triplets, tmp_path / "out", resources={"num_workers": 0}, max_steps=5, checkpoint={"every_steps": 2}
    )
    record = run(recipe)
    assert record["counts"] == {"triplets": 100, "skipped": 0, "steps": 5}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.jsonl",
        "model",
        "run.json",
        "tensorboard",
    ]
    assert load_model(tmp_path / "out" / "model").codec_id == load_model(tiny_base).codec_id
    assert str(tmp_path / "out" / "model") in capsys.readouterr().out
    before = (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns
    assert run(recipe) == record
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds another run"):
        run(recipe.model_copy(update={"optim": OptimSettings(lr=0.5)}))


def test_a_dry_run_counts_and_writes_nothing(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [{"path": str(triplets)}, {"path": str(triplets), "mix_weight": 0.5, "limit": 10}]
    values = small_training(tiny_base, triplets, tmp_path / "out", max_steps=0, epochs=2) | {"triplets": sources}
    plan = run(TrainRecipe.parse(values, "test"), dry_run=True)
    assert [(source["rows"], source["mix_weight"]) for source in plan["sources"]] == [(100, 1.0), (10, 0.5)]
    assert (plan["rows_per_epoch"], plan["num_steps"]) == (105, 27)
    assert plan["trained_parameters"] < plan["total_parameters"]
    assert plan["completion_tokens_per_batch"] == 4 * 8
    assert plan["tokens_per_batch"] > plan["completion_tokens_per_batch"]
    assert [source["epoch_share"] for source in plan["sources"]] == [pytest.approx(100 / 105, abs=1e-4), 0.0476]
    text = capsys.readouterr().out
    assert "105 rows an epoch" in text and "activations kept for the backward pass" in text
    assert "will not fit" not in text and plan["does_not_fit"] == []
    assert not (tmp_path / "out").exists()


def test_a_dry_run_needs_neither_gpus_nor_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_release_config(tmp_path / "anole-7b", num_layers=4)
    rows = []
    for name in ("one", "two"):
        codes = {"codec": "codec-x", "source_codes": [1] * 1024, "target_codes": [2] * 1024, "change": [0.5] * 1024}
        image = {"bytes": b"-", "path": None}
        values = {"dataset": "d", "split": "train", "video_uri": name, "source_image": image, "target_image": image}
        rows.append(triplet_row(**values, **codes, action="put the cup", origin="human"))
    triplets = write_triplets(rows, tmp_path / "triplets")
    values = {
        "resources": {"use_gpu": True, "num_workers": 2, "device_gib": 4.7},
        "precision": "bf16",
        "global_batch_size": 2,
    }
    plan = run(recipe_of(base, triplets, tmp_path / "out", **values), dry_run=True)
    assert (plan["zero_stage"], plan["recomputes"]) == (1, True) and len(plan["does_not_fit"]) == 1
    assert "ZeRO-1, layers computed again in the backward pass" in capsys.readouterr().out
    values = merge_tables(values, {"resources": {"gradient_checkpointing": False, "zero_stage": 1}})
    recipe = recipe_of(base, triplets, tmp_path / "out", **values)
    plan = run(recipe, dry_run=True)
    assert plan["memory"]["weights"] == pytest.approx(
        2 * (4 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * VOCABULARY * 4096), rel=1e-3
    )
    assert plan["longest_row"] > 2 * 1024 and plan["completion_tokens_per_batch"] >= 2 * 1024
    no_room, no_gpus = plan["does_not_fit"]
    assert "room for 3.2 GiB" in no_room and "asks for 2 GPUs" in no_gpus
    text = capsys.readouterr().out
    assert "2.51 GiB frozen weights" in text and text.count("will not fit: ") == 2
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="asks for 2 GPUs"):
        run(recipe)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rate=1", "unknown key 'learning_rate'"),
        ("lora.rank=1", "unknown key 'lora.rank'"),
        ("task=both", "task = 'both'"),
        ("max_steps=-1", "max_steps = -1"),
        ("epochs=1.0", "give max_steps or epochs"),
        ("resources.num_workers=3", "no multiple of resources.num_workers = 3"),
        ("micro_batch_size=3", "micro_batch_size = 3 does not divide"),
        ("micro_batch=3", "unknown key 'micro_batch': it is called micro_batch_size now"),
        ("weights.enabled=false", "unknown key 'weights': it is called recognition now"),
        ("gate_every=3", "unknown key 'gate_every': it is called eval.every_steps now"),
        ("base=nowhere", "nowhere"),
        ("triplets=nowhere", "nowhere"),
    ],
)
def test_bad_recipes_fail_before_any_work(
    *,
    tiny_base: Path,
    triplets: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    message: str,
) -> None:
    out = tmp_path / "out"
    good = to_arguments(small_training(tiny_base, triplets, out))
    assert main([*good, setting]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert not out.exists()


def test_codes_of_another_codec_fail_before_any_work(tiny_base: Path, tmp_path: Path) -> None:
    folder = write_triplets(random_rows(tiny_base, 3, codec="codec-other"), tmp_path / "triplets")
    with pytest.raises(InputError, match=r"codec-other.*wm ingest"):
        run(recipe_of(tiny_base, folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "recipes" / "paper").glob("c-*.toml")), ids=lambda p: p.stem)
def test_paper_recipes_parse_and_say_what_is_missing(path: Path) -> None:
    recipe = TrainRecipe.load(path)
    assert (recipe.lora.r, recipe.lora.alpha, recipe.lora.dropout) == (16, 32, 0.05)
    assert recipe.recognition.enabled == (path.stem.startswith("c-fdm") and path.stem != "c-fdm-no-weights")
    with pytest.raises(InputError, match="models/anole-7b"):
        run(recipe, dry_run=True)


def without_ray(monkeypatch: pytest.MonkeyPatch, fit: Callable[[DataParallelTrainer], SimpleNamespace]) -> None:
    """Put ``fit`` in the place of Ray's controller and its workers, which take many seconds to start."""
    rank = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr("ray.train.get_context", lambda: rank)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)
    monkeypatch.setattr("jobs.shared.ray_session.connect", lambda: None)


def test_an_error_of_a_worker_is_reported_in_one_line(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray wraps it, with its own functions, and sends it; make soak does the same on Ray."""

    def fit(trainer: DataParallelTrainer) -> SimpleNamespace:
        try:
            fit_worker(trainer.train_loop_config)
        except Exception as error:
            sent = pickle.dumps(construct_user_exception_with_traceback(error))
            status = WorkerGroupPollStatus({0: WorkerStatus(running=False, error=pickle.loads(sent))})
            raise pickle.loads(pickle.dumps(status.get_worker_group_error())) from None
        raise AssertionError("the worker did not fail")

    without_ray(monkeypatch, fit)
    changes = {"lora": {"targets": ".*no_such_layer"}, "resources": {"num_workers": 1, "max_failures": 0}}
    with pytest.raises(InputError, match=r"^lora.targets = '.*no_such_layer' fits") as error:
        run(recipe_of(tiny_base, triplets, tmp_path / "out", **changes))
    assert "\n" not in str(error.value)


def test_a_divergence_is_returned_by_the_worker_and_raised_once(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts workers again that raise; what they return it passes on. Its place is taken by one call."""
    calls: list[dict[str, Any]] = []

    def fit(trainer: DataParallelTrainer) -> SimpleNamespace:
        calls.append(fit_worker(trainer.train_loop_config))
        return SimpleNamespace(return_value=calls[-1])

    without_ray(monkeypatch, fit)
    changes = {"lora": {"enabled": False}, "optim": {"lr": 1e30, "max_grad_norm": 0}, "resources": {"num_workers": 1}}
    with pytest.raises(DivergedError, match=r"^loss is nan at step \d+.*$") as error:
        run(recipe_of(tiny_base, triplets, tmp_path / "out", **changes))
    assert calls == [{"diverged": str(error.value)}]
    assert not (tmp_path / "out" / "run.json").exists()
