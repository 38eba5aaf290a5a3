"""Evaluations and samples in a run: when they are due, that they change no step, which model is the best."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.event_files import read_events
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.errors import InputError
from wm.images import decode_image
from wm.models import load_model, read_manifest
from wm.models.vlm import UnifiedVLM
from wm.training import METRICS, MODEL, RankInfo, TrainRecipe, fit
from wm.training.monitoring.evaluation import EVALUATIONS, LAST, SAMPLES, EvaluationResult, Sample

HERE = RankInfo(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 40), tmp_path_factory.mktemp("triplets"))


def recipe_of(base: Path, triplets: Path, out: Path, **values: Any) -> TrainRecipe:
    out.mkdir(exist_ok=True)
    common = {
        "task": "fdm",
        "base": str(base),
        "triplets": str(triplets),
        "eval": {"triplets": str(triplets)},
        "out": str(out),
    }
    settings = {
        "max_steps": 7,
        "resources": {"num_workers": 0},
        "optim": {"lr": 1e-2},
        "global_batch_size": 8,
        "checkpoint": {"every_steps": 3},
        "logging": {"every_steps": 2},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


class Scripted:
    """Says what it was told to, spoils all that it can, and remembers the model it saw."""

    def __init__(self, nats: list[float], copies: float = 0.0) -> None:
        self._nats = list(nats)
        self._copies = copies
        self.seen: list[dict[str, torch.Tensor]] = []
        self.samples = 0

    def prepare(self, vlm: UnifiedVLM) -> None:
        pass

    def evaluate(self, vlm: UnifiedVLM) -> EvaluationResult:
        assert not vlm.module.training and not torch.is_grad_enabled()
        torch.manual_seed(len(self.seen))
        torch.rand(100)
        trained = {name: part for name, part in vlm.module.named_parameters() if part.requires_grad}
        self.seen.append({name: part.detach().clone() for name, part in trained.items()})
        return EvaluationResult(
            {"nats": self._nats.pop(0), "preference": 0.5, "copies": self._copies}, self._copies >= 0.5
        )

    def sample(self, vlm: UnifiedVLM) -> Sample:
        self.samples += 1
        return Sample(np.full((4, 6, 3), 10 * self.samples, np.uint8), f"sample {self.samples}")


def train(recipe: TrainRecipe, evaluator: Any) -> Any:
    """From the last checkpoint on, if there is one."""
    return fit(recipe, HERE, digest="d", evaluator=evaluator)


def lines_of(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def exact(out: Path) -> list[tuple[float, ...]]:
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines_of(out, METRICS)]


def test_evaluations_and_samples_when_due_change_no_step(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    lora = {"dropout": 0.3}
    train(recipe_of(tiny_base, triplets, tmp_path / "plain", lora=lora), None)
    evaluator = Scripted([4.0, 3.0, 2.0])
    recipe = recipe_of(
        tiny_base, triplets, tmp_path / "out", lora=lora, eval={"every_steps": 3, "sample_every_steps": 5}
    )
    summary = train(recipe, evaluator)
    assert exact(tmp_path / "out") == exact(tmp_path / "plain")
    gates = lines_of(tmp_path / "out", EVALUATIONS)
    assert [(line["step"], line["nats"]) for line in gates] == [(3, 4.0), (6, 3.0), (7, 2.0)]
    assert summary.evaluation == gates[-1] and summary.best is None and summary.collapsed_at == ()
    assert sorted(path.name for path in (tmp_path / "out" / SAMPLES).iterdir()) == [
        *("step-000005.png", "step-000005.txt"),
        *("step-000007.png", "step-000007.txt"),
    ]
    picture = decode_image((tmp_path / "out" / SAMPLES / "step-000007.png").read_bytes(), "sample")
    assert picture.shape == (4, 6, 3) and (picture == 20).all()
    assert (tmp_path / "out" / SAMPLES / "step-000005.txt").read_text() == "sample 1"
    events = read_events(tmp_path / "out" / "tensorboard")
    assert events.scalars["eval/nats"] == [(3, 4.0), (6, 3.0), (7, 2.0)]
    (step, content), _ = events.images["samples"]
    assert step == 5 and (decode_image(content, "board") == 10).all()
    assert events.texts["samples/text"][1] == (7, "sample 2")


@pytest.mark.parametrize(
    ("best_by", "nats", "best"),
    [("nats", [4.0, 2.0, 3.0], 1), ("nats", [1.0, 1.0, 1.0], 0), ("preference", [1.0, 1.0, 1.0], 0)],
)
def test_the_model_is_that_of_the_best_evaluation(
    *, tiny_base: Path, triplets: Path, tmp_path: Path, best_by: str, nats: list[float], best: int
) -> None:
    evaluator = Scripted(nats)
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", eval={"every_steps": 3, "metric_for_best_model": best_by})
    summary = train(recipe, evaluator)
    assert summary.best == {"step": (3, 6, 7)[best], best_by: nats[best] if best_by == "nats" else 0.5}
    for name, observed in ((MODEL, evaluator.seen[best]), (LAST, evaluator.seen[-1])):
        result = dict(load_model(tmp_path / "out" / name).module.named_parameters())
        for key, values in observed.items():
            assert torch.equal(result[key], values), (name, key)
        manifest = read_manifest(tmp_path / "out" / name)
        assert manifest is not None and (manifest.task, manifest.recipe_digest) == ("fdm", "d")
    assert not list((tmp_path / "out").glob(".best-*"))


def test_a_best_model_outlives_a_kill(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    class Killed(Scripted):
        def evaluate(self, vlm: UnifiedVLM) -> EvaluationResult:
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().evaluate(vlm)

    recipe = recipe_of(
        tiny_base,
        triplets,
        tmp_path / "out",
        eval={"every_steps": 2, "metric_for_best_model": "nats"},
        checkpoint={"every_steps": 5},
    )
    first = Killed([2.0, 5.0])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, first)
    # The checkpoint of step 5 is written by a thread, which a busy machine may leave behind.
    while not list((tmp_path / "out" / "checkpoints").glob("step-*/checkpoint.json")):
        time.sleep(0.01)
    (tmp_path / "out" / ".best-00000099").mkdir()  # was being written
    second = Scripted([7.0, 8.0])
    summary = train(recipe, second)
    assert summary.best == {"step": 2, "nats": 2.0}
    assert [line["step"] for line in lines_of(tmp_path / "out", EVALUATIONS)] == [2, 4, 6, 7]
    result = dict(load_model(tmp_path / "out" / MODEL).module.named_parameters())
    assert all(torch.equal(result[key], values) for key, values in first.seen[0].items())
    assert not list((tmp_path / "out").glob(".best-*"))


def test_a_collapse_is_reported(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", eval={"every_steps": 4})
    summary = train(recipe, Scripted([1.0, 1.0], copies=0.75))
    assert summary.collapsed_at == (4, 7)
    texts = read_events(tmp_path / "out" / "tensorboard").texts["eval/collapse"]
    assert texts[0] == (4, "step 4: the model returns its source")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval": {"every_steps": 2, "triplets": ""}}, "eval: every_steps = 2 needs eval.triplets"),
        ({"eval": {"sample_every_steps": 2, "triplets": ""}}, "eval: sample_every_steps = 2 needs eval.triplets"),
        ({"eval": {"metric_for_best_model": "nats"}}, "metric_for_best_model = 'nats' needs eval.every_steps"),
        ({"eval": {"metric_for_best_model": "loss", "every_steps": 1}}, "eval.metric_for_best_model = 'loss'"),
        ({"logging": {"trackers": ["wandb", "wandb"]}}, "a tracker is named twice"),
        ({"logging": {"trackers": ["paper"]}}, "logging.trackers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny_base: Path, triplets: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        recipe_of(tiny_base, triplets, tmp_path / "out", **values)
    assert message in str(raised.value) and "\n" not in str(raised.value)
