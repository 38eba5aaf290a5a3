"""The training run of one worker: rows to steps, metrics, checkpoints, model. Where the others are is a
callback."""

import json
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from wm.errors import InputError
from wm.models import load_model, save_model
from wm.training.adapters import ParameterCounts, prepare
from wm.training.batches import TokenSet, open_tokens
from wm.training.order import SampleOrder, rank_slice
from wm.training.plan import order_of
from wm.training.prefetch import prefetched
from wm.training.recipe import TrainRecipe
from wm.training.step import MicroBatch, Stepper, need_process_group

METRICS = "metrics.jsonl"
MODEL = "model"


class DivergedError(InputError):
    """The loss is no number; raised on every rank at once."""


@dataclass(frozen=True)
class World:
    """This worker among the others."""

    rank: int
    size: int
    device: torch.device


SaveState = Callable[[int, Callable[[Path], None]], None]
"""``save(step, write)``: called by all ranks after ``step`` steps; calls ``write(folder)`` and keeps the
folder."""


@dataclass(frozen=True)
class FitSummary:
    """What a run did, on rank 0."""

    num_steps: int
    resumed_at_step: int
    first_loss: float
    last_loss: float
    """Mean of the last (up to) 20 steps."""
    samples_per_s: float
    setup_s: float
    steps_s: float
    parameters: ParameterCounts

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json``."""
        return asdict(self)


def fit(
    recipe: TrainRecipe, world: World, *, digest: str, save: SaveState, resume_from: Path | None = None
) -> FitSummary:
    """Train and write ``out/model`` and ``out/metrics.jsonl``. Every rank of the process group calls it.

    ``digest`` names the recipe in the model's manifest; ``resume_from`` is a folder that ``save`` kept.
    Raises :class:`InputError` on bad input and :class:`DivergedError` when the loss is no number.
    """
    begin = time.perf_counter()
    torch.set_num_threads(recipe.threads_per_worker)
    need_process_group(world.device)
    vlm = load_model(recipe.base, device=world.device, dtype=_dtype(recipe))
    tokens = open_tokens(recipe.triplets, vlm, recipe.task, recipe.weights, root=recipe.token_root, seed=recipe.seed)
    order = order_of(recipe, tokens.facts)
    num_steps = recipe.num_steps(order)
    counts = prepare(vlm, recipe.lora, recipe.seed)
    stepper = Stepper(vlm, recipe, num_steps)
    first = int(stepper.load(resume_from)["step"]) if resume_from is not None else 0
    metrics = Metrics(Path(recipe.out) / METRICS, world, recipe, first)
    setup_s = time.perf_counter() - begin
    make = partial(_step_batch, tokens=tokens, order=order, recipe=recipe, world=world)
    with closing(prefetched(make, range(first, num_steps))) as batches:
        for step, ready in enumerate(batches, first):
            # Dropout that depends on the step alone: a resumed run draws what the uninterrupted one would have
            # drawn.
            torch.manual_seed((((recipe.seed << 32) + step) * world.size + world.rank) % (1 << 63))
            micro_batches = [_moved(parts, world.device) for parts in ready.micro_batches]
            loss = stepper.step(step, micro_batches, ready.num_tokens)
            epoch = (step + 1) * recipe.global_batch / order.rows_per_epoch
            metrics.add(step + 1, epoch, loss, stepper.rate(step), stepper.grad_norm)
            done, is_last = step + 1, step + 1 == num_steps
            if is_last or done % recipe.log_every == 0 or done % recipe.checkpoint_every == 0:
                _need_finite(metrics.flush(), done, order, tokens, recipe)
            if done % recipe.checkpoint_every == 0 and not is_last:
                save(done, lambda folder, done=done: stepper.save(folder, {"step": done}))  # type: ignore[misc]
    steps_s = time.perf_counter() - begin - setup_s
    if world.rank == 0:
        save_model(vlm, Path(recipe.out) / MODEL, task=recipe.task, recipe_digest=digest)
    dist.barrier()
    losses = metrics.losses
    return FitSummary(
        num_steps=num_steps,
        resumed_at_step=first,
        first_loss=round(losses[0], 6) if losses else float("nan"),
        last_loss=round(float(np.mean(losses[-20:])), 6) if losses else float("nan"),
        samples_per_s=round((num_steps - first) * recipe.global_batch / max(steps_s, 1e-9), 1),
        setup_s=round(setup_s, 3),
        steps_s=round(steps_s, 3),
        parameters=counts,
    )


class Metrics:
    """Losses of all ranks, one line a step, exchanged and written once in ``log_every`` steps."""

    def __init__(self, path: Path, world: World, recipe: TrainRecipe, first: int) -> None:
        """``first``: steps already done; lines of later ones, from a run that was killed, are dropped."""
        self._path = path
        self._world = world
        self._recipe = recipe
        self._pending: list[dict[str, float]] = []
        self._since = time.perf_counter()
        self.losses: list[float] = []
        if world.rank == 0:
            self.losses = _cut(path, first)

    def add(self, step: int, epoch: float, loss: float, rate: float, grad_norm: float) -> None:
        """Note a finished step with this rank's contribution to the loss."""
        self._pending.append({"step": step, "epoch": round(epoch, 4), "loss": loss, "lr": rate, "grad_norm": grad_norm})

    def flush(self) -> list[float]:
        """Average the pending losses over ranks (a collective), append their lines; returns the losses."""
        losses = torch.tensor([line["loss"] for line in self._pending], dtype=torch.float64)
        losses = losses.to(self._world.device)
        dist.all_reduce(losses)
        values: list[float] = (losses / self._world.size).tolist()
        now = time.perf_counter()
        speed = len(values) * self._recipe.global_batch / max(now - self._since, 1e-9)
        self._since = now
        if self._world.rank == 0:
            lines = [
                line | {"loss": value, "samples_per_s": round(speed, 1)}
                for line, value in zip(self._pending, values, strict=True)
            ]
            with self._path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            self.losses.extend(values)
        self._pending = []
        return values


