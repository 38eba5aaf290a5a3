"""Choose which actions to imagine in which sources: actions of other rows, of the same kind of scene."""

from collections.abc import Sequence

import numpy as np


def pair_actions(
    sources: Sequence[str], actions: Sequence[tuple[str, str]], *, each: int, seeds: Sequence[int]
) -> list[list[str]]:
    """Choose ``each`` different actions for every source (fewer where there are fewer).

    An action is offered to sources of its own subset only, and as often as it was said, so that the mix of actions
    stays what people did.

    Args:
        sources: The subset of each source.
        actions: Pairs of (subset, words).
        each: Actions of a source.
        seeds: One a source, see :func:`wm.records.row_seeds`.

    Returns:
        The actions of each source, a function of its seed, its subset and the actions.
    """
    words_of: dict[str, list[str]] = {}
    for subset, words in actions:
        words_of.setdefault(subset, []).append(words)
    return [_draw(words_of.get(subset, []), each, seed) for subset, seed in zip(sources, seeds, strict=True)]


def _draw(words: list[str], each: int, seed: int) -> list[str]:
    # A generator for each source: its actions do not change with the number of sources.
    order = np.random.default_rng(seed).permutation(len(words))
    sample: dict[str, None] = {}
    for position in order:
        sample.setdefault(words[int(position)])
        if len(sample) == each:
            break
    return list(sample)
