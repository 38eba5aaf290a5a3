"""Propose an action by inverse dynamics p(action | source, target), or score given ones (paper section 3.1)."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wm.dynamics.scoring import check_equal_lengths, code_lists, completion_logprobs
from wm.errors import InputError
from wm.models.prompts import flatten
from wm.models.vlm import UnifiedVLM
from wm.sampling.detokenizer import IncrementalDetokenizer
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling
from wm.sampling.texts import GREEDY, TextBatch, TextToken, generate_texts

Codes: TypeAlias = Tensor | npt.NDArray[np.integer[npt.NBitBase]] | Sequence[Sequence[int]]
"""Codebook ids (B, N)."""


@dataclass(frozen=True)
class ScoredAction:
    """An action text and the model's belief in it.

    ``logprob``: sum over action tokens and end token of log-probabilities in nats, normalised over the complete
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
    """The tokenizer's name of the token."""
    text: str
    """What it adds to the text. Empty for the end, for a part of a character, and for white space, which what comes
    next brings."""
    logprob: float


@dataclass(frozen=True)
class ActionToken:
    """A token of a proposed action, or its end. ``released``: the text that is final with it; those of an action join
    to the complete text. ``top``: the likeliest tokens in its position, likeliest first."""

    sample: int
    released: str
    chosen: Belief
    top: tuple[Belief, ...]
    finish: Literal["stop", "length"] | None
    """At the end: whether the model ended the action, or had used up its tokens."""


def propose_actions(
    idm: UnifiedVLM,
    source_BN: Codes,
    target_BN: Codes,
    *,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[ScoredAction]:
    """Propose one action of each (source, target) pair: the greedy one, or one sampled from the model.

    Args:
        idm: The inverse model.
        source_BN: Codebook ids of the source images.
        target_BN: Codebook ids of the target images.
        sampling: How a token is sampled; greedy without it.
        seed: One for all pairs, which then share their noise, or one a pair.
        max_new_tokens: Tokens after which an action is ended.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        runner: Runs ``idm`` as it is now, to be used for many calls; built here without it.

    Returns:
        One action a pair, with its log-probability under the model as it is, whatever the temperature. Its text may be
        empty: an untrained model may end at once.
    """
    sources, targets = code_lists("source", source_BN), code_lists("target", target_BN)
    check_equal_lengths(sources=len(sources), targets=len(targets))
    prefixes = [_prefix(idm, source, target) for source, target in zip(sources, targets, strict=True)]
    completions = generate_texts(
        idm,
        prefixes,
        sampling=sampling,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        runner=runner,
    )
    return [ScoredAction(idm.detokenize(item.ids), item.logprob, item.num_tokens) for item in completions]


def _prefix(idm: UnifiedVLM, source_N: Sequence[int], target_N: Sequence[int]) -> list[int]:
    return flatten(idm.layout("idm", source=source_N, target=target_N))


def count_free_positions(idm: UnifiedVLM, source_N: Sequence[int], target_N: Sequence[int]) -> int:
    """Count the model's positions behind both images: as many tokens an action between them can have.

    Args:
        idm: The inverse model.
        source_N: Codebook ids of the source image.
        target_N: Codebook ids of the target image.
    """
    return idm.max_positions - len(_prefix(idm, source_N, target_N))


class ProposalStream:
    """``num_candidates`` actions of one pair of images as they grow.

    :func:`wm.sampling.texts.decode_texts` adds a token to each text of ``batch``, and of others' in the same pass;
    :meth:`describe_step` describes these tokens. Greedy: the action of :func:`propose_actions`. The settings are those
    of :class:`wm.sampling.texts.TextBatch`. ``prompt_tokens``: how many tokens the actions follow.

    Raises:
        InputError: For settings that cannot be, among them more ``max_new_tokens`` than the model has positions for.
    """

    def __init__(
        self,
        idm: UnifiedVLM,
        runner: ModelRunner,
        source_N: Sequence[int],
        target_N: Sequence[int],
        *,
        num_candidates: int = 1,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        prefix = _prefix(idm, source_N, target_N)
        self.prompt_tokens = len(prefix)
        # Refused before any pass: positions beyond the model's would be garbage, not an error.
        length = len(prefix) + max_new_tokens
        if length > idm.max_positions:
            raise InputError(
                f"{max_new_tokens:,} new tokens: with both images the sequence would have {length:,}, the model "
                f"{idm.max_positions:,} positions"
            )
        self.batch = TextBatch(
            idm,
            runner,
            [prefix],
            num_candidates=num_candidates,
            sampling=sampling,
            seed=seed,
            num_top=num_top,
            max_new_tokens=max_new_tokens,
        )
        # A text of its own for each: their tokens join differently.
        self._texts = [IncrementalDetokenizer(idm) for _ in range(num_candidates)]
        self._end_ids = {idm.eos_id}

    def describe_step(self, step: Sequence[TextToken | None]) -> list[ActionToken]:
        """Describe the next token of every action that had not ended. Call it once a step."""
        return [
            describe_token(sample, self._texts[sample], token, self._end_ids)
            for sample, token in enumerate(step)
            if token is not None
        ]


def describe_token(sample: int, text: IncrementalDetokenizer, token: TextToken, end_ids: Set[int]) -> ActionToken:
    """Describe the next token of an action, and append it.

    Args:
        sample: Number of the action.
        text: Its text so far.
        token: The token, with its alternatives.
        end_ids: Vocabulary ids that end an action.
    """
    # The sampled token first, then its alternatives.
    pairs = ((token.id, token.logprob), *token.top)
    # Alternatives are described before the token is appended: all continue the same text.
    belief, *top = [Belief(text.name(row), "" if row in end_ids else text.of(row), logprob) for row, logprob in pairs]
    # Only the end says why the text is finished.
    if token.id not in end_ids:
        return ActionToken(sample, text.add(token.id), belief, tuple(top), None)
    return ActionToken(sample, text.end(), belief, tuple(top), "length" if token.is_cut else "stop")


def score_actions(
    idm: UnifiedVLM,
    source_BN: Codes,
    target_BN: Codes,
    actions: Sequence[str],
    *,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[ScoredAction]:
    """Score each action: log p(actions[b] | source b, target b) in nats. A source that several rows share is read once.

    Args:
        idm: The inverse model.
        source_BN: Codebook ids of the source images.
        target_BN: Codebook ids of the target images.
        actions: One a row.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        runner: Runs ``idm`` as it is now, to be used for many calls; built here without it.

    Raises:
        InputError: For codes that do not fit the model, and for an empty action.
    """
    sources, targets = code_lists("source", source_BN), code_lists("target", target_BN)
    check_equal_lengths(sources=len(sources), targets=len(targets), actions=len(actions))
    segments = [
        idm.layout("idm", source=source, target=target, action=action)
        for source, target, action in zip(sources, targets, actions, strict=True)
    ]
    # Normalised over the complete vocabulary, since an action may be any text.
    scores = completion_logprobs(idm, segments, batch_size=batch_size, runner=runner)
    return [ScoredAction(action, logprob, count) for action, (logprob, count) in zip(actions, scores, strict=True)]