def _cut(path: Path, first: int) -> list[float]:
    """Keep the lines of the first ``first`` steps, in a new file: a worker left over from before a kill, if
    one still writes, writes into the old one."""
    kept = []
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                break
            if line["step"] <= first:
                kept.append(line)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text("".join(json.dumps(line) + "\n" for line in kept))
    aside.replace(path)
    return [line["loss"] for line in kept]


@dataclass(frozen=True)
class StepBatch:
    """What one rank needs for a step, in memory from which a GPU can fetch it."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    """Completion tokens of the whole global batch."""


def _step_batch(step: int, tokens: TokenSet, order: SampleOrder, recipe: TrainRecipe, world: World) -> StepBatch:
    global_rows = order.batch(step, recipe.global_batch)
    rows, size = rank_slice(global_rows, world.rank, world.size), recipe.micro_batch_size
    parts = [tokens.batch(rows[start : start + size]) for start in range(0, len(rows), size)]
    if world.device.type == "cuda":
        parts = [(ids.pin_memory(), completion.pin_memory(), weight.pin_memory()) for ids, completion, weight in parts]
    return StepBatch(parts, tokens.num_completion_tokens(global_rows))


def _moved(parts: MicroBatch, device: torch.device) -> MicroBatch:
    ids_BT, is_completion_BT, weight_BT = (part.to(device, non_blocking=True) for part in parts)
    return ids_BT, is_completion_BT, weight_BT


def _need_finite(
    losses: list[float], last_step: int, order: SampleOrder, tokens: TokenSet, recipe: TrainRecipe
) -> None:
    for step, loss in enumerate(losses, last_step - len(losses) + 1):
        if not np.isfinite(loss):
            rows = tokens.names(order.batch(step - 1, recipe.global_batch)[:5])
            raise DivergedError(
                f"loss is {loss} at step {step} (lr {recipe.lr}); the last checkpoint is kept; "
                f"the step's triplets: {', '.join(rows[:4])}{', …' if len(rows) > 4 else ''}"
            )


def _dtype(recipe: TrainRecipe) -> torch.dtype:
    return torch.bfloat16 if recipe.precision == "bf16" else torch.float32
