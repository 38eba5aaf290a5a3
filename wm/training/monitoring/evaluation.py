"""Gates and samples while a model trains, the best model so far, and the telling of both.

What a gate asks is not known here (:mod:`wm.evaluation` stands above this room): a :class:`Watcher` does it. The first
worker asks while the others wait for what it found, and nothing that training goes by is changed: neither weights,
nor modes of modules, nor states of random generators.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from wm.images import Pixels, encode_png
from wm.models import save_model
from wm.models.vlm import UnifiedVLM
from wm.runs import write_json
from wm.training.monitoring.metrics import World, cut
from wm.training.monitoring.trackers import Boards
from wm.training.recipe import TrainRecipe

GATES = "gates.jsonl"
SAMPLES = "samples"
MODEL, LAST = "model", "last"
BEST = ".best.json"


@dataclass(frozen=True)
class Gated:
    """What a gate found: figures by name, ``nats`` (less is better) and ``preference`` (more is better) among them."""

    figures: dict[str, float]
    has_collapsed: bool
    """Whether the model hands back its source instead of a prediction."""


@dataclass(frozen=True)
class Sample:
    """Predictions as an image, and in words."""

    pixels_HWC: Pixels  # noqa: N815
    text: str


class Watcher(Protocol):
    """Looks at a model through held-out triplets. On the first worker alone."""

    def prepare(self, vlm: UnifiedVLM) -> None:
        """Read what is needed; :class:`wm.errors.InputError` if it does not fit the model."""
        ...

    def gate(self, vlm: UnifiedVLM) -> Gated:
        """Ask the model as it is now."""
        ...

    def sample(self, vlm: UnifiedVLM) -> Sample:
        """Let the model as it is now predict."""
        ...


@dataclass(frozen=True)
class Best:
    """The best gate so far and where its model is."""

    step: int
    value: float
    folder: str


class Watch:
    """What is due after which step. Every rank has one and calls it in step; ``watcher`` counts on rank 0 alone."""

    def __init__(
        self, recipe: TrainRecipe, world: World, watcher: Watcher | None, first: int, *, digest: str, boards: Boards
    ) -> None:
        """``first``: steps done; gates of later ones, from a run that was killed, are dropped. ``digest``: of the
        recipe, for the best model's manifest."""
        self._recipe, self._world, self._watcher = recipe, world, watcher
        self._digest, self._boards = digest, boards
        self._out = Path(recipe.out)
        self.gates: list[dict[str, Any]] = []
        """Lines of ``gates.jsonl`` so far; on every rank those of this process."""
        self.best: Best | None = None
        """On rank 0, with ``best_by``."""
        self._is_asked = world.rank == 0 and bool(recipe.gate_every or recipe.sample_every)
        if self._is_asked and watcher is None:
            raise ValueError("gate_every and sample_every need a watcher")
        if self._is_asked and recipe.gate_every:
            self.gates = cut(self._out / GATES, first)
            self._find_best()

    def prepare(self, vlm: UnifiedVLM) -> None:
        """Read, before the first step, what evaluation needs."""
        if (
            self._watcher is not None
            and self._world.rank == 0
            and (self._recipe.gate_every or self._recipe.sample_every)
        ):
            self._watcher.prepare(vlm)

    def is_due(self, num_steps: int, is_last: bool) -> bool:
        """Return whether a gate or sample follows step ``num_steps`` (from 1)."""
        return self._gate_due(num_steps, is_last) or self._sample_due(num_steps, is_last)

    def look(self, vlm: UnifiedVLM, num_steps: int, is_last: bool) -> dict[str, Any] | None:
        """Do what is due after step ``num_steps``; a collective. Returns the gate's line, if there was a gate."""
        line: list[dict[str, Any] | None] = [None]
        if self._world.rank == 0:
            with _undisturbed(vlm):
                if self._gate_due(num_steps, is_last):
                    line[0] = self._gate(vlm, num_steps)
                if self._sample_due(num_steps, is_last):
                    self._sample(vlm, num_steps)
            self._boards.flush()
        if self._world.size > 1:
            device = self._world.device if self._world.device.type == "cuda" else None
            dist.broadcast_object_list(line, src=0, device=device)
        if line[0] is not None:
            self.gates.append(line[0])
        return line[0]

    def publish(self) -> None:
        """Move the best model to ``out/model``, on rank 0 at the end; repeated after a kill, it changes nothing."""
        if self.best is None:
            return
        folder, target = self._out / self.best.folder, self._out / MODEL
        if folder.exists():
            retired = self._out / f".{MODEL}.old"
            shutil.rmtree(retired, ignore_errors=True)
            if target.exists():
                target.rename(retired)
            folder.rename(target)
            shutil.rmtree(retired, ignore_errors=True)

    def _gate_due(self, num_steps: int, is_last: bool) -> bool:
        every = self._recipe.gate_every
        return bool(every) and (is_last or num_steps % every == 0)

    def _sample_due(self, num_steps: int, is_last: bool) -> bool:
        every = self._recipe.sample_every
        return bool(every) and (is_last or num_steps % every == 0)

    def _gate(self, vlm: UnifiedVLM, num_steps: int) -> dict[str, Any]:
        assert self._watcher is not None
        begin = time.perf_counter()
        result = self._watcher.gate(vlm)
        wall_s = round(time.perf_counter() - begin, 3)
        line = {"step": num_steps, **result.figures, "has_collapsed": result.has_collapsed, "wall_s": wall_s}
        with (self._out / GATES).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._boards.scalars(num_steps, {f"gate/{name}": value for name, value in result.figures.items()})
        if result.has_collapsed:
            self._boards.text(num_steps, "gate/collapse", f"step {num_steps}: the model hands back its source")
        if self._recipe.best_by:
            self._keep_if_best(vlm, num_steps, result.figures[self._recipe.best_by])
        return line

    def _sample(self, vlm: UnifiedVLM, num_steps: int) -> None:
        assert self._watcher is not None
        sample = self._watcher.sample(vlm)
        folder = self._out / SAMPLES
        folder.mkdir(exist_ok=True)
        for name, data in (
            (f"step-{num_steps:06d}.png", encode_png(sample.pixels_HWC)),
            (f"step-{num_steps:06d}.txt", sample.text.encode()),
        ):
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(data)
            temporary.replace(folder / name)
        self._boards.picture(num_steps, "samples", sample.pixels_HWC)
        self._boards.text(num_steps, "samples/text", sample.text)

    def _find_best(self) -> None:
        """Load the note of the best model of a killed run; remove folders that it was about to write or remove."""
        note = self._out / BEST
        if self._recipe.best_by and note.is_file():
            self.best = Best(**json.loads(note.read_text()))
        for folder in self._out.glob(".best-*"):
            if self.best is None or folder.name != self.best.folder:
                shutil.rmtree(folder)

    def _keep_if_best(self, vlm: UnifiedVLM, num_steps: int, value: float) -> None:
        sign = -1 if self._recipe.best_by == "nats" else 1
        if self.best is not None and sign * value <= sign * self.best.value:
            return
        before, self.best = self.best, Best(num_steps, value, f".best-{num_steps:08d}")
        save_model(vlm, self._out / self.best.folder, task=self._recipe.task, recipe_digest=self._digest)
        write_json(self._out / BEST, self.best.__dict__)
        if before is not None:
            shutil.rmtree(self._out / before.folder, ignore_errors=True)


@contextmanager
def _undisturbed(vlm: UnifiedVLM) -> Iterator[None]:
    """Evaluate without gradients and restore modes and random states."""
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
