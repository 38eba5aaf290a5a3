"""A vision-language model of transformers that reads pixels, as an inverse model.

It needs no codec: images of any size are read by the model's own processor, and asked about in the model's own chat
template. Its scores are those of the unbatched cross-entropy of the Hugging Face class.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.protocols import ModelKind
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.vlm_rows import check_no_special, generate_answers
from wm.dynamics.vlm_scorer import PROMPT, VLMScorer, load_vlm_scorer
from wm.errors import InputError
from wm.models.adapters import ADAPTER_WEIGHTS, attach_module, merge_adapter
from wm.models.checkpoints import base_of
from wm.models.identity import base_id_of
from wm.models.manifest import fetch_model, is_adapter, read_manifest
from wm.models.remote import fetch_all
from wm.sampling.batches import halving
from wm.sampling.noise import Sampling, expand_seeds
from wm.sampling.texts import check_max_new_tokens

logger = logging.getLogger(__name__)

_ROWS = 8


@dataclass(frozen=True)
class PixelInverse:
    """A vision-language model as :class:`wm.dynamics.protocols.InverseModel`."""

    scorer: VLMScorer
    model_id: str = ""
    kind: ModelKind = "pixels"

    def check_action(self, action: str) -> None:
        """Raise :class:`InputError` if the action is empty or holds a special token of the model."""
        if not action.strip():
            raise InputError(f"action {action!r} is empty; expected some words")
        check_no_special(self.scorer.processor.tokenizer, action, "action")

    def propose(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        max_new_tokens: int = 32,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Propose one action a pair; see :meth:`wm.dynamics.protocols.InverseModel.propose`."""
        check_equal_lengths(sources=len(sources), targets=len(targets))
        check_max_new_tokens(max_new_tokens)
        expand_seeds(seeds, len(sources))
        images = list(zip(pixels_of(sources), pixels_of(targets), strict=True))
        prefix = self.scorer._prefix()
        actions: list[ScoredAction] = []

        def generate(start: int, stop: int) -> None:
            actions.extend(
                generate_answers(
                    self.scorer.model, self.scorer.processor, [prefix] * (stop - start), images[start:stop],
                    max_new_tokens=max_new_tokens,
                )
            )  # fmt: skip

        halving(generate, len(images), batch_size or _ROWS)
        return actions

    def score(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        actions: Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Score each action; see :meth:`wm.dynamics.protocols.InverseModel.score`."""
        return self.scorer.score_actions(
            pixels_of(sources), pixels_of(targets), actions, batch_size=batch_size or _ROWS
        )


def load_pixel_inverse(
    path: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    prompt: str = PROMPT,
    image_cache_mb: int = 1024,
) -> PixelInverse:
    """Load a vision-language model as an inverse model; nothing is downloaded, no code of the folder is run.

    Args:
        path: A Hugging Face folder with model, processor and chat template (safetensors), or the folder of a PEFT
            adapter, which is merged into its base.
        base: Base of an adapter; the one that its manifest names without it.
        device: Where the weights go.
        dtype: Their type.
        prompt: The question, asked after the two images.
        image_cache_mb: Bound on the vision features that are kept between calls; 0: none.

    Raises:
        InputError: It is another kind of model, or an adapter of another base.
    """
    folder = fetch_model(path)
    if not is_adapter(folder):
        scorer = load_vlm_scorer(folder, device=device, dtype=dtype, prompt=prompt)
        return PixelInverse(scorer, _name(folder, base_id_of(folder)))
    base_folder, base_id = _base_of(folder, base)
    scorer = load_vlm_scorer(base_folder, device=device, dtype=dtype, prompt=prompt)
    model = merge_adapter(attach_module(scorer.model, folder), folder).eval()
    return PixelInverse(VLMScorer(model, scorer.processor, prompt), _name(folder, base_id))


def _base_of(folder: Path, base: str | Path | None) -> tuple[Path, str]:
    """Find an adapter's base and its id; an adapter of other programs says neither."""
    if read_manifest(folder) is not None:
        base_folder, base_id = base_of(folder, base)
        return fetch_all(base_folder), base_id
    if base is None:
        raise InputError(f"adapter {folder} does not say where its base is; give base=")
    base_folder = fetch_model(base)
    if is_adapter(base_folder):
        raise InputError(f"adapter {folder}: its base {base_folder} is an adapter itself, expected a full model folder")
    return base_folder, base_id_of(base_folder)


def _name(folder: Path, base_id: str) -> str:
    """Name a model for records: base and recipe, or for an adapter of other programs base and weights."""
    manifest = read_manifest(folder)
    if manifest is not None:
        # Of a fine-tuned model the manifest has its base's id.
        return f"{manifest.base_id}/{manifest.recipe_digest}" if manifest.recipe_digest else manifest.base_id
    if not is_adapter(folder):
        return base_id
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        return f"{base_id}/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
