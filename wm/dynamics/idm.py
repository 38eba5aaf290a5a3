"""Inverse dynamics p(action | source, target): propose an action, or score given ones (paper section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wm.dynamics.scoring import code_lists, completion_logprobs, need_equal
from wm.models.prompts import flatten
from wm.models.protocol import UnifiedVLM
from wm.sampling.decoder import Decoder
from wm.sampling.texts import generate_texts

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
