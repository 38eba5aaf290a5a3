"""The schedule, and DeepSpeed's step against plain AdamW."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.models import load_model
from wm.training import Lora, RecognitionWeights, Source, TrainRecipe, completion_loss, open_tokens, prepare
from wm.training.data.order import SampleOrder
from wm.training.step import Stepper, ensure_process_group, learning_rate
from wm.training.zero import deepspeed_config, loading


def test_the_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, peak=2.0, num_steps=20, warmup_steps=4, floor=0.1)

    assert [rate(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(4) == 2.0
    assert rate(12) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert rate(16) == pytest.approx(2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.75))))
    assert rate(20) == pytest.approx(0.2) and rate(99) == pytest.approx(0.2)


def test_the_rate_without_warm_up_starts_at_its_peak() -> None:
    assert learning_rate(0, peak=1.0, num_steps=10, warmup_steps=0, floor=0.0) == 1.0


def recipe_of(base: Path, folder: Path, **values: Any) -> TrainRecipe:
    common = {"task": "fdm", "base": str(base), "triplets": str(folder), "out": "unused", "max_steps": 6}
    settings = {
        "resources": {"num_workers": 0, "zero_stage": 1, "gradient_checkpointing": False},
        "optim": {"lr": 1e-2},
        "global_batch_size": 8,
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def test_buffers_are_no_larger_than_what_is_trained(tiny_base: Path) -> None:
    config = deepspeed_config(
        recipe_of(tiny_base, tiny_base, micro_batch_size=2, optim={"max_grad_norm": 0.5}), num_trained=1000
    )
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["stage"] == 1
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (2, 4)
    assert config["gradient_clipping"] == 0.5


@pytest.mark.parametrize("micro_batch", [0, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_steps_equal_plain_adamw(tiny_base: Path, tmp_path: Path, micro_batch: int, stage: int) -> None:
    # Accumulated passes have equation 2's raw weights: the batch's count divides, whatever the weights sum to.
    recognition = RecognitionWeights(floor=0.5, normalise=micro_batch == 0)
    recipe = recipe_of(
        tiny_base,
        write_triplets(random_rows(tiny_base, 20), tmp_path),
        micro_batch_size=micro_batch,
        resources={"zero_stage": stage},
        optim={"warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5},
        lora={"enabled": False},
        recognition=recognition.model_dump(),
    )
    ensure_process_group(torch.device("cpu"))
    plain = load_model(tiny_base)
    with loading(recipe, plain.device):
        ours = load_model(tiny_base)
    tokens = open_tokens([Source(path=str(tmp_path))], ours, "fdm", recognition, root=tmp_path / "t", seed=0)
    order = SampleOrder([20], [1.0], 0)
    for vlm in (ours, plain):
        prepare(vlm, Lora(enabled=False), 0)
    stepper = Stepper(ours, recipe, num_steps=6)
    matrices = [p for p in plain.module.parameters() if p.ndim >= 2]
    vectors = [p for p in plain.module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
    )
    for step in range(6):
        indices = order.batch(step, 8)
        size = micro_batch or 8
        micro = [tokens.batch(indices[start : start + size]) for start in range(0, 8, size)]
        loss = stepper.step(step, micro, tokens.num_completion_tokens(indices))

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=1e-2, num_steps=6, warmup_steps=2, floor=0.0)
        complete = tokens.batch(indices)
        expected = completion_loss(plain, *complete, int(complete[1].sum()))
        optimizer.zero_grad()
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.module.parameters(), 0.5)
        optimizer.step()
        assert loss == pytest.approx(expected.item(), rel=2e-5)
        assert stepper.grad_norm == pytest.approx(norm.item(), rel=2e-4)
    trained = stepper.weights(keep=True) or dict(ours.module.named_parameters())
    for name, wanted in plain.module.named_parameters():
        result = trained[name]
        torch.testing.assert_close(result, wanted, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_first_step_is_adamws_first(tiny_base: Path, tmp_path: Path, stage: int, precision: str) -> None:
    """Whatever DeepSpeed does to have its state: the first step of AdamW moves by the rate, after one step of decay."""
    folder = write_triplets(random_rows(tiny_base, 8), tmp_path)
    values = {
        "resources": {"zero_stage": stage},
        "precision": precision,
        "optim": {"lr": 0.25, "weight_decay": 0.5, "max_grad_norm": 0},
    }
    recipe = recipe_of(tiny_base, folder, lora={"enabled": False}, **values)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ensure_process_group(torch.device("cpu"))
    with loading(recipe, torch.device("cpu")):
        vlm = load_model(tiny_base, dtype=dtype)
    prepare(vlm, recipe.lora, 0)
    before = {
        name: value.detach().float() for name, value in load_model(tiny_base, dtype=dtype).module.named_parameters()
    }
    stepper = Stepper(vlm, recipe, num_steps=6)
    tokens = open_tokens([Source(path=str(tmp_path))], vlm, "fdm", RecognitionWeights(), root=tmp_path / "t", seed=0)
    rows = SampleOrder([8], [1.0], 0).batch(0, 8)
    stepper.step(0, [tokens.batch(rows)], tokens.num_completion_tokens(rows))
    parts = {part.name: part.values["weight"] for part in stepper.parts()}
    for name, wanted in before.items():
        decayed = wanted.flatten() * (1 - 0.25 * 0.5 * (wanted.ndim >= 2))
        moved = (parts[name] - decayed).abs()
        assert moved.max() == pytest.approx(0.25, rel=1e-3), name
