"""Sample answers of a pixel-reading model, token by token for all rows of a batch.

Text k of a prompt is sampled with the noise of (its seed, k, position), as in :mod:`wm.sampling.texts`: neither the
number of texts nor the batch changes it. Not known here: how a prompt with images is made.

Shape suffixes: B prompts, R = B x K rows (K texts of each prompt, neighbours), T tokens of a prompt, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.pixels.logits import check_logprobs, keeps_logits, log_softmax
from wm.sampling.noise import Sampling, expand_seeds, sample_tokens, stack_noise
from wm.sampling.texts import TextToken, check_max_new_tokens


@dataclass(frozen=True)
class Prompts:
    """Prompts of a batch as the model reads them, padded on the left.

    Attributes:
        inputs: Arguments of the model: ids, images in any form, positions.
        mask: 1 for tokens, 0 for padding, (B, T).
        next_positions: Position of the first token after each prompt, (B,).
        has_axes: Whether positions are in time, height and width.
    """

    inputs: dict[str, Any]
    mask: Tensor
    next_positions: Tensor
    has_axes: bool


class AnswerVocabulary:
    """Which tokens an answer may have, and which of them end it.

    Args:
        model: Of transformers.
        tokenizer: Its tokenizer.
        end: The token that ends an answer.
    """

    def __init__(self, model: Any, tokenizer: Any, end: str) -> None:
        self._tokenizer = tokenizer
        self.end_id: int = tokenizer.convert_tokens_to_ids(end)
        own = getattr(model.generation_config, "eos_token_id", None)
        self.end_ids = {self.end_id, *([own] if isinstance(own, int) else own or [])}
        """Ends that the folder names count too."""
        size = model.get_output_embeddings().weight.shape[0]
        special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(tokenizer.all_special_ids)
        is_spoken_V = torch.ones(size, dtype=torch.bool)
        # Placeholders of images, turns of a chat, and rows that fill the matrix up have no text.
        is_spoken_V[[index for index in special - self.end_ids if index < size]] = False
        is_spoken_V[len(tokenizer) :] = False
        self.silent_V = ~is_spoken_V.to(model.device)

    @cached_property
    def vocabulary_size(self) -> int:
        """Rows of the head."""
        return len(self.silent_V)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones and outer white space.

        Args:
            ids: Of an answer.
        """
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()


