"""Models of a stated shape with random weights, trained by transformers and PEFT as they come, and by us.

Free of Ray.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonConfig, ChameleonForConditionalGeneration
from transformers.loss.loss_utils import ForCausalLMLoss

from wm.models import pack
from wm.models.prompts import SpecialIds, Task, layout
from wm.models.vlm import Facts, UnifiedVLM
from wm.training import Lora, completion_loss, prepare
from wm.training.step import MicroBatch

LEARNING_RATE = 2e-4
_SPECIAL = SpecialIds(bos=0, boi=1, eoi=2, pad=3, eos=0)


@dataclass(frozen=True)
class Shape:
    """Of a Chameleon and of what it is trained on. ``mlp`` is the least multiple of 32 above 8/3 of the width, unless
    given."""

    width: int = 512
    layers: int = 4
    heads: int = 8
    vocabulary: int = 65_536
    codes: int = 8192
    tokens_per_image: int = 512
    action_tokens: int = 12
    rows: int = 1
    mlp_width: int = 0

    @property
    def mlp(self) -> int:
        """Width of the gated MLP."""
        return self.mlp_width or (self.width * 8 // 3) // 32 * 32 + 32

    def batch(self, task: Task, seed: int = 0, device: str = "cpu") -> MicroBatch:
        """Random triplets in the project's prompt layout: ids, which of them are learned, weights of 1."""
        generator = torch.Generator().manual_seed(seed)

        def draw(first: int, last: int, count: int) -> list[int]:
            return torch.randint(first, last, (count,), generator=generator).tolist()

        rows = [
            layout(
                task,
                special=_SPECIAL,
                source=draw(4, 4 + self.codes, self.tokens_per_image),
                action=draw(4 + self.codes, self.vocabulary, self.action_tokens),
                target=draw(4, 4 + self.codes, self.tokens_per_image),
            )
            for _ in range(self.rows)
        ]
        ids_BT, is_completion_BT, _ = pack(rows, _SPECIAL.pad)
        return ids_BT.to(device), is_completion_BT.to(device), torch.ones(ids_BT.shape, device=device)


class FullLogits(ChameleonForConditionalGeneration):  # type: ignore[misc]
    """transformers' model with its own loss over all logits, those of images left as they are."""

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> Tensor:
        """Return the loss; ``labels`` are -100 where nothing is learned."""
        hidden_BTH = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        loss: Tensor = ForCausalLMLoss(self.lm_head(hidden_BTH), labels, self.config.vocab_size)
        return loss


def module_of(shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> FullLogits:
    """Random weights, made where and as they are used."""
    config = ChameleonConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=4 * shape.tokens_per_image + 64,
        bos_token_id=_SPECIAL.bos,
        eos_token_id=None,
        pad_token_id=_SPECIAL.pad,
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 0, "resolution": 16},
        vocabulary_map={"<image>": 3},
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(seed)
            module = FullLogits(config)
    finally:
        torch.set_default_dtype(before)
    del module.model.vqmodel
    return module


def with_peft(module: FullLogits, lora: Lora) -> Any:
    """PEFT's LoRA with all that is not named here as PEFT has it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets)
    return get_peft_model(module, config).train()


def ours(module: FullLogits, lora: Lora, shape: Shape) -> UnifiedVLM:
    """Build the same model prepared for training by :mod:`wm.training`."""
    vlm = UnifiedVLM(
        module,
        None,
        Facts("random", "random", shape.tokens_per_image, shape.codes),
        special=_SPECIAL,
        image_rows=torch.arange(4, 4 + shape.codes),
        text_rows=torch.arange(4 + shape.codes, shape.vocabulary),
    )
    prepare(vlm, lora, seed=0)
    return vlm


def peft_step(model: nn.Module, batch: MicroBatch) -> Callable[[], Tensor]:
    """Forward, backward and optimiser of transformers' model with PEFT's adapters; returns the loss."""
    ids_BT, is_completion_BT, _ = batch
    labels_BT = ids_BT.masked_fill(~is_completion_BT, -100)
    return _step(model, lambda: model(input_ids=ids_BT, labels=labels_BT))


def our_step(vlm: UnifiedVLM, batch: MicroBatch) -> Callable[[], Tensor]:
    """Return the same of our own model."""
    num_tokens = int(batch[1].sum())
    return _step(vlm.module, lambda: completion_loss(vlm, *batch, num_tokens))


def _step(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
