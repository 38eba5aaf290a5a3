"""Train one rank: rows to steps, metrics, checkpoints, model.

Knows nothing of Ray, nor how a model is evaluated: that is a :class:`Watcher` that the caller passes.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from wm.models import load_model, save_model
from wm.models.vlm import UnifiedVLM
from wm.training.adapters import ParameterCounts, prepare
from wm.training.checkpoint.checkpoints import Checkpoints, identity_of
from wm.training.data.batches import TokenSet
from wm.training.data.order import Indices, SampleOrder, rank_slice
from wm.training.data.prefetch import prefetched
from wm.training.monitoring.evaluation import LAST, MODEL, Watch, Watcher
from wm.training.monitoring.metrics import METRICS, Done, Metrics, World
from wm.training.monitoring.non_finite import DivergedError, Finite
from wm.training.monitoring.trackers import Boards, open_boards
from wm.training.planning.flops import peak_tflops, step_work
from wm.training.planning.plan import check_data, order_of
from wm.training.planning.settle import recompute_layers, settled_on_ranks
from wm.training.recipe import TrainRecipe
from wm.training.step import MicroBatch, Stepper, need_process_group
from wm.training.zero import loading

__all__ = ["METRICS", "MODEL", "DivergedError", "FitSummary", "World", "fit"]


@dataclass(frozen=True)
class FitSummary:
    """Figures of a finished run, on rank 0."""

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
    checkpoints: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`wm.training.checkpoint.checkpoints.Report`."""
    zero_stage: int = 0
    """Of DeepSpeed, as the recipe wants it or as it was chosen."""
    recomputes: bool = False
    """Whether layers were computed again in the backward pass."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for ``run.json``; what there was no gate for is left out."""
        gated = ("gate", "best", "collapsed_at")
        return {name: value for name, value in asdict(self).items() if name not in gated or value}


