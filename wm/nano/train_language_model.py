"""Train a small model from nothing to predict the next token of tokenised documents (the nano base)."""

import math
import time
from collections.abc import Callable, Iterator
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
_LAYERS = (".layers.", ".blocks.")
"""In the names of the layers' parameters: of language models, of vision towers."""


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
    picks = sample_picks(len(ids_MT), settings)
    return train_from_scratch(vlm.module, (_loss(vlm, ids_MT[rows]) for rows in picks), settings, report)


def sample_picks(num_documents: int, settings: PretrainSettings) -> Iterator[Tensor]:
    """Sample the documents of each step, with replacement: there is no order to keep.

    Args:
        num_documents: To choose from.
        settings: Steps, batch and seed.

    Yields:
        Numbers of a step's documents, int64.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.steps):
        yield torch.randint(num_documents, (settings.batch,), generator=generator)


def train_from_scratch(
    module: nn.Module, losses: Iterator[Tensor], settings: PretrainSettings, report: Report
) -> dict[str, float]:
    """Train a module in place: Muon for the layers' matrices, AdamW for all else.

    Args:
        module: With random weights.
        losses: Of each step, computed when it is asked for.
        settings: Steps and rates.
        report: Called with step and smoothed loss.

    Returns:
        The smoothed final loss and the seconds taken.
    """
    # Muon orthogonalises updates of the layers' matrices; embeddings are looked up, not multiplied.
    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [p for name, p in parameters if p.ndim == 2 and any(part in name for part in _LAYERS)]
    matrix_ids = {id(p) for p in matrices}
    rest = [p for _, p in parameters if id(p) not in matrix_ids]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, lr=settings.muon_lr),
        torch.optim.AdamW(rest, lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [settings.muon_lr, settings.lr]
    # Dropout is 0 in these models; layers that differ by mode behave as in fine-tuning.
    module.train()
    smooth, begin = math.nan, time.perf_counter()
    for step, loss in enumerate(losses):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * _schedule(step, settings)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # The first steps from random weights have gradients of any size.
        nn.utils.clip_grad_norm_([p for _, p in parameters], 1.0)
        for optimizer in optimizers:
            optimizer.step()
        # Smoothed, since a small batch says little.
        smooth = loss.item() if math.isnan(smooth) else 0.97 * smooth + 0.03 * loss.item()
        report(step + 1, smooth)
    module.eval()
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
