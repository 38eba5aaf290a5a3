"""Inverse dynamics p(action | source, target): propose an action, or score given ones (paper section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wm.dynamics.scoring import code_lists, completion_logprobs, need_equal
from wm.errors import InputError
from wm.models.prompts import flatten
from wm.models.protocol import UnifiedVLM
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling
from wm.sampling.pieces import TextPieces
from wm.sampling.texts import GREEDY, TextRun, TextToken, generate_texts

Codes: TypeAlias = Tensor | npt.NDArray[np.integer[npt.NBitBase]] | Sequence[Sequence[int]]
"""Codebook ids (B, N)."""


@dataclass(frozen=True)
class ScoredAction:
    """An action text and the model's belief in it.

    ``logprob``: sum over action tokens and end token of log-probabilities in nats, normalised over the whole
    vocabulary. ``num_tokens``: their number, the end token among them.
    """

    text: str
    logprob: float
    num_tokens: int

    @property
    def mean_logprob(self) -> float:
        """Nats per token."""
        return self.logprob / self.num_tokens


@dataclass(frozen=True)
class Belief:
    """A token and its log-probability in nats."""

    name: str
    """As the tokenizer has it."""
    text: str
    """What it adds to the text. Empty for the end, for a part of a character, and for white space, which what comes
    next brings."""
    logprob: float


@dataclass(frozen=True)
class ActionToken:
    """A token of a proposed action, or its end. ``released``: the text that is final with it; those of an action join
    to the whole. ``top``: the likeliest tokens in its place, likeliest first."""

    sample: int
    released: str
    chosen: Belief
    top: tuple[Belief, ...]
    finish: Literal["stop", "length"] | None
    """Of the end: whether the model ended the action, or had used up its tokens."""


def propose_actions(
    idm: UnifiedVLM,
    source_BN: Codes,
    target_BN: Codes,
    *,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    decoder: Decoder | None = None,
) -> list[ScoredAction]:
    """The greedy action of each (source, target) pair, ended after at most ``max_new_tokens`` tokens.

    The text may be empty: an untrained model may end at once. ``decoder``: of ``idm`` as it is now, to be used for
    many calls; made here without it.
    """
    sources, targets = code_lists("source", source_BN), code_lists("target", target_BN)
    need_equal(sources=len(sources), targets=len(targets))
    prefixes = [_prefix(idm, source, target) for source, target in zip(sources, targets, strict=True)]
    completions = generate_texts(idm, prefixes, max_new_tokens=max_new_tokens, batch_size=batch_size, decoder=decoder)
    return [ScoredAction(idm.detokenize(item.ids), item.logprob, item.num_tokens) for item in completions]


def _prefix(idm: UnifiedVLM, source_N: Sequence[int], target_N: Sequence[int]) -> list[int]:
    return flatten(idm.layout("idm", source=source_N, target=target_N))


def count_free_positions(idm: UnifiedVLM, source_N: Sequence[int], target_N: Sequence[int]) -> int:
    """Count the model's positions behind both images: as many tokens an action between them can have."""
    return idm.max_positions - len(_prefix(idm, source_N, target_N))


class Proposing:
    """``num_samples`` actions of one pair of images as they grow.

    :func:`wm.sampling.texts.advance_texts` adds a token to each text of ``run``, and of others' in the same pass;
    :meth:`told` says what these tokens are. Greedy: the action of :func:`propose_actions`. The settings are those of
    :class:`wm.sampling.texts.TextRun`, which says how tokens are drawn. Raises :class:`InputError` for what cannot be
    done, among it more ``max_new_tokens`` than the model has positions for. ``prompt_tokens``: how many tokens the
    actions follow.
    """

    def __init__(
        self,
        idm: UnifiedVLM,
        source_N: Sequence[int],
        target_N: Sequence[int],
        *,
        num_samples: int = 1,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        prefix = _prefix(idm, source_N, target_N)
        self.prompt_tokens = len(prefix)
        length = len(prefix) + max_new_tokens
        if length > idm.max_positions:
            raise InputError(
                f"{max_new_tokens:,} new tokens: with both images the sequence would have {length:,}, the model "
                f"{idm.max_positions:,} positions"
            )
        self.run = TextRun(
            [prefix],
            num_samples=num_samples,
            sampling=sampling,
            seed=seed,
            num_top=num_top,
            max_new_tokens=max_new_tokens,
        )
        self._pieces = [TextPieces(idm) for _ in range(num_samples)]
        self._eos_id = idm.eos_id

    def told(self, step: Sequence[TextToken | None]) -> list[ActionToken]:
        """What a step of the run says: the next token of every action that had not ended. To be called once a step."""
        return [
            self._token(sample, self._pieces[sample], token) for sample, token in enumerate(step) if token is not None
        ]

    def _token(self, sample: int, pieces: TextPieces, token: TextToken) -> ActionToken:
        pairs = ((token.id, token.logprob), *token.top)
        chosen, *top = [
            Belief(pieces.name(row), "" if row == self._eos_id else pieces.of(row), logprob) for row, logprob in pairs
        ]
        if token.id != self._eos_id:
            return ActionToken(sample, pieces.add(token.id), chosen, tuple(top), None)
        return ActionToken(sample, pieces.end(), chosen, tuple(top), "length" if token.is_cut else "stop")


def score_actions(
    idm: UnifiedVLM,
    source_BN: Codes,
    target_BN: Codes,
    actions: Sequence[str],
    *,
    batch_size: int | None = None,
    decoder: Decoder | None = None,
) -> list[ScoredAction]:
    """log p(actions[b] | source b, target b) of each row. An empty action is an :class:`InputError`.

    A source that several rows share is read once. ``decoder`` as above.
    """
    sources, targets = code_lists("source", source_BN), code_lists("target", target_BN)
    need_equal(sources=len(sources), targets=len(targets), actions=len(actions))
    segments = [
        idm.layout("idm", source=source, target=target, action=action)
        for source, target, action in zip(sources, targets, actions, strict=True)
    ]
    scores = completion_logprobs(idm, segments, batch_size=batch_size, decoder=decoder)
    return [ScoredAction(action, logprob, count) for action, (logprob, count) in zip(actions, scores, strict=True)]
