"""Order the items of a study, and the systems of each item, for one participant.

Every order follows from the study's seed and the participant's number, so that a page that is loaded again is the same.
Not known here: pages, votes.
"""

from collections.abc import Sequence

from wm.study.study import Study, StudyItem


def order_items(study: Study, number: int) -> list[StudyItem]:
    """Order the items of a study as a participant sees them.

    Args:
        study: The study.
        number: Number of the participant in the order of joining, from 0.

    Returns:
        All items, shuffled by seed and number.
    """
    raise NotImplementedError


def order_systems(study: Study, item: StudyItem, number: int) -> Sequence[str]:
    """Order the systems of an item as a participant sees them, Model 1 first.

    Among each K successive participants, K being the number of systems, every system is at every position once.

    Args:
        study: The study.
        item: One of its items.
        number: Number of the participant in the order of joining, from 0.
    """
    raise NotImplementedError
