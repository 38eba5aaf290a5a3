"""The command over a base that reads pixels: dry run, run, evaluation while it trains, the recipe for Qwen3-VL."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.train import main
from jobs.train.evaluator import build_evaluator
from jobs.train.job import run
from tests.helpers.pixel_training import pixel_rows, write_pixel_triplets
from tests.helpers.training_data import merge_tables, to_arguments, write_triplets
from wm.dynamics.loading import load_inverse_model
from wm.dynamics.observation import Observation
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError
from wm.evaluation.pixel_gates import pixel_gate, read_pixel_gate_set
from wm.images import decode_image
from wm.models.pixels.model import load_pixel_base
from wm.nano.pixel_preset import write_random_pixel_base
from wm.training import TrainRecipe


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_random_pixel_base(folder / "base")
    write_pixel_triplets(folder / "triplets", 16)
    write_pixel_triplets(folder / "held-out", 5, seed=7)
    return folder


def recipe_of(data: Path, out: Path, **values: Any) -> TrainRecipe:
    settings = {
        "task": "idm",
        "base": str(data / "base"),
        "triplets": str(data / "triplets"),
        "out": str(out),
        "max_steps": 4,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "resources": {"num_workers": 0},
        "logging": {"every_steps": 2, "trackers": []},
        "optim": {"lr": 1e-2},
        "eval": {"triplets": str(data / "held-out"), "every_steps": 4, "sample_every_steps": 4},
    }
    return TrainRecipe.parse(merge_tables(settings, values), "test")


def test_a_dry_run_counts_as_the_run_does_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(data, tmp_path / "out", logging={"every_steps": 1})
    plan = run(recipe, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    output = capsys.readouterr().out
    assert "of memory a worker at least; what the layers keep for the backward pass is not estimated" in output
    assert plan["does_not_fit"] == [] and "peak" not in plan["memory"]
    # By hand: an adapter of rank 16 over 7 matrices of 2 layers, 32 wide with 48 in the MLP.
    assert plan["trained_parameters"] == 2 * 16 * (4 * (32 + 32) + 3 * (32 + 48))
    record = run(recipe)
    assert record["counts"] == {"triplets": 16, "skipped": 0, "steps": 4}
    assert record["summary"]["parameters"]["trained"] == plan["trained_parameters"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    # Two steps are an epoch: their tokens are those of all rows.
    model = load_pixel_base(data / "base")
    rows = pq.read_table(data / "triplets").to_pylist()
    texts = [f"{model.prefix}{row['action']}{model.processor.tokenizer.eos_token}" for row in rows]
    images = [[decode_image(row[side]["bytes"], side) for side in ("source_image", "target_image")] for row in rows]
    mask_BT = model.processor(text=texts, images=images, padding=True, return_tensors="pt")["attention_mask"]
    assert plan["tokens_per_batch"] * 2 == int(mask_BT.sum())
    assert plan["longest_row"] == int(mask_BT.sum(1).max())
    assert len(lines) == 4 and set(lines[-1]["loss_by_change"]) <= {"1", "2", "3", "4"}


def test_evaluations_equal_those_of_the_trained_model(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(data, tmp_path / "out", lora={"enabled": False})
    record = run(recipe)
    line = json.loads((tmp_path / "out" / "gates.jsonl").read_text().splitlines()[-1])
    held_out = read_pixel_gate_set(data / "held-out")
    scorer = load_vlm_scorer(tmp_path / "out" / "model")
    expected = pixel_gate(scorer, held_out).figures()
    assert {name: line[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    # Of the truth itself: nats a token, by the scorer alone.
    scores = scorer.score_actions(held_out.sources(), held_out.targets(), held_out.actions)
    assert line["nats"] == pytest.approx(-np.mean([score.logprob / score.num_tokens for score in scores]), rel=1e-4)
    assert record["summary"]["evaluation"]["preference"] == line["preference"]
    # What it proposes is shown beside the images, and is what the inverse model proposes.
    text = (tmp_path / "out" / "samples" / "step-000004.txt").read_text()
    pairs = [[Observation.from_pixels(image) for image in side] for side in (held_out.sources(), held_out.targets())]
    from wm.sampling.texts import GREEDY

    inverse = load_inverse_model(tmp_path / "out")
    answers = inverse.propose(*pairs, sampling=GREEDY, seeds=list(range(5)), max_new_tokens=32)
    assert [row.split("   true: ")[0] for row in text.splitlines()] == [
        f"predicted: {answer.text}" for answer in answers[:4]
    ]


@pytest.mark.soak
def test_evaluations_change_nothing_of_the_training(data: Path, tmp_path: Path) -> None:
    losses = []
    for name, values in (("with", {"every_steps": 1}), ("without", {"every_steps": 0, "sample_every_steps": 0})):
        run(recipe_of(data, tmp_path / name, eval=values, lora={"dropout": 0.5}, max_steps=2))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "fdm"}, "task = 'fdm': base = "),
        ({"eval": {"triplets": "bare"}}, "bare: 2 of 2 triplets have no source_image or no target_image"),
        ({"triplets": "bare", "eval": {"every_steps": 0, "sample_every_steps": 0}}, "bare: 2 of 2 triplets have no"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
) -> None:
    rows = [{**row, "source_image": {"bytes": None, "path": None}} for row in pixel_rows(2)]
    write_triplets(rows, tmp_path / "bare")
    values = json.loads(json.dumps(values).replace('"bare"', json.dumps(str(tmp_path / "bare"))))
    common = recipe_of(data, tmp_path / "out").model_dump(include={"base", "out", "max_steps", "global_batch_size"})
    common |= {"task": "idm", "triplets": str(data / "triplets"), "resources": {"num_workers": 0}}
    held_out = {"eval": {"triplets": str(data / "held-out"), "every_steps": 4}}
    arguments = to_arguments(merge_tables(common, held_out, values))
    assert main([*arguments, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("action", "message"), [(None, "action '' is empty"), ("go <|im_end|>", "a special token")])
def test_held_out_actions_are_checked_before_training(
    data: Path, tmp_path: Path, action: str | None, message: str
) -> None:
    rows = [{**row, "action": action if number else row["action"]} for number, row in enumerate(pixel_rows(2))]
    held_out = write_triplets(rows, tmp_path / "held-out")
    recipe = recipe_of(data, tmp_path / "out", eval={"triplets": str(held_out)})
    with pytest.raises(InputError, match=rf"held-out: triplet .*: .*{message}"):
        build_evaluator(recipe).prepare(load_pixel_base(data / "base"))


def test_the_recipe_for_qwen3_vl_plans_a_tiny_one(data: Path, tmp_path: Path) -> None:
    overrides = [f"base={data / 'base'}", f"triplets={data / 'triplets'}", f"out={tmp_path / 'out'}"]
    overrides += [f"eval.triplets={data / 'held-out'}", "resources.num_workers=0", "resources.use_gpu=false"]
    recipe = TrainRecipe.load(Path("jobs/recipes/bases/qwen3-vl-idm.toml"), overrides)
    plan = run(recipe, dry_run=True)
    assert (plan["num_steps"], plan["recomputes"], plan["does_not_fit"]) == (1, True, [])
    # bfloat16: two bytes a frozen number, and all of the vision tower is frozen.
    model = load_pixel_base(data / "base")
    frozen = sum(weight.numel() for weight in model.module.parameters())
    assert plan["memory"]["weights"] >= 2 * frozen and plan["total_parameters"] == frozen + plan["trained_parameters"]
    assert type(build_evaluator(recipe)).__name__ == "PixelEvaluator"
