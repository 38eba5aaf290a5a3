"""Score actions by any vision-language model of transformers that reads pixels: log p(action | two images).

One adapter over ``AutoModelForImageTextToText`` and the model's own processor and chat template (Qwen2-VL,
Qwen2.5-VL, the thinker of Qwen2.5-Omni, LLaVA, LLaVA-NeXT, LLaVA-Interleave, Janus, …). Every row is read
anew; :mod:`wm.dynamics.pixel_inverse` keeps what rows share, and proposes too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from wm.dynamics.idm import ScoredAction
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.vlm_rows import Row, score_rows
from wm.errors import InputError
from wm.images import Pixels
from wm.models.pixels.chats import PROMPT, check_pixels, write_chat
from wm.models.pixels.folders import load_pixel_folder
from wm.sampling.batches import halving

__all__ = ["PROMPT", "VLMScorer", "load_vlm_scorer"]


@dataclass(frozen=True)
class VLMScorer:
    """``model`` in evaluation mode, ``processor`` with a chat template. Evaluation only; no gradients."""

    model: Any
    processor: Any
    prompt: str = PROMPT

    @cached_property
    def prefix(self) -> str:
        """The chat with placeholders of both images and the prompt, up to where the answer begins."""
        return write_chat(self.processor, self.prompt)

    @torch.no_grad()
    def score_actions(
        self,
        source_BHWC: Sequence[Pixels] | Pixels,
        target_BHWC: Sequence[Pixels] | Pixels,
        actions: Sequence[str],
        *,
        batch_size: int = 8,
    ) -> list[ScoredAction]:
        """Score each action and the end token after both images and the prompt.

        Rows are padded on the right, so neither their order nor their batch changes a score, up to rounding.

        Args:
            source_BHWC: uint8 RGB of any size, or lists of (H, W, 3).
            target_BHWC: The same, as many.
            actions: One a row.
            batch_size: Rows of a pass; halved, with a warning in the log, where memory does not suffice.

        Returns:
            Sums of log-probabilities in nats, normalised over the complete vocabulary in float32, or in the model's
            type if that is wider.

        Raises:
            InputError: For other images, and for an action that is empty or holds a special token.
        """
        check_equal_lengths(sources=len(source_BHWC), targets=len(target_BHWC), actions=len(actions))
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        # Checked before the first pass: the last image may be the wrong one.
        for name, images in (("source", source_BHWC), ("target", target_BHWC)):
            for image in images:
                check_pixels(name, image)
        scores: list[ScoredAction] = []

        # By batches that are halved where memory does not suffice.
        def score(start: int, stop: int) -> None:
            scores.extend(self._score(source_BHWC[start:stop], target_BHWC[start:stop], actions[start:stop]))

        halving(score, len(actions), batch_size)
        return scores

    def _score(self, sources: Any, targets: Any, actions: Sequence[str]) -> list[ScoredAction]:
        # The same for all rows: the images differ, their placeholders do not.
        rows = [
            Row(self.prefix, [source, target], action)
            for source, target, action in zip(sources, targets, actions, strict=True)
        ]
        return score_rows(self.model, self.processor, rows)


def load_vlm_scorer(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prompt: str = PROMPT,
) -> VLMScorer:
    """Load the scorer of a Hugging Face folder (safetensors; nothing is downloaded, no code of the folder is run).

    Args:
        folder: Holds model, processor and chat template.
        device: Where the weights go.
        dtype: Their type.
        prompt: The question, asked after the two images.

    Raises:
        InputError: For a folder of another kind of model, or without processor or chat template.
    """
    model, processor = load_pixel_folder(folder, device=device, dtype=dtype, prompt=prompt)
    return VLMScorer(model, processor, prompt)
