"""Which actions to imagine in which sources: words that were said elsewhere, of the same kind of scene."""

from collections.abc import Sequence

import numpy as np


def pair_actions(
    sources: Sequence[str], actions: Sequence[tuple[str, str]], *, each: int, seed: int
) -> list[list[str]]:
    """For every source ``each`` different actions (fewer where there are fewer), a function of the seed, the source's
    place and the actions.

    ``sources``: the subset of each source; ``actions``: (subset, words); an action is offered to sources of its own
    subset only, and as often as it was said, so that the mix of actions stays what people did.
    """
    said: dict[str, list[str]] = {}
    for subset, words in actions:
        said.setdefault(subset, []).append(words)
    return [_draw(said.get(subset, []), each, [seed, place]) for place, subset in enumerate(sources)]


def _draw(words: list[str], each: int, seed: list[int]) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(words))
    chosen: dict[str, None] = {}
    for place in order:
        chosen.setdefault(words[int(place)])
        if len(chosen) == each:
            break
    return list(chosen)
