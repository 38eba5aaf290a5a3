"""Folders that earlier versions wrote: records under the keys of then are those of the same runs today."""

from pathlib import Path
from typing import Any

import pytest

from jobs.export import ExportRecipe
from jobs.gate import GateRecipe
from jobs.imagine import ImagineRecipe
from jobs.predict.recipe import PredictRecipe
from jobs.pretrain import PretrainRecipe
from jobs.tabletop import TabletopRecipe
from wm.config import Recipe
from wm.errors import OtherRunError
from wm.runs import Run, write_json

SAMPLING = {
    **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "greedy": False},
    **{"guidance_text": 2.0, "guidance_image": 1.0},
}
ROLES = {
    **{"fdm": "f", "idm": "i", "base": "", "sampling": SAMPLING},
    **{"batch_size": 8, "device": "cpu", "dtype": "float32", "weights": "merged"},
}
SEARCH = {"best_of": 3, "margin": 0.5, "at_least": 2, "top": 1, "beam": 1, "block": 0, "max_unchanged": 1.0}
GUIDED = {"guidance_scale": 2.0}
FOUND = {"num_candidates": 3, "min_gain_nats": 0.5, "min_candidates": 2}

RUNS: list[tuple[type[Recipe], dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (
        PredictRecipe,
        ROLES | SEARCH | {"image": "", "actions": [], "triplets": "t", "limit": 0, "out": "o", "seed": 0, "top": 2},
        {"fdm": "f", "idm": "i", "triplets": "t", "sampling": GUIDED, "search": FOUND | {"num_return": 2}},
        {"search": FOUND},
    ),
    (
        ImagineRecipe,
        ROLES
        | {"sources": "s", "actions": "a", "subset": "", "out": "o", "limit": 0, "actions_each": 2, "search": SEARCH}
        | {"min_score": -50.0, "max_unchanged": 1.0, "dataset": "imagined", "split": "train", "seed": 0},
        {"fdm": "f", "idm": "i", "sources": "s", "actions": "a", "sampling": GUIDED, "search": FOUND}
        | {"filters": {"min_score": -50.0, "max_unchanged": 1.0}},
        {"filters": {"min_score": -50.0}},
    ),
    (
        GateRecipe,
        {"champion": "c", "challenger": "d", "role": "idm", "triplets": "t", "out": "o", "metric": "nats", "limit": 0}
        | {"least_gain": 0.1, "subset": "dataset", "base": "", "batch_size": None, "device": "cpu"},
        {"champion": "c", "challenger": "d", "role": "idm", "triplets": "t", "min_gain": 0.1},
        {"min_gain": 0.2},
    ),
    (
        ExportRecipe,
        {"triplets": "t", "out": "o", "format": "aurora", "selection": None, "split": None, "side_px": 0}
        | {"shard_mb": 256, "shard_rows": 10_000, "num_workers": 1},
        {"triplets": "t", "format": "aurora"},
        {"shard_mb": 1},
    ),
    (
        TabletopRecipe,
        {"out": "o", "train": 1000, "tune": 200, "test": 200, "videos": 1400, "seed": 0}
        | {"num_workers": 1, "clips_per_task": 9},
        {},
        {"train": 9},
    ),
    (
        PretrainRecipe,
        {"out": "o", "seed": 0, "threads": 1, "images": 4000, "encoder_steps": 300, "decoder_steps": 500}
        | {"documents": 8000, "steps": 70, "batch": 48, "action_slot_tokens": 9},
        {"max_steps": 70},
        {"batch_size": 9},
    ),
]


@pytest.mark.parametrize(("kind", "record", "values", "others"), RUNS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_under_old_keys_is_the_same_run(
    kind: type[Recipe], record: dict[str, Any], values: dict[str, Any], others: dict[str, Any], tmp_path: Path
) -> None:
    """``record``: as an earlier version wrote it; ``values``: the same settings today; ``others``: of another run."""
    recipe = kind.parse(values | {"out": "o"}, "test")
    assert kind.identity_settings(record) == kind.identity_settings(recipe.model_dump(mode="json"))
    write_json(tmp_path / "run.json", {"stage": "job", "recipe": record, "inputs": {}})
    assert Run(tmp_path, "job", recipe).is_complete()
    with pytest.raises(OtherRunError, match="holds another run"):
        Run(tmp_path, "job", kind.parse(values | others | {"out": "o"}, "test")).is_complete()
