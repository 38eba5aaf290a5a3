"""Train one rank: rows to steps, metrics, checkpoints, model.

Knows nothing of Ray, nor how a model is evaluated: that is an :class:`Evaluator` that the caller passes.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from wm.training.adapters import ParameterCounts, prepare
from wm.training.checkpoint.identity import identity_of
from wm.training.checkpoint.manager import CheckpointManager
from wm.training.data.order import Indices, SampleOrder, rank_slice
from wm.training.data.prefetch import prefetch
from wm.training.monitoring.evaluation import LAST, MODEL, AnyEvaluator, EvaluationLine, PeriodicEvaluation
from wm.training.monitoring.metrics import Metrics
from wm.training.monitoring.mirrored_out import MirroredOut
from wm.training.monitoring.non_finite import DivergenceCheck
from wm.training.monitoring.records import RankInfo, StepResult
from wm.training.monitoring.trackers import Trackers, open_trackers
from wm.training.pixels.batches import TrainingSet
from wm.training.planning.plan import check_data, order_of
from wm.training.planning.settle import recompute_layers, settled_on_ranks
from wm.training.recipe import TrainRecipe
from wm.training.step import MicroBatch, Stepper, ensure_process_group
from wm.training.trained_models import TrainedModel, load_base, save_trained
from wm.training.zero import loading


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
    evaluation_s: float
    """Spent on evaluations and samples; not in ``steps_s``."""
    parameters: ParameterCounts
    evaluation: EvaluationLine | None = None
    """The last evaluation."""
    best: dict[str, float] | None = None
    """Step and figure of the evaluation whose model is ``out/model``, with ``eval.metric_for_best_model``."""
    collapsed_at: tuple[int, ...] = ()
    """Steps at whose evaluation the model returned its source."""
    ignored_action_at: tuple[int, ...] = ()
    """Steps at whose evaluation a forward model ignored its action."""
    checkpoints: dict[str, float | str] = field(default_factory=dict)
    """Fields of :class:`wm.training.checkpoint.manager.CheckpointStats`."""
    zero_stage: int = 0
    """Of DeepSpeed, as the recipe wants it or as it was chosen."""
    recomputes: bool = False
    """Whether layers were computed again in the backward pass."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values, for ``run.json``, without those of evaluations where there were none."""
        optional = ("evaluation", "best", "collapsed_at", "ignored_action_at")
        values = {name: value for name, value in asdict(self).items() if name not in optional or value}
        # As they are read again.
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class StepBatch:
    """A rank's part of a global batch, in memory from which a GPU can fetch it."""

    micro_batches: list[MicroBatch]
    num_tokens: int
    """Completion tokens of the complete global batch."""
    rows: Indices
    """Of the complete global batch."""


