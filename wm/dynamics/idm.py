"""Inverse dynamics p(action | source, target): propose an action, or score given ones (paper section 3.1)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wm.dynamics.scoring import code_lists, completion_logprobs, need_equal
from wm.errors import InputError
from wm.models.prompts import flatten
from wm.models.protocol import UnifiedVLM
from wm.sampling.decoder import Decoder
from wm.sampling.noise import Sampling
from wm.sampling.pieces import TextPieces
from wm.sampling.texts import GREEDY, TextToken, generate_texts, need_length, text_steps

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


@dataclass(frozen=True)
class Proposal:
    """An action and its tokens, the end last."""

    action: ScoredAction
    tokens: tuple[ActionToken, ...]


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
    prefixes = [
        flatten(idm.layout("idm", source=source, target=target))
        for source, target in zip(sources, targets, strict=True)
    ]
    completions = generate_texts(idm, prefixes, max_new_tokens=max_new_tokens, batch_size=batch_size, decoder=decoder)
    return [ScoredAction(idm.detokenize(item.ids), item.logprob, item.num_tokens) for item in completions]


def propose_tokens(
    idm: UnifiedVLM,
    source_N: Sequence[int] | Tensor,
    target_N: Sequence[int] | Tensor,
    *,
    num_samples: int = 1,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    num_top: int = 0,
    max_new_tokens: int = 32,
    decoder: Decoder | None = None,
) -> Iterator[list[ActionToken]]:
    """``num_samples`` actions of one pair as they grow: with every step the next token of each that has not ended.

    Greedy: the action of :func:`propose_actions`. The settings are those of :func:`wm.sampling.texts.text_steps`, which
    says how tokens are drawn. Raises :class:`InputError` at once for what cannot be done.
    """
    prefix = pair_prefix(idm, source_N, target_N, max_new_tokens=max_new_tokens)
    steps = text_steps(
        idm,
        prefix,
        num_samples=num_samples,
        sampling=sampling,
        seed=seed,
        num_top=num_top,
        max_new_tokens=max_new_tokens,
        decoder=decoder,
    )
    return _told(idm, steps, num_samples)


def pair_prefix(
    idm: UnifiedVLM, source_N: Sequence[int] | Tensor, target_N: Sequence[int] | Tensor, *, max_new_tokens: int
) -> list[int]:
    """The vocabulary ids that an action follows; :class:`InputError` if the model has no positions for its tokens."""
    need_length(max_new_tokens)
    prefix = flatten(idm.layout("idm", source=source_N, target=target_N))  # type: ignore[arg-type]
    length = len(prefix) + max_new_tokens
    if length > idm.max_positions:
        raise InputError(
            f"{max_new_tokens:,} new tokens: with both images the sequence would have {length:,}, the model "
            f"{idm.max_positions:,} positions"
        )
    return prefix


def gather_proposals(steps: Iterable[Sequence[ActionToken]]) -> list[Proposal]:
    """The whole actions of :func:`propose_tokens`, in the order of the samples."""
    tokens: dict[int, list[ActionToken]] = {}
    for step in steps:
        for token in step:
            tokens.setdefault(token.sample, []).append(token)
    return [
        Proposal(
            ScoredAction(
                "".join(token.released for token in row), sum(token.chosen.logprob for token in row), len(row)
            ),
            tuple(row),
        )
        for _, row in sorted(tokens.items())
    ]


def _told(
    idm: UnifiedVLM, steps: Iterable[Sequence[TextToken | None]], num_samples: int
) -> Iterator[list[ActionToken]]:
    texts = [TextPieces(idm) for _ in range(num_samples)]
    for step in steps:
        yield [
            _told_token(idm, sample, pieces, token)
            for sample, (pieces, token) in enumerate(zip(texts, step, strict=True))
            if token is not None
        ]


def _told_token(idm: UnifiedVLM, sample: int, pieces: TextPieces, token: TextToken) -> ActionToken:
    beliefs = [
        Belief(pieces.name(row), "" if row == idm.eos_id else pieces.of(row), logprob)
        for row, logprob in ((token.id, token.logprob), *token.top)
    ]
    is_end = token.id == idm.eos_id
    finish: Literal["stop", "length"] = "length" if token.is_cut else "stop"
    released = pieces.end() if is_end else pieces.add(token.id)
    return ActionToken(sample, released, beliefs[0], tuple(beliefs[1:]), finish if is_end else None)


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
