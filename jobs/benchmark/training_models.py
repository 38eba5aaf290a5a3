"""Build the models that the training benchmark compares: transformers and PEFT as they come, and ours. Free of Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration
from transformers.loss.loss_utils import ForCausalLMLoss

from jobs.benchmark.models import FIRST_CODE, SPECIAL, DecoderShape, RandomVLM, random_module, train_step
from wm.models import pack
from wm.models.prompts import Task, layout
from wm.training import Lora, completion_loss, prepare
from wm.training.step import TokenBatch

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Shape(DecoderShape):
    """A decoder, and the rows that it is trained on."""

    layers: int = 4
    vocabulary: int = 65_536
    codes: int = 8192
    tokens_per_image: int = 512
    action_tokens: int = 12
    rows: int = 1

    def batch(self, task: Task, seed: int = 0) -> TokenBatch:
        """Build random triplets in the project's prompt layout.

        Args:
            task: Order of images and action in a row.
            seed: The same seed gives the same triplets.

        Returns:
            Ids, which of them are learned, and weights of 1, each (rows, tokens).
        """
        generator = torch.Generator().manual_seed(seed)

        def ids(first: int, stop: int, count: int) -> list[int]:
            return torch.randint(first, stop, (count,), generator=generator).tolist()

        # All of one length: no padding is timed.
        rows = [
            layout(
                task,
                special=SPECIAL,
                source=ids(FIRST_CODE, self.first_text, self.tokens_per_image),
                action=ids(self.first_text, self.vocabulary, self.action_tokens),
                target=ids(FIRST_CODE, self.first_text, self.tokens_per_image),
            )
            for _ in range(self.rows)
        ]
        ids_BT, is_completion_BT, _ = pack(rows, SPECIAL.pad)
        return ids_BT, is_completion_BT, torch.ones(ids_BT.shape)


class FullLogits(ChameleonForConditionalGeneration):  # type: ignore[misc]
    """transformers' model with its own loss over all logits, those of images left as they are."""

    def forward(self, input_ids: Tensor, labels: Tensor, **_: object) -> Tensor:
        """Return the loss; ``labels`` are -100 where nothing is learned."""
        hidden_BTH = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        loss: Tensor = ForCausalLMLoss(self.lm_head(hidden_BTH), labels, self.config.vocab_size)
        return loss


def build_module(shape: Shape, dtype: torch.dtype = torch.float32) -> FullLogits:
    """Build the model that both sides train, with the same weights in every call.

    Args:
        shape: Sizes.
        dtype: Of the weights.
    """
    return random_module(FullLogits, shape, 4 * shape.tokens_per_image + 64, dtype=dtype)


def add_peft(module: FullLogits, lora: Lora) -> "PeftModel":
    """Add PEFT's own LoRA.

    Args:
        module: Changed in place.
        lora: Rank, scale, dropout and layers; all else is PEFT's default.

    Returns:
        The model in training mode.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets)
    return get_peft_model(module, config).train()


def build_ours(module: FullLogits, lora: Lora, shape: Shape) -> RandomVLM:
    """Prepare the same model for training by :mod:`wm.training`.

    Args:
        module: Changed in place.
        lora: What is trained.
        shape: Sizes of the module.
    """
    vlm = RandomVLM(module, shape, shape.tokens_per_image)
    prepare(vlm, lora, seed=0)
    return vlm


def peft_step(model: "PeftModel", batch: TokenBatch) -> Callable[[], Tensor]:
    """Build a step of transformers' model with PEFT's adapters.

    Args:
        model: With adapters.
        batch: Trained on in every step.
    """
    ids_BT, is_completion_BT, _ = batch
    # transformers' own mark of what is not learned.
    labels_BT = ids_BT.masked_fill(~is_completion_BT, -100)
    return train_step(model, lambda: model(input_ids=ids_BT, labels=labels_BT))


def our_step(vlm: RandomVLM, batch: TokenBatch) -> Callable[[], Tensor]:
    """Build a step of our own model.

    Args:
        vlm: Prepared.
        batch: Trained on in every step.
    """
    num_tokens = int(batch[1].sum())
    return train_step(vlm.module, lambda: completion_loss(vlm, *batch, num_tokens))
