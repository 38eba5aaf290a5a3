"""Rows of image codes that train beside an adapter: against PEFT's own, saved, read again, and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models_families import write_janus, write_liquid
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.errors import InputError
from wm.models import load_model, pack, save_model
from wm.training import Lora, RankInfo, TrainRecipe, completion_loss, fit, prepare

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:`is_gradient_checkpointing`")
HIDDEN, CODES = 32, 16


def batch_of(vlm: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    count = vlm.tokens_per_image
    segments = [
        vlm.layout("fdm", source=[(5 * n + k) % CODES for k in range(count)], action=action, target=[n] * count)
        for n, action in enumerate(("put the cup", "take the red block"))
    ]
    ids_BT, is_completion_BT, _ = pack(segments, vlm.pad_id)
    return ids_BT, is_completion_BT, torch.ones(ids_BT.shape)


def prepared(folder: Path, **values: Any) -> Any:
    vlm: Any = load_model(folder, dtype=torch.float64)
    vlm.module.double()
    prepare(vlm, Lora(r=2, dropout=0.0, train_image_rows=True, **values), seed=0)
    return vlm


def rows_named(vlm: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in vlm.module.named_parameters() if "trainable_tokens_delta" in name}


@pytest.mark.parametrize("tied", [True, False])
def test_rows_train_as_those_rows_of_a_whole_matrix_would(tmp_path: Path, tied: bool) -> None:
    """Gradients equal those of full fine-tuning at these rows: looked up, not copied."""
    write_liquid(tmp_path, tied=tied)
    vlm = prepared(tmp_path)
    rows = rows_named(vlm)
    assert len(rows) == (1 if tied else 2)
    assert all(p.requires_grad and p.shape == (CODES, HIDDEN) for p in rows.values())
    complete: Any = load_model(tmp_path, dtype=torch.float64)
    complete.module.double()
    prepare(complete, Lora(enabled=False, fast=False), seed=0)
    for model in (vlm, complete):
        batch = batch_of(model)
        completion_loss(model, *batch, int(batch[1].sum())).backward()
    for name, row in rows.items():
        matrix = complete.inner.lm_head if "lm_head" in name else complete.decoder.embed_tokens
        # Norms of our layers are double throughout, transformers' are float32.
        torch.testing.assert_close(row.grad, matrix.weight.grad[complete.image_rows], rtol=1e-4, atol=1e-7)
        assert row.grad.abs().sum() > 0


@pytest.mark.parametrize("fast", [True, False])
def test_only_rows_and_adapters_change_and_are_saved(tmp_path: Path, fast: bool) -> None:
    write_liquid(tmp_path / "base")
    vlm = prepared(tmp_path / "base", fast=fast)
    before = {name: p.detach().clone() for name, p in vlm.module.named_parameters()}
    trained = [p for p in vlm.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        batch = batch_of(vlm)
        completion_loss(vlm, *batch, 8).backward()
        optimizer.step()
    changed = {name for name, p in vlm.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name or "trainable_tokens" in name}
    save_model(vlm, tmp_path / "adapter", task="fdm")
    again: Any = load_model(tmp_path / "adapter", dtype=torch.float64)
    again.module.double()
    vlm.module.eval()
    ids_BT = batch_of(vlm)[0]
    torch.testing.assert_close(again.head(again.body(ids_BT)), vlm.head(vlm.body(ids_BT)), rtol=1e-5, atol=1e-6)
    merged: Any = load_model(tmp_path / "adapter", dtype=torch.float64, merge=True)
    merged.module.double()
    row = vlm.image_rows[3]
    (delta,) = rows_named(vlm).values()
    torch.testing.assert_close(merged.decoder.embed_tokens.weight[row].detach(), delta[3].detach(), rtol=1e-6, atol=0)


def test_sampling_sees_the_trained_rows(tmp_path: Path) -> None:
    from wm.sampling.weights_view import decoder_view

    for tied in (True, False):
        folder = tmp_path / str(tied)
        write_liquid(folder, tied=tied)
        vlm = prepared(folder)
        with torch.no_grad():
            for number, parameter in enumerate(rows_named(vlm).values()):
                parameter.fill_(7.0 + number)
        view = decoder_view(vlm)
        assert (view.embedding[vlm.image_rows] == 7).all()
        assert (view.head.weight[vlm.image_rows] == (7 if tied else 8)).all()
        assert (view.embedding[vlm.text_rows] != 7).any()
        assert (view.head.weight is view.embedding) == tied


def test_a_run_trains_and_writes_them(tmp_path: Path) -> None:
    write_liquid(tmp_path / "base")
    triplets = write_triplets(random_rows(tmp_path / "base", 8), tmp_path)
    values = {"task": "fdm", "base": str(tmp_path / "base"), "triplets": str(triplets), "out": str(tmp_path / "run")}
    lora = {"r": 2, "train_image_rows": True}
    recipe = TrainRecipe.parse(
        values
        | {
            "max_steps": 2,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "resources": {"num_workers": 0},
            "lora": lora,
        },
        "t",
    )
    (tmp_path / "run").mkdir()
    fit(recipe, RankInfo(0, 1, torch.device("cpu")), digest="d")
    trained, base = load_model(tmp_path / "run" / "model"), load_model(tmp_path / "base")
    (delta,) = rows_named(trained).values()
    moved = (delta - base.decoder.embed_tokens.weight[base.image_rows]).abs()  # type: ignore[attr-defined]
    assert 0 < moved.max() < 1e-2


def test_a_family_whose_codes_are_no_rows_is_refused(tmp_path: Path) -> None:
    write_janus(tmp_path)
    with pytest.raises(InputError, match=r"lora\.train_image_rows: .*'janus'.*lora\.enabled=false"):
        prepare(load_model(tmp_path), Lora(train_image_rows=True), seed=0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lora": {"enabled": False, "train_image_rows": True}}, "train_image_rows = true needs enabled = true"),
        ({"lora": {"fast": False, "dropout_mode": "merged"}}, "dropout_mode = 'merged' needs .* fast = true"),
        ({"lora": {"dropout_mode": "shared"}}, "'separate' or 'merged'"),
        (
            {"lora": {"train_image_rows": True}, "resources": {"zero_stage": 3}},
            "train_image_rows with resources.zero_stage",
        ),
    ],
)
def test_keys_that_would_do_nothing_or_cannot_are_refused(values: Any, told: str) -> None:
    common = {"task": "fdm", "base": "b", "triplets": "t", "out": "o", "max_steps": 1, "resources": {"num_workers": 0}}
    with pytest.raises(InputError, match=told):
        TrainRecipe.parse(merge_tables(common, values), "t")
