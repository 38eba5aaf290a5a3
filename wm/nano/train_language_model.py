"""Train a small model from nothing to predict the next token of tokenised documents (the nano base)."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wm.models import UnifiedVLM
from wm.nano.muon import Muon
from wm.training.kernels.autocast import lowered
from wm.training.planning.schedule import LONG_WARMUP, warmup_warning

Report = Callable[[int, float], None]
"""Called with (step, smoothed loss)."""


@dataclass(frozen=True)
class PretrainSettings:
    """``muon_lr`` for the layers' matrices, ``lr`` (AdamW) for embeddings and norms."""

    steps: int = 1400
    batch: int = 48
    muon_lr: float = 0.02
    lr: float = 2e-3
    warmup_steps: int = 50
    seed: int = 0


def pretrain(vlm: UnifiedVLM, ids_MT: Tensor, settings: PretrainSettings, report: Report) -> dict[str, float]:
    """Train ``vlm.module`` in place to predict the next token; the loss is the mean over all tokens but pads.

    Args:
        vlm: The model.
        ids_MT: Documents, int64, right padded with the pad id.
        settings: Steps, batch and rates.
        report: Called with step and smoothed loss.

    Returns:
        The smoothed final loss and the seconds taken.
    """
    # Muon orthogonalises updates of the layers' matrices; embeddings are looked up, not multiplied.
    parameters = [(name, p) for name, p in vlm.module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in parameters if p.ndim == 2 and ".layers." in name]
    matrix_ids = {id(p) for p in matrices}
    rest = [p for _, p in parameters if id(p) not in matrix_ids]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=settings.muon_lr),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [settings.muon_lr, settings.lr]
    generator = torch.Generator().manual_seed(settings.seed)
    vlm.module.train()
    smooth, begin = math.nan, time.perf_counter()
    for step in range(settings.steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * _schedule(step, settings)
        # With replacement: there is no order to keep.
        picks = torch.randint(len(ids_MT), (settings.batch,), generator=generator)
        loss = _loss(vlm, ids_MT[picks])
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # The first steps from random weights have gradients of any size.
        nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        # Smoothed, since a small batch says little.
        smooth = loss.item() if math.isnan(smooth) else 0.97 * smooth + 0.03 * loss.item()
        report(step + 1, smooth)
    vlm.module.eval()
    return {"loss": smooth, "seconds": round(time.perf_counter() - begin, 2)}


def pretrain_warning(settings: PretrainSettings) -> str:
    """Return what is wrong with the warm-up for so few steps, or an empty text."""
    peak = max(_schedule(step, settings) for step in range(settings.steps))
    remedy = f"{math.ceil(settings.warmup_steps / LONG_WARMUP):,} steps or more"
    name = f"the language model's warm-up of {settings.warmup_steps:,} steps"
    return warmup_warning(settings.warmup_steps, settings.steps, peak, name=name, remedy=remedy)


def _loss(vlm: UnifiedVLM, ids_BT: Tensor) -> Tensor:
    with lowered():
        logits_BTV = vlm.head(vlm.body(ids_BT[:, :-1]))
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT[:, 1:].flatten(), ignore_index=vlm.pad_id)


def _schedule(step: int, settings: PretrainSettings) -> float:
    """Return the rate as a fraction of its peak: linear warm-up, flat, then linear to zero over the last 40 %."""
    remaining = (settings.steps - step) / (0.4 * settings.steps)
    return min(1.0, (step + 1) / settings.warmup_steps, remaining)
