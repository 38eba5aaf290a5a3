"""Build models of a stated shape with random weights, and transformers' own ``generate`` on them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutputWithPast

from wm.models.prompts import Segment


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder and of its work. ``mlp`` is ``mlp_width``, or the least multiple of
    32 above 8/3 of the width."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    vocabulary: int = 2048
    codes: int = 256
    prefix: int = 132
    target: int = 128
    mlp_width: int = 0

    @property
    def mlp(self) -> int:
        """Width of the gated MLP."""
        if self.mlp_width:
            return self.mlp_width
        return -(-self.width * 8 // 3) // 32 * 32 + 32

    def ids(self, count: int, seed: int = 0) -> list[int]:
        """Generate random text ids."""
        generator = torch.Generator().manual_seed(seed)
        first = 4 + self.codes
        return torch.randint(first, self.vocabulary, (count,), generator=generator).tolist()


class Unmasked(ChameleonForConditionalGeneration):  # type: ignore[misc]
    """transformers' model with a forward that leaves the logits of images as they are."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits of the last ``logits_to_keep`` positions, or of all."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = output.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else output.last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=output.past_key_values)


class ShapeModel:
    """What the sampling engine needs of a model, around random weights; codes are the vocabulary ids from 4 on."""

    bos_id, boi_id, eoi_id, pad_id = 0, 1, 2, 3

    def __init__(self, shape: Shape, seed: int = 0, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.shape = shape
        config = ChameleonConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=4 * (shape.prefix + shape.target),
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=3,
            vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 0, "resolution": 16},
            vocabulary_map={"<image>": 3},
        )
        # Weights of a large shape are created in their type and on their device, never in float32 on the CPU.
        default = torch.get_default_dtype()
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            torch.set_default_dtype(dtype)
            try:
                self.module: Any = Unmasked(config).eval()
            finally:
                torch.set_default_dtype(default)
        # Codes are all that is decoded here.
        del self.module.model.vqmodel
        self.image_rows = torch.arange(4, 4 + shape.codes, device=device)
        self.tokens_per_image, self.row_tokens, self.row_end_id = shape.target, 0, -1
        self.device = self.image_rows.device

    def double(self) -> "ShapeModel":
        """Convert to float64, where every product is a plain one that can be counted."""
        nn.Module.double(self.module)
        return self

    def scored(self, count: int, action_tokens: int, number: int = 0) -> list[list[Segment]]:
        """Build ``count`` inverse prompts of source ``number`` and as many targets: ``prefix`` tokens, TARGET eoi |
        ACTION eos."""
        shape = self.shape
        source = shape.prefix - 4
        generator = torch.Generator().manual_seed(1 + number)
        images = torch.randint(4, 4 + shape.codes, (count, shape.target), generator=generator).tolist()
        start = [
            Segment((self.bos_id, self.boi_id), False, False),
            Segment(tuple(((torch.arange(source) + number) % shape.codes + 4).tolist()), False, True),
            Segment((self.eoi_id, self.boi_id), False, False),
        ]
        action = Segment((*shape.ids(action_tokens), self.bos_id), True, False)
        return [
            [*start, Segment(tuple(image), False, True), Segment((self.eoi_id,), False, False), action]
            for image in images
        ]


@torch.no_grad()
def generate(
    model: ShapeModel, prefix: list[int], num_samples: int, cache: str, *, tokens: int = 0, compiled: bool = False
) -> Tensor:
    """Run transformers' ``generate(num_return_sequences=…)``: ids (K, prefix + target).

    Args:
        model: The model.
        prefix: Vocabulary ids.
        num_samples: Images, K.
        cache: ``dynamic`` or ``static``.
        tokens: Fewer than the target has; 0: all.
        compiled: As transformers compiles it where it can.
    """
    tokens = tokens or model.shape.target
    ids: Tensor = model.module.generate(
        input_ids=torch.tensor([prefix], device=model.device),
        attention_mask=torch.ones((1, len(prefix)), dtype=torch.int64, device=model.device),
        num_return_sequences=num_samples,
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        cache_implementation=cache,
        disable_compile=not compiled,
    )
    return ids
