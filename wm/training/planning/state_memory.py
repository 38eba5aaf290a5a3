"""Compute what of a training step's memory does not depend on its rows: weights, optimiser, gradients, buffers.

By formula (Rajbhandari et al., arXiv 1910.02054): no pass is run. Activations: :mod:`wm.training.planning.memory`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from wm.training.recipe import TrainRecipe
from wm.training.zero import zero_config

_FP32 = 4
_MOMENTS = 2
"""Of AdamW, each in fp32."""
ZERO3_LIVE = 1_000_000_000
"""Parameters that ZeRO-3 has gathered at a time (DeepSpeed's ``stage3_max_live_parameters``)."""


@dataclass(frozen=True)
class StateMemory:
    """Bytes of tensors on one device that are there between two steps, or are made by every one, whatever its rows.

    The fields are those of :class:`wm.training.planning.memory.StepMemory`.
    """

    weights: int
    trained: int
    optimizer: int
    gradients: int
    communication: int
    update: int
    """Gradients, and once more in fp32 where the optimiser's step reads them."""

    @property
    def constant(self) -> int:
        """What is there all the time."""
        return self.weights + self.trained + self.optimizer + self.communication

    @property
    def minimum(self) -> int:
        """What a step needs even if its activations took nothing."""
        return self.constant + self.update

    def as_dict(self) -> dict[str, int]:
        """Return plain values, the parts and ``minimum``."""
        # Gradients are listed once, though the update needs them twice.
        parts = asdict(self)
        del parts["update"]
        return parts | {"minimum": self.minimum}


def state_memory(module: nn.Module, recipe: TrainRecipe, *, stage: int) -> StateMemory:
    """Compute what of a rank's memory does not depend on the rows: no pass is run.

    Args:
        module: Prepared for training, on the meta device; it is left in the recipe's precision.
        recipe: The run.
        stage: Of ZeRO.

    Returns:
        Bytes, by part.
    """
    if recipe.precision == "bf16":
        # As DeepSpeed casts the model when it is wrapped.
        module.to(torch.bfloat16)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    ranks = recipe.num_ranks
    num_trained, own_trained = _sum(trained), -(-_sum(trained) // ranks)
    weights, adapter = _bytes([*frozen, *module.buffers()]), _bytes(trained)
    # DeepSpeed keeps fp32 copies wherever weights are bf16 or sharded.
    masters = _FP32 if stage > 0 or recipe.precision == "bf16" else 0
    optimizer = (masters + _MOMENTS * _FP32) * (own_trained if stage > 0 else num_trained)
    gradients = _bytes(trained) if stage < 2 else -(-_bytes(trained) // ranks)
    communication = _buffers(recipe, num_trained, trained[0].element_size(), stage)
    if stage == 3:
        gathered = min(ZERO3_LIVE * trained[0].element_size(), weights + adapter)
        weights, adapter = -(-weights // ranks), -(-adapter // ranks)
        communication += gathered if ranks > 1 else 0
    # The update: this rank's gradients once more, in fp32.
    update = gradients + _FP32 * (own_trained if stage > 0 else num_trained)
    return StateMemory(weights, adapter, optimizer, gradients, communication, update)


def _buffers(recipe: TrainRecipe, num_trained: int, element_size: int, stage: int) -> int:
    """Count the buffers of contiguous gradients: two, as the exchange overlaps the computation."""
    settled = recipe.with_resources(zero_stage=stage)
    zero = zero_config(settled, num_trained)
    if stage == 0 or not zero["contiguous_gradients"]:
        return 0
    return zero["reduce_bucket_size"] * element_size * (2 if zero["overlap_comm"] else 1)


def _sum(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
