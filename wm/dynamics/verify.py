"""Rank the forward model's candidates by how well they explain the action to the inverse model (best-of-N).

Paper section 3.3 (test-time verification): the candidate with the largest p(action | source, candidate).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import CodesRow, Observation, unchanged_share
from wm.dynamics.protocols import InverseModel
from wm.dynamics.scoring import check_equal_lengths
from wm.errors import InputError

NO_GUARD = 1.0
"""The largest possible share of unchanged tokens: no candidate is above it."""


@dataclass(frozen=True)
class Candidate:
    """A predicted observation with the inverse model's belief that the action led to it.

    ``observation``: the image. ``seed``: that of the sampling. ``rank``: 0 is best. ``index``: number of the candidate.
    ``unchanged_share``: how much of the source is left as it was, 0 to 1 (see
    :func:`wm.dynamics.observation.unchanged_share`); 1 is a copy. ``duplicate_of``: index of an equal candidate before
    it, or None.
    """

    observation: Observation
    score: ScoredAction
    seed: int
    rank: int
    index: int
    unchanged_share: float
    duplicate_of: int | None = None

    @property
    def codes(self) -> CodesRow:
        """N codebook ids.

        Raises:
            InputError: The forward model makes pixels, and has no codes.
        """
        return self.observation.codes


def verify(
    idm: InverseModel,
    source: Observation,
    action: str,
    candidates: Sequence[Observation],
    *,
    seed: int = 0,
    max_unchanged: float = NO_GUARD,
) -> list[Candidate]:
    """Rank all candidates of one (source, action), best first; see :func:`verify_batch`.

    Args:
        idm: The inverse model.
        source: The image before.
        action: The action's text.
        candidates: Images that it may have led to, one or more.
        seed: Recorded in the candidates.
        max_unchanged: Candidates of which a larger share is unchanged come last, 0 to 1.
    """
    # A batch of one, so that both ways give the same numbers.
    return verify_batch(idm, [source], [action], [candidates], seeds=[seed], max_unchanged=max_unchanged)[0]


def verify_batch(
    idm: InverseModel,
    sources: Sequence[Observation],
    actions: Sequence[str],
    candidates: Sequence[Sequence[Observation]],
    *,
    seeds: Sequence[int] | None = None,
    max_unchanged: float = NO_GUARD,
    batch_size: int | None = None,
) -> list[list[Candidate]]:
    """Rank each row's candidates by falling log-probability of the action, then by rising index.

    Equal candidates are scored once and share the score; all candidates of a source share its part of the pass.

    Args:
        idm: The inverse model.
        sources: Images before.
        actions: One a row.
        candidates: Images that the actions may have led to, one or more a row.
        seeds: One a row, recorded in the candidates; 0 without.
        max_unchanged: Candidates of which a larger share is unchanged come last, see :func:`rank_candidates`.
        batch_size: Bound on the rows of a pass; what memory holds without it.

    Raises:
        InputError: For images and actions that do not fit the model, and for a row without candidates.
    """
    seeds = seeds if seeds is not None else [0] * len(sources)
    check_equal_lengths(sources=len(sources), actions=len(actions), candidates=len(candidates), seeds=len(seeds))
    # Without a candidate there is nothing to rank, and no error would say so.
    if empty := [row for row, of_row in enumerate(candidates) if not of_row]:
        raise InputError(f"row {empty[0]} has no candidates; expected one or more")
    # All rows in one call, each of equal candidates once: sources that rows share are read once.
    distinct = [(row, image) for row, of_row in enumerate(candidates) for image in dict.fromkeys(of_row)]
    scores = idm.score(
        [sources[row] for row, _ in distinct],
        [image for _, image in distinct],
        [actions[row] for row, _ in distinct],
        batch_size=batch_size,
    )
    # Scores come back in the order of the distinct candidates, to be looked up by their images.
    tables: list[dict[Observation, ScoredAction]] = [{} for _ in candidates]
    for (row, image), score in zip(distinct, scores, strict=True):
        tables[row][image] = score
    return [
        rank_candidates(source, dict(enumerate(of_row)), table, seed=seed, max_unchanged=max_unchanged)
        for source, of_row, table, seed in zip(sources, candidates, tables, seeds, strict=True)
    ]


def rank_candidates(
    source: Observation,
    candidates: Mapping[int, Observation],
    scores: Mapping[Observation, ScoredAction],
    *,
    seed: int,
    max_unchanged: float = NO_GUARD,
) -> list[Candidate]:
    """Rank the candidates of one (source, action): by falling log-probability, equal ones by rising index.

    The copy guard: with ``max_unchanged`` below 1, candidates of which a larger share is unchanged come after
    all others (and among themselves in the same order). A forward model that is not sure collapses to
    repeating the source, and a verifier that was trained on true pairs only has never seen a pair of equal images.

    Args:
        source: The image before.
        candidates: Number of each candidate and its image, by rising number; those that could not be made are absent.
        scores: Scores by image, one for each distinct candidate.
        seed: Recorded in the candidates.
        max_unchanged: Largest unchanged share that the guard lets pass, 0 to 1; 1: off.
    """
    # Equal candidates share a score and an unchanged share.
    shares = {image: unchanged_share(source, image) for image in dict.fromkeys(candidates.values())}
    order = sorted(
        candidates,
        key=lambda index: (shares[candidates[index]] > max_unchanged, -scores[candidates[index]].logprob, index),
    )
    # Reversed, so that the first of equal candidates is the one that stays.
    first = {image: index for index, image in reversed(list(candidates.items()))}
    return [
        Candidate(
            observation=candidates[index],
            score=scores[candidates[index]],
            seed=seed,
            rank=rank,
            index=index,
            unchanged_share=shares[candidates[index]],
            duplicate_of=first[candidates[index]] if first[candidates[index]] != index else None,
        )
        for rank, index in enumerate(order)
    ]
