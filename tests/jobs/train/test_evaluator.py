"""Evaluation in the training job: figures against wm.evaluation of the trained model, images, tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.train.job import main, run
from jobs.train.report import evaluation_lines, last_line, table_of
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.dynamics import score_actions
from wm.dynamics.fdm import score_observations
from wm.errors import InputError
from wm.evaluation.probe import NEGATIVES, Likelihoods, probe
from wm.images import decode_image
from wm.models import load_model
from wm.training import TrainRecipe


@pytest.fixture(scope="module")
def data(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Triplets whose target is the source, honest ones, and held-out ones."""
    root = tmp_path_factory.mktemp("data")
    copies, moves = random_rows(tiny_base, 400, seed=1), random_rows(tiny_base, 12, seed=4)
    for row in copies + moves:  # pictures of one colour, which a model soon learns to copy
        row["source_codes"] = row["target_codes"] = row["source_codes"][:1] * 4
    for row in moves:
        first, *others = row["source_codes"]
        row["target_codes"] = [(first + 1) % 16, *others]
    rows = {"copies": copies, "moves": moves}
    rows |= {"train": random_rows(tiny_base, 60, seed=2), "held_out": random_rows(tiny_base, 12, seed=3)}
    return {name: write_triplets(result, root / name) for name, result in rows.items()}


def recipe_of(base: Path, data: dict[str, Path], out: Path, **values: Any) -> TrainRecipe:
    common = {
        "task": "fdm",
        "base": str(base),
        "triplets": str(data["train"]),
        "eval": {"triplets": str(data["held_out"])},
    }
    settings = {
        "out": str(out),
        "max_steps": 6,
        "resources": {"num_workers": 0},
        "global_batch_size": 8,
        "optim": {"lr": 1e-3},
        "eval": {"every_steps": 3},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def gates_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "gates.jsonl").read_text().splitlines()]


def held_out_rows(tiny_base: Path) -> Any:
    rows = random_rows(tiny_base, 12, seed=3)
    source, target = (torch.tensor([row[name] for row in rows]) for name in ("source_codes", "target_codes"))
    return source, target, [row["action"] for row in rows], [row["triplet_id"] for row in rows]


@pytest.mark.parametrize("task", ["fdm", "idm"])
def test_evaluations_equal_those_of_the_trained_model(
    tiny_base: Path, data: dict[str, Path], tmp_path: Path, task: Any
) -> None:
    record = run(recipe_of(tiny_base, data, tmp_path / "out", task=task))
    gates = gates_of(tmp_path / "out")
    assert [line["step"] for line in gates] == [3, 6]
    vlm = load_model(tmp_path / "out" / "model")
    source, target, actions, ids = held_out_rows(tiny_base)

    def scorer(source: torch.Tensor, target: torch.Tensor, actions: Any) -> Likelihoods:
        if task == "fdm":
            sums = score_observations(vlm, source, actions, target)
            return Likelihoods(np.array(sums), np.full(len(sums), 4.0))
        scored = score_actions(vlm, source, target, actions)
        return Likelihoods(np.array([one.logprob for one in scored]), np.array([one.num_tokens for one in scored]))

    truth = scorer(source, target, actions)
    assert gates[-1]["nats"] == pytest.approx(float((-truth.sums / truth.tokens).mean()), abs=1e-4)
    expected = probe(scorer, source, target, actions, ["random"] * 12, ids=ids)
    # Nobody wrote contradicting actions for these triplets.
    assert set(expected) == set(NEGATIVES) - {"counterfactual_action"}
    for kind, preference in expected.items():
        assert gates[-1][f"prefers.{kind}"] == pytest.approx(preference.share), kind
    assert gates[-1]["preference"] == pytest.approx(np.mean([preference.share for preference in expected.values()]))
    assert ("copies" in gates[-1]) == (task == "fdm")
    assert record["summary"]["evaluation"] == gates[-1]


