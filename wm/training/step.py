"""One optimiser step through DeepSpeed, and its checkpoints. Not known here: rows, files of a run, Ray."""

import errno
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.training.loss import completion_losses
from wm.training.recipe import TrainRecipe

MicroBatch = tuple[Tensor, Tensor, Tensor]
"""``ids_BT``, ``is_completion_BT``, ``weight_BT``: what :meth:`wm.training.batches.TokenSet.batch` gives."""

_TAG = "state"
_BUCKET_ELEMENTS = 500_000_000


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
        """The loss, and of each row the summed likelihood of its completion: see :func:`row_nll`."""
        with torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            loss, nll_M = completion_losses(self._vlm, ids_BT, is_completion_BT, weight_BT, num_tokens)
        return loss, row_nll(nll_M, is_completion_BT)


def row_nll(nll_M: Tensor, is_completion_BT: Tensor) -> Tensor:
    """(2, B) float32: negative log-likelihood of each row's completion, summed and unweighted, and its tokens.

    ``nll_M``: of each completion token, row after row. Nothing is waited for on a GPU.
    """
    learned_BT = is_completion_BT[:, 1:]
    nll_BT = torch.zeros(learned_BT.shape, device=nll_M.device).masked_scatter_(learned_BT, nll_M.float())
    return torch.stack((nll_BT.sum(dim=1), learned_BT.sum(dim=1).float()))


def learning_rate(step: int, *, peak: float, num_steps: int, warmup_steps: int, floor: float) -> float:
    """Rate of ``step`` (from 0): linear up to ``peak`` over the warm-up, then half a cosine to ``floor *
    peak``."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def deepspeed_config(recipe: TrainRecipe, num_trained: int) -> dict[str, Any]:
    """The DeepSpeed dictionary of a recipe: there is no second file.

    Communication buffers are no larger than the ``num_trained`` parameters: the defaults ask for 2 GB.
    """
    bucket = min(_BUCKET_ELEMENTS, max(1, num_trained))
    return {
        "train_micro_batch_size_per_gpu": recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.accumulation_steps,
        "gradient_clipping": recipe.grad_clip,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "zero_optimization": {
            "stage": recipe.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": recipe.use_gpu,
            "contiguous_gradients": recipe.use_gpu,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


class Stepper:
    """DeepSpeed around a prepared model. Every rank of the process group makes one and calls it in step."""

    def __init__(self, vlm: UnifiedVLM, recipe: TrainRecipe, num_steps: int) -> None:
        self._recipe = recipe
        self._num_steps = num_steps
        self.rows = torch.zeros(2, 0)
        """What :func:`row_nll` gives of this rank's rows of the last step, on the device."""
        loss = LossModule(vlm, autocast=recipe.precision == "autocast")
        trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        groups = _decay_groups(trained, recipe.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        with _deepspeed(vlm.device) as deepspeed:
            self._engine = deepspeed.initialize(
                model=loss,
                optimizer=self._optimizer,
                config=deepspeed_config(recipe, sum(parameter.numel() for parameter in trained)),
                dist_init_required=False,
            )[0]

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
        """Learning rate of ``step`` (from 0)."""
        recipe = self._recipe
        return learning_rate(
            step,
            peak=recipe.lr,
            num_steps=self._num_steps,
            warmup_steps=recipe.warmup_steps,
            floor=recipe.lr_floor,
        )

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all ranks, before clipping."""
        return float(self._engine.get_global_grad_norm())

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Write this rank's part of the training state (trained weights, optimiser) and ``facts`` into
        ``folder``.

        Called by all ranks; each may give a folder of its own, and :meth:`load` wants their union. Raises
        :class:`OSError` if the disk is full.
        """
        (folder / _TAG).mkdir(parents=True, exist_ok=True)
        try:
            self._engine.save_checkpoint(
                str(folder), tag=_TAG, client_state=dict(facts), exclude_frozen_parameters=True
            )
        except RuntimeError as error:
            if "inline_container" not in str(error):  # torch's writer of files, which does not say why it failed
                raise
            raise OSError(errno.ENOSPC, "a checkpoint could not be written whole; is the disk full?") from error

    def load(self, folder: Path) -> dict[str, Any]:
        """Read back what :meth:`save` wrote; returns ``facts``. Only for folders this project wrote
        itself."""
        path, facts = self._engine.load_checkpoint(str(folder), tag=_TAG, load_module_strict=False)
        if path is None:
            raise InputError(f"{folder} holds no training state")
        return dict(facts)


def need_process_group(device: torch.device) -> None:
    """A process group of one, for training without Ray; nothing if there is one already."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def _decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def _deepspeed(device: torch.device) -> Iterator[Any]:
    """The module, with what its ``initialize`` expects of a launcher in the environment."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.comm
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_cpu:
        # Otherwise DeepSpeed compiles a shared-memory operator when it starts: most of a minute, and a
        # compiler.
        deepspeed.ops.__compatible_ops__ = {}
    rank = os.environ.get("LOCAL_RANK")
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        yield deepspeed
    finally:
        if rank is None:
            del os.environ["LOCAL_RANK"]
