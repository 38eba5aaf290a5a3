"""Best-of-N: the inverse model ranks the forward model's candidates by how well they explain the action.

Paper section 3.3 (test-time verification): the candidate with the largest p(action | source, candidate).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.dynamics.idm import Codes, ScoredAction, score_actions
from wm.dynamics.scoring import as_codes, code_lists, need_equal
from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.sampling.decoder import Decoder

CandidateCodes: TypeAlias = Tensor | npt.NDArray[np.integer[npt.NBitBase]] | Sequence[Sequence[Sequence[int]]]
"""Codebook ids (B, K, N)."""


@dataclass(frozen=True)
class Candidate:
    """A predicted observation with the inverse model's belief that the action led to it.

    ``codes``: N codebook ids. ``seed``: that of the draw. ``rank``: 0 is best. ``index``: place among the
    draws. ``duplicate_of``: index of an equal candidate drawn before it, or None.
    """

    codes: tuple[int, ...]
    score: ScoredAction
    seed: int
    rank: int
    index: int
    duplicate_of: int | None = None


def verify(
    idm: UnifiedVLM,
    source_N: Sequence[int] | Tensor,
    action: str,
    candidates_KN: Codes,
    *,
    seed: int = 0,
    decoder: Decoder | None = None,
) -> list[Candidate]:
    """All K candidates of one (source, action), best first; see :func:`verify_batch`."""
    source = as_codes(source_N)[None]
    return verify_batch(idm, source, [action], as_codes(candidates_KN)[None], seeds=[seed], decoder=decoder)[0]


def verify_batch(
    idm: UnifiedVLM,
    source_BN: Codes,
    actions: Sequence[str],
    candidates_BKN: CandidateCodes,
    *,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    decoder: Decoder | None = None,
) -> list[list[Candidate]]:
    """For each row its K candidates, by falling log-probability of the action, then by rising index.

    Equal candidates are scored once and share the score, all candidates of a source share its part of the pass.
    ``seeds`` (0 without) are recorded in the candidates. ``decoder``: of ``idm`` as it is now, to be used for many
    calls; made here without it.
    """
    sources = code_lists("source", source_BN)
    candidates = as_codes(candidates_BKN)
    if candidates.ndim != 3 or candidates.shape[1] == 0:
        raise InputError(f"expected candidates (B, K, N) with K at least 1, got shape {tuple(candidates.shape)}")
    seeds = seeds if seeds is not None else [0] * len(sources)
    need_equal(sources=len(sources), actions=len(actions), candidates=len(candidates), seeds=len(seeds))
    drawn = [[tuple(codes) for codes in row] for row in candidates.to(torch.int64).tolist()]
    distinct = [(row, codes) for row, drawn_row in enumerate(drawn) for codes in dict.fromkeys(drawn_row)]
    scores = score_actions(
        idm,
        [sources[row] for row, _ in distinct],
        [codes for _, codes in distinct],
        [actions[row] for row, _ in distinct],
        batch_size=batch_size,
        decoder=decoder,
    )
    table = dict(zip(distinct, scores, strict=True))
    return [
        _rank(drawn_row, [table[row, codes] for codes in drawn_row], seeds[row]) for row, drawn_row in enumerate(drawn)
    ]


def _rank(drawn: Sequence[tuple[int, ...]], scores: Sequence[ScoredAction], seed: int) -> list[Candidate]:
    order = sorted(range(len(drawn)), key=lambda index: (-scores[index].logprob, index))
    first = {codes: index for index, codes in reversed(list(enumerate(drawn)))}
    return [
        Candidate(
            codes=drawn[index],
            score=scores[index],
            seed=seed,
            rank=rank,
            index=index,
            duplicate_of=first[drawn[index]] if first[drawn[index]] != index else None,
        )
        for rank, index in enumerate(order)
    ]
