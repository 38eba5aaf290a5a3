"""Packing of trained runs: what is shipped holds no path of the run, and names the base it was trained from."""

import json

import numpy as np
import pytest
import torch

from wm.errors import InputError
from wm.images import decode_image
from wm.models import load_codec, load_model, read_manifest, save_model
from wm.nano.packing import ACTIONS_FILE, pack_base, pack_role, write_images
from wm.nano.preset import write_random_base
from wm.packaged import SHIPPED
from wm.runs import write_json

PRETRAIN = {"num_images": 4000, "encoder_steps": 3, "decoder_steps": 5, "num_documents": 8000, "max_steps": 9}
TRAIN = {"task": "idm", "base": "{root}/base/model", "triplets": [{"path": "{root}/train"}], "max_steps": 1500}


@pytest.fixture
def runs(tmp_path):
    """Folders as ``jobs.pretrain`` and ``jobs.train`` leave them, of a tiny base and of a role trained from it."""
    root = tmp_path / "runs"
    base = write_random_base(root / "base" / "model")
    figures = {"codec": {"codes_used": 5.0}, "language_model": {"loss": 0.7}}
    recipe = {"out": f"{root}/base", **PRETRAIN, "batch_size": 48}
    write_json(
        root / "base" / "run.json",
        {"stage": "pretrain", "recipe": recipe, "counts": {"parameters": 9, "codes_used": 5}, "figures": figures},
    )
    with torch.no_grad():
        next(base.inner.parameters()).add_(0.01)
    save_model(base, root / "idm" / "model", kind="full", task="idm", recipe_digest="d" * 16)
    text = json.dumps({"out": f"{root}/idm", **TRAIN, "global_batch_size": 32}).replace("{root}", str(root))
    write_json(
        root / "idm" / "run.json",
        {"stage": "train", "recipe": json.loads(text), "recipe_digest": "d" * 16, "counts": {"triplets": 8000}},
    )
    return root


def test_a_base_is_shipped_bit_for_bit(runs, tmp_path):
    pack_base(runs / "base", tmp_path / "out")
    for name in ("model.safetensors", "config.json", "wm_model.json"):
        assert (tmp_path / "out" / name).read_bytes() == (runs / "base" / "model" / name).read_bytes()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["recipe"] == {**PRETRAIN, "batch_size": 48}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| codes in use | 5 of 128 |" in card and "(9 steps of 48)" in card and str(runs) not in card


def test_a_role_is_shipped_in_half_and_names_its_base(runs, tmp_path):
    record = pack_role(runs / "idm", tmp_path / "out", "idm", {"right": 0.5, "pairs measured": 4})
    assert record == json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["recipe"]["base"] == "base/model" and record["recipe"]["triplets"] == [{"path": "train"}]
    assert "out" not in record["recipe"] and record["evaluation"] == {"right": 0.5, "pairs measured": 4}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| right | 0.500 |\n| pairs measured | 4 |" in card
    # The same manifest: base, codec, task and recipe; the weights are equal but for half precision.
    assert read_manifest(tmp_path / "out") == read_manifest(runs / "idm")
    assert read_manifest(tmp_path / "out").base_id == read_manifest(runs / "base").base_id
    assert load_codec(tmp_path / "out").decoder_id == load_codec(runs / "base").decoder_id
    packed, trained = (load_model(folder).inner.state_dict() for folder in (tmp_path / "out", runs / "idm"))
    assert packed.keys() == trained.keys()
    assert all(torch.equal(packed[name], trained[name].half().float()) for name in trained)


def test_what_is_no_such_run_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="was trained as 'idm', expected fdm"):
        pack_role(runs / "idm", tmp_path / "out", "fdm", {})
    with pytest.raises(InputError, match="holds no complete run"):
        pack_base(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_the_shipped_ones(tmp_path):
    for name in write_images(tmp_path / "images"):
        made, shipped = (
            decode_image((folder / "images" / f"{name}.png").read_bytes(), name).astype(int)
            for folder in (tmp_path, SHIPPED)
        )
        assert np.abs(made - shipped).max() <= 1  # another CPU may round a pixel otherwise
    made, shipped = ((folder / "images" / ACTIONS_FILE).read_text() for folder in (tmp_path, SHIPPED))
    assert made == shipped
