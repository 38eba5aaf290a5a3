"""Verified predictions: candidates drawn in rounds, scored after each, until another draw is not worth its cost.

Candidate k is a function of (source, action, seed, k), so that what is drawn in rounds is what would be drawn at once,
and a larger budget only adds candidates. Rows that are not settled go on together in one batch. Shape suffixes: B rows,
N image tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from wm.dynamics.fdm import sample_observations, speculate_observations
from wm.dynamics.idm import Codes, ScoredAction, score_actions
from wm.dynamics.scoring import code_lists, need_equal
from wm.dynamics.settings import Search, check_search
from wm.dynamics.stopping import is_enough, rounds
from wm.dynamics.verify import Candidate, rank_candidates
from wm.models.protocol import UnifiedVLM
from wm.sampling.batches import rows_at_once
from wm.sampling.decoder import Decoder
from wm.sampling.engine import seeds_of
from wm.sampling.noise import Sampling

CodesRow: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """What was found for one (source, action).

    ``candidates``: every draw, best first. ``rounds``: in how many rounds they were drawn. ``passes``: of the forward
    model, summed over the draws, where drawing was speculative, else None.
    """

    candidates: tuple[Candidate, ...]
    rounds: int
    passes: int | None

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    @property
    def distinct(self) -> tuple[Candidate, ...]:
        """Candidates that differ, best first."""
        return tuple(candidate for candidate in self.candidates if candidate.duplicate_of is None)

    def top(self, count: int) -> tuple[Candidate, ...]:
        """The ``count`` best candidates that differ; fewer where fewer were drawn."""
        return self.distinct[:count]


@dataclass(frozen=True)
class Round:
    """What a round did: ``candidates`` (their numbers) of ``rows`` rows, of which ``settled`` need no more."""

    candidates: range
    rows: int
    settled: int


OnRound: TypeAlias = Callable[[Round], None]


def predict_observations(
    fdm: UnifiedVLM,
    idm: UnifiedVLM,
    source_BN: Codes,
    actions: Sequence[str],
    *,
    search: Search,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    fdm_decoder: Decoder | None = None,
    idm_decoder: Decoder | None = None,
    on_round: OnRound | None = None,
) -> list[Prediction]:
    """The verified prediction of each (source, action), by the settings ``search`` (``beam`` belongs to rollouts,
    ``top`` is left to the caller, see :meth:`Prediction.top`).

    A row's result depends on its source, action and seed alone (up to rounding, see :mod:`wm.sampling.engine`).
    ``fdm_decoder``, ``idm_decoder``: of the models as they are now, to be used for many calls; made here without them.
    ``on_round`` is called after each round. Raises :class:`~wm.errors.InputError` for codes, actions or settings that
    do not fit the models.
    """
    check_search(search, fdm)
    sampling = sampling or Sampling()
    sources = code_lists("source", source_BN)
    need_equal(sources=len(sources), actions=len(actions))
    rows = [_Row(*row) for row in zip(sources, actions, seeds_of(seed, len(sources)), strict=True)]
    if not rows:
        return []
    widest = len(rows) * search.best_of
    fdm_decoder = fdm_decoder or Decoder(fdm, rows=_row_hint(fdm, widest, batch_size) * (search.block + 1))
    idm_decoder = idm_decoder or Decoder(idm, rows=_row_hint(idm, widest, batch_size) * len(sources[0]))
    still_open = rows
    for candidates in _rounds(search, sampling):
        _draw(
            fdm, still_open, candidates, block=search.block, sampling=sampling, batch_size=batch_size,
            decoder=fdm_decoder,
        )  # fmt: skip
        _score(idm, still_open, batch_size, idm_decoder)
        number = len(still_open)
        still_open = [row for row in still_open if not row.is_settled(search)]
        if on_round is not None:
            on_round(Round(candidates, number, number - len(still_open)))
        if not still_open:
            break
    return [row.prediction(search) for row in rows]


@dataclass
class _Row:
    """A source and an action, and what is known of it so far."""

    source: list[int]
    action: str
    seed: int
    drawn: list[CodesRow] = field(default_factory=list)
    scores: dict[CodesRow, ScoredAction] = field(default_factory=dict)
    rounds: int = 0
    passes: int | None = None

    def is_settled(self, search: Search) -> bool:
        best = self.prediction(search).best
        allowed = best.unchanged_share <= search.max_unchanged
        return is_enough(len(self.drawn), best.score.mean_logprob if allowed else None, search.margin)

    def prediction(self, search: Search) -> Prediction:
        ranked = rank_candidates(
            self.source, self.drawn, self.scores, seed=self.seed, max_unchanged=search.max_unchanged
        )
        return Prediction(tuple(ranked), self.rounds, self.passes)


def _rounds(search: Search, sampling: Sampling) -> Iterator[range]:
    """Greedy candidates are all equal, so that one round tells everything."""
    return iter([range(search.best_of)]) if sampling.greedy else rounds(search)


def _draw(
    fdm: UnifiedVLM,
    rows: Sequence[_Row],
    candidates: range,
    *,
    block: int,
    sampling: Sampling,
    batch_size: int | None,
    decoder: Decoder,
) -> None:
    sources, actions = [row.source for row in rows], [row.action for row in rows]
    seeds = [row.seed for row in rows]
    passes_B: list[int] | None = None
    if block:
        found = speculate_observations(
            fdm, sources, actions, num_samples=len(candidates), block=block, first_candidate=candidates.start,
            sampling=sampling, seed=seeds, batch_size=batch_size, decoder=decoder,
        )  # fmt: skip
        codes_BKN, passes_B = found.codes, found.passes.sum(dim=1).tolist()
    else:
        codes_BKN = sample_observations(
            fdm, sources, actions, num_samples=len(candidates), first_candidate=candidates.start,
            sampling=sampling, seed=seeds, batch_size=batch_size, decoder=decoder,
        )  # fmt: skip
    for place, (row, codes_KN) in enumerate(zip(rows, codes_BKN.tolist(), strict=True)):
        row.drawn += [tuple(codes) for codes in codes_KN]
        row.rounds += 1
        if passes_B is not None:
            row.passes = (row.passes or 0) + passes_B[place]


def _score(idm: UnifiedVLM, rows: Sequence[_Row], batch_size: int | None, decoder: Decoder) -> None:
    """Score what was drawn and is not scored yet, each of equal candidates once."""
    new = [(row, codes) for row in rows for codes in dict.fromkeys(row.drawn) if codes not in row.scores]
    scores = score_actions(
        idm, [row.source for row, _ in new], [codes for _, codes in new], [row.action for row, _ in new],
        batch_size=batch_size, decoder=decoder,
    ) if new else []  # fmt: skip
    for (row, codes), score in zip(new, scores, strict=True):
        row.scores[codes] = score


def _row_hint(vlm: UnifiedVLM, rows: int, batch_size: int | None) -> int:
    return min(rows, rows_at_once(2 * vlm.tokens_per_image, batch_size))
