"""Run one optimiser step through DeepSpeed, and hand out the state for checkpoints.

Not known here: rows, files of a run, Ray.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wm.models.pixels.model import PixelModel
from wm.private_session import loopback_interface
from wm.training.loss import completion_losses
from wm.training.pixels.loss import pair_losses
from wm.training.planning.schedule import learning_rate
from wm.training.recipe import TrainRecipe
from wm.training.trained_models import TrainedModel
from wm.training.zero import (
    Part,
    deepspeed_config,
    gather_weights,
    import_deepspeed,
    parts_of,
    push_weights,
    set_steps,
    share_head,
    undo_initial_step,
)

TokenBatch: TypeAlias = tuple[Tensor, Tensor, Tensor]
MicroBatch: TypeAlias = TokenBatch | tuple[Tensor, Tensor, Tensor, dict[str, Any]]
"""``ids_BT``, ``is_completion_BT``, ``weight_BT``, from :meth:`wm.training.data.batches.TokenSet.batch`; and what else
a processor gives, from :meth:`wm.training.pixels.batches.PairSet.batch`."""


class LossModule(nn.Module):
    """The model and its loss as one module, for DeepSpeed to wrap."""

    def __init__(self, vlm: TrainedModel, autocast: bool) -> None:
        super().__init__()
        self.module = vlm.module
        self._vlm = vlm
        self._autocast = autocast

    def forward(
        self,
        ids_BT: Tensor,
        is_completion_BT: Tensor,
        weight_BT: Tensor,
        num_tokens: float,
        inputs: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss, and for each row the negative log-likelihood of its completion (:func:`row_nll`).

        Args:
            ids_BT: int64.
            is_completion_BT: bool, false at position 0.
            weight_BT: float32.
            num_tokens: Divides the sum.
            inputs: Of a model that reads pixels: what else its processor gave.
        """
        with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            if isinstance(self._vlm, PixelModel):
                loss, nll_M = pair_losses(
                    self._vlm, ids_BT, is_completion_BT, weight_BT, num_tokens=num_tokens, inputs=inputs or {}
                )
            else:
                loss, nll_M = completion_losses(self._vlm, ids_BT, is_completion_BT, weight_BT, num_tokens)
        return loss, row_nll(nll_M, is_completion_BT)


def row_nll(nll_M: Tensor, is_completion_BT: Tensor) -> Tensor:
    """Sum the negative log-likelihood of each row's completion, without waiting for a GPU.

    Args:
        nll_M: Of each completion token in nats, unweighted, row after row.
        is_completion_BT: bool, the tokens that are learned.

    Returns:
        (2, B) float32: the sums, and the number of completion tokens.
    """
    # The first token is not predicted.
    learned_BT = is_completion_BT[:, 1:]
    nll_BT = torch.zeros(learned_BT.shape, device=nll_M.device).masked_scatter_(learned_BT, nll_M.float())
    return torch.stack((nll_BT.sum(dim=1), learned_BT.sum(dim=1).float()))


