"""Predict a tree of actions: each action of a level is done in every observation of the level before.

Every path of the tree is a rollout of its actions with one sequence, see :mod:`wm.dynamics.rollout`; what paths share
is predicted once, and a level is one batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from wm.dynamics.observation import Observation
from wm.dynamics.protocols import ForwardModel, InverseModel
from wm.dynamics.rollout import step_seed
from wm.dynamics.search import Prediction, predict_observations
from wm.dynamics.settings import Search
from wm.errors import InputError
from wm.sampling.noise import Sampling


@dataclass(frozen=True)
class Branch:
    """An action done in an observation. ``parent``: index in the level before; 0, the source, in the first one. A
    ``prediction`` without candidates, of which the forward model gave no image, has no branches."""

    parent: int
    action: str
    prediction: Prediction


OnLevel: TypeAlias = Callable[[Sequence[Branch]], None]


def grow_tree(
    fdm: ForwardModel,
    idm: InverseModel,
    source: Observation,
    levels: Sequence[Sequence[str]],
    *,
    search: Search,
    sampling: Sampling | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_level: OnLevel | None = None,
) -> list[list[Branch]]:
    """Predict all paths through the levels; the next level starts from the best candidate of each branch.

    Args:
        fdm: The forward model.
        idm: The inverse model.
        source: The first observation.
        levels: Actions of each level, all different.
        search: Number of candidates, adaptive N, copy guard; one sequence.
        sampling: How candidates are sampled.
        seed: Of the samples.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        on_level: Called after each level.

    Returns:
        The branches of each level, those of one parent together, in the order of the actions; no level below one
        without an image.

    Raises:
        InputError: There is no level, one has no action, ``search`` keeps several sequences, or codes or actions do
            not fit the models.
    """
    _check_levels(levels, search)
    sources = {0: source}
    predict = partial(predict_observations, fdm, idm, search=search, sampling=sampling, batch_size=batch_size)
    tree: list[list[Branch]] = []
    for depth, actions in enumerate(levels):
        level = _predict_level(predict, sources, actions, partial(step_seed, seed, depth))
        tree.append(level)
        if on_level is not None:
            on_level(level)
        # The best candidate alone goes further: a path is one sequence, which ends where there is no image.
        branches = enumerate(level)
        sources = {number: of.prediction.best.observation for number, of in branches if of.prediction.candidates}
        if not sources:
            break
    return tree


def _predict_level(
    predict: Callable[..., list[Prediction]],
    sources: Mapping[int, Observation],
    actions: Sequence[str],
    seed_of: Callable[[Observation], int],
) -> list[Branch]:
    # 1. Two paths that lead to one observation have one future.
    starts = list(dict.fromkeys((source, action) for source in sources.values() for action in actions))
    seeds = [seed_of(source) for source, _ in starts]
    predictions = predict([source for source, _ in starts], [action for _, action in starts], seed=seeds)
    by_start = dict(zip(starts, predictions, strict=True))
    # 2. A branch for each path, whether or not it shares its prediction.
    return [
        Branch(parent, action, by_start[source, action]) for parent, source in sources.items() for action in actions
    ]


def _check_levels(levels: Sequence[Sequence[str]], search: Search) -> None:
    if not levels or not all(levels):
        raise InputError(f"levels of the tree = {list(map(list, levels))!r:.80}: expected one action or more in each")
    if search.num_beams > 1:
        raise InputError(f"search.num_beams = {search.num_beams}: a tree keeps one sequence for each of its paths")
