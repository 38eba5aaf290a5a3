"""Evaluate and sample from a model while it trains, keep the best model so far, and log both.

What is measured is not known here (:mod:`wm.evaluation` is a room above this one): an :class:`Evaluator` does it. The
first worker evaluates while the others wait for its figures, and nothing that training depends on is changed: neither
weights, nor modes of modules, nor states of random generators.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
import torch.distributed as dist

from wm.images import Pixels, encode_png
from wm.runs import write_json
from wm.training.monitoring.records import RankInfo, drop_lines_after
from wm.training.monitoring.trackers import Trackers
from wm.training.recipe import TrainRecipe
from wm.training.trained_models import TrainedModel, save_trained

EVALUATIONS = "gates.jsonl"
"""Below ``out``: a line an evaluation."""
SAMPLES = "samples"
MODEL, LAST = "model", "last"
BEST = ".best.json"
BEST_FOLDER = ".best-"
"""Beginning of the names of folders with the best model so far."""

EvaluationLine = dict[str, float]
"""``step``, ``has_collapsed``, ``ignores_action``, ``wall_s``, and figures by name."""


@dataclass(frozen=True)
class EvaluationResult:
    """Figures by name, ``nats`` (lower is better) and ``preference`` (higher is better) among them."""

    figures: dict[str, float]
    has_collapsed: bool
    """Whether the model returns its source instead of a prediction."""
    ignores_action: bool = False
    """Whether the target of a forward model is no likelier under the true action than under another one."""


@dataclass(frozen=True)
class Sample:
    """Predictions as an image, and in words."""

    pixels_HWC: Pixels  # noqa: N815
    text: str


ModelT_contra = TypeVar("ModelT_contra", bound=TrainedModel, contravariant=True)


class Evaluator(Protocol[ModelT_contra]):
    """Measures a model on held-out triplets. On the first worker alone."""

    def prepare(self, vlm: ModelT_contra) -> None:
        """Read what is needed; :class:`wm.errors.InputError` if it does not fit the model.

        Args:
            vlm: The model.
        """
        ...

    def evaluate(self, vlm: ModelT_contra) -> EvaluationResult:
        """Measure the model as it is now.

        Args:
            vlm: The model.
        """
        ...

    def sample(self, vlm: ModelT_contra) -> Sample:
        """Predict with the model as it is now.

        Args:
            vlm: The model.
        """
        ...


AnyEvaluator: TypeAlias = Evaluator[Any]
"""One that fits the base of its recipe."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far and where its model is."""

    step: int
    value: float
    folder: str


