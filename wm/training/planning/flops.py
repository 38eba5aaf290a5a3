"""Count the arithmetic of a step, and the share of a device's peak that it reaches (MFU, model FLOPs utilisation).

Chowdhery et al., PaLM (arXiv 2204.02311), appendix B: a token costs 6 operations a weight, 2 forward and 4 backward,
and 12 L H Q T for attention over T tokens. What recomputing costs does not count. Two terms are taken as the model
needs them here, both of which lower the figure: a frozen weight costs 4, since its own gradient is never made; and the
head counts only at tokens that are learned. Padding does not count.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wm.models.vlm import UnifiedVLM
from wm.training.recipe import TrainRecipe

FROZEN, TRAINED = 4, 6
"""Operations a weight and token: forward and the gradient of the input; with the gradient of the weight too."""

PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200", 989.0),
    ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)
"""Words of a device's name and its peak in bfloat16 without sparsity, TFLOP/s, by NVIDIA's data sheets."""


@dataclass(frozen=True)
class StepWork:
    """Operations (a multiplication or an addition each) that training costs."""

    per_token: float
    """The matrices of the layers."""
    per_learned_token: float
    """The head."""
    per_pair: float
    """Attention: times the square of a row's length."""

    def flops(self, lengths_B: npt.NDArray[np.int64], num_learned: int) -> float:
        """Return the operations of a batch.

        Args:
            lengths_B: Tokens of each row.
            num_learned: Tokens that are learned, of all rows.
        """
        lengths = lengths_B.astype(np.float64)
        return float(
            self.per_token * lengths.sum()
            + self.per_learned_token * num_learned
            + self.per_pair * np.square(lengths).sum()
        )


def step_work(vlm: UnifiedVLM) -> StepWork:
    """Count what training this prepared model asks for."""
    stack = vlm.decoder
    config = stack.config
    # Gemma's heads are wider than its width divided by their number.
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = vlm.inner.get_output_embeddings()
    return StepWork(
        per_token=_matrices(stack.layers),
        per_learned_token=_matrices(head) if head is not None else 0.0,
        per_pair=12.0 * len(stack.layers) * config.num_attention_heads * head_width,
    )


def peak_tflops(recipe: TrainRecipe, device: torch.device) -> float | None:
    """Return the peak of one device.

    Args:
        recipe: Its ``resources.peak_tflops`` comes first.
        device: Looked up in :data:`PEAK_TFLOPS`, which is about bfloat16: it says nothing of a run in fp32.

    Returns:
        TFLOP/s; None if unknown.
    """
    # A device that the table does not know, or another precision.
    if recipe.resources.peak_tflops:
        return recipe.resources.peak_tflops
    if device.type != "cuda" or recipe.precision == "fp32":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the peak of a device by its name; None for one that the table does not know, or a slice of one (MIG)."""
    words = name.replace("-", " ").split()
    # A slice has a share of the peak that its name does not say.
    if "MIG" in words:
        return None
    return next((peak for key, peak in PEAK_TFLOPS if set(key.split()) <= set(words)), None)


def _matrices(module: nn.Module) -> float:
    """Sum over the linear layers, adapters among them; norms' weights may have two dimensions too, and are none."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    return float(sum(_count(weight) * (TRAINED if weight.requires_grad else FROZEN) for weight in weights))


def _count(weight: Tensor) -> int:
    """Count elements; DeepSpeed's stage 3 empties the parameters that it has sharded, and notes their size."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def mfu(flops: float, seconds: float, *, peak: float | None, num_devices: int) -> float | None:
    """Return the share of the devices' peak that was reached.

    Args:
        flops: Operations done.
        seconds: Time that they took.
        peak: Of one device in TFLOP/s; None: unknown.
        num_devices: Devices that worked.

    Returns:
        0 to 1; None where the peak is unknown.
    """
    if not peak or not seconds or not math.isfinite(flops):
        return None
    return flops / seconds / (peak * 1e12 * num_devices)
