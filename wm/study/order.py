"""Order the items of a study, and the systems of each item, for one participant.

Every order follows from the study's seed and secret and the participant's number: a page that is loaded again is the
same. Not known here: pages, votes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from wm.study.study import Study, StudyItem

T = TypeVar("T")


def digest_key(key: str) -> bytes:
    """Compute what stands for a random number: the SHA-256 digest of a seed and what is ordered by it."""
    return hashlib.sha256(key.encode()).digest()


def shuffle(values: Iterable[T], key: str) -> list[T]:
    """Shuffle values by a key, equally on every machine and in every version of Python and its libraries.

    Args:
        values: Their order matters, not what they are.
        key: Such as the seed and what is shuffled.

    Returns:
        The values in the order of the SHA-256 digests of key and position.
    """
    # Random generators may give other numbers in another version: a study runs for weeks, on updated machines.
    digests = [(digest_key(f"{key}\n{position}"), value) for position, value in enumerate(values)]
    return [value for _, value in sorted(digests, key=lambda pair: pair[0])]


def order_items(study: Study, number: int) -> list[StudyItem]:
    """Order the items of a study as a participant sees them.

    Args:
        study: The study.
        number: Number of the participant in the order of joining, from 0.

    Returns:
        All items, shuffled by seed, secret and number.
    """
    return shuffle(study.items, f"items\n{study.seed}\n{study.secret}\n{number}")


def order_systems(study: Study, item: StudyItem, number: int) -> Sequence[str]:
    """Order the systems of an item as a participant sees them, Model 1 first.

    K participants from a multiple of K on, K being the number of systems, have every system at every position once, for
    each item; so has one participant in K items from a multiple of K on. Fewer than K of either are left over: counts
    of a system at a position differ by at most 1. For each item, K participants (2 K for an odd K) from a multiple on
    also see every system directly after every other equally often (Williams, Experimental designs balanced for the
    estimation of residual effects of treatments, Australian Journal of Scientific Research A 2, 1949).

    Args:
        study: The study.
        item: One of its items.
        number: Number of the participant in the order of joining, from 0.

    Returns:
        Names of all systems of the item.
    """
    # The file's order of systems does not matter, the place of the item in it does.
    names = sorted(item.candidates)
    size = len(names)
    peers = [other.item_id for other in study.items if len(other.candidates) == size]
    position = peers.index(item.item_id)
    # 1. Participants and items in blocks of K have one square, whose rows and systems are shuffled for each pair of
    # blocks: who has guessed a system's position in one block knows nothing about the next.
    person_block, item_block = number // size, position // size
    # An odd square is balanced together with its mirror image only: the two have the same names.
    is_mirrored = size % 2 == 1 and person_block % 2 == 1
    names_block = person_block - 1 if is_mirrored else person_block
    key = f"{study.seed}\n{study.secret}\n{size}"
    names = shuffle(names, f"systems\n{key}\n{names_block}\n{item_block}")
    rows = shuffle(range(size), f"rows\n{key}\n{person_block}\n{item_block}")
    # 2. Each pair of participant and item takes a row, each row once in K participants and once in K items.
    order = _square_row(size, rows[(number + position) % size])
    return [names[index] for index in (reversed(order) if is_mirrored else order)]


def _square_row(size: int, row: int) -> list[int]:
    """Return a row of Williams' square: 0, 1, K-1, 2, K-2, ... shifted by the row's number."""
    first = [(position + 1) // 2 if position % 2 else size - position // 2 for position in range(size)]
    return [(value + row) % size for value in first]
