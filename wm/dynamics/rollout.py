"""Roll out several actions one after the other: each prediction is verified and is then the next source.

A beam search over candidates. A sequence of observations is scored by the sum of the log-likelihoods of its actions,
log p(a_1, …, a_T | o_0, …, o_T), which the inverse model gives step by step: at every step all sequences have had the
same actions, hence as many tokens, so that sum and mean rank alike and the sum is the likelihood of the sequence. The
forward model sees the present observation alone, so sequences that end in the same observation have the same future:
they are merged, and the better past stays. Nothing stops a rollout before its last action.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import TypeAlias

from wm.dynamics.observation import Observation
from wm.dynamics.protocols import ForwardModel, InverseModel
from wm.dynamics.scoring import check_equal_lengths
from wm.dynamics.search import OnRound, Prediction, predict_observations
from wm.dynamics.settings import Search
from wm.dynamics.verify import Candidate
from wm.errors import InputError
from wm.sampling.noise import Sampling, expand_seeds


@dataclass(frozen=True)
class Trajectory:
    """One sequence: the candidate taken at each step so far, and ``logprob``, the sum of their actions'
    log-likelihoods in nats. ``guarded``: how many of them lie above the copy guard."""

    candidates: tuple[Candidate, ...]
    logprob: float
    guarded: int

    @property
    def mean_logprob(self) -> float:
        """Nats an action token, over all steps."""
        return self.logprob / sum(candidate.score.num_tokens for candidate in self.candidates)


@dataclass(frozen=True)
class Step:
    """The result of a step. ``predictions``: one for each sequence of the beam before it, best first; ``beam``: the
    sequences after it, best first; ``parents``: the index of each one's parent in the beam before."""

    action: str
    predictions: tuple[Prediction, ...]
    beam: tuple[Trajectory, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """``source``: the first observation. ``steps``: those that were made; the last one has an empty beam where the
    forward model gave no image for any of its candidates, which ends the rollout."""

    source: Observation
    steps: tuple[Step, ...]

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """Sequences of all steps, best first; none where the rollout ended without an image."""
        return self.steps[-1].beam

    @property
    def best(self) -> Trajectory:
        """The best sequence of all steps.

        Raises:
            InputError: The rollout ended without an image; the message names the step and says why.
        """
        step = self.steps[-1]
        if not step.beam:
            raise InputError(f"step {len(self.steps)}, {step.action!r:.60}: {step.predictions[0].explain_failures()}")
        return step.beam[0]


@dataclass(frozen=True)
class StepDone:
    """A finished step.

    ``step``: its number from 0. ``rollouts``: indices of those that had it. ``num_candidates``: those sampled in it.
    """

    step: int
    rollouts: tuple[int, ...]
    num_candidates: int


OnStep: TypeAlias = Callable[[StepDone], None]
_START = Trajectory((), 0.0, 0)


def step_seed(seed: int, step: int, source: Observation) -> int:
    """Derive the seed of a step: ``seed`` itself at step 0, later a 48-bit hash of (seed, step, the observation that
    the step starts from).

    So candidates depend neither on the batch nor on the beam's width or order, a rollout of one action is a plain
    prediction, and a number of this size survives JSON.

    Args:
        seed: The rollout's seed.
        step: Number of the step, from 0.
        source: The observation that the step starts from.
    """
    if step == 0:
        return seed
    # The observation itself, not its rank: beams of any width then agree.
    text = f"{seed},{step},{source.text}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def roll_out(
    fdm: ForwardModel,
    idm: InverseModel,
    sources: Sequence[Observation],
    actions_BT: Sequence[Sequence[str]],
    *,
    search: Search,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    on_round: OnRound | None = None,
) -> list[Rollout]:
    """Roll out ``actions_BT[b]`` from source b on; lengths may differ, and all rollouts share their passes.

    ``search.num_beams`` sequences remain after each step, those with the fewest candidates above the copy guard first,
    then by falling sum of log-likelihoods, then by the index of the sequence they continue, then by their own. With a
    beam of 1 this is :func:`~wm.dynamics.search.predict_observations` again and again.

    Args:
        fdm: The forward model.
        idm: The inverse model.
        sources: The first observations.
        actions_BT: One action or more for each source.
        search: Number of candidates, adaptive N, beam, copy guard.
        sampling: How candidates are sampled.
        seed: One for all rollouts, or one each.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        on_step: Called after each step.
        on_round: Called after each round of candidates.

    Returns:
        A rollout for each source; one of which a step was given no image ends there alone.

    Raises:
        InputError: For images, actions or settings that do not fit the models, before any work.
    """
    # 1. An action that no model can read fails now, not at its step, when others are computed.
    _check_rollouts(fdm, idm, sources, actions_BT)
    fdm.check_search(search, sampling or Sampling())
    seeds = expand_seeds(seed, len(sources))
    if not sources:
        return []
    predict = partial(
        predict_observations, fdm, idm, search=search, sampling=sampling, batch_size=batch_size, on_round=on_round
    )
    states = [RolloutState(*row, search) for row in zip(sources, actions_BT, seeds, strict=True)]
    # 2. All rollouts step by step: the beams of all that have this step are one batch.
    for step in count():
        if not (live := [row for row, state in enumerate(states) if not state.is_done]):
            break
        starts = [start for row in live for start in states[row].starts()]
        images, actions, step_seeds = zip(*((item.source, item.action, item.seed) for item in starts), strict=True)
        predictions = iter(predict(images, actions, seed=step_seeds))
        # Each takes back as many predictions as it has sequences.
        steps = [states[row].add(list(islice(predictions, len(states[row].starts())))) for row in live]
        if on_step is not None:
            on_step(StepDone(step, tuple(live), sum(len(item.candidates) for new in steps for item in new.predictions)))
    return [state.rollout() for state in states]