class Stepper:
    """DeepSpeed around a prepared model. Every rank of the process group makes one and calls it in step."""

    def __init__(self, vlm: TrainedModel, recipe: TrainRecipe, num_steps: int) -> None:
        """Wrap the model and build its optimiser.

        Args:
            vlm: Prepared, and loaded within :func:`wm.training.zero.loading`.
            recipe: The run, without ``auto`` in its resources.
            num_steps: Length of the run.
        """
        self._recipe = recipe
        self._num_steps = num_steps
        self._vlm = vlm
        self._norm: float | None = None
        self.rows = torch.zeros(2, 0)
        """:func:`row_nll` of this rank's rows of the last step, on the device."""
        loss = LossModule(vlm, autocast=recipe.precision == "autocast")
        self._names = {parameter: name for name, parameter in vlm.module.named_parameters() if parameter.requires_grad}
        trained = list(self._names)
        if recipe.resources.zero_stage == 3 and recipe.precision == "bf16":
            # PEFT's adapters are fp32, which stage 3 refuses and the others cast.
            for parameter in trained:
                parameter.data = parameter.data.to(torch.bfloat16)
        groups = _decay_groups(trained, recipe.optim.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.optim.lr, fused=True)
        self._engine = import_deepspeed(vlm.device).initialize(
            model=loss,
            optimizer=self._optimizer,
            config=deepspeed_config(recipe, sum(parameter.numel() for parameter in trained)),
            dist_init_required=False,
        )[0]
        undo_initial_step(self._engine)
        if recipe.resources.zero_stage == 3:
            share_head(loss, vlm)
        # DeepSpeed left AdamW as it is: its own clipping is not used then.
        if self._engine.optimizer is self._optimizer:
            self._optimizer.register_step_pre_hook(self._clip_gradients)

    def step(self, step: int, micro_batches: Sequence[MicroBatch], num_tokens: int) -> float:
        """Train on this rank's part of a global batch.

        Args:
            step: From 0.
            micro_batches: On the device; one forward and backward pass each.
            num_tokens: Completion tokens of the complete global batch.

        Returns:
            This rank's contribution to the loss: the mean over ranks is the loss of the global batch. What each row
            contributed is :attr:`rows`.
        """
        # Each pass divides by its share of the batch's tokens: DeepSpeed averages over passes and ranks.
        share = num_tokens / (self._recipe.num_ranks * self._recipe.accumulation_steps)
        rate = self.rate(step)
        # Set by step number: the schedule needs no state in a checkpoint.
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        # Summed on the device: the host waits once a step, not once a pass.
        total = torch.zeros((), device=self._engine.device)
        rows = []
        for ids_BT, is_completion_BT, weight_BT, *inputs in micro_batches:
            loss, rows_2B = self._engine(ids_BT, is_completion_BT, weight_BT, share, *inputs)
            self._engine.backward(loss)
            self._engine.step()
            total += loss.detach()
            rows.append(rows_2B)
        self.rows = torch.cat(rows, dim=1)
        return float(total) / self._recipe.accumulation_steps

    def rate(self, step: int) -> float:
        """Return the learning rate of ``step`` (from 0)."""
        recipe = self._recipe
        return learning_rate(
            step,
            peak=recipe.optim.lr,
            num_steps=self._num_steps,
            warmup_steps=recipe.num_warmup_steps(self._num_steps),
            floor=recipe.optim.min_lr_ratio,
        )

    @property
    def grad_norm(self) -> float:
        """Return the norm of the last step's gradient over all ranks, before clipping."""
        return float(self._engine.get_global_grad_norm()) if self._norm is None else self._norm

    def parts(self) -> list[Part]:
        """Return what this rank writes into a checkpoint; the parts of all ranks are the complete state."""
        return parts_of(self._engine, self._names)

    def parts_to_load(self) -> list[Part]:
        """Return what this rank's optimiser needs of a checkpoint: to be written to, then :meth:`finish_loading`."""
        return parts_of(self._engine, self._names, every_rank=True)

    def finish_loading(self, steps: int) -> None:
        """Apply what was written into :meth:`parts_to_load`, as after ``steps`` steps. All ranks call it."""
        set_steps(self._engine, steps)
        push_weights(self._engine)

    def weights(self, keep: bool) -> dict[str, Tensor] | None:
        """Gather sharded weights for :func:`wm.models.save_model` on ranks that ``keep`` them, else return None. All
        ranks call it."""
        if self._recipe.resources.zero_stage != 3:
            return None
        has_adapter = hasattr(self._vlm.module, "get_base_model")
        return gather_weights(self._vlm.module, keep, trained_only=has_adapter)

    def _clip_gradients(self, *_: object) -> None:
        """Clip and store the norm before the optimiser's step: in stage 0 and fp32 DeepSpeed would not report it."""
        limit = self._recipe.optim.max_grad_norm or math.inf
        self._norm = float(nn.utils.clip_grad_norm_(list(self._names), limit))


def ensure_process_group(device: torch.device) -> None:
    """Create a process group of one, for training without Ray, unless there is one already."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        # Gloo listens even for one process: on the address of the host's name, unless an interface is named.
        is_named, loopback = "GLOO_SOCKET_IFNAME" in os.environ, loopback_interface()
        if loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        if not is_named:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)
        # DeepSpeed reads what a launcher would set.
        os.environ.setdefault("LOCAL_RANK", "0")


def _decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    # Stage 3 replaces a sharded parameter by a vector, and stores its shape.
    is_matrix = [len(getattr(parameter, "ds_shape", parameter.shape)) >= 2 for parameter in parameters]
    matrices = [parameter for parameter, flag in zip(parameters, is_matrix, strict=True) if flag]
    vectors = [parameter for parameter, flag in zip(parameters, is_matrix, strict=True) if not flag]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]
