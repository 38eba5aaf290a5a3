"""List the paper's figures: how each is read from results, drawn, and what it shows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wm.evaluation.paper.sources import Sources

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """A figure of the paper.

    Attributes:
        title: Such as ``Verification at several K``.
        caption: What it shows, and how what is ours differs from the paper's.
        read: Gathers its data from results; an ``Absent`` where they lack it. Typed data of the figure's own.
        build: Draws that data.
        to_csv: Writes that data as CSV; None where it has no such form.
    """

    title: str
    caption: str
    read: Callable[[Sources], Any]
    build: Callable[[Any], "Figure"]
    to_csv: Callable[[Any], str] | None = None


FIGURES: dict[str, FigureKind] = {}
"""Number of a figure, such as ``4`` → how it is made; in the order of the page."""
