"""Build models to sample from, with random weights, and run transformers' own ``generate`` on them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration
from transformers.modeling_outputs import CausalLMOutputWithPast

from jobs.benchmark.models import FIRST_CODE, DecoderShape, RandomVLM, random_module
from wm.models.prompts import Segment

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class Shape(DecoderShape):
    """A decoder, and lengths in tokens of what it reads and of the image that it samples."""

    prefix: int = 132
    target: int = 128

    def ids(self, count: int, seed: int = 0) -> list[int]:
        """Generate random text ids.

        Args:
            count: Number of ids.
            seed: The same seed gives the same ids.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self.first_text, self.vocabulary, (count,), generator=generator).tolist()


class Unmasked(ChameleonForConditionalGeneration):  # type: ignore[misc]
    """transformers' model with a forward that leaves the logits of images as they are."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        past_key_values: "Cache | None" = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: object,
    ) -> CausalLMOutputWithPast:
        """Compute logits of the last ``logits_to_keep`` positions, or of all."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        # Generation asks for the logits of the last position only, as our engine does.
        hidden = output.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else output.last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=output.past_key_values)


class ShapeModel(RandomVLM):
    """A random model of a shape, which knows the work that it is measured on."""

    def __init__(self, shape: Shape, seed: int = 0, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.shape = shape
        positions = 4 * (shape.prefix + shape.target)
        module = random_module(Unmasked, shape, positions, device=device, dtype=dtype, seed=seed)
        super().__init__(module.eval(), shape, shape.target)

    def double(self) -> "ShapeModel":
        """Convert to float64, where every product is a plain one that can be counted."""
        nn.Module.double(self.module)
        return self

    def inverse_prompts(self, count: int, action_tokens: int, number: int = 0) -> list[list[Segment]]:
        """Build prompts of the inverse model that share a source: ``prefix`` tokens, TARGET eoi | ACTION eos.

        Args:
            count: Number of prompts, each with a target of its own.
            action_tokens: Length of their one action, without its end.
            number: Number of the source.

        Returns:
            The segments of each prompt.
        """
        shape = self.shape
        # bos boi before it, eoi boi behind it.
        source = shape.prefix - 4
        generator = torch.Generator().manual_seed(1 + number)
        images = torch.randint(FIRST_CODE, shape.first_text, (count, shape.target), generator=generator).tolist()
        codes = (torch.arange(source) + number) % shape.codes + FIRST_CODE
        start = [
            Segment((self.bos_id, self.boi_id), False, False),
            Segment(tuple(codes.tolist()), False, True),
            Segment((self.eoi_id, self.boi_id), False, False),
        ]
        action = Segment((*shape.ids(action_tokens), self.bos_id), True, False)
        return [
            [*start, Segment(tuple(image), False, True), Segment((self.eoi_id,), False, False), action]
            for image in images
        ]


@torch.no_grad()
def generate(
    model: ShapeModel, prefix: list[int], num_candidates: int, cache: str, *, tokens: int = 0, compiled: bool = False
) -> Tensor:
    """Run transformers' ``generate(num_return_sequences=…)``.

    Args:
        model: The model.
        prefix: Vocabulary ids.
        num_candidates: Images, K.
        cache: ``dynamic`` or ``static``.
        tokens: Fewer than the target has; 0: all.
        compiled: As transformers compiles it where it can.

    Returns:
        Vocabulary ids (K, prefix + tokens).
    """
    tokens = tokens or model.shape.target
    ids: Tensor = model.inner.generate(
        input_ids=torch.tensor([prefix], device=model.device),
        attention_mask=torch.ones((1, len(prefix)), dtype=torch.int64, device=model.device),
        num_return_sequences=num_candidates,
        do_sample=True,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        cache_implementation=cache,
        disable_compile=not compiled,
    )
    return ids
