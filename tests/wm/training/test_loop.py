"""A run of one process: metrics, resume to the last bit, what is written, divergence."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.errors import InputError
from wm.models import load_model, read_manifest
from wm.runs import Run
from wm.training import METRICS, MODEL, DivergedError, RankInfo, SampleOrder, TrainRecipe, fit
from wm.training.step import learning_rate

HERE = RankInfo(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 40), tmp_path_factory.mktemp("triplets"))


def recipe_of(base: Path, triplets: Path, out: Path, **values: Any) -> TrainRecipe:
    out.mkdir(exist_ok=True)
    common = {"task": "fdm", "base": str(base), "triplets": str(triplets), "out": str(out), "max_steps": 8}
    settings = {
        "resources": {"num_workers": 0},
        "optim": {"lr": 1e-2},
        "global_batch_size": 8,
        "checkpoint": {"every_steps": 3},
        "logging": {"every_steps": 2},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def curve(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def exact(lines: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize("lora", [{"enabled": False}, {"r": 4, "dropout": 0.3}])
def test_resumed_run_equals_the_uninterrupted_to_the_last_bit(
    tiny_base: Path, triplets: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    complete = recipe_of(tiny_base, triplets, tmp_path / "whole", lora=lora, checkpoint={"keep_last": 2})
    fit(complete, HERE, digest="d")
    names = sorted(path.name for path in (tmp_path / "whole" / "checkpoints").glob("step-*"))
    assert [name[:13] for name in names] == ["step-00000006", "step-00000008"]

    resumed = recipe_of(tiny_base, triplets, tmp_path / "resumed", lora=lora)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / names[0], tmp_path / "resumed" / "checkpoints" / names[0])
    lines = (tmp_path / "whole" / METRICS).read_text().splitlines(keepends=True)
    (tmp_path / "resumed" / METRICS).write_text("".join(lines[:7]) + lines[7][:20])  # killed in mid-line
    summary = fit(resumed, HERE, digest="d")
    assert (summary.resumed_at_step, summary.num_steps) == (6, 8)
    assert exact(curve(tmp_path / "resumed")) == exact(curve(tmp_path / "whole"))
    models = [load_model(tmp_path / name / MODEL) for name in ("whole", "resumed")]
    for (name, one), other in zip(models[0].module.named_parameters(), models[1].module.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_adapter_is_a_plain_peft_folder(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import ChameleonForConditionalGeneration

    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", task="idm", lora={"r": 4})
    summary = fit(recipe, HERE, digest="abc")
    assert summary.last_loss < summary.first_loss
    manifest = read_manifest(tmp_path / "out" / MODEL)
    assert manifest is not None
    assert (manifest.kind, manifest.task, manifest.recipe_digest) == ("adapter", "idm", "abc")
    ours = load_model(tmp_path / "out" / MODEL)
    assert (manifest.base_id, manifest.codec_id) == (ours.base_id, ours.codec_id)
    base = ChameleonForConditionalGeneration.from_pretrained(tiny_base)
    theirs = PeftModel.from_pretrained(base, tmp_path / "out" / MODEL).eval()
    ids_BT = torch.arange(10)[None]
    hidden_BTH = theirs.get_base_model().model(input_ids=ids_BT).last_hidden_state
    torch.testing.assert_close(ours.body(ids_BT), hidden_BTH)
    assert not torch.allclose(hidden_BTH, load_model(tiny_base).body(ids_BT), atol=1e-3)


def test_metrics_have_a_line_for_every_step(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path, max_steps=0, epochs=1.5, optim={"warmup_steps": 2})
    summary = fit(recipe, HERE, digest="")
    lines = curve(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 9)) and summary.num_steps == 8
    assert lines[4]["epoch"] == 1.0
    assert [line["lr"] for line in lines[:3]] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert all(line["samples_per_s"] > 0 and line["grad_norm"] > 0 for line in lines)


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_half_precision_follows_the_full_one(tiny_base: Path, triplets: Path, tmp_path: Path, precision: str) -> None:
    for name in ("fp32", precision):
        recipe = recipe_of(tiny_base, triplets, tmp_path / name, precision=name, lora={"enabled": False})
        fit(recipe, HERE, digest="")
    full, half = ([line["loss"] for line in curve(tmp_path / name)] for name in ("fp32", precision))
    assert half == pytest.approx(full, rel=0.05) and half != full
    assert half[-1] < 0.9 * half[0]


def test_a_run_that_diverges_names_the_step_and_its_rows(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path, optim={"lr": 1e30, "max_grad_norm": 0}, lora={"enabled": False})
    message = (
        r"loss is nan at step 2 \(lr .*e\+29, gradient norm inf\); there is no checkpoint yet; all of the step's 8 "
        r"triplets have a non-finite likelihood: triplets\d/[0-9a-f]{24}, .*, …$"
    )
    with pytest.raises(DivergedError, match=message):
        fit(recipe, HERE, digest="")
    assert not (tmp_path / MODEL).exists()


def test_row_that_breaks_the_loss_is_named_checkpoint_stays(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wm.training import step as steps

    order, broken_at = SampleOrder([40], [1.0], 0), 4
    real, calls = steps.completion_losses, []

    def completion_losses(vlm: Any, ids_BT: Any, is_completion_BT: Any, *rest: Any) -> Any:
        loss, nll_M = real(vlm, ids_BT, is_completion_BT, *rest)
        calls.append(0)
        if len(calls) != broken_at + 1:
            return loss, nll_M
        row_M = is_completion_BT[:, 1:].nonzero()[:, 0]
        bad = torch.where(row_M == 2, torch.nan, 0.0)
        return loss + bad.sum(), nll_M + bad

    monkeypatch.setattr(steps, "completion_losses", completion_losses)
    recipe = recipe_of(tiny_base, triplets, tmp_path, logging={"every_steps": 10})
    with pytest.raises(DivergedError) as error:
        fit(recipe, HERE, digest="")
    names = sorted(str(row["triplet_id"]) for row in pq.read_table(triplets).to_pylist())
    expected = names[order.batch(broken_at, 8)[2]]
    text = re.sub(r"norm [0-9.]+\)", "norm)", str(error.value))
    assert text == (
        f"loss is nan at step 5 (lr {learning_rate(4, peak=1e-2, num_steps=8, warmup_steps=0, floor=0):.3g}, gradient "
        f"norm); the checkpoint of step 3 is kept; 1 of the step's 8 triplets have a non-finite likelihood: "
        f"{triplets.name}/{expected}"
    )
    (remaining,) = (tmp_path / "checkpoints").glob("step-*")
    assert remaining.name.startswith("step-00000003-")
    for file in remaining.glob("*.safetensors"):
        assert all(torch.isfinite(values).all() for values in load_file(file).values())
    monkeypatch.setattr(steps, "completion_losses", real)
    assert fit(recipe, HERE, digest="").resumed_at_step == 3


def to_old_names(recipe: dict[str, Any]) -> dict[str, Any]:
    """Write recorded settings as a version before the tables did: each under its former name, at the top."""
    former = {new: old for old, new in TrainRecipe.RENAMED_KEYS.items()}
    values: dict[str, Any] = {}
    for key, value in recipe.items():
        if key in ("optim", "data", "eval", "checkpoint", "resources", "logging"):
            values |= {former[f"{key}.{name}"]: setting for name, setting in value.items()}
        else:
            values[former.get(key, key)] = value
    for source in values["triplets"]:
        source["weight"] = source.pop("mix_weight")
    return values


@pytest.mark.parametrize("has_other_rate", [False, True])
def test_checkpoint_of_old_key_names_is_resumed_if_same(
    tiny_base: Path, triplets: Path, tmp_path: Path, has_other_rate: bool
) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", checkpoint={"keep_last": 2})
    fit(recipe, HERE, digest="d")
    first, last = sorted((tmp_path / "out" / "checkpoints").glob("step-*"))
    shutil.rmtree(last)
    losses = [line["loss"] for line in curve(tmp_path / "out")]
    manifest = json.loads((first / "checkpoint.json").read_text())
    manifest["identity"] = to_old_names(manifest["identity"])
    assert manifest["identity"]["steps"] == 8 and manifest["identity"]["lr"] == 1e-2
    (first / "checkpoint.json").write_text(json.dumps(manifest))
    if has_other_rate:
        other = recipe_of(tiny_base, triplets, tmp_path / "out", optim={"lr": 0.5})
        with pytest.raises(InputError, match=r"of another recipe: optim\.lr = 0\.01 there, 0\.5 here"):
            fit(other, HERE, digest="d")
    else:
        assert fit(recipe, HERE, digest="d").resumed_at_step == 6
        assert [line["loss"] for line in curve(tmp_path / "out")] == losses


def test_run_folder_of_old_key_names_is_the_same_run(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out")
    run = Run(recipe.out, "train", recipe)
    run.start()
    run.finish({})
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text())
    record["recipe"] = to_old_names(record["recipe"])
    path.write_text(json.dumps(record))
    # Other runtime settings are no difference, another weight decay is one.
    assert Run(recipe.out, "train", recipe.with_resources(num_workers=4)).is_complete()
    other = recipe_of(tiny_base, triplets, tmp_path / "out", optim={"weight_decay": 0.5})
    with pytest.raises(InputError, match=r"recipe optim\.weight_decay = 0\.0 there, 0\.5 here"):
        Run(recipe.out, "train", other).is_complete()
