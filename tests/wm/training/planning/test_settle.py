"""What ``auto`` becomes: by the available memory, by evaluation, by what the recipe says itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.training_data import merge_tables
from wm.models.skeleton import load_skeleton
from wm.training import TrainRecipe, prepare
from wm.training.data.sources import Source
from wm.training.data.tokenized import SourceFacts
from wm.training.planning.memory import StepMemory
from wm.training.planning.settle import chooser, settled


def recipe_of(base: Path, **values: Any) -> TrainRecipe:
    common = {"task": "fdm", "base": str(base), "triplets": "x", "out": "x", "max_steps": 1, "global_batch_size": 16}
    return TrainRecipe.parse(merge_tables(common, {"resources": {"num_workers": 4}}, values), "test")


@pytest.mark.parametrize(
    ("values", "offered"),
    [
        ({}, [(1, False), (2, False), (1, True), (2, True), (3, False), (3, True)]),
        ({"eval": {"every_steps": 1, "triplets": "x"}}, [(1, False), (2, False), (1, True), (2, True)]),
        ({"resources": {"num_workers": 1}}, [(1, False), (1, True)]),
        ({"resources": {"zero_stage": 3}}, [(3, False), (3, True)]),
        ({"resources": {"zero_stage": 0}}, [(0, False), (0, True)]),
        ({"resources": {"gradient_checkpointing": True}}, [(1, True), (2, True), (3, True)]),
        ({"resources": {"zero_stage": 2, "gradient_checkpointing": False}}, []),
    ],
)
def test_settings_left_at_auto_are_offered(tiny_base: Path, values: dict[str, Any], offered: Any) -> None:
    requested = []

    def choose(choices: Any) -> tuple[int, bool]:
        requested.extend(choices)
        return choices[-1]  # type: ignore[no-any-return]

    result = settled(recipe_of(tiny_base, **values), choose)
    assert requested == offered
    assert (result.resources.zero_stage, result.resources.gradient_checkpointing) == (
        offered[-1] if offered else (2, False)
    )


def test_evaluation_with_zero_stage_3_is_refused(tiny_base: Path) -> None:
    with pytest.raises(Exception, match="no worker has the complete model to evaluate"):
        recipe_of(tiny_base, eval={"every_steps": 1, "triplets": "x"}, resources={"zero_stage": 3})


def test_chooser_returns_the_first_that_fits_else_the_leanest(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {(1, False): 100, (2, False): 90, (1, True): 60, (2, True): 50, (3, False): 70, (3, True): 30}
    recipe = recipe_of(tiny_base)
    vlm = load_skeleton(tiny_base)
    with torch.device("meta"):
        prepare(vlm, recipe.lora, 0)
    facts = [SourceFacts(Source(path="x"), 2, 0, {}, np.array([3, 5], np.int32))]

    def step_memory(vlm: Any, recipe: Any, template: Any, *, stage: int) -> StepMemory:
        recomputes = all(layer.gradient_checkpointing for layer in vlm.decoder.layers)
        return StepMemory(0, 0, 0, 0, 0, 0, 0, peak=peaks[stage, recomputes])

    monkeypatch.setattr("wm.training.planning.settle.step_memory", step_memory)
    for usable, expected in ((100, (1, False)), (95, (2, False)), (60, (1, True)), (55, (2, True)), (49, (3, True))):
        assert chooser(recipe, vlm, facts, usable)(tuple(peaks)) == expected
    assert chooser(recipe, vlm, facts, 7)(tuple(peaks)) == (3, True)
    assert chooser(recipe, vlm, facts, None)(tuple(peaks)) == (1, False)


def test_recomputing_keeps_less_and_stages_shard(tiny_base: Path) -> None:
    """With the real estimate: each choice takes less of what it is there for."""
    recipe = recipe_of(tiny_base, lora={"enabled": False})
    vlm = load_skeleton(tiny_base)
    prepare(vlm, recipe.lora, 0)
    facts = [SourceFacts(Source(path="x"), 2, 0, {}, np.array([3, 5], np.int32))]
    huge, none = 1 << 40, 1
    assert chooser(recipe, vlm, facts, huge)([(1, False), (3, True)]) == (1, False)
    assert chooser(recipe, vlm, facts, none)([(1, False), (1, True)]) == (1, True)
    assert chooser(recipe, vlm, facts, none)([(1, False), (2, False)]) == (2, False)