class PeriodicEvaluation:
    """Does what is due after a step. Every rank has one and calls it in step; ``evaluator`` is used on rank 0 alone."""

    def __init__(
        self,
        recipe: TrainRecipe,
        rank_info: RankInfo,
        evaluator: AnyEvaluator | None,
        first: int,
        *,
        digest: str,
        trackers: Trackers,
    ) -> None:
        """Load the evaluations of the first ``first`` steps; those of later ones, from a run that was killed, go.

        Args:
            recipe: The run.
            rank_info: This process.
            evaluator: None where the recipe asks for nothing.
            first: Steps done.
            digest: Of the recipe, for the best model's manifest.
            trackers: Where figures and images are logged.
        """
        self._recipe, self._rank_info, self._evaluator = recipe, rank_info, evaluator
        self._digest, self._trackers = digest, trackers
        self._out = Path(recipe.out)
        self.lines: list[EvaluationLine] = []
        """Evaluations so far; on ranks other than 0 those of this process."""
        self.best: Best | None = None
        """On rank 0, with ``eval.metric_for_best_model``."""
        # A mistake of the caller, which would otherwise show after hours.
        if rank_info.rank == 0 and recipe.eval.is_on and evaluator is None:
            raise ValueError("eval.every_steps and eval.sample_every_steps need an evaluator")
        if rank_info.rank == 0 and recipe.eval.every_steps:
            # The steps after the checkpoint are repeated, and evaluated again.
            self.lines = drop_lines_after(self._out / EVALUATIONS, first)
            self._load_best()

    def prepare(self, vlm: TrainedModel) -> None:
        """Read, before the first step, what evaluation needs.

        Args:
            vlm: The model.
        """
        if self._evaluator is not None and self._rank_info.rank == 0 and self._recipe.eval.is_on:
            self._evaluator.prepare(vlm)

    def is_due(self, num_steps: int, is_last: bool) -> bool:
        """Return whether an evaluation or sample follows a step.

        Args:
            num_steps: Steps done, from 1.
            is_last: Whether the run ends here.
        """
        settings = self._recipe.eval
        return any(_is_due(every, num_steps, is_last) for every in (settings.every_steps, settings.sample_every_steps))

    def run(self, vlm: TrainedModel, num_steps: int, is_last: bool) -> None:
        """Evaluate and sample if that is due; a collective.

        Args:
            vlm: The model as it is now.
            num_steps: Steps done, from 1.
            is_last: Whether the run ends here.
        """
        settings = self._recipe.eval
        message: list[EvaluationLine | None] = [None]
        if self._rank_info.rank == 0 and self._evaluator is not None:
            # A run with evaluations equals one without, to the last bit.
            with _undisturbed(vlm):
                if _is_due(settings.every_steps, num_steps, is_last):
                    message[0] = self._evaluate(self._evaluator, vlm, num_steps)
                if _is_due(settings.sample_every_steps, num_steps, is_last):
                    self._sample(self._evaluator, vlm, num_steps)
            self._trackers.flush()
        # All ranks choose checkpoints by the figures.
        if self._rank_info.size > 1:
            device = self._rank_info.device if self._rank_info.device.type == "cuda" else None
            dist.broadcast_object_list(message, src=0, device=device)
        if message[0] is not None:
            self.lines.append(message[0])

    def publish(self) -> None:
        """Move the best model to ``out/model``, on rank 0 at the end; repeated after a kill, it changes nothing."""
        if self.best is None:
            return
        folder, target = self._out / self.best.folder, self._out / MODEL
        if folder.exists():
            # The old model leaves its place by a rename, so that a kill never leaves half a folder there.
            retired = self._out / f".{MODEL}.old"
            shutil.rmtree(retired, ignore_errors=True)
            if target.exists():
                target.rename(retired)
            folder.rename(target)
            shutil.rmtree(retired, ignore_errors=True)

    def _evaluate(self, evaluator: AnyEvaluator, vlm: TrainedModel, num_steps: int) -> EvaluationLine:
        begin = time.perf_counter()
        result = evaluator.evaluate(vlm)
        wall_s = round(time.perf_counter() - begin, 3)
        flags = {"has_collapsed": result.has_collapsed, "ignores_action": result.ignores_action}
        line = {"step": num_steps, **result.figures, **flags, "wall_s": wall_s}
        with (self._out / EVALUATIONS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        # In the file first, which is the record of the run.
        self._trackers.log(num_steps, {f"eval/{name}": value for name, value in result.figures.items()})
        if result.has_collapsed:
            self._trackers.log(num_steps, {"eval/collapse": f"step {num_steps}: the model returns its source"})
        if result.ignores_action:
            self._trackers.log(num_steps, {"eval/action": f"step {num_steps}: the model ignores its action"})
        if metric := self._recipe.eval.metric_for_best_model:
            self._keep_if_best(vlm, num_steps, result.figures[metric])
        return line

    def _sample(self, evaluator: AnyEvaluator, vlm: TrainedModel, num_steps: int) -> None:
        sample = evaluator.sample(vlm)
        folder = self._out / SAMPLES
        folder.mkdir(exist_ok=True)
        for name, data in (
            (f"step-{num_steps:06d}.png", encode_png(sample.pixels_HWC)),
            (f"step-{num_steps:06d}.txt", sample.text.encode()),
        ):
            # Renamed when complete: a viewer may look at any moment.
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(data)
            temporary.replace(folder / name)
        self._trackers.log(num_steps, {"samples": sample.pixels_HWC, "samples/text": sample.text})

    def _load_best(self) -> None:
        """Load the note of a killed run's best model; remove folders that it was about to write or remove."""
        note = self._out / BEST
        if self._recipe.eval.metric_for_best_model and note.is_file():
            self.best = Best(**json.loads(note.read_text()))
        for folder in self._out.glob(f"{BEST_FOLDER}*"):
            if self.best is None or folder.name != self.best.folder:
                shutil.rmtree(folder)

    def _keep_if_best(self, vlm: TrainedModel, num_steps: int, value: float) -> None:
        sign = -1 if self._recipe.eval.metric_for_best_model == "nats" else 1
        if self.best is not None and sign * value <= sign * self.best.value:
            return
        # The note changes only once the new model is complete, and the old one goes last.
        previous, self.best = self.best, Best(num_steps, value, f"{BEST_FOLDER}{num_steps:08d}")
        save_trained(vlm, self._out / self.best.folder, task=self._recipe.task, recipe_digest=self._digest)
        write_json(self._out / BEST, asdict(self.best))
        if previous is not None:
            shutil.rmtree(self._out / previous.folder, ignore_errors=True)


def _is_due(every: int, num_steps: int, is_last: bool) -> bool:
    return bool(every) and (is_last or num_steps % every == 0)


@contextmanager
def _undisturbed(vlm: TrainedModel) -> Iterator[None]:
    """Evaluate without gradients and restore modes and random states."""
    # Restored one by one: a family may keep a part in evaluation mode.
    training = {module: module.training for module in vlm.module.modules()}
    devices = [vlm.device] if vlm.device.type == "cuda" else []
    vlm.module.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        if devices:
            torch.cuda.empty_cache()
