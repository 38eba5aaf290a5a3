"""The training run of one worker: rows to steps, metrics, checkpoints, model. Where the others are is a
callback."""

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
from wm.training.boards import Boards, open_boards
from wm.training.flops import peak_tflops, step_work
from wm.training.metrics import METRICS, Done, Metrics, World
from wm.training.order import Indices, SampleOrder, rank_slice
from wm.training.plan import order_of
from wm.training.prefetch import prefetched
from wm.training.recipe import TrainRecipe
from wm.training.step import MicroBatch, Stepper, need_process_group
from wm.training.watch import LAST, MODEL, Watch, Watcher

__all__ = ["METRICS", "MODEL", "DivergedError", "FitSummary", "World", "fit"]


class DivergedError(InputError):
    """The loss is no number; raised on every rank at once."""


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
    gates_s: float
    """Spent on gates and samples; not in ``steps_s``."""
    parameters: ParameterCounts
    gate: dict[str, Any] | None = None
    """The last gate's line of ``gates.jsonl``."""
    best: dict[str, Any] | None = None
    """Step and figure of the gate whose model is ``out/model``, with ``best_by``."""
    collapsed_at: tuple[int, ...] = ()
    """Steps at whose gates the model handed back its source."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``run.json``; what there was no gate for is left out."""
        gated = ("gate", "best", "collapsed_at")
        return {name: value for name, value in asdict(self).items() if name not in gated or value}


def fit(
    recipe: TrainRecipe,
    world: World,
    *,
    digest: str,
    save: SaveState,
    resume_from: Path | None = None,
    watcher: Watcher | None = None,
) -> FitSummary:
    """Train and write ``out/model`` and ``out/metrics.jsonl``. Every rank of the process group calls it.

    ``digest`` names the recipe in the model's manifest; ``resume_from`` is a folder that ``save`` kept;
    ``watcher`` looks through held-out triplets where the recipe asks for gates or samples.
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
    work = step_work(vlm)
    stepper = Stepper(vlm, recipe, num_steps)
    first = int(stepper.load(resume_from)["step"]) if resume_from is not None else 0
    boards = open_boards(recipe, first) if world.rank == 0 else Boards()
    watch = Watch(recipe, world, watcher, first, digest=digest, boards=boards)
    watch.prepare(vlm)
    metrics = Metrics(
        world,
        recipe,
        first,
        tokens=tokens,
        image_rows=vlm.image_rows,
        rows_per_epoch=order.rows_per_epoch,
        work=work,
        peak_tflops=peak_tflops(recipe, world.device),
        boards=boards,
    )
    setup_s = time.perf_counter() - begin
    make = partial(_step_batch, tokens=tokens, order=order, recipe=recipe, world=world)
    with closing(prefetched(make, range(first, num_steps))) as batches:
        for step, ready in enumerate(batches, first):
            # Dropout that depends on the step alone: a resumed run draws what the uninterrupted one would have
            # drawn.
            torch.manual_seed((((recipe.seed << 32) + step) * world.size + world.rank) % (1 << 63))
            micro_batches = [_moved(parts, world.device) for parts in ready.micro_batches]
            loss = stepper.step(step, micro_batches, ready.num_tokens)
            done, is_last = step + 1, step + 1 == num_steps
            rate, norm = stepper.rate(step), stepper.grad_norm
            metrics.add(Done(done, loss, rate, norm, ready.rows, ready.num_tokens, stepper.rows, ready.micro_batches))
            is_due = watch.is_due(done, is_last)
            if is_last or is_due or done % recipe.log_every == 0 or done % recipe.checkpoint_every == 0:
                _need_finite(metrics.flush(), done, order, tokens, recipe)
            if is_due:
                with metrics.paused():
                    watch.look(vlm, done, is_last)
            if done % recipe.checkpoint_every == 0 and not is_last:
                save(done, lambda folder, done=done: stepper.save(folder, {"step": done}))  # type: ignore[misc]
    steps_s = time.perf_counter() - begin - setup_s - metrics.paused_s
    if world.rank == 0:
        save_model(vlm, Path(recipe.out) / (LAST if recipe.best_by else MODEL), task=recipe.task, recipe_digest=digest)
        watch.publish()
    dist.barrier()
    boards.close()
    losses = metrics.losses
    return FitSummary(
        num_steps=num_steps,
        resumed_at_step=first,
        first_loss=round(losses[0], 6) if losses else float("nan"),
        last_loss=round(float(np.mean(losses[-20:])), 6) if losses else float("nan"),
        samples_per_s=round((num_steps - first) * recipe.global_batch / max(steps_s, 1e-9), 1),
        setup_s=round(setup_s, 3),
        steps_s=round(steps_s, 3),
        gates_s=round(metrics.paused_s, 3),
        parameters=counts,
        gate=watch.gates[-1] if watch.gates else None,
        best={"step": watch.best.step, recipe.best_by: watch.best.value} if watch.best else None,
        collapsed_at=tuple(line["step"] for line in watch.gates if line["has_collapsed"]),
    )


@dataclass(frozen=True)
class StepBatch:
    """What one rank needs for a step, in memory from which a GPU can fetch it."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    """Completion tokens of the whole global batch."""
    rows: Indices
    """Of the whole global batch."""


def _step_batch(step: int, tokens: TokenSet, order: SampleOrder, recipe: TrainRecipe, world: World) -> StepBatch:
    global_rows = order.batch(step, recipe.global_batch)
    rows, size = rank_slice(global_rows, world.rank, world.size), recipe.micro_batch_size
    parts = [tokens.batch(rows[start : start + size]) for start in range(0, len(rows), size)]
    if world.device.type == "cuda":
        parts = [(ids.pin_memory(), completion.pin_memory(), weight.pin_memory()) for ids, completion, weight in parts]
    return StepBatch(parts, tokens.num_completion_tokens(global_rows), global_rows)


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
