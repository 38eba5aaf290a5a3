"""A run on a base that reads pixels: what is learned is what is scored, resume, what is written, what is frozen."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.models_vlms import WRITERS
from tests.helpers.pixel_training import pixel_rows, write_pixel_triplets
from tests.helpers.training_data import merge_tables, write_triplets
from tests.helpers.training_ranks import fit_on_ranks
from wm.dynamics.loading import load_inverse_model
from wm.dynamics.observation import Observation
from wm.dynamics.vlm_scorer import VLMScorer
from wm.errors import InputError
from wm.models import base_id_of, read_manifest
from wm.models.pixels.model import load_pixel_base, save_pixel_model
from wm.nano.pixel_preset import write_random_pixel_base
from wm.training import METRICS, MODEL, Lora, RankInfo, Source, TrainRecipe, fit, prepare
from wm.training.pixels.batches import open_pair_set
from wm.training.pixels.loss import pair_losses

HERE = RankInfo(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels") / "base"
    write_random_pixel_base(folder)
    return folder


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pixel_triplets(tmp_path_factory.mktemp("triplets"), 20)


def recipe_of(base: Path, triplets: Path, out: Path, **values: Any) -> TrainRecipe:
    out.mkdir(exist_ok=True)
    common = {"task": "idm", "base": str(base), "triplets": str(triplets), "out": str(out), "max_steps": 4}
    settings = {
        "resources": {"num_workers": 0},
        "optim": {"lr": 1e-2},
        "global_batch_size": 8,
        "checkpoint": {"every_steps": 2},
        "logging": {"every_steps": 2, "trackers": []},
        "lora": {"r": 4, "dropout": 0.0},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def curve(out: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_what_is_learned_is_what_is_scored(base: Path, tmp_path: Path) -> None:
    """Ids, learned tokens and their likelihood, of rows of several lengths and image sizes."""
    rows = [*pixel_rows(5, 1), *pixel_rows(3, 2, side_px=24)]
    write_triplets(rows, tmp_path / "triplets")
    model = load_pixel_base(base, dtype=torch.float64)
    pairs = open_pair_set([Source(path=str(tmp_path / "triplets"))], model, root=tmp_path / "cache", seed=0)
    numbers = torch.arange(8).numpy()
    ids_BT, is_completion_BT, weight_BT, inputs = pairs.batch(numbers)
    assert pairs.lengths(numbers).tolist() == inputs["attention_mask"].sum(1).tolist()
    with torch.no_grad():
        loss, nll_M = pair_losses(
            model, ids_BT, is_completion_BT, weight_BT, num_tokens=pairs.num_completion_tokens(numbers), inputs=inputs
        )
    # By the scorer, row by row.
    by_name = {row["triplet_id"]: row["action"] for row in rows}
    actions = [by_name[name] for name in pairs.names(numbers)]
    images = [pairs._stores[0].images(number) for number in range(8)]
    scored = VLMScorer(model.module, model.processor).score_actions(*zip(*images, strict=True), actions, batch_size=1)  # type: ignore[misc]
    assert is_completion_BT.sum(1).tolist() == [action.num_tokens for action in scored]
    ends = is_completion_BT.sum(1).cumsum(0).tolist()
    sums = [float(nll_M[start:end].sum()) for start, end in zip([0, *ends], ends, strict=False)]
    assert sums == pytest.approx([-action.logprob for action in scored], rel=1e-12)
    assert float(loss) == pytest.approx(-sum(action.logprob for action in scored) / ends[-1], rel=1e-12)
    # And by the inverse model, which shares what it can.
    inverse = load_inverse_model(base, dtype=torch.float64)
    sources, targets = ([Observation.from_pixels(image) for image in side] for side in zip(*images, strict=True))
    again = inverse.score(sources, targets, actions)
    assert [action.num_tokens for action in again] == [action.num_tokens for action in scored]
    assert sums == pytest.approx([-action.logprob for action in again], rel=1e-9)
    tokenizer = model.processor.tokenizer
    for ids, flags, action in zip(ids_BT, is_completion_BT, actions, strict=True):
        assert tokenizer.decode(ids[flags]) == f"{action} {tokenizer.eos_token}"


def test_rows_that_cannot_be_scored_are_left_out(base: Path, triplets: Path, tmp_path: Path) -> None:
    model, source = load_pixel_base(base), Source(path=str(triplets))
    lengths = open_pair_set([source], model, root=tmp_path, seed=0).lengths(torch.arange(20).numpy()).tolist()
    shortest, longest = min(lengths), max(lengths)
    model.inner.config.text_config.max_position_embeddings = longest - 1
    pairs = open_pair_set([source], model, root=tmp_path, seed=0)
    assert pairs.facts[0].left_out == {"row too long for the model": lengths.count(longest)}
    assert 0 < len(pairs) == lengths.count(shortest) and longest == shortest + 1
    store, scorer = pairs._stores[0], VLMScorer(model.module, model.processor)
    for row in range(20):
        images = [[image] for image in store.images(row)]
        if row in pairs._rows[0]:
            assert scorer.score_actions(*images, [store.actions[row]])[0].logprob < 0
        else:
            with pytest.raises(InputError, match=f"the model has {longest - 1} positions"):
                scorer.score_actions(*images, [store.actions[row]])


def test_resumed_run_equals_the_uninterrupted_to_the_last_bit(base: Path, triplets: Path, tmp_path: Path) -> None:
    lora = {"r": 4, "dropout": 0.3}
    fit(recipe_of(base, triplets, tmp_path / "whole", lora=lora, checkpoint={"keep_last": 2}), HERE, digest="d")
    (first, _) = sorted((tmp_path / "whole" / "checkpoints").glob("step-*"))
    shutil.copytree(first, tmp_path / "resumed" / "checkpoints" / first.name)
    shutil.copy(tmp_path / "whole" / METRICS, tmp_path / "resumed" / METRICS)
    summary = fit(recipe_of(base, triplets, tmp_path / "resumed", lora=lora), HERE, digest="d")
    assert (summary.resumed_at_step, summary.num_steps) == (2, 4)
    assert curve(tmp_path / "resumed") == curve(tmp_path / "whole")
    models = [load_file(tmp_path / name / MODEL / "adapter_model.safetensors") for name in ("whole", "resumed")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_the_adapter_is_a_plain_peft_folder(base: Path, triplets: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration

    summary = fit(recipe_of(base, triplets, tmp_path / "out", max_steps=6), HERE, digest="abc")
    assert summary.last_loss < summary.first_loss
    manifest = read_manifest(tmp_path / "out" / MODEL)
    assert manifest is not None and manifest.reads_pixels
    assert (manifest.family, manifest.kind, manifest.task) == ("qwen3_vl", "adapter", "idm")
    assert (manifest.base_id, manifest.recipe_digest) == (base_id_of(base), "abc")
    # By PEFT and transformers alone.
    theirs = PeftModel.from_pretrained(
        Qwen3VLForConditionalGeneration.from_pretrained(base), tmp_path / "out" / MODEL
    ).eval()
    ours = load_inverse_model(tmp_path / "out")
    model = load_pixel_base(base)
    pairs = open_pair_set([Source(path=str(triplets))], model, root=tmp_path / "cache", seed=0)
    ids_BT, _, _, inputs = pairs.batch(torch.arange(3).numpy())
    with torch.no_grad():
        logits = theirs(input_ids=ids_BT, **inputs).logits
        torch.testing.assert_close(logits, ours.scorer.model(input_ids=ids_BT, **inputs).logits)  # type: ignore[attr-defined]
        assert not torch.allclose(logits, model.module(input_ids=ids_BT, **inputs).logits, atol=1e-3)
    # The vision tower is left alone.
    config = json.loads((tmp_path / "out" / MODEL / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] and "language_model" in config["exclude_modules"]
    assert not [name for name in load_file(tmp_path / "out" / MODEL / "adapter_model.safetensors") if "visual" in name]


@pytest.mark.parametrize("train_vision", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_fully_tuned_model_is_a_complete_folder(
    base: Path, triplets: Path, tmp_path: Path, train_vision: bool
) -> None:
    lora = {"enabled": False, "train_vision": train_vision}
    fit(recipe_of(base, triplets, tmp_path / "out", max_steps=1, lora=lora), HERE, digest="")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out" / MODEL))
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"language_model", "visual"} if train_vision else {"language_model"})
    manifest = read_manifest(tmp_path / "out" / MODEL)
    assert manifest is not None and (manifest.kind, manifest.base_id) == ("full", base_id_of(base))
    inverse = load_inverse_model(tmp_path / "out")
    image = Observation.from_pixels(torch.zeros(16, 16, 3, dtype=torch.uint8).numpy())
    assert inverse.score([image], [image], ["take the cup"])[0].num_tokens == 4


@pytest.mark.parametrize(
    "name", ["llava_interleave", *(pytest.param(name, marks=pytest.mark.soak) for name in ("qwen2_5_vl", "llava_next"))]
)
def test_adapters_are_in_the_language_model_unless_asked(tmp_path: Path, name: str) -> None:
    """SigLIP's and CLIP's layers have the names of a language model's."""
    WRITERS[name](tmp_path / "base")
    names = {}
    for train_vision in (False, True):
        model = load_pixel_base(tmp_path / "base")
        counts = prepare(model, Lora(r=2, train_vision=train_vision), seed=0)
        trained = [name for name, weight in model.module.named_parameters() if weight.requires_grad]
        names[train_vision] = {name for name in trained if "language_model" not in name}
        assert 0 < counts.trained < counts.total
        assert len(trained) >= 2 * 7 * 2
    assert not names[False]
    assert bool(names[True]) == name.startswith("llava")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("stage", "lora"), [(0, {"r": 4}), (2, {"r": 4}), (3, {"r": 4}), (3, {"enabled": False, "train_vision": True})]
)
def test_ranks_and_passes_give_the_same_curve(
    base: Path, triplets: Path, tmp_path: Path, stage: int, lora: dict[str, Any]
) -> None:
    fit(recipe_of(base, triplets, tmp_path / "one", lora=lora), HERE, digest="")
    resources = {"num_workers": 2, "zero_stage": stage, "gradient_checkpointing": stage == 3}
    recipe = recipe_of(base, triplets, tmp_path / "two", lora=lora, resources=resources, micro_batch_size=2)
    assert [summary if isinstance(summary, Exception) else "" for summary in fit_on_ranks(recipe)] == ["", ""]
    for mine, expected in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(expected, rel=2e-4)
    files = [next((tmp_path / name / MODEL).glob("*model.safetensors")) for name in ("one", "two")]
    one, two = (load_file(file) for file in files)
    assert one.keys() == two.keys()
    for name, weight in two.items():
        torch.testing.assert_close(weight, one[name], rtol=1e-2, atol=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_half_precision_follows_the_full_one(base: Path, triplets: Path, tmp_path: Path, precision: str) -> None:
    for name in ("fp32", precision):
        fit(recipe_of(base, triplets, tmp_path / name, precision=name, optim={"lr": 3e-3}), HERE, digest="")
    full, half = ([loss for loss, _ in curve(tmp_path / name)] for name in ("fp32", precision))
    assert half == pytest.approx(full, rel=0.05) and half != full


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "fdm"}, r"task = 'fdm': base = .* reads pixels and makes none"),
        ({"recognition": {"floor": 0.8}}, r"recognition: base = .* learns no image tokens to weight"),
        ({"lora": {"train_image_rows": True}}, r"lora.train_image_rows = true: base = .* has no rows of image codes"),
        ({"lora": {"dropout_mode": "merged"}}, r"lora.dropout_mode = 'merged': the layers of qwen3_vl"),
        ({"lora": {"targets": "nothing"}}, r"lora.targets = 'nothing' fits no layer of .*base: No modules"),
    ],
)
def test_settings_without_sense_are_refused_by_name(
    base: Path, triplets: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(recipe_of(base, triplets, tmp_path / "out", **values), HERE, digest="")


def test_a_base_that_speaks_codes_has_no_vision_tower(tiny_base: Path) -> None:
    from wm.models import load_model

    with pytest.raises(InputError, match=r"lora.train_vision: .* \(chameleon\) reads codes and has no vision tower"):
        prepare(load_model(tiny_base), Lora(train_vision=True), seed=0)


def test_an_adapter_is_no_base(base: Path, triplets: Path, tmp_path: Path) -> None:
    model = load_pixel_base(base)
    prepare(model, Lora(r=2), seed=0)
    save_pixel_model(model, tmp_path / MODEL, task="idm")
    with pytest.raises(InputError, match=r"model is an adapter; expected a full model that reads pixels"):
        fit(recipe_of(tmp_path / MODEL, triplets, tmp_path / "again"), HERE, digest="")