def fit(recipe: TrainRecipe, rank_info: RankInfo, *, digest: str, evaluator: AnyEvaluator | None = None) -> FitSummary:
    """Train and write ``out/model`` and ``out/metrics.jsonl``. Every rank of the process group calls it.

    The run resumes from the newest checkpoint of the recipe, if there is one.

    Args:
        recipe: The run; all ranks have the same.
        rank_info: Rank, number of ranks and device of this process.
        digest: Names the recipe in the model's manifest.
        evaluator: Measures the model where the recipe asks for evaluations or samples; used on rank 0 alone.

    Returns:
        Figures of the run; losses are NaN on ranks other than 0.

    Raises:
        InputError: The data, the base model or a checkpoint does not fit the recipe.
        DivergedError: The loss or a gradient is non-finite.
    """
    begin = time.perf_counter()
    torch.set_num_threads(recipe.resources.threads_per_worker)
    ensure_process_group(rank_info.device)

    # 1. Data first: bad rows should cost seconds, not the loading of a 7B model.
    tokens = check_data(recipe)
    recipe = settled_on_ranks(recipe, tokens.facts, rank_info)
    order = order_of(recipe, tokens.facts)
    num_steps = recipe.num_steps(order)

    # 2. Model and optimiser. Stage 3 shards weights while they are loaded, so the context surrounds the loading alone.
    with loading(recipe, rank_info.device):
        vlm = load_base(recipe.base, device=rank_info.device, is_half=recipe.precision == "bf16")
    counts = prepare(vlm, recipe.lora, recipe.seed)
    recompute_layers(vlm, bool(recipe.resources.gradient_checkpointing))
    stepper = Stepper(vlm, recipe, num_steps)

    # 3. Resume. Lines of logs and evaluations later than the checkpoint are dropped: these steps are repeated.
    identity = identity_of(recipe, vlm.base_id, tokens.facts)
    mirrored = MirroredOut(recipe.out, rank_info.rank == 0).bring()
    checkpoints = CheckpointManager(recipe, rank_info.rank, rank_info.size, identity, mirrored.publish)
    first = checkpoints.load(checkpoints.newest, stepper) if checkpoints.newest is not None else 0
    trackers = open_trackers(recipe, first) if rank_info.rank == 0 else Trackers()
    evaluation = PeriodicEvaluation(recipe, rank_info, evaluator, first, digest=digest, trackers=trackers)
    evaluation.prepare(vlm)
    metrics = Metrics(rank_info, recipe, first, vlm=vlm, tokens=tokens, order=order, trackers=trackers)
    setup_s = time.perf_counter() - begin

    # 4. Steps.
    run = _Run(vlm, stepper, metrics, DivergenceCheck(rank_info, tokens), evaluation, checkpoints, tokens, order)
    with mirrored.following(recipe):
        run.train(range(first, num_steps))
        steps_s = time.perf_counter() - begin - setup_s - metrics.paused_s

        # 5. Model.
        run.save_model(digest)
        checkpoints.close()
        trackers.close()
    # No rank leaves before the model is written: Ray would take down a group that has lost a member.
    dist.barrier()
    return run.summary(first, num_steps, setup_s=setup_s, steps_s=steps_s, parameters=counts)


