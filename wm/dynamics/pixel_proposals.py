"""Propose actions between two images by a model that reads pixels, token by token.

The chat with both images is read once, whatever the number of actions. Shape suffixes: R actions, S steps, V
vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wm.dynamics.idm import ActionToken, describe_token
from wm.dynamics.vlm_rows import prepare_inputs
from wm.dynamics.vlm_scorer import VLMScorer
from wm.errors import InputError
from wm.images import Pixels
from wm.sampling.detokenizer import IncrementalDetokenizer
from wm.sampling.noise import Sampling, sample_tokens, stack_noise
from wm.sampling.texts import GREEDY, TextToken, check_max_new_tokens

_DELTAS = "rope_deltas"
"""Where models with positions in three dimensions (Qwen2-VL and those after it) keep how far the last chat's text is
behind its images: state of the model, which a chat that was read in between has replaced."""


@dataclass(frozen=True)
class _Decoder:
    """A tokenizer as :class:`wm.sampling.detokenizer.TextDecoder`."""

    tokenizer: Any

    def detokenize(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()


class PixelProposals:
    """``num_candidates`` actions between two images as they grow; :meth:`advance` adds a token to each.

    Action k is sampled with the noise of (seed, k, position), as :class:`wm.sampling.texts.TextBatch` has it.
    ``prompt_tokens``: how many tokens the actions follow.

    Args:
        scorer: The model with its processor; other chats may be read between two steps.
        source: uint8 RGB of any size, the image before.
        target: The image after.
        num_candidates: Number of actions.
        sampling: How a token is sampled; greedy without it.
        seed: Of the noise.
        num_top: How many of the likeliest tokens are reported beside each.
        max_new_tokens: Tokens of an action before its end, at most; fewer where the model has no more positions.

    Raises:
        InputError: The settings cannot be, or both images fill the model's positions.
    """

    def __init__(
        self,
        scorer: VLMScorer,
        source: Pixels,
        target: Pixels,
        *,
        num_candidates: int = 1,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        check_max_new_tokens(max_new_tokens)
        if num_candidates < 1 or num_top < 0:
            raise InputError(f"num_candidates = {num_candidates}, num_top = {num_top}: expected at least 1 and 0")
        self._model, self._tokenizer = scorer.model, scorer.processor.tokenizer
        self._sampling, self._num_top = sampling, num_top
        # 1. The chat, of which the vision encoder has not seen anything yet.
        self._inputs = prepare_inputs(
            scorer.model, scorer.processor, [scorer._prefix()], [[source, target]], padding_side="right"
        )
        self.prompt_tokens = int(self._inputs["input_ids"].shape[1])
        free = _count_positions(scorer.model) - self.prompt_tokens
        if free < 2:
            raise InputError(
                f"both images and the question are {self.prompt_tokens:,} tokens, and the model has "
                f"{_count_positions(scorer.model):,} positions: no action fits behind them; give smaller images"
            )
        self._max_new_tokens = min(max_new_tokens, free - 1)
        # 2. Which tokens an action may have: no image and no turn begins within it.
        self._end_ids = list_end_ids(scorer.model, self._tokenizer)
        self._spoken_ids = _list_spoken_ids(scorer.model, self._tokenizer, self._end_ids)
        # 3. The actions, of which none has begun.
        self._noise_RS = stack_noise([seed], range(num_candidates), self._max_new_tokens + 1)
        self._texts = [IncrementalDetokenizer(_Decoder(self._tokenizer)) for _ in range(num_candidates)]
        self._is_open = [True] * num_candidates
        self._position = 0
        self._cache: Any = None
        self._deltas: dict[nn.Module, Tensor] = {}
        self._last_R1 = torch.zeros(0)

    @property
    def is_finished(self) -> bool:
        """Whether all actions have their end."""
        return not any(self._is_open)

    @torch.no_grad()
    def advance(self) -> list[ActionToken]:
        """Sample the next token of every action that has not ended.

        Returns:
            A token for each of them.

        Raises:
            InputError: The model gives non-finite numbers.
        """
        logits_RV = self._read_chat() if self._cache is None else self._read_tokens()
        logprobs_RV = torch.log_softmax(logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float(), -1)
        if not bool(torch.isfinite(logprobs_RV.amax(-1)).all()):
            raise InputError(
                f"model {self._model.config.name_or_path}: log-probabilities are nan; expected numbers. Its weights "
                f"are damaged, or {self._model.dtype} does not reach as far as they do"
            )
        # Tokens that no action has share the normalisation, and are never sampled.
        spoken_RV = logprobs_RV[:, self._spoken_ids]
        noise_R = self._noise_RS[:, self._position]
        sampled_R = self._spoken_ids[sample_tokens(spoken_RV, noise_R, self._sampling)]
        # An action with all its tokens is ended, and the end is scored as the model scores it.
        is_last = self._position == self._max_new_tokens
        ends = torch.isin(sampled_R, torch.tensor(sorted(self._end_ids), device=sampled_R.device))
        token_R = torch.where(ends, sampled_R, self._tokenizer.eos_token_id) if is_last else sampled_R
        logprob_R = logprobs_RV.gather(1, token_R[:, None])[:, 0].double()
        tokens = [
            TextToken(token, logprob, top, is_cut)
            for token, logprob, top, is_cut in zip(
                token_R.tolist(), logprob_R.tolist(), self._list_likeliest(spoken_RV), (token_R != sampled_R).tolist(),
                strict=True,
            )
        ]  # fmt: skip
        # Ended actions keep their rows; what they sample is dropped.
        described = [
            describe_token(row, self._texts[row], token, self._end_ids)
            for row, token in enumerate(tokens)
            if self._is_open[row]
        ]
        for action in described:
            self._is_open[action.sample] = action.finish is None
        self._last_R1, self._position = token_R[:, None], self._position + 1
        return described

    def _read_chat(self) -> Tensor:
        """Read the chat, and return the logits of every action's first token."""
        # Logits of all positions would be larger than the model.
        output = self._model(**self._inputs, use_cache=True, **_last_alone(self._model))
        self._cache, self._inputs = output.past_key_values, {}
        self._deltas = {
            module: deltas
            for module in self._model.modules()
            if (deltas := getattr(module, _DELTAS, None)) is not None
        }
        num_rows = len(self._is_open)
        self._cache.batch_repeat_interleave(num_rows)
        logits_RV: Tensor = output.logits[:, -1].expand(num_rows, -1)
        return logits_RV

    def _read_tokens(self) -> Tensor:
        """Read the last tokens behind the chat, and return the logits of the next ones."""
        with _with_deltas(self._deltas):
            output = self._model(input_ids=self._last_R1, past_key_values=self._cache, use_cache=True)
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV

    def _list_likeliest(self, spoken_RV: Tensor) -> list[tuple[tuple[int, float], ...]]:
        if not self._num_top:
            return [()] * len(spoken_RV)
        logprobs_RT, indices_RT = spoken_RV.topk(min(self._num_top, spoken_RV.shape[1]), dim=-1)
        pairs = zip(self._spoken_ids[indices_RT].tolist(), logprobs_RT.tolist(), strict=True)
        return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]


