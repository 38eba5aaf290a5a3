"""Predict a tree of actions: each action of a level is done in every observation of the level before.

Every path of the tree is a rollout of its actions with one sequence, see :mod:`wm.dynamics.rollout`; what paths share
is predicted once, and a level is one batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from wm.dynamics.idm import Codes
from wm.dynamics.rollout import step_seed
from wm.dynamics.scoring import code_lists
from wm.dynamics.search import CodesRow, Prediction, predict_observations
from wm.dynamics.settings import Search
from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling


@dataclass(frozen=True)
class Branch:
    """An action done in an observation. ``parent``: index in the level before; 0, the source, in the first one."""

    parent: int
    action: str
    prediction: Prediction


OnLevel: TypeAlias = Callable[[Sequence[Branch]], None]


def grow_tree(
    fdm: UnifiedVLM,
    idm: UnifiedVLM,
    source_1N: Codes,
    levels: Sequence[Sequence[str]],
    *,
    search: Search,
    sampling: Sampling | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    fdm_runner: ModelRunner | None = None,
    idm_runner: ModelRunner | None = None,
    on_level: OnLevel | None = None,
) -> list[list[Branch]]:
    """Predict all paths through the levels; the next level starts from the best candidate of each branch.

    Args:
        fdm: The forward model.
        idm: The inverse model.
        source_1N: Codebook ids of the first observation.
        levels: Actions of each level, all different.
        search: Number of candidates, adaptive N, copy guard; one sequence.
        sampling: How a code is sampled.
        seed: Of the samples.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        fdm_runner: Runs ``fdm`` as it is now; built for each level without it.
        idm_runner: Runs ``idm`` as it is now; built for each level without it.
        on_level: Called after each level.

    Returns:
        The branches of each level, those of one parent together, in the order of the actions.

    Raises:
        InputError: There is no level, one has no action, ``search`` keeps several sequences, or codes or actions do
            not fit the models.
    """
    _check_levels(levels, search)
    sources: list[CodesRow] = [tuple(codes) for codes in code_lists("source", source_1N)]
    predict = partial(
        predict_observations, fdm, idm, search=search, sampling=sampling, batch_size=batch_size,
        fdm_runner=fdm_runner, idm_runner=idm_runner,
    )  # fmt: skip
    tree: list[list[Branch]] = []
    for depth, actions in enumerate(levels):
        level = _predict_level(predict, sources, actions, partial(step_seed, seed, depth))
        tree.append(level)
        # The best candidate alone goes further: a path is one sequence.
        sources = [branch.prediction.best.codes for branch in level]
        if on_level is not None:
            on_level(level)
    return tree


def _predict_level(
    predict: Callable[..., list[Prediction]],
    sources: Sequence[CodesRow],
    actions: Sequence[str],
    seed_of: Callable[[CodesRow], int],
) -> list[Branch]:
    # 1. Two paths that lead to one observation have one future.
    starts = list(dict.fromkeys((codes, action) for codes in sources for action in actions))
    seeds = [seed_of(codes) for codes, _ in starts]
    predictions = predict([codes for codes, _ in starts], [action for _, action in starts], seed=seeds)
    by_start = dict(zip(starts, predictions, strict=True))
    # 2. A branch for each path, whether or not it shares its prediction.
    return [
        Branch(parent, action, by_start[codes, action]) for parent, codes in enumerate(sources) for action in actions
    ]


def _check_levels(levels: Sequence[Sequence[str]], search: Search) -> None:
    if not levels or not all(levels):
        raise InputError(f"levels of the tree = {list(map(list, levels))!r:.80}: expected one action or more in each")
    if search.num_beams > 1:
        raise InputError(f"search.num_beams = {search.num_beams}: a tree keeps one sequence for each of its paths")