@dataclass(frozen=True)
class _Run:
    """What a rank needs while it trains. Its recipe is the one of which every ``auto`` is decided."""

    vlm: TrainedModel
    stepper: Stepper
    metrics: Metrics
    divergence: DivergenceCheck
    evaluation: PeriodicEvaluation
    checkpoints: CheckpointManager
    tokens: TrainingSet
    order: SampleOrder

    @property
    def recipe(self) -> TrainRecipe:
        return self.metrics.recipe

    @property
    def rank_info(self) -> RankInfo:
        return self.metrics.rank_info

    def train(self, steps: range) -> None:
        """Run the steps, and after each what is due: logs, the check for divergence, evaluation, a checkpoint."""
        recipe, rank_info = self.recipe, self.rank_info
        last_saved = steps.start
        with closing(prefetch(self._build_batch, steps)) as batches:
            for step, batch in zip(steps, batches, strict=True):
                # 4.1 Train. Dropout depends on the step alone: a resumed run samples the masks of an uninterrupted one.
                torch.manual_seed((((recipe.seed << 32) + step) * rank_info.size + rank_info.rank) % (1 << 63))
                micro_batches = [_move_to(parts, rank_info.device) for parts in batch.micro_batches]
                loss = self.stepper.step(step, micro_batches, batch.num_tokens)

                # 4.2 Collect the step's figures. Nothing here waits for another rank or for the device.
                num_steps, is_last = step + 1, step + 1 == steps.stop
                result = StepResult(
                    num_steps, loss, self.stepper.rate(step), self.stepper.grad_norm, batch.rows, batch.num_tokens,
                    self.stepper.rows, batch.micro_batches,
                )  # fmt: skip
                self.metrics.add(result)
                self.divergence.add(result)

                # 4.3 Check for divergence before evaluation and checkpoint: neither may see non-finite weights.
                is_evaluation_due = self.evaluation.is_due(num_steps, is_last)
                is_checkpoint_due = self.checkpoints.is_due(num_steps, is_last)
                is_log_due = is_last or num_steps % recipe.logging.every_steps == 0
                if is_log_due or is_evaluation_due or is_checkpoint_due:
                    self.divergence.check(self.metrics.flush(), self.checkpoints.last_complete_step)

                # 4.4 Evaluate before the checkpoint, whose rank among the others may depend on the figures.
                if is_evaluation_due:
                    with self.metrics.paused():
                        self.evaluation.run(self.vlm, num_steps, is_last)
                if is_checkpoint_due:
                    self.checkpoints.save(num_steps, self.stepper, self._checkpoint_metrics(num_steps - last_saved))
                    last_saved = num_steps

    def _build_batch(self, step: int) -> StepBatch:
        """Build this rank's part of a step's batch, in the prefetching thread."""
        recipe, rank_info = self.recipe, self.rank_info
        global_rows = self.order.batch(step, recipe.global_batch_size)
        rows, size = rank_slice(global_rows, rank_info.rank, rank_info.size), recipe.rows_per_pass
        parts = [self.tokens.batch(rows[start : start + size]) for start in range(0, len(rows), size)]
        # From pinned memory a GPU copies while it computes.
        if rank_info.device.type == "cuda":
            parts = [_apply(part, Tensor.pin_memory) for part in parts]
        return StepBatch(parts, self.tokens.num_completion_tokens(global_rows), global_rows)

    def save_model(self, digest: str) -> None:
        """Write the model; with a metric for the best one, that becomes ``out/model``."""
        # Gathering sharded weights is a collective, so all ranks take part and rank 0 alone writes.
        weights = self.stepper.weights(keep=self.rank_info.rank == 0)
        if self.rank_info.rank == 0:
            out, task = Path(self.recipe.out), self.recipe.task
            name = LAST if self.recipe.eval.metric_for_best_model else MODEL
            save_trained(self.vlm, out / name, task=task, recipe_digest=digest, state_dict=weights)
            self.evaluation.publish()

    def _checkpoint_metrics(self, num_steps: int) -> dict[str, float]:
        """Return on rank 0 what a checkpoint may be chosen by: mean loss of ``num_steps`` steps, last evaluation."""
        losses = self.metrics.losses[-num_steps:]
        metrics = {"loss": float(np.mean(losses))} if losses else {}
        line = self.evaluation.lines[-1] if self.evaluation.lines else {}
        return metrics | {name: line[name] for name in ("nats", "preference") if name in line}

    def summary(
        self, first: int, num_steps: int, *, setup_s: float, steps_s: float, parameters: ParameterCounts
    ) -> FitSummary:
        """Collect the figures of the finished run."""
        losses, lines, best = self.metrics.losses, self.evaluation.lines, self.evaluation.best
        metric = self.recipe.eval.metric_for_best_model
        # Only steps of this process count for its speed.
        num_samples = (num_steps - first) * self.recipe.global_batch_size
        return FitSummary(
            num_steps=num_steps,
            resumed_at_step=first,
            first_loss=round(losses[0], 6) if losses else float("nan"),
            last_loss=round(float(np.mean(losses[-20:])), 6) if losses else float("nan"),
            samples_per_s=round(num_samples / max(steps_s, 1e-9), 1),
            setup_s=round(setup_s, 3),
            steps_s=round(steps_s, 3),
            evaluation_s=round(self.metrics.paused_s, 3),
            parameters=parameters,
            evaluation=lines[-1] if lines else None,
            best={"step": best.step, metric: best.value} if best else None,
            collapsed_at=tuple(int(line["step"]) for line in lines if line["has_collapsed"]),
            # Lines of a run that an earlier version began have no such flag.
            ignored_action_at=tuple(int(line["step"]) for line in lines if line.get("ignores_action")),
            checkpoints=self.checkpoints.stats.as_dict(),
            zero_stage=int(self.recipe.resources.zero_stage),
            recomputes=bool(self.recipe.resources.gradient_checkpointing),
        )


def _move_to(parts: MicroBatch, device: torch.device) -> MicroBatch:
    return _apply(parts, lambda part: part.to(device, non_blocking=True))


def _apply(parts: MicroBatch, change: Callable[[Tensor], Tensor]) -> MicroBatch:
    ids_BT, is_completion_BT, weight_BT, *others = parts
    changed = change(ids_BT), change(is_completion_BT), change(weight_BT)
    if not others:
        return changed
    # Processors also return lists, such as sizes of images.
    inputs = {name: change(value) if isinstance(value, Tensor) else value for name, value in others[0].items()}
    return *changed, inputs