@dataclass(frozen=True)
class StepBatch:
    """A rank's part of a global batch, in memory from which a GPU can fetch it."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    """Completion tokens of the complete global batch."""
    rows: Indices
    """Of the complete global batch."""


def fit(
    recipe: TrainRecipe,
    world: World,
    *,
    digest: str,
    watcher: Watcher | None = None,
) -> FitSummary:
    """Train and write ``out/model`` and ``out/metrics.jsonl``. Every rank of the process group calls it.

    The run resumes from the newest checkpoint of the recipe, if there is one.

    Args:
        recipe: The run; all ranks have the same.
        world: Rank, world size and device of this process.
        digest: Names the recipe in the model's manifest.
        watcher: Evaluates on held-out triplets where the recipe asks for gates or samples; used on rank 0 alone.

    Returns:
        Figures of the run; losses are NaN on ranks other than 0.

    Raises:
        InputError: The data, the base model or a checkpoint does not fit the recipe.
        DivergedError: The loss or a gradient is non-finite.
    """
    begin = time.perf_counter()
    torch.set_num_threads(recipe.threads_per_worker)
    need_process_group(world.device)

    # 1. Data first: bad rows should cost seconds, not the loading of a 7B model.
    tokens = check_data(recipe)
    recipe = settled_on_ranks(recipe, tokens.facts, world)
    order = order_of(recipe, tokens.facts)
    num_steps = recipe.num_steps(order)

    # 2. Model and optimiser. Stage 3 shards weights while they are read, so the context surrounds the loading alone.
    with loading(recipe, world.device):
        vlm = load_model(recipe.base, device=world.device, dtype=_dtype(recipe))
    counts = prepare(vlm, recipe.lora, recipe.seed)
    work = step_work(vlm)
    recompute_layers(vlm, bool(recipe.checkpoint_activations))
    stepper = Stepper(vlm, recipe, num_steps)

    # 3. Resume. What lies behind the checkpoint in logs and gates is dropped by the same step.
    checkpoints = Checkpoints(recipe, world.rank, world.size, identity_of(recipe, vlm.base_id, tokens.facts))
    first = checkpoints.load(checkpoints.newest, stepper) if checkpoints.newest is not None else 0
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

    # 4. Steps.
    _train_steps(
        range(first, num_steps),
        build_batch=partial(_step_batch, tokens=tokens, order=order, recipe=recipe, world=world),
        vlm=vlm,
        stepper=stepper,
        metrics=metrics,
        finite=Finite(world, tokens),
        watch=watch,
        checkpoints=checkpoints,
    )
    steps_s = time.perf_counter() - begin - setup_s - metrics.paused_s

    # 5. Model. Gathering sharded weights is a collective, so all ranks take part and rank 0 alone writes.
    weights = stepper.weights(keep=world.rank == 0)
    if world.rank == 0:
        name = LAST if recipe.best_by else MODEL
        save_model(vlm, Path(recipe.out) / name, task=recipe.task, recipe_digest=digest, state_dict=weights)
        watch.publish()
    checkpoints.close()
    # No rank leaves before the model is written: Ray would take down a group that has lost a member.
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
        checkpoints=checkpoints.report.as_dict(),
        zero_stage=int(recipe.zero_stage),
        recomputes=bool(recipe.checkpoint_activations),
    )


def _train_steps(
    steps: range,
    *,
    build_batch: Callable[[int], StepBatch],
    vlm: UnifiedVLM,
    stepper: Stepper,
    metrics: Metrics,
    finite: Finite,
    watch: Watch,
    checkpoints: Checkpoints,
) -> None:
    """Run the steps, and after each what is due: logs, the check for divergence, evaluation, a checkpoint."""
    recipe, world = metrics.recipe, metrics.world
    last_saved = steps.start
    with closing(prefetched(build_batch, steps)) as batches:
        for step, batch in zip(steps, batches, strict=True):
            # 4.1 Dropout depends on the step alone: a resumed run samples the masks of an uninterrupted one.
            torch.manual_seed((((recipe.seed << 32) + step) * world.size + world.rank) % (1 << 63))
            micro_batches = [_move_to(parts, world.device) for parts in batch.micro_batches]
            loss = stepper.step(step, micro_batches, batch.num_tokens)

            # 4.2 Note the step. Nothing here waits for another rank or for the device.
            num_steps, is_last = step + 1, step + 1 == steps.stop
            step_result = Done(
                num_steps,
                loss,
                stepper.rate(step),
                stepper.grad_norm,
                batch.rows,
                batch.num_tokens,
                stepper.rows,
                batch.micro_batches,
            )
            metrics.add(step_result)
            finite.add(step_result)

            # 4.3 Check for divergence before evaluation and checkpoint: neither may see non-finite weights.
            is_watch_due, is_checkpoint_due = watch.is_due(num_steps, is_last), checkpoints.is_due(num_steps, is_last)
            if is_last or is_watch_due or is_checkpoint_due or num_steps % recipe.log_every == 0:
                finite.need(metrics.flush(), checkpoints.last_whole)

            # 4.4 Evaluate before the checkpoint, whose rank among the others may depend on the figures.
            if is_watch_due:
                with metrics.paused():
                    watch.look(vlm, num_steps, is_last)
            if is_checkpoint_due:
                checkpoints.save(num_steps, stepper, _checkpoint_figures(metrics, watch, num_steps - last_saved))
                last_saved = num_steps


def _checkpoint_figures(metrics: Metrics, watch: Watch, num_steps: int) -> dict[str, float]:
    """Return on rank 0 what a checkpoint may be chosen by: mean loss of the last ``num_steps`` steps, last gate's."""
    figures = {"loss": float(np.mean(metrics.losses[-num_steps:]))} if metrics.losses else {}
    gate = watch.gates[-1] if watch.gates else {}
    return figures | {name: gate[name] for name in ("nats", "preference") if name in gate}


def _step_batch(step: int, tokens: TokenSet, order: SampleOrder, recipe: TrainRecipe, world: World) -> StepBatch:
    global_rows = order.batch(step, recipe.global_batch)
    rows, size = rank_slice(global_rows, world.rank, world.size), recipe.micro_batch_size
    parts = [tokens.batch(rows[start : start + size]) for start in range(0, len(rows), size)]
    if world.device.type == "cuda":
        parts = [(ids.pin_memory(), completion.pin_memory(), weight.pin_memory()) for ids, completion, weight in parts]
    return StepBatch(parts, tokens.num_completion_tokens(global_rows), global_rows)


def _move_to(parts: MicroBatch, device: torch.device) -> MicroBatch:
    ids_BT, is_completion_BT, weight_BT = (part.to(device, non_blocking=True) for part in parts)
    return ids_BT, is_completion_BT, weight_BT


def _dtype(recipe: TrainRecipe) -> torch.dtype:
    return torch.bfloat16 if recipe.precision == "bf16" else torch.float32
