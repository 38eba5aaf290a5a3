"""Format titles and numbers of a study as every table and chart shows them. Knows no layout."""

from typing import Final

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.votes.figures import StudyFigures, VoteFigure
from wm.evaluation.votes.means import ALL

SIMULATED_MARK: Final = "simulated votes"
"""Mark of what no person said."""
DASH: Final = "–"
"""Text of an absent number."""


def headline(figures: StudyFigures) -> str:
    """Return the title, marked where the votes are simulated."""
    mark = f" ({SIMULATED_MARK})" if figures["kind"] == "simulated" else ""
    return f"{figures['title']}{mark}"


def row_title(row: str) -> str:
    """Return what tables show for a subset, or for the row of all."""
    return ALL if row == ALL else subset_title(row)


def format_number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Format a number; a dash where there is none, and no sign before 0.

    Args:
        value: The number.
        digits: After the point.
        signed: Whether a plus is written.
    """
    if value is None:
        return DASH
    # Of -0.001 two digits are 0.00, which has no sign.
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}"


def format_mean(figure: VoteFigure) -> str:
    """Format a mean with its mark."""
    return format_number(figure["mean"]) + ("†" if figure["is_different"] else "")


def format_interval(low: float | None, high: float | None) -> str:
    """Format an interval, empty where there is none.

    Args:
        low: Lower end.
        high: Upper end.
    """
    return "" if low is None or high is None else f"[{format_number(low)}, {format_number(high)}]"