def list_end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """List the vocabulary ids that end an answer: the tokenizer's, and those of the folder's generation settings.

    Args:
        model: Of transformers.
        tokenizer: Its tokenizer.
    """
    own = getattr(model.generation_config, "eos_token_id", None)
    return frozenset({tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])})


def _list_spoken_ids(model: Any, tokenizer: Any, end_ids: frozenset[int]) -> Tensor:
    """List what an action may have, int64: all but special tokens, placeholders of images among these, and its ends."""
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    # The rows of the head beyond the vocabulary have no token.
    silent = ({*tokenizer.all_special_ids} | added) - end_ids
    ids = [token for token in range(min(len(tokenizer), _text_config(model).vocab_size)) if token not in silent]
    return torch.tensor(ids, device=model.device)


def _count_positions(model: Any) -> int:
    return int(getattr(_text_config(model), "max_position_embeddings", None) or 2**31)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)


def _last_alone(model: Any) -> dict[str, int]:
    from inspect import signature

    return {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}


@contextmanager
def _with_deltas(deltas: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Put the positions of a chat back in place, and afterwards those of whoever is in between."""
    others = {module: getattr(module, _DELTAS) for module in deltas}
    try:
        for module, value in deltas.items():
            setattr(module, _DELTAS, value)
        yield
    finally:
        for module, value in others.items():
            setattr(module, _DELTAS, value)
