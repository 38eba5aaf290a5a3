"""One optimiser step through DeepSpeed, and the state it leaves. Not known here: rows, files of a run, Ray."""

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wm.models.vlm import UnifiedVLM
from wm.private_session import loopback_interface
from wm.training.loss import completion_losses
from wm.training.planning.schedule import learning_rate
from wm.training.recipe import TrainRecipe
from wm.training.zero import (
    Part,
    deepspeed_config,
    deepspeed_ready,
    gathered,
    parts_of,
    push_weights,
    set_steps,
    share_head,
    start_afresh,
)

MicroBatch = tuple[Tensor, Tensor, Tensor]
"""``ids_BT``, ``is_completion_BT``, ``weight_BT``: what :meth:`wm.training.data.batches.TokenSet.batch` gives."""


class LossModule(nn.Module):
    """The model and its loss as one module, for DeepSpeed to wrap."""

    def __init__(self, vlm: UnifiedVLM, autocast: bool) -> None:
        super().__init__()
        self.module = vlm.module
        self._vlm = vlm
        self._autocast = autocast

    def forward(
        self, ids_BT: Tensor, is_completion_BT: Tensor, weight_BT: Tensor, num_tokens: float
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and of each row the summed likelihood of its completion: see :func:`row_nll`."""
        with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            loss, nll_M = completion_losses(self._vlm, ids_BT, is_completion_BT, weight_BT, num_tokens)
        return loss, row_nll(nll_M, is_completion_BT)


def row_nll(nll_M: Tensor, is_completion_BT: Tensor) -> Tensor:
    """Return (2, B) float32: negative log-likelihood of each row's completion, summed and unweighted, and its tokens.

    ``nll_M``: of each completion token, row after row. Nothing is waited for on a GPU.
    """
    learned_BT = is_completion_BT[:, 1:]
    nll_BT = torch.zeros(learned_BT.shape, device=nll_M.device).masked_scatter_(learned_BT, nll_M.float())
    return torch.stack((nll_BT.sum(dim=1), learned_BT.sum(dim=1).float()))


class Stepper:
    """DeepSpeed around a prepared model. Every rank of the process group makes one and calls it in step."""

    def __init__(self, vlm: UnifiedVLM, recipe: TrainRecipe, num_steps: int) -> None:
        """``vlm``: prepared, and read within :func:`wm.training.zero.loading`; the recipe's ``zero_stage`` and
        ``checkpoint_activations`` are settled."""
        self._recipe = recipe
        self._num_steps = num_steps
        self._vlm = vlm
        self._norm: float | None = None
        self.rows = torch.zeros(2, 0)
        """What :func:`row_nll` gives of this rank's rows of the last step, on the device."""
        loss = LossModule(vlm, autocast=recipe.precision == "autocast")
        self._names = {parameter: name for name, parameter in vlm.module.named_parameters() if parameter.requires_grad}
        trained = list(self._names)
        if recipe.zero_stage == 3 and recipe.precision == "bf16":
            for parameter in trained:  # PEFT's adapters are fp32, which stage 3 refuses and the others cast
                parameter.data = parameter.data.to(torch.bfloat16)
        groups = _decay_groups(trained, recipe.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        self._engine = deepspeed_ready(vlm.device).initialize(
            model=loss,
            optimizer=self._optimizer,
            config=deepspeed_config(recipe, sum(parameter.numel() for parameter in trained)),
            dist_init_required=False,
        )[0]
        start_afresh(self._engine)
        if recipe.zero_stage == 3:
            share_head(loss, vlm)
        if self._engine.optimizer is self._optimizer:
            self._optimizer.register_step_pre_hook(self._note_norm)

    def step(self, step: int, micro_batches: Sequence[MicroBatch], num_tokens: int) -> float:
        """Train on this rank's part of the global batch of ``step`` (from 0).

        ``num_tokens``: completion tokens of the whole global batch. Returns this rank's contribution to the
        loss: the mean over ranks is the loss of the global batch. What each row contributed is :attr:`rows`.
        """
        share = num_tokens / (self._recipe.num_ranks * self._recipe.accumulation_steps)
        rate = self.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self._engine.device)
        rows = []
        for ids_BT, is_completion_BT, weight_BT in micro_batches:
            loss, rows_2B = self._engine(ids_BT, is_completion_BT, weight_BT, share)
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
            peak=recipe.lr,
            num_steps=self._num_steps,
            warmup_steps=recipe.num_warmup_steps(self._num_steps),
            floor=recipe.lr_floor,
        )

    @property
    def grad_norm(self) -> float:
        """Return the norm of the last step's gradient over all ranks, before clipping."""
        return float(self._engine.get_global_grad_norm()) if self._norm is None else self._norm

    def parts(self) -> list[Part]:
        """Return what this rank writes into a checkpoint; the parts of all ranks are the whole state."""
        return parts_of(self._engine, self._names)

    def parts_to_read(self) -> list[Part]:
        """Return what this rank's optimiser needs of a checkpoint: to be written to, then :meth:`was_read`."""
        return parts_of(self._engine, self._names, every_rank=True)

    def was_read(self, steps: int) -> None:
        """Take over what was written into :meth:`parts_to_read`, as after ``steps`` steps. All ranks call it."""
        set_steps(self._engine, steps)
        push_weights(self._engine)

    def weights(self, keep: bool) -> dict[str, Tensor] | None:
        """Gather what :func:`wm.models.save_model` needs as ``state_dict``, on ranks that ``keep`` it: None where the
        model has its weights unsharded. All ranks call it."""
        if self._recipe.zero_stage != 3:
            return None
        has_adapter = hasattr(self._vlm.module, "get_base_model")
        return gathered(self._vlm.module, keep, trained_only=has_adapter)

    def _note_norm(self, *_: object) -> None:
        """Clip and note the norm before the optimiser's step: in stage 0 and fp32 DeepSpeed would not report it."""
        limit = self._recipe.grad_clip or math.inf
        self._norm = float(nn.utils.clip_grad_norm_(list(self._names), limit))


def need_process_group(device: torch.device) -> None:
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
        os.environ.setdefault("LOCAL_RANK", "0")  # a launcher would say so, and DeepSpeed looks


def _decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    def dimensions(parameter: Any) -> int:
        return len(getattr(parameter, "ds_shape", parameter.shape))  # stage 3 leaves a vector in a parameter's place

    groups = [
        {"params": [parameter for parameter in parameters if dimensions(parameter) >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if dimensions(parameter) < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
