"""Search for verified predictions: sample candidates in rounds, score each round, stop when another is not worth its
cost.

Candidate k is a function of (source, action, seed, k), so that rounds give what sampling at once would give,
and a larger budget only adds candidates. Rows that are not settled continue in one batch. Shape suffixes: B rows,
N image tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from wm.dynamics.fdm import sample_observations, speculate_observations
from wm.dynamics.idm import Codes, ScoredAction, score_actions
from wm.dynamics.scoring import check_equal_lengths, code_lists
from wm.dynamics.settings import Search, check_search
from wm.dynamics.stopping import is_enough, rounds
from wm.dynamics.verify import Candidate, rank_candidates
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import rows_at_once
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling, expand_seeds
from wm.sampling.runners import build_model_runner

CodesRow: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """The candidates of one (source, action).

    ``candidates``: all that were sampled, best first. ``rounds``: in how many rounds. ``passes``: of the forward model,
    summed over the candidates, where sampling was speculative, else None.
    """

    candidates: tuple[Candidate, ...]
    rounds: int
    passes: int | None

    @property
    def best(self) -> Candidate:
        """The candidate of rank 0."""
        return self.candidates[0]

    @property
    def distinct(self) -> tuple[Candidate, ...]:
        """Candidates that differ, best first."""
        return tuple(candidate for candidate in self.candidates if candidate.duplicate_of is None)

    def top(self, count: int) -> tuple[Candidate, ...]:
        """Return the ``count`` best candidates that differ; fewer where fewer were sampled."""
        return self.distinct[:count]


@dataclass(frozen=True)
class Round:
    """A finished round: ``candidates`` (their numbers) of ``rows`` rows, of which ``settled`` need no more."""

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
    fdm_runner: ModelRunner | None = None,
    idm_runner: ModelRunner | None = None,
    on_round: OnRound | None = None,
) -> list[Prediction]:
    """Predict and verify the observation after each (source, action).

    A row's result depends on its source, action and seed alone (up to rounding, see :mod:`wm.sampling.images`).

    Args:
        fdm: The forward model.
        idm: The inverse model.
        source_BN: Codebook ids of the source images.
        actions: One a row.
        search: Number of candidates, adaptive N, copy guard; ``num_beams`` belongs to rollouts, ``num_return`` is
            left to the caller (:meth:`Prediction.top`).
        sampling: How a code is sampled.
        seed: One for all rows, or one a row.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        fdm_runner: Runs ``fdm`` as it is now, to be used for many calls; built here without it.
        idm_runner: Runs ``idm`` as it is now; built here without it.
        on_round: Called after each round.

    Raises:
        InputError: For codes, actions or settings that do not fit the models.
    """
    check_search(search, fdm)
    sampling = sampling or Sampling()
    sources = code_lists("source", source_BN)
    check_equal_lengths(sources=len(sources), actions=len(actions))
    seeds = expand_seeds(seed, len(sources))
    rows = [SearchState(*row, search, sampling) for row in zip(sources, actions, seeds, strict=True)]
    if not rows:
        return []
    # 1. Runners for the widest round.
    widest = len(rows) * search.num_candidates
    fdm_rows = _hint_rows(fdm, widest, batch_size) * (search.num_draft_tokens + 1)
    fdm_runner = fdm_runner or build_model_runner(fdm, rows=fdm_rows)
    idm_runner = idm_runner or build_model_runner(idm, rows=_hint_rows(idm, widest, batch_size) * len(sources[0]))
    # 2. Rounds, each in one batch, until every row is settled.
    still_open = rows
    while still_open:
        candidates = still_open[0].candidates
        _sample(fdm, still_open, search.num_draft_tokens, sampling, batch_size, runner=fdm_runner)
        _score(idm, still_open, batch_size, idm_runner)
        number = len(still_open)
        still_open = [row for row in still_open if row.candidates]
        # After the scores, so that a caller sees which rows go no further.
        if on_round is not None:
            on_round(Round(candidates, number, number - len(still_open)))
    return [row.prediction() for row in rows]


class SearchState:
    """The search for one (source, action), apart from who samples and who scores.

    Sample :attr:`candidates` and pass them to :meth:`add_samples`; score :meth:`unscored` and pass the scores to
    :meth:`add_scores`; until there is nothing left to sample.

    ``source``: N codebook ids. A search done in steps by several processes is the same as
    :func:`predict_observations`.
    """

    def __init__(self, source: Sequence[int], action: str, seed: int, search: Search, sampling: Sampling) -> None:
        self.source, self.action, self.seed = source, action, seed
        self._search = search
        # Greedy candidates are all equal, so that one round is enough.
        self._rounds = iter([range(search.num_candidates)]) if sampling.greedy else rounds(search)
        self._sampled: list[CodesRow] = []
        self._scores: dict[CodesRow, ScoredAction] = {}
        self._num_rounds = 0
        self._passes: int | None = None
        self.candidates = next(self._rounds)
        """Numbers of those to sample next; empty: the search is finished."""

    def add_samples(self, codes: Sequence[Sequence[int]], passes: int | None = None) -> None:
        """Add the codes (K, N) of :attr:`candidates`, and the ``passes`` that speculative sampling took.

        Args:
            codes: Codebook ids (K, N), a row for each of :attr:`candidates`.
            passes: Of the forward model, for all of them; None where each code took one.
        """
        check_equal_lengths(candidates=len(self.candidates), samples=len(codes))
        # Tuples: equal candidates are found by their codes.
        self._sampled += [tuple(row) for row in codes]
        self._num_rounds += 1
        if passes is not None:
            self._passes = (self._passes or 0) + passes

    def unscored(self) -> list[CodesRow]:
        """List the candidates that are not scored yet, each of equal ones once."""
        return [codes for codes in dict.fromkeys(self._sampled) if codes not in self._scores]

    def add_scores(self, scores: Sequence[ScoredAction]) -> None:
        """Add one score for each of :meth:`unscored`; :attr:`candidates` is then what to sample next."""
        self._scores |= zip(self.unscored(), scores, strict=True)
        # An empty range ends the search.
        self.candidates = range(0) if self._is_settled() else next(self._rounds, range(0))

    def _is_settled(self) -> bool:
        best = self.prediction().best
        # A copy of the source must not end the search: the guard ranks it last anyway.
        allowed = best.unchanged_share <= self._search.max_unchanged
        return is_enough(len(self._sampled), best.score.mean_logprob if allowed else None, self._search.min_gain_nats)

    def prediction(self) -> Prediction:
        """Rank what was sampled and scored so far."""
        ranked = rank_candidates(
            self.source, self._sampled, self._scores, seed=self.seed, max_unchanged=self._search.max_unchanged
        )
        return Prediction(tuple(ranked), self._num_rounds, self._passes)


def _sample(
    fdm: UnifiedVLM,
    rows: Sequence[SearchState],
    num_draft_tokens: int,
    sampling: Sampling,
    batch_size: int | None,
    *,
    runner: ModelRunner,
) -> None:
    # All rows that are not settled have had the same rounds, and sample the same candidates.
    candidates = rows[0].candidates
    sources, actions = [row.source for row in rows], [row.action for row in rows]
    seeds = [row.seed for row in rows]
    # Counted only where drafts make the number vary.
    passes_B: list[int] | None = None
    if num_draft_tokens:
        speculation = speculate_observations(
            fdm, sources, actions, num_candidates=len(candidates), num_draft_tokens=num_draft_tokens,
            first_candidate=candidates.start, sampling=sampling, seed=seeds, batch_size=batch_size, runner=runner,
        )  # fmt: skip
        codes_BKN, passes_B = speculation.codes, speculation.passes.sum(dim=1).tolist()
    else:
        codes_BKN = sample_observations(
            fdm, sources, actions, num_candidates=len(candidates), first_candidate=candidates.start,
            sampling=sampling, seed=seeds, batch_size=batch_size, runner=runner,
        )  # fmt: skip
    for index, (row, codes_KN) in enumerate(zip(rows, codes_BKN.tolist(), strict=True)):
        row.add_samples(codes_KN, passes_B[index] if passes_B is not None else None)


def _score(idm: UnifiedVLM, rows: Sequence[SearchState], batch_size: int | None, runner: ModelRunner) -> None:
    # All rows in one call: equal sources are then read once, whichever row they are of.
    new = [(row, codes) for row in rows for codes in row.unscored()]
    scores = iter(score_actions(
        idm, [row.source for row, _ in new], [codes for _, codes in new], [row.action for row, _ in new],
        batch_size=batch_size, runner=runner,
    ) if new else [])  # fmt: skip
    # Each row takes back as many scores as it has asked for.
    for row in rows:
        row.add_scores(list(islice(scores, len(row.unscored()))))


def _hint_rows(vlm: UnifiedVLM, rows: int, batch_size: int | None) -> int:
    # A batch has both images of a row: more rows than fit are never in one pass.
    return min(rows, rows_at_once(2 * vlm.tokens_per_image, batch_size))
