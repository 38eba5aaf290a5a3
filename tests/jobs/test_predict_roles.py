"""Both models of a prediction over one base or two, in any type; what does not fit is told before any work."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.predict import job as predict
from jobs.predict.recipe import PredictRecipe
from tests.helpers.code_calls import predict_observations
from tests.helpers.models_roles import write_roles
from tests.helpers.training_data import random_rows, write_triplets
from wm.dynamics import Search, pair_folders
from wm.errors import InputError
from wm.images import encode_png
from wm.models import load_model
from wm.models.families.chameleon import ChameleonVLM
from wm.records import row_seeds

GREY = {"bytes": encode_png(np.zeros((16, 16, 3), np.uint8)), "path": None}


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_roles(tiny_base, tmp_path_factory.mktemp("roles"))


@pytest.fixture(scope="module")
def triplets(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row | {"source_image": GREY, "target_image": GREY} for row in random_rows(folders / "base", 3)]
    return write_triplets(rows, tmp_path_factory.mktemp("triplets") / "triplets")


def recipe_of(folders: Path, out: Path, **more: Any) -> PredictRecipe:
    values = {
        "fdm": str(folders / "fdm"),
        "idm": str(folders / "idm"),
        "out": str(out),
        "search": {"num_candidates": 3},
        "seed": 2,
    }
    return PredictRecipe.parse(values | more, "test")


def predicted(recipe: PredictRecipe) -> tuple[list[list[int]], list[float]]:
    predict.run(recipe)
    rows = pq.read_table(Path(recipe.out) / "predictions").to_pylist()
    return [row["codes"] for row in rows], [row["logprob"] for row in rows]


@pytest.mark.parametrize(("base_sharing", "dtype"), [*itertools.product(["merged", "shared"], ["float32", "bfloat16"])])
def test_predictions_are_those_of_the_models_loaded_alone(folders, triplets, monkeypatch, base_sharing, dtype):
    asked, out = [], folders / f"{base_sharing}-{dtype}"
    read = pair_folders.load_roles
    monkeypatch.setattr(
        pair_folders, "load_roles", lambda *paths, **how: asked.append(read(*paths, **how)) or asked[-1]
    )
    recipe = recipe_of(folders, out, triplets=str(triplets), resources={"base_sharing": base_sharing, "dtype": dtype})
    codes, logprobs = predicted(recipe)
    assert asked[0].fdm.runner.dtype is getattr(torch, dtype)
    shares = asked[0].fdm.model.inner.lm_head.weight is asked[0].idm.model.inner.lm_head.weight
    assert shares == (base_sharing == "shared")
    if dtype == "bfloat16":  # other rounding, other draws
        return
    rows = pq.read_table(triplets).to_pylist()
    fdm, idm = (load_model(folders / role) for role in ("fdm", "idm"))
    found = predict_observations(
        fdm, idm, [row["source_codes"] for row in rows], [row["action"] for row in rows],
        search=Search(num_candidates=3), seed=row_seeds(2, [row["triplet_id"] for row in rows]),
    )  # fmt: skip
    assert codes == [list(one.best.codes) for one in found]
    assert logprobs == pytest.approx([one.best.score.logprob for one in found], abs=2e-4)


def test_a_base_is_for_the_adapter_beside_a_full_model(folders, triplets, tmp_path):
    given = {"fdm": str(folders / "base"), "triplets": str(triplets)}
    moved = predicted(recipe_of(folders, tmp_path / "a", base=str(folders / "base"), **given))
    assert moved == predicted(recipe_of(folders, tmp_path / "b", **given))
    with pytest.raises(InputError, match=r"base = .*, but neither fdm nor idm is an adapter of a model"):
        both = given | {"idm": str(folders / "base"), "base": str(folders / "base")}
        predict.run(recipe_of(folders, tmp_path / "c", **both))


def test_weights_that_cannot_be_shared_are_refused_unread(folders, triplets, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_folders, "load_roles", lambda *paths, **how: pytest.fail("was read"))
    recipe = recipe_of(
        folders,
        tmp_path / "out",
        idm=str(folders / "full"),
        triplets=str(triplets),
        resources={"base_sharing": "shared"},
    )
    with pytest.raises(
        InputError, match=r"sharing weights needs both roles over one base, but fdm .* is an adapter of"
    ):
        predict.run(recipe, dry_run=True)


def test_an_unreadable_action_in_the_last_row_is_refused_first(folders, tmp_path):
    rows = [row | {"source_image": GREY, "target_image": GREY} for row in random_rows(folders / "base", 3)]
    rows[-1]["action"] = "put " * 5000
    triplets = write_triplets(rows, tmp_path / "triplets")
    with pytest.raises(InputError, match=r"has 5,000 tokens: with both images the sequence has 5,\d+, the model 96"):
        predict.run(recipe_of(folders, tmp_path / "out", triplets=str(triplets)))
    assert not (tmp_path / "out").exists()


def test_guidance_that_the_family_has_not_is_told_first(folders, triplets, tmp_path, monkeypatch):
    def refuse(vlm):
        raise InputError("guidance is not supported")

    monkeypatch.setattr(ChameleonVLM, "check_guidance", refuse)
    with pytest.raises(InputError, match="guidance is not supported"):
        predict.run(recipe_of(folders, tmp_path / "out", triplets=str(triplets), sampling={"guidance_scale": 2.0}))
    assert not (tmp_path / "out").exists()


def test_a_codec_that_cannot_draw_is_told_first(folders, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in (folders / "base").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "vqmodel.decoder." not in name}
    save_file(kept, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "wm_model.json").read_text()) | {"decoder_id": ""}
    (base / "wm_model.json").write_text(json.dumps(config))
    (tmp_path / "a.png").write_bytes(GREY["bytes"])
    recipe = recipe_of(folders, tmp_path / "out", base=str(base), image=str(tmp_path / "a.png"), actions=["put"])
    with pytest.raises(
        InputError, match=r"holds no model.vqmodel.decoder.\* weights: it encodes images but decodes none"
    ):
        predict.run(recipe, dry_run=True)