def test_a_model_that_copies_is_reported_as_collapsed(
    tiny_base: Path, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(
        *(tiny_base, data, tmp_path / "out"), triplets=str(data["copies"]), max_steps=150, optim={"lr": 1e-2},
        eval={"triplets": str(data["moves"]), "every_steps": 150}, logging={"every_steps": 100},
        lora={"enabled": False}, recognition={"enabled": False},
    )  # fmt: skip
    record = run(recipe)
    (gate,) = gates_of(tmp_path / "out")
    assert gate["has_collapsed"] and gate["copies"] > 0.5
    assert gate["unchanged_share"] > gate["true_unchanged_share"] == pytest.approx(0.75)
    assert record["summary"]["collapsed_at"] == [150]
    text = capsys.readouterr()
    assert "warning: collapsed into copying at the evaluations of steps 150" in text.out
    assert f"returns {gate['copies']:.0%} of the held-out sources unchanged" in text.out + text.err


@pytest.mark.parametrize("task", ["fdm", "idm"])
def test_samples_are_images_with_text(tiny_base: Path, data: dict[str, Path], tmp_path: Path, task: Any) -> None:
    recipe = recipe_of(
        tiny_base, data, tmp_path / "out", task=task, eval={"every_steps": 0, "sample_every_steps": 6, "sample_rows": 3}
    )
    run(recipe)
    samples = tmp_path / "out" / "samples"
    picture = decode_image((samples / "step-000006.png").read_bytes(), "samples")
    assert min(picture.shape[:2]) > 100 and picture.std() > 5
    lines = (samples / "step-000006.txt").read_text().splitlines()
    assert len(lines) == (9 if task == "fdm" else 3)  # greedy and two samples a row, or an action a row
    assert not (tmp_path / "out" / "gates.jsonl").exists()


def test_evaluations_change_nothing_of_the_training(tiny_base: Path, data: dict[str, Path], tmp_path: Path) -> None:
    curves = []
    for name, every in (("with", 2), ("without", 0)):
        run(recipe_of(tiny_base, data, tmp_path / name, eval={"every_steps": every, "sample_every_steps": every}))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        curves.append([(json.loads(line)["loss"], json.loads(line)["grad_norm"]) for line in lines])
    assert curves[0] == curves[1]


def test_unusable_evaluation_triplets_are_refused_before_work(
    tiny_base: Path, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_triplets(random_rows(tiny_base, 1), tmp_path / "one")
    other = write_triplets(random_rows(tiny_base, 3, codec="codec-other"), tmp_path / "other")
    for held_out, message in ((one, "has one triplet"), (other, "codec-other"), (tmp_path / "none", "none")):
        with pytest.raises(InputError, match=message):
            run(recipe_of(tiny_base, data, tmp_path / "out", eval={"triplets": str(held_out)}))
    assert not (tmp_path / "out").exists()


def test_the_table_ends_with_the_last_window(tiny_base: Path, data: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_of(
        tiny_base,
        data,
        tmp_path / "out",
        eval={"every_steps": 0},
        max_steps=20,
        logging={"every_steps": 2},
        resources={"peak_tflops": 0.01},
    )
    run(recipe)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    head, *rows, by_change = table_of(lines, count=4)
    assert head.split() == [
        "step",
        "epoch",
        "loss",
        "lr",
        "grad",
        "norm",
        "samples/s",
        "tokens/s",
        "MFU",
        "peak",
        "GiB",
    ]
    assert [row.split()[0] for row in rows] == ["4", "10", "16", "20"]
    assert rows[-1].split()[2] == f"{lines[-1]['loss']:.4f}" and rows[-1].split()[7].endswith("%")
    assert by_change.startswith("  loss by change, min to max: 1 ")
    assert table_of([]) == [] and last_line(tmp_path / "out" / "metrics.jsonl") == lines[-1]


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_line(path) is None
    path.write_text('{"step": 1}\n{"step": 2')
    assert last_line(path) == {"step": 1}


def test_evaluation_lines_are_printed_in_words() -> None:
    gated = {"step": 1200, "nats": 1.25, "preference": 0.875, "copies": 0.5, "unchanged_share": 0.9}
    first, warning = evaluation_lines(gated | {"true_unchanged_share": 0.75, "has_collapsed": True})
    assert first == (
        "evaluation at step 1,200: 1.2500 nats a token, prefers the truth 88%, copies 50%, "
        "leaves 90% of the tokens (the truth 75%)"
    )
    assert warning.startswith("warning: at step 1,200 the model returns 50%")


def test_the_command_line_refuses_an_unknown_tracker(
    tiny_base: Path, data: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"task": "fdm", "base": tiny_base, "triplets": data["train"], "out": tmp_path / "out", "max_steps": 1}
    assert main([*(f"{key}={value}" for key, value in keys.items()), 'logging.trackers=["paper"]']) == 2
    assert "logging.trackers" in capsys.readouterr().err