def _check_rollouts(
    fdm: ForwardModel, idm: InverseModel, sources: Sequence[Observation], actions_BT: Sequence[Sequence[str]]
) -> None:
    """Raise :class:`InputError` unless each source has actions, and both models can read all of them."""
    check_equal_lengths(sources=len(sources), rollouts=len(actions_BT))
    for row, actions in enumerate(actions_BT):
        if isinstance(actions, str) or not actions:
            raise InputError(f"actions of rollout {row} = {actions!r:.80}: expected a list of one action or more")
    for action in dict.fromkeys(action for actions in actions_BT for action in actions):
        fdm.check_action(action)
        idm.check_action(action)


@dataclass(frozen=True)
class Start:
    """The input of a prediction: an observation, the action, the seed of its candidates."""

    source: Observation
    action: str
    seed: int


class RolloutState:
    """One rollout, apart from who predicts: predict from each of :meth:`starts`, pass the result to :meth:`add`, until
    :attr:`is_done`."""

    def __init__(self, source: Observation, actions: Sequence[str], seed: int, search: Search) -> None:
        self._source, self._actions, self._seed, self._search = source, actions, seed, search
        self._steps: list[Step] = []

    @property
    def is_done(self) -> bool:
        """Return whether all actions have their step, or there is no image to continue from."""
        return len(self._steps) == len(self._actions) or not self._beam

    def starts(self) -> list[Start]:
        """List the inputs of the next step, one for each sequence of the beam."""
        step = len(self._steps)
        # Each sequence continues from the observation that it ends in; the first has only the source.
        sources = [entry.candidates[-1].observation if entry.candidates else self._source for entry in self._beam]
        return [Start(source, self._actions[step], step_seed(self._seed, step, source)) for source in sources]

    def add(self, predictions: Sequence[Prediction]) -> Step:
        """Append the step of these predictions, one for each of :meth:`starts`."""
        # The beam before this step: the predictions follow its sequences one by one.
        step = _build_step(self._actions[len(self._steps)], self._beam, tuple(predictions), self._search)
        self._steps.append(step)
        return step

    def rollout(self) -> Rollout:
        """Return the steps so far, at least one."""
        return Rollout(self._source, tuple(self._steps))

    @property
    def _beam(self) -> Sequence[Trajectory]:
        return self._steps[-1].beam if self._steps else (_START,)


def _build_step(action: str, beam: Sequence[Trajectory], predictions: tuple[Prediction, ...], search: Search) -> Step:
    """Continue each sequence by its distinct candidates; of those with equal ends the best stays."""
    grown = [
        (_extend(entry, candidate, search.max_unchanged), parent)
        for parent, (entry, prediction) in enumerate(zip(beam, predictions, strict=True))
        for candidate in prediction.distinct
    ]
    # Ties go to the better parent, then to the lower index, so that the same input gives the same beam.
    grown.sort(key=lambda item: (item[0].guarded, -item[0].logprob, item[1], item[0].candidates[-1].index))
    # Sorted by rank, so the first with an end is the best with it.
    by_end: dict[Observation, tuple[Trajectory, int]] = {}
    for trajectory, parent in grown:
        by_end.setdefault(trajectory.candidates[-1].observation, (trajectory, parent))
    best = list(by_end.values())[: search.num_beams]
    return Step(action, predictions, tuple(item for item, _ in best), tuple(parent for _, parent in best))


def _extend(entry: Trajectory, candidate: Candidate, max_unchanged: float) -> Trajectory:
    return Trajectory(
        (*entry.candidates, candidate),
        entry.logprob + candidate.score.logprob,
        entry.guarded + (candidate.unchanged_share > max_unchanged),
    )
