"""What is trained: a PEFT LoRA adapter, or every weight of the language model."""

import re
from dataclasses import dataclass

import torch
from pydantic import Field, field_validator

from wm.config import Recipe
from wm.errors import InputError
from wm.models.adapters import quiet_peft
from wm.models.protocol import UnifiedVLM

ATTENTION_AND_MLP = r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"


class Lora(Recipe):
    """Low-rank adapters (paper appendix A.8); off: full fine-tuning."""

    enabled: bool = True
    """Train an adapter and write it as a plain PEFT folder; off: train and write the whole model."""
    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the adapter, in training only."""
    targets: str = ATTENTION_AND_MLP
    """Regular expression over module names: the linear layers that get an adapter."""

    @field_validator("targets")
    @classmethod
    def _regular(cls, targets: str) -> str:
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return targets


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; a tied tensor counts once."""

    trained: int
    total: int


def prepare(vlm: UnifiedVLM, lora: Lora, seed: int) -> ParameterCounts:
    """Make ``vlm.module`` ready to train in place: adapters added and all else frozen, or everything
    trainable.

    The adapter's random part depends on ``seed`` alone (its other part starts at zero: the model is
    unchanged). Raises :class:`InputError` if ``targets`` matches no layer.
    """
    vlm.module.requires_grad_(not lora.enabled)
    if lora.enabled:
        vlm.module = _with_adapter(vlm, lora, seed)
    vlm.module.train()
    parameters = list(vlm.module.parameters())
    return ParameterCounts(
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in parameters),
    )


def _with_adapter(vlm: UnifiedVLM, lora: Lora, seed: int) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets)
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        try:
            module: torch.nn.Module = get_peft_model(vlm.module, config)
        except ValueError as error:
            raise InputError(f"lora.targets = {lora.targets!r} fits no layer of {vlm.base_id}: {error}") from error
    return module
