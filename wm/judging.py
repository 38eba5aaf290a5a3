"""Define what a judge of predicted images returns; shared by worlds, metrics and jobs, and knows none of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from wm.errors import InputError


@dataclass(frozen=True)
class JudgeScore:
    """Two criteria from 0 to 10, as the paper's judge gives (section 4.1), and two facts."""

    editing_success: float  # did what the action asks happen
    minimal_editing: float  # did everything else stay
    right: bool  # the predicted state is the target state
    copied: bool  # the prediction is the source again

    def __post_init__(self) -> None:
        """Raise :class:`InputError` on a criterion out of range."""
        for name in ("editing_success", "minimal_editing"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise InputError(f"{name} = {getattr(self, name)!r}, expected 0 to 10")

    @property
    def final(self) -> float:
        """The minimum of both criteria (paper appendix F)."""
        return min(self.editing_success, self.minimal_editing)


def unchanged_share(source_N: Sequence[int], candidate_N: Sequence[int]) -> float:
    """Compute how much of its source a candidate leaves unchanged.

    Args:
        source_N: Image tokens of the source.
        candidate_N: Image tokens of the candidate.

    Returns:
        Share of positions with the same token, 0 to 1 (1: a copy).
    """
    same = sum(int(a) == int(b) for a, b in zip(source_N, candidate_N, strict=True))
    return same / len(source_N)
