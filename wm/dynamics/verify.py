"""Rank the forward model's candidates by how well they explain the action to the inverse model (best-of-N).

Paper section 3.3 (test-time verification): the candidate with the largest p(action | source, candidate).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.dynamics.idm import Codes, ScoredAction, score_actions
from wm.dynamics.scoring import as_codes, check_equal_lengths, code_lists
from wm.errors import InputError
from wm.judging import unchanged_share
from wm.models.vlm import UnifiedVLM
from wm.sampling.model_runner import ModelRunner

CandidateCodes: TypeAlias = Tensor | npt.NDArray[np.integer[npt.NBitBase]] | Sequence[Sequence[Sequence[int]]]
"""Codebook ids (B, K, N)."""
NO_GUARD = 1.0
"""The largest possible share of unchanged tokens: no candidate is above it."""


@dataclass(frozen=True)
class Candidate:
    """A predicted observation with the inverse model's belief that the action led to it.

    ``codes``: N codebook ids. ``seed``: that of the sampling. ``rank``: 0 is best. ``index``: number of the candidate.
    ``unchanged_share``: share of the codes that equal the source's, 0 to 1; 1 is a copy. ``duplicate_of``: index of an
    equal candidate before it, or None.
    """

    codes: tuple[int, ...]
    score: ScoredAction
    seed: int
    rank: int
    index: int
    unchanged_share: float
    duplicate_of: int | None = None


def verify(
    idm: UnifiedVLM,
    source_N: Sequence[int] | Tensor,
    action: str,
    candidates_KN: Codes,
    *,
    seed: int = 0,
    max_unchanged: float = NO_GUARD,
    runner: ModelRunner | None = None,
) -> list[Candidate]:
    """Rank all K candidates of one (source, action), best first; see :func:`verify_batch`.

    Args:
        idm: The inverse model.
        source_N: Codebook ids of the source image.
        action: The action's text.
        candidates_KN: Codebook ids of the candidates, K at least 1.
        seed: Recorded in the candidates.
        max_unchanged: Candidates with a larger share of unchanged tokens come last, 0 to 1.
        runner: Runs ``idm`` as it is now, to be used for many calls; built here without it.
    """
    # A batch of one, so that both ways give the same numbers.
    source = as_codes(source_N, "source")[None]
    candidates_1KN = as_codes(candidates_KN, "candidates")[None]
    return verify_batch(
        idm, source, [action], candidates_1KN, seeds=[seed], max_unchanged=max_unchanged, runner=runner
    )[0]


def verify_batch(
    idm: UnifiedVLM,
    source_BN: Codes,
    actions: Sequence[str],
    candidates_BKN: CandidateCodes,
    *,
    seeds: Sequence[int] | None = None,
    max_unchanged: float = NO_GUARD,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[list[Candidate]]:
    """Rank each row's K candidates by falling log-probability of the action, then by rising index.

    Equal candidates are scored once and share the score; all candidates of a source share its part of the pass.

    Args:
        idm: The inverse model.
        source_BN: Codebook ids of the source images.
        actions: One a row.
        candidates_BKN: Codebook ids of the candidates, K at least 1.
        seeds: One a row, recorded in the candidates; 0 without.
        max_unchanged: Candidates with a larger share of unchanged tokens come last, see :func:`rank_candidates`.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        runner: Runs ``idm`` as it is now, to be used for many calls; built here without it.

    Raises:
        InputError: For codes and actions that do not fit the model.
    """
    sources = code_lists("source", source_BN)
    candidates = as_codes(candidates_BKN, "candidates")
    # Without a candidate there is nothing to rank, and no error would say so.
    if candidates.ndim != 3 or candidates.shape[1] == 0:
        raise InputError(f"expected candidates (B, K, N) with K at least 1, got shape {tuple(candidates.shape)}")
    seeds = seeds if seeds is not None else [0] * len(sources)
    check_equal_lengths(sources=len(sources), actions=len(actions), candidates=len(candidates), seeds=len(seeds))
    rows = [[tuple(codes) for codes in row] for row in candidates.to(torch.int64).tolist()]
    # All rows in one call, each of equal candidates once: sources that rows share are read once.
    distinct = [(row, codes) for row, codes_row in enumerate(rows) for codes in dict.fromkeys(codes_row)]
    scores = score_actions(
        idm,
        [sources[row] for row, _ in distinct],
        [codes for _, codes in distinct],
        [actions[row] for row, _ in distinct],
        batch_size=batch_size,
        runner=runner,
    )
    # Scores come back in the order of the distinct candidates, to be looked up by their codes.
    tables: list[dict[tuple[int, ...], ScoredAction]] = [{} for _ in rows]
    for (row, codes), score in zip(distinct, scores, strict=True):
        tables[row][codes] = score
    return [
        rank_candidates(source, codes_row, table, seed=seed, max_unchanged=max_unchanged)
        for source, codes_row, table, seed in zip(sources, rows, tables, seeds, strict=True)
    ]


def rank_candidates(
    source_N: Sequence[int],
    codes_KN: Sequence[tuple[int, ...]],
    scores: Mapping[tuple[int, ...], ScoredAction],
    *,
    seed: int,
    max_unchanged: float = NO_GUARD,
) -> list[Candidate]:
    """Rank the candidates of one (source, action): by falling log-probability, equal ones by rising index.

    The copy guard: with ``max_unchanged`` below 1, candidates whose share of unchanged tokens is larger come after
    all others (and among themselves in the same order). A forward model that is not sure collapses to
    repeating the source, and a verifier that was trained on true pairs only has never seen a pair of equal images.

    Args:
        source_N: Codebook ids of the source image.
        codes_KN: Codebook ids of the candidates.
        scores: Scores by codes, one for each distinct candidate.
        seed: Recorded in the candidates.
        max_unchanged: Largest share of unchanged tokens that the guard lets pass, 0 to 1; 1: off.
    """
    # Equal candidates share a score and a share of unchanged tokens.
    shares = {codes: unchanged_share(source_N, codes) for codes in dict.fromkeys(codes_KN)}
    order = sorted(
        range(len(codes_KN)),
        key=lambda index: (shares[codes_KN[index]] > max_unchanged, -scores[codes_KN[index]].logprob, index),
    )
    # Reversed, so that the first of equal candidates is the one that stays.
    first = {codes: index for index, codes in reversed(list(enumerate(codes_KN)))}
    return [
        Candidate(
            codes=codes_KN[index],
            score=scores[codes_KN[index]],
            seed=seed,
            rank=rank,
            index=index,
            unchanged_share=shares[codes_KN[index]],
            duplicate_of=first[codes_KN[index]] if first[codes_KN[index]] != index else None,
        )
        for rank, index in enumerate(order)
    ]
