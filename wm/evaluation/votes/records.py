"""Define a vote of a person. Not known here: how votes are asked for, stored and counted."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vote:
    """The choice of one participant on one item.

    Attributes:
        study_id: Study that the item is of.
        participant: Random code of the person, which says nothing else about them.
        item_id: Opaque name of the item in its study.
        triplet_id: Triplet whose prediction was asked for; empty for an image that is of no bench.
        subset: Subset of the bench that the triplet is of; empty without one.
        systems: All systems of the item, in the order in which this participant saw them, first to last.
        best: System chosen as the best one; None: the person saw no difference (two systems only).
        worst: System chosen as the worst one; None where ``best`` is.
        seconds: Time from showing the item to the choice, s.
        stored_at: Time at which the vote was stored, UTC in ISO 8601 with seconds.
        origin: ``page`` of a study, ``playground``, ``imported`` from a file, or ``simulated`` by :command:`wm study
            simulate`, which no figure shows as one of people.
        is_check: Whether the item is an attention check: its answer is known, and it counts in no figure.
        passed_check: Of a check, whether the known answer was given; None for other items.
    """

    study_id: str
    participant: str
    item_id: str
    triplet_id: str
    subset: str
    systems: tuple[str, ...]
    best: str | None
    worst: str | None
    seconds: float
    stored_at: str
    origin: str = "page"
    is_check: bool = False
    passed_check: bool | None = None

    def score(self, system: str) -> int:
        """Return the vote's value for a system: +1 for the best, -1 for the worst, 0 for the others.

        Args:
            system: One of ``systems``.
        """
        # True is 1: neither gives 0, as does no choice at all.
        return (system == self.best) - (system == self.worst)