class AnswerBatch:
    """``num_candidates`` answers to each of some prompts, as they grow; :meth:`step` adds a token to each.

    Args:
        model: Of transformers, in evaluation mode.
        prompts: What is answered.
        vocabulary: The tokens of answers.
        num_candidates: Answers to each prompt.
        sampling: How a token is sampled; guidance is for images.
        seeds: One a prompt.
        num_top: How many of the likeliest tokens are reported beside each.
        max_new_tokens: Tokens of an answer before its end, at most.

    Raises:
        InputError: For settings that cannot be used.
    """

    def __init__(
        self,
        model: Any,
        prompts: Prompts,
        vocabulary: AnswerVocabulary,
        *,
        num_candidates: int = 1,
        sampling: Sampling,
        seeds: Sequence[int],
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        check_max_new_tokens(max_new_tokens)
        if num_candidates < 1:
            raise InputError(f"num_candidates must be at least 1, got {num_candidates}")
        # Its prompts leave out the very image that an answer describes.
        if sampling.is_guided:
            raise InputError("guidance is for images; texts are sampled without it")
        self._model, self._prompts, self._vocabulary = model, prompts, vocabulary
        self._num_samples, self._sampling, self._num_top = num_candidates, sampling, num_top
        self.max_new_tokens = max_new_tokens
        num_prompts = len(prompts.mask)
        self._noise_RS = stack_noise(expand_seeds(seeds, num_prompts), range(num_candidates), max_new_tokens + 1)
        self.is_open = [True] * (num_prompts * num_candidates)
        """Whether each answer has no end yet."""
        self._position = 0
        self._cache: Any = None
        self._mask_RT = prompts.mask.repeat_interleave(num_candidates, 0)
        self._next_R = prompts.next_positions.repeat_interleave(num_candidates, 0)
        self._token_R = torch.zeros(0)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, those of images among them."""
        return int(self._prompts.mask.sum())

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return int(self._prompts.mask.sum(1).max())

    @property
    def is_finished(self) -> bool:
        """Return whether all answers have their end."""
        return not any(self.is_open)

    @torch.no_grad()
    def step(self) -> list[TextToken | None]:
        """Sample the next token of each answer; None for those that have ended.

        Raises:
            InputError: The model gives non-finite numbers.
        """
        logprobs_RV = log_softmax(self._read())
        # Structure is never sampled, but shares the normalisation.
        spoken_RV = logprobs_RV.masked_fill(self._vocabulary.silent_V, -torch.inf)
        noise_R = self._noise_RS[:, self._position].to(spoken_RV.device)
        sampled_R = sample_tokens(spoken_RV, noise_R, self._sampling)
        # An answer with all its tokens is ended, and the end is scored as the model scores it.
        is_last = self._position == self.max_new_tokens
        token_R = torch.full_like(sampled_R, self._vocabulary.end_id) if is_last else sampled_R
        logprob_R = logprobs_RV.gather(1, token_R[:, None])[:, 0].double()
        logprobs = logprob_R.tolist()
        check_logprobs(self._model, logprobs)
        tops = self._list_likeliest(spoken_RV)
        is_cut_R = is_last & ~torch.isin(sampled_R, torch.tensor(sorted(self._vocabulary.end_ids)).to(sampled_R))
        # The host waits here once a step, as a caller wants to know which answers have ended.
        rows = zip(token_R.tolist(), logprobs, tops, is_cut_R.tolist(), strict=True)
        tokens = [TextToken(*row) if is_open else None for row, is_open in zip(rows, self.is_open, strict=True)]
        self.is_open = [token is not None and token.id not in self._vocabulary.end_ids for token in tokens]
        self._token_R = token_R
        self._position += 1
        return tokens

    def complete(self) -> list[list[TextToken]]:
        """Sample all answers to their ends, and return the tokens of each."""
        answers: list[list[TextToken]] = [[] for _ in self.is_open]
        # Answers of one batch end at different steps; the longest decides.
        while not self.is_finished:
            for answer, token in zip(answers, self.step(), strict=True):
                if token is not None:
                    answer.append(token)
        return answers

    def _read(self) -> Tensor:
        """Read the prompts, or the last tokens, and return the logits (R, V) of the next ones."""
        only = {"logits_to_keep": 1} if keeps_logits(self._model) else {}
        if self._cache is None:
            # 1. Each prompt once: its answers share its keys and values.
            output = self._model(**self._prompts.inputs, attention_mask=self._prompts.mask, use_cache=True, **only)
            self._cache = output.past_key_values
            logits_BV: Tensor = output.logits[:, -1]
            if self._num_samples == 1:
                return logits_BV
            self._cache.batch_repeat_interleave(self._num_samples)
            return logits_BV.repeat_interleave(self._num_samples, 0)
        # 2. One token a row; rows that have ended are read on, so that a batch has one shape.
        self._mask_RT = torch.cat((self._mask_RT, torch.ones_like(self._mask_RT[:, :1])), 1)
        position_R1 = (self._next_R + self._position - 1)[:, None]
        output = self._model(
            input_ids=self._token_R[:, None],
            attention_mask=self._mask_RT,
            position_ids=position_R1.expand(3, -1, -1) if self._prompts.has_axes else position_R1,
            past_key_values=self._cache,
            use_cache=True,
            **only,
        )
        last_RV: Tensor = output.logits[:, -1]
        return last_RV

    def _list_likeliest(self, spoken_RV: Tensor) -> list[tuple[tuple[int, float], ...]]:
        """List at most ``num_top`` tokens and their log-probabilities, likeliest first."""
        if not self._num_top:
            return [()] * len(spoken_RV)
        # An answer may use fewer tokens than are wanted.
        count = min(self._num_top, int((~self._vocabulary.silent_V).sum()))
        logprobs_RK, ids_RK = spoken_RV.topk(count, dim=-1)
        pairs = zip(ids_RK.tolist(), logprobs_RK.tolist(), strict=True)
        return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
