"""Search for verified predictions: sample candidates in rounds, score each round, stop when another is not worth its
cost.

Candidate k is a function of (source, action, seed, k), so that rounds give what sampling at once would give,
and a larger budget only adds candidates. Rows that are not settled continue in one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import Observation
from wm.dynamics.protocols import ForwardModel, InverseModel, SampleFailure
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.settings import Search
from wm.dynamics.stopping import is_enough, rounds
from wm.dynamics.verify import Candidate, rank_candidates
from wm.errors import InputError
from wm.sampling.noise import Sampling, expand_seeds


@dataclass(frozen=True)
class Prediction:
    """The candidates of one (source, action).

    ``candidates``: all that were sampled, best first. ``rounds``: in how many rounds. ``passes``: of the forward model,
    summed over the candidates, where sampling was speculative, else None. ``failures``: numbers of candidates of which
    there is no image, with the reason.
    """

    candidates: tuple[Candidate, ...]
    rounds: int
    passes: int | None
    failures: tuple[tuple[int, SampleFailure], ...] = ()

    @property
    def best(self) -> Candidate:
        """The candidate of rank 0.

        Raises:
            InputError: The forward model gave no image; the message says why.
        """
        if not self.candidates:
            raise InputError(self.explain_failures())
        return self.candidates[0]

    def explain_failures(self) -> str:
        """Say why there is no image, where all candidates failed."""
        reasons = dict.fromkeys(failure.detail for _, failure in self.failures)
        return f"none of {len(self.failures)} candidates has an image: {'; '.join(reasons)}"

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
    fdm: ForwardModel,
    idm: InverseModel,
    sources: Sequence[Observation],
    actions: Sequence[str],
    *,
    search: Search,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    on_round: OnRound | None = None,
) -> list[Prediction]:
    """Predict and verify the observation after each (source, action).

    A row's result depends on its source, action and seed alone (up to rounding, see :mod:`wm.sampling.images`).

    Args:
        fdm: The forward model.
        idm: The inverse model.
        sources: Images before.
        actions: One a row.
        search: Number of candidates, adaptive N, copy guard; ``num_beams`` belongs to rollouts, ``num_return`` is
            left to the caller (:meth:`Prediction.top`).
        sampling: How candidates are sampled.
        seed: One for all rows, or one a row.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        on_round: Called after each round.

    Raises:
        InputError: For actions and settings that do not fit the models, before any work; and for such images.
    """
    sampling = sampling or Sampling()
    fdm.check_search(search, sampling)
    check_equal_lengths(sources=len(sources), actions=len(actions))
    # An editor would cut a long action without an error, and scores of a bad one fail after all sampling.
    for action in dict.fromkeys(actions):
        fdm.check_action(action)
        idm.check_action(action)
    seeds = expand_seeds(seed, len(sources))
    rows = [SearchState(*row, search, sampling) for row in zip(sources, actions, seeds, strict=True)]
    # Rounds, each in one batch, until every row is settled.
    still_open = rows
    while still_open:
        candidates = still_open[0].candidates
        _sample(fdm, still_open, search.num_draft_tokens, sampling, batch_size)
        _score(idm, still_open, batch_size)
        number = len(still_open)
        still_open = [row for row in still_open if row.candidates]
        # After the scores, so that a caller sees which rows go no further.
        if on_round is not None:
            on_round(Round(candidates, number, number - len(still_open)))
    return [row.prediction() for row in rows]


class SearchState:
    """The search for one (source, action), apart from who samples and who scores.

    Sample :attr:`candidates` and pass them to :meth:`add_samples`; score :meth:`unscored` and pass the scores to
    :meth:`add_scores`; until there is nothing left to sample. A search done in steps by several processes is the same
    as :func:`predict_observations`.
    """

    def __init__(self, source: Observation, action: str, seed: int, search: Search, sampling: Sampling) -> None:
        self.source, self.action, self.seed = source, action, seed
        self._search = search
        # Greedy candidates are all equal, so that one round is enough.
        self._rounds = iter([range(search.num_candidates)]) if sampling.greedy else rounds(search)
        self._images: dict[int, Observation] = {}
        self._failures: list[tuple[int, SampleFailure]] = []
        self._scores: dict[Observation, ScoredAction] = {}
        self._num_rounds = 0
        self._passes: int | None = None
        self.candidates = next(self._rounds)
        """Numbers of those to sample next; empty: the search is finished."""

    def add_samples(self, samples: Sequence[Observation | SampleFailure], passes: int | None = None) -> None:
        """Add what was sampled for :attr:`candidates`.

        Args:
            samples: An image, or why there is none, for each of :attr:`candidates`.
            passes: Of the forward model, for all of them, where speculation makes it vary; else None.
        """
        check_equal_lengths(candidates=len(self.candidates), samples=len(samples))
        for index, sample in zip(self.candidates, samples, strict=True):
            if isinstance(sample, SampleFailure):
                self._failures.append((index, sample))
            else:
                self._images[index] = sample
        self._num_rounds += 1
        if passes is not None:
            self._passes = (self._passes or 0) + passes

    def unscored(self) -> list[Observation]:
        """List the candidates that are not scored yet, each of equal ones once."""
        return [image for image in dict.fromkeys(self._images.values()) if image not in self._scores]

    def add_scores(self, scores: Sequence[ScoredAction]) -> None:
        """Add one score for each of :meth:`unscored`; :attr:`candidates` is then what to sample next."""
        self._scores |= zip(self.unscored(), scores, strict=True)
        # An empty range ends the search.
        self.candidates = range(0) if self._is_settled() else next(self._rounds, range(0))

    def _is_settled(self) -> bool:
        # Where no image could be made, others may do better; without a minimum gain all are sampled, whatever they are.
        if not self._images or self._search.min_gain_nats is None:
            return False
        best = self.prediction().best
        # A copy of the source must not end the search: the guard ranks it last anyway.
        allowed = best.unchanged_share <= self._search.max_unchanged
        return is_enough(len(self._images), best.score.mean_logprob if allowed else None, self._search.min_gain_nats)

    def prediction(self) -> Prediction:
        """Rank what was sampled and scored so far."""
        ranked = rank_candidates(
            self.source, self._images, self._scores, seed=self.seed, max_unchanged=self._search.max_unchanged
        )
        return Prediction(tuple(ranked), self._num_rounds, self._passes, tuple(self._failures))


def _sample(
    fdm: ForwardModel, rows: Sequence[SearchState], num_draft_tokens: int, sampling: Sampling, batch_size: int | None
) -> None:
    # All rows that are not settled have had the same rounds, and sample the same candidates.
    samples = fdm.sample(
        [row.source for row in rows], [row.action for row in rows], candidates=rows[0].candidates, sampling=sampling,
        seeds=[row.seed for row in rows], num_draft_tokens=num_draft_tokens, batch_size=batch_size,
    )  # fmt: skip
    passes = samples.passes if samples.passes is not None else [None] * len(rows)
    for row, of_row, row_passes in zip(rows, samples.candidates, passes, strict=True):
        row.add_samples(of_row, row_passes)


def _score(idm: InverseModel, rows: Sequence[SearchState], batch_size: int | None) -> None:
    # All rows in one call: equal sources are then read once, whichever row they are of.
    new = [(row, image) for row in rows for image in row.unscored()]
    scores = iter(idm.score(
        [row.source for row, _ in new], [image for _, image in new], [row.action for row, _ in new],
        batch_size=batch_size,
    ) if new else [])  # fmt: skip
    # Each row takes back as many scores as it has asked for.
    for row in rows:
        row.add_scores(list(islice(scores, len(row.unscored()))))
