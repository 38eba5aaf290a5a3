"""Draw figures as SVG and PNG whose bytes depend on the data alone."""

import io
import warnings
from typing import TYPE_CHECKING, Literal

from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures import FIGURES
from wm.evaluation.paper.page import PNG_DPI, RenderedFigure
from wm.evaluation.paper.sources import Sources
from wm.evaluation.published import list_contradictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_figure(number: str, sources: Sources) -> tuple[RenderedFigure, str]:
    """Draw one figure.

    Args:
        number: Of the paper, a key of ``FIGURES``.
        sources: The results.

    Returns:
        The figure, absent where the results lack what it needs, and its data as CSV, empty where it has none.

    Raises:
        InputError: A result is damaged.
    """
    kind = FIGURES[number]
    data = kind.read(sources)
    if isinstance(data, Absent):
        return RenderedFigure(f"figure-{number}", kind.title, kind.caption, absent=data), ""
    figure = kind.build(data)
    svg, png = save_svg(figure), save_png(figure)
    text = "" if kind.to_csv is None else kind.to_csv(data)
    # What the paper's own numbers contradict, as below its tables.
    notes = list_contradictions(f"figure-{number}") if sources.is_published else ()
    return RenderedFigure(f"figure-{number}", kind.title, kind.caption, svg, png, notes=notes), text


def save_svg(figure: "Figure") -> bytes:
    """Save a figure as SVG; the same figure gives the same bytes."""
    return _save(figure, "svg", {"Date": None}, "figure")


def save_png(figure: "Figure") -> bytes:
    """Save a figure as PNG."""
    return _save(figure, "png", {"Software": None}, PNG_DPI)


def _save(figure: "Figure", kind: str, metadata: dict[str, None], dpi: float | Literal["figure"]) -> bytes:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Names of clip paths come of the salt, which else is random.
    with mpl.rc_context({"svg.hashsalt": "wm"}), warnings.catch_warnings():
        # Actions are free text: there is no font for every script.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=metadata, bbox_inches="tight")
    return buffer.getvalue()
