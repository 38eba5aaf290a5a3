"""Ranks and ZeRO stages: the same loss curve and the same model, whichever ranks work and whichever resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from tests.helpers.training_ranks import fit_on_ranks
from wm.training import METRICS, MODEL, TrainRecipe

STEPS = 8


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 40), tmp_path_factory.mktemp("triplets"))


def recipe_of(base: Path, triplets: Path, out: Path, **values: Any) -> TrainRecipe:
    out.mkdir(exist_ok=True)
    common = {"task": "fdm", "base": str(base), "triplets": str(triplets), "out": str(out), "max_steps": STEPS}
    settings = {
        "optim": {"lr": 1e-2},
        "global_batch_size": 8,
        "checkpoint": {"every_steps": 3, "keep_last": 9},
        "logging": {"every_steps": 2, "trackers": []},
        "lora": {"r": 4, "dropout": 0.0},
        "resources": {"gradient_checkpointing": False},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def curve(out: Path, name: str = "loss") -> list[float]:
    return [json.loads(line)[name] for line in (out / METRICS).read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    (file,) = (out / MODEL).glob("*model.safetensors")
    return load_file(file)


@pytest.fixture(scope="module")
def one(tiny_base: Path, triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank in fp32, adapters."""
    out = tmp_path_factory.mktemp("one") / "out"
    (summary,) = fit_on_ranks(
        recipe_of(tiny_base, triplets, out, resources={"num_workers": 0}, checkpoint={"every_steps": 1})
    )
    assert summary["num_steps"] == STEPS
    return out


@pytest.mark.parametrize(
    ("ranks", "stage", "recomputes"),
    [
        (2, 0, False),  # gradients summed by DeepSpeed's plain engine
        (2, 2, False),  # gradients and optimiser in two parts
        (2, 3, True),  # weights in parts, gathered a second time for layers that are computed again
        (4, 1, True),  # four ranks, each with two rows of the batch
    ],
)
def test_ranks_and_stages_give_the_same_curve_and_adapter(
    *, tiny_base: Path, triplets: Path, tmp_path: Path, one: Path, ranks: int, stage: int, recomputes: bool
) -> None:
    values = {"resources": {"num_workers": ranks, "zero_stage": stage, "gradient_checkpointing": recomputes}}
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", **values)
    summaries = fit_on_ranks(recipe)
    assert all(summary["num_steps"] == STEPS for summary in summaries)
    for name in ("loss", "grad_norm"):
        result, expected = curve(tmp_path / "out", name), curve(one, name)
        assert result == pytest.approx(expected, rel=2e-6 if name == "loss" else 2e-5)
    theirs = weights(one)
    for name, result in weights(tmp_path / "out").items():
        torch.testing.assert_close(result, theirs[name], rtol=1e-3, atol=2e-5)


def go_on(found: Path, step: int, recipe: TrainRecipe) -> list[dict[str, Any]]:
    """A run that was killed after the checkpoint of ``step`` of the run in ``found``, started again as ``recipe``."""
    (name,) = (path.name for path in (found / "checkpoints").glob(f"step-{step:08d}-*"))
    shutil.copytree(found / "checkpoints" / name, Path(recipe.out) / "checkpoints" / name)
    shutil.copy(found / METRICS, Path(recipe.out) / METRICS)
    summaries = fit_on_ranks(recipe)
    assert {summary["resumed_at_step"] for summary in summaries} == {step}
    return summaries


def test_other_ranks_and_stages_resume_from_a_checkpoint(
    *, tiny_base: Path, triplets: Path, tmp_path: Path, one: Path
) -> None:
    """Every way of holding the state reads another's checkpoint, and writes one that the next reads."""
    result = one
    for step, (ranks, stage) in enumerate([(2, 1), (2, 3), (2, 0), (1, 2), (0, 1)], 2):
        out = tmp_path / f"step{step}"
        values = {"resources": {"num_workers": ranks, "zero_stage": stage}, "checkpoint": {"every_steps": 1}}
        go_on(result, step, recipe_of(tiny_base, triplets, out, **values))
        assert curve(out) == pytest.approx(curve(one), rel=2e-6), (ranks, stage)
        result = out


@pytest.mark.parametrize(
    ("ranks", "stage", "values"),
    [
        (2, 0, {"precision": "bf16", "resources": {"gradient_checkpointing": "auto"}}),  # the ranks agree on what fits
        (2, 1, {"lora": {"r": 4, "dropout": 0.3}}),
        (2, 2, {"precision": "bf16", "lora": {"enabled": False}, "resources": {"gradient_checkpointing": True}}),
        (2, 3, {"precision": "bf16", "resources": {"gradient_checkpointing": True}}),
        (2, 3, {"lora": {"enabled": False}, "micro_batch_size": 2}),
    ],
)
def test_resumed_ranks_equal_the_uninterrupted_to_the_last_bit(
    *, tiny_base: Path, triplets: Path, tmp_path: Path, ranks: int, stage: int, values: dict[str, Any]
) -> None:
    common = {"resources": {"num_workers": ranks, "zero_stage": stage}, "optim": {"weight_decay": 0.1}}
    common = merge_tables(common, values)
    fit_on_ranks(recipe_of(tiny_base, triplets, tmp_path / "whole", **common))
    go_on(tmp_path / "whole", 3, recipe_of(tiny_base, triplets, tmp_path / "again", **common))
    for name in ("loss", "grad_norm"):
        assert curve(tmp_path / "again", name) == curve(tmp_path / "whole", name)
    theirs, ours = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
