"""Build Chameleon decoders of a stated shape with random weights, and steps that train them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from wm.models.prompts import SpecialIds
from wm.models.vlm import Facts, UnifiedVLM

Module = TypeVar("Module", bound=ChameleonForConditionalGeneration)
LEARNING_RATE = 2e-4
SPECIAL = SpecialIds(bos=0, boi=1, eoi=2, pad=3, eos=0)
FIRST_CODE = 4
"""Vocabulary ids: structure tokens, from here on image codes, then texts."""


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a decoder. Its MLP is ``mlp_width`` wide, or the smallest multiple of 32 above 8/3 of the width."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    vocabulary: int = 2048
    codes: int = 256
    mlp_width: int = 0

    @property
    def mlp(self) -> int:
        """Return the width of the gated MLP."""
        return self.mlp_width or -(-self.width * 8 // 3) // 32 * 32 + 32

    @property
    def first_text(self) -> int:
        """Return the vocabulary id of the first text token."""
        return FIRST_CODE + self.codes


def random_module(
    module_class: type[Module],
    shape: DecoderShape,
    max_positions: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Module:
    """Build a Chameleon with random weights and without an image codec.

    Args:
        module_class: transformers' class or one derived from it.
        shape: Sizes of the decoder.
        max_positions: Longest sequence.
        device: Where the weights are created.
        dtype: Type in which they are created.
        seed: The same seed gives the same weights.

    Returns:
        The module, in training mode.
    """
    # The codec's part is as small as the class allows; it is removed below.
    config = ChameleonConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=max_positions,
        bos_token_id=SPECIAL.bos,
        eos_token_id=None,
        pad_token_id=SPECIAL.pad,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 0, "resolution": 16},
        vocabulary_map={"<image>": SPECIAL.pad},
    )
    # Weights of a large shape are created in their type and on their device, never in float32 on the CPU.
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            module: Module = module_class(config)
        finally:
            torch.set_default_dtype(default)
    # Codes are all that is decoded here.
    del module.model.vqmodel
    return module


class RandomVLM(UnifiedVLM):
    """A model around a random module. It has no tokenizer and no codec."""

    def __init__(self, module: ChameleonForConditionalGeneration, shape: DecoderShape, tokens_per_image: int) -> None:
        super().__init__(
            module,
            None,
            Facts("random weights", "none", tokens_per_image, shape.codes),
            special=SPECIAL,
            image_rows=torch.arange(FIRST_CODE, shape.first_text),
            text_rows=torch.arange(shape.first_text, shape.vocabulary),
        )


def train_step(module: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Build a training step: forward, backward and torch's fused AdamW.

    Args:
        module: Its trainable parameters are updated.
        loss_of: Runs the forward pass.

    Returns:
        A function that runs one step and returns its loss.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # Fused, as on a GPU: a loop over parameters would be measured instead.
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
