"""A vision-language model of transformers that reads pixels, as an inverse model.

It needs no codec: images of any size are read by the model's own processor, and asked about in the model's own chat
template. Its scores are those of the unbatched cross-entropy of the Hugging Face class. Vision features of an image are
computed once and kept, and what several rows share is read once; a class that does not allow it is read the plain way.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.pixel_check import Shortcuts, check_device, check_two_images, find_shortcuts
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.vlm_pairs import read_prompts
from wm.dynamics.vlm_proposals import AnswerBatch, AnswerVocabulary, Prompts
from wm.dynamics.vlm_rows import check_no_special
from wm.dynamics.vlm_scorer import PROMPT, VLMScorer
from wm.dynamics.vlm_scoring import score_pairs
from wm.errors import InputError
from wm.models.adapters import ADAPTER_WEIGHTS, attach_module, merge_adapter
from wm.models.checkpoints import base_of
from wm.models.identity import base_id_of
from wm.models.kinds import ModelKind
from wm.models.manifest import ADAPTER_CONFIG, fetch_model, is_adapter, read_manifest
from wm.models.pixels.chats import check_length
from wm.models.pixels.folders import check_pixel_folder, load_pixel_model, load_pixel_processor
from wm.models.pixels.logits import check_logprobs
from wm.models.remote import fetch_all
from wm.sampling.batches import halving, rows_at_once
from wm.sampling.noise import Sampling, expand_seeds
from wm.sampling.texts import check_max_new_tokens

_ROWS = 8


@dataclass(frozen=True)
class PixelInverse:
    """A vision-language model as :class:`wm.dynamics.protocols.InverseModel`.

    ``shortcuts``: how features are kept and prefixes shared, where the class allows it.
    """

    scorer: VLMScorer
    model_id: str = ""
    shortcuts: Shortcuts = field(default_factory=Shortcuts)
    kind: ModelKind = "pixels"

    @cached_property
    def vocabulary(self) -> AnswerVocabulary:
        """Tokens of answers."""
        tokenizer = self.scorer.processor.tokenizer
        # The end that training has taught, whatever the template ends a turn by.
        return AnswerVocabulary(self.scorer.model, tokenizer, tokenizer.eos_token)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens of an answer.

        Args:
            ids: Tokens, with or without the end.
        """
        return self.vocabulary.decode(ids)

    def check_action(self, action: str) -> None:
        """Check that the model can read an action; to be called before any work.

        Args:
            action: Of anybody.

        Raises:
            InputError: It is empty or holds a special token of the model.
        """
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
        """Propose one action a pair; neither order nor batch changes one, up to rounding.

        Args:
            sources: Images before.
            targets: Images after, as many.
            sampling: How a token is sampled.
            seeds: One a pair.
            max_new_tokens: Tokens after which an action is ended.
            batch_size: Bound on the rows of a pass; what memory holds without it.

        Returns:
            Actions with the log-probability of their tokens and the end; one without words is returned as it is.

        Raises:
            InputError: For settings that cannot be used, and for a model that gives non-finite numbers.
        """
        check_equal_lengths(sources=len(sources), targets=len(targets))
        check_max_new_tokens(max_new_tokens)
        seeds = expand_seeds(seeds, len(sources))
        actions: list[ScoredAction] = []

        def propose_batch(start: int, stop: int) -> None:
            batch = self.start_proposals(
                sources[start:stop], targets[start:stop], sampling=sampling, seeds=seeds[start:stop],
                max_new_tokens=max_new_tokens,
            )  # fmt: skip
            # The end is sampled and not read: it needs no position.
            check_length(self.scorer.model, batch.longest_prompt + max_new_tokens, max_new_tokens)
            actions.extend(
                ScoredAction(self.decode([token.id for token in row]), sum(token.logprob for token in row), len(row))
                for row in batch.complete()
            )

        rows = rows_at_once(1, batch_size)
        # What memory holds, by the first prompt: how long others are is not known before their images are read.
        if batch_size is None and sources:
            length = self._read_prompts(sources[:1], targets[:1]).mask.shape[1] + max_new_tokens
            rows = rows_at_once(length, None)
        halving(propose_batch, len(sources), rows)
        return actions

    def start_proposals(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        *,
        num_candidates: int = 1,
        sampling: Sampling,
        seeds: Sequence[int],
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> AnswerBatch:
        """Start ``num_candidates`` proposals for each pair, which grow token by token.

        Args:
            sources: Images before.
            targets: Images after, as many.
            num_candidates: Proposals of each pair.
            sampling: How a token is sampled.
            seeds: One a pair.
            num_top: How many of the likeliest tokens are reported beside each.
            max_new_tokens: Tokens after which a proposal is ended.

        Raises:
            InputError: For settings that cannot be used.
        """
        check_equal_lengths(sources=len(sources), targets=len(targets))
        return AnswerBatch(
            self.scorer.model, self._read_prompts(sources, targets), self.vocabulary, num_candidates=num_candidates,
            sampling=sampling, seeds=seeds, num_top=num_top, max_new_tokens=max_new_tokens,
        )  # fmt: skip

    @torch.no_grad()
    def _read_prompts(self, sources: Sequence[Observation], targets: Sequence[Observation]) -> Prompts:
        reader = self.shortcuts.reader
        # The plain way: the processor and the model read pixels every time.
        if reader is None:
            pairs = list(zip(pixels_of(sources), pixels_of(targets), strict=True))
            return read_prompts(self.scorer.model, self.scorer.processor, self.scorer.prefix, pairs)
        # Sources and targets at once: the end of one pair is often the start of the next.
        images = reader.store.read([*sources, *targets])
        features = list(zip(images[: len(sources)], images[len(sources) :], strict=True))
        return reader.to_prompts(reader.write(features, [""] * len(features), [0] * len(features)))

    def score(
        self,
        sources: Sequence[Observation],
        targets: Sequence[Observation],
        actions: Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> list[ScoredAction]:
        """Score log p(actions[b] | sources[b], targets[b]) in nats; what rows share is read once.

        Args:
            sources: Images before.
            targets: Images after, as many.
            actions: As many.
            batch_size: Bound on the rows of a pass; what memory holds without it.

        Raises:
            InputError: An action is empty or holds a special token, or the model gives non-finite numbers.
        """
        check_equal_lengths(sources=len(sources), targets=len(targets), actions=len(actions))
        reader = self.shortcuts.reader
        # The plain way, whose passes hold the pixels of all rows beside their tokens.
        if reader is None:
            scores = self.scorer.score_actions(
                pixels_of(sources), pixels_of(targets), actions, batch_size=batch_size or _ROWS
            )
        else:
            scores = score_pairs(
                reader, sources, targets, actions, batch_size=batch_size, is_shared=self.shortcuts.shares_prefix
            )
        # A model that was sound on the noise of its loading may leave its type's range on a real image.
        check_logprobs(self.scorer.model, (score.logprob for score in scores))
        return scores


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
    check_device(device, dtype)
    folder = fetch_model(path)
    if is_adapter(folder):
        base_folder, base_id = _base_of(folder, base)
    elif base is not None:
        raise InputError(f"{folder} is no adapter (no {ADAPTER_CONFIG}), so base={base} cannot be used")
    else:
        base_folder, base_id = folder, ""
    # Everything that can be known without the weights comes before them.
    check_pixel_folder(base_folder)
    processor = load_pixel_processor(base_folder, prompt)
    check_two_images(processor, prompt, base_folder)
    model = load_pixel_model(base_folder, device=device, dtype=dtype)
    # Merged: a pass then costs what the base's costs.
    if base_folder != folder:
        model = merge_adapter(attach_module(model, folder), folder).eval()
    # Tried once, on noise: what a class does not allow is not used.
    scorer = VLMScorer(model, processor, prompt)
    return PixelInverse(scorer, _name(folder, base_id), find_shortcuts(scorer, folder, image_cache_mb << 20))


def _base_of(folder: Path, base: str | Path | None) -> tuple[Path, str]:
    """Find an adapter's base and its id; an adapter of other programs says neither."""
    if read_manifest(folder) is not None:
        base_folder, base_id = base_of(folder, base)
        return fetch_all(base_folder), base_id
    if base is None:
        raise InputError(f"adapter {folder} does not say where its base is; give base=")
    # PEFT's own name of the base may be a path of another machine, or one of the hub.
    base_folder = fetch_model(base)
    if is_adapter(base_folder):
        raise InputError(f"adapter {folder}: its base {base_folder} is an adapter itself, expected a full model folder")
    return base_folder, base_id_of(base_folder)


def _name(folder: Path, base_id: str) -> str:
    """Name a model for records: base and recipe, or for an adapter of other programs base and weights."""
    manifest = read_manifest(folder)
    # As all models that were trained here.
    if manifest is not None:
        # Of a fine-tuned model the manifest has its base's id.
        return f"{manifest.base_id}/{manifest.recipe_digest}" if manifest.recipe_digest else manifest.base_id
    if not is_adapter(folder):
        return base_id_of(folder)
    # Two adapters of one base are two models.
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        return f"{base_id}/{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
