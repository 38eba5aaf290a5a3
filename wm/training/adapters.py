"""Prepare a model for training: a PEFT LoRA adapter, or every weight of the language model."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.errors import InputError
from wm.models.adapters import quiet_peft
from wm.models.pixels.model import PixelModel
from wm.training.image_rows import look_up_rows, own_row_targets
from wm.training.kernels.layers import speed_up
from wm.training.trained_models import TrainedModel

ATTENTION_AND_MLP = r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"


class Lora(Recipe):
    """Low-rank adapters (paper appendix A.8); off: full fine-tuning."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"train_vision"})

    enabled: bool = True
    """Train an adapter and write it as a plain PEFT folder; off: train and write the complete model."""
    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: float = Field(default=32, gt=0)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Dropout before the adapter, in training only."""
    targets: str = ATTENTION_AND_MLP
    """Regular expression over module names: the linear layers that get an adapter."""
    dropout_mode: Literal["separate", "merged"] = "separate"
    """separate: every layer samples its own mask, as PEFT does; merged: layers of the same input (queries, keys and
    values; gate and up) share one, which keeps and samples less."""
    train_image_rows: bool = False
    """Train the embeddings of the image codes too, and the head's rows of them, for a vocabulary that was given new
    ones (Liquid); written into the adapter's folder."""
    train_vision: bool = False
    """Of a base that reads pixels: train vision tower and projector too, as far as ``targets`` match their layers, or
    all of them with enabled = false; off: they stay as they are."""
    fast: bool = True
    """Our forward and backward passes of the decoder's layers, in full fine-tuning too: equal up to rounding, in less
    memory and time; off: transformers' and PEFT's own."""

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        if self.train_image_rows and not self.enabled:
            raise ValueError("train_image_rows = true needs enabled = true: full fine-tuning trains every row anyway")
        if self.dropout_mode == "merged" and not (self.fast and self.enabled):
            raise ValueError(
                "dropout_mode = 'merged' needs enabled = true and fast = true: PEFT's own has no such mode"
            )
        return self

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: str) -> str:
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


def prepare(vlm: TrainedModel, lora: Lora, seed: int) -> ParameterCounts:
    """Prepare ``vlm.module`` for training in place: add adapters and freeze all else, or make everything trainable.

    Args:
        vlm: The model; its results do not change.
        lora: What is trained.
        seed: Of the adapter's random part (its other part starts at zero).

    Returns:
        Numbers of parameters.

    Raises:
        InputError: ``targets`` matches no layer, or the base has not what a setting trains: rows of image codes, or a
            vision tower.
    """
    _check_has(vlm, lora)
    # PEFT makes its own parameters trainable; all else is frozen here.
    vlm.module.requires_grad_(not lora.enabled)
    if isinstance(vlm, PixelModel) and not lora.train_vision:
        _freeze_vision(vlm)
    if lora.enabled:
        vlm.module = _with_adapter(vlm, lora, seed)
        if not isinstance(vlm, PixelModel):
            look_up_rows(vlm)
    num_fast = speed_up(vlm, one_mask=lora.dropout_mode == "merged") if lora.fast else 0
    if lora.dropout_mode == "merged" and isinstance(vlm, PixelModel) and not num_fast:
        raise InputError(
            f"lora.dropout_mode = 'merged': the layers of {vlm.family} compute each adapter by PEFT, which has no such "
            "mode; choose 'separate'"
        )
    vlm.module.train()
    # Counted once each: tied embeddings and head are one parameter.
    parameters = list(vlm.module.parameters())
    return ParameterCounts(
        trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in parameters),
    )


def _check_has(vlm: TrainedModel, lora: Lora) -> None:
    """Check that the base has what these settings train."""
    if isinstance(vlm, PixelModel) and lora.train_image_rows:
        raise InputError(f"lora.train_image_rows: {vlm.folder} ({vlm.family}) reads pixels and has no image codes")
    if not isinstance(vlm, PixelModel) and lora.train_vision:
        raise InputError(
            f"lora.train_vision: {vlm.folder or vlm.base_id} ({vlm.family}) reads codes and has no vision tower"
        )


def _freeze_vision(model: PixelModel) -> None:
    """Freeze all but the language model and its head."""
    # By identity: tied embeddings and head are one parameter.
    modules = [model.inner.get_submodule(name) for name in model.language_modules]
    trained = {id(parameter) for module in modules for parameter in module.parameters()}
    for parameter in model.inner.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def _with_adapter(vlm: TrainedModel, lora: Lora, seed: int) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    # Given only where wanted: PEFT wraps the embeddings for it.
    more: dict[str, object] = {}
    if lora.train_image_rows and not isinstance(vlm, PixelModel):
        more["trainable_token_indices"] = own_row_targets(vlm)
    if isinstance(vlm, PixelModel) and not lora.train_vision:
        # SigLIP's and CLIP's towers name their layers as language models do.
        names = "|".join(rf"{re.escape(name)}(?:\.|$)" for name in vlm.language_modules)
        more["exclude_modules"] = rf"(?!{names}).*"
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, **more)
    # The caller's random state stays as it is.
    with torch.random.fork_rng(), quiet_peft():
        torch.manual_seed(seed)
        try:
            module: torch.nn.Module = get_peft_model(vlm.module, config)
        except ValueError as error:
            name = vlm.base_id or vlm.folder
            raise InputError(f"lora.targets = {lora.targets!r} fits no layer of {name}: {error}") from error
    return module
