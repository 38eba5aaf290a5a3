"""Render the one HTML page with all tables and figures, and the commands that fill what is empty."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby

from markupsafe import Markup

from wm.evaluation.paper.cells import Absent, Table
from wm.evaluation.paper.formats import list_notes, name_of
from wm.templates import render_template

_MAX_SVG_BYTES = 1_500_000
"""A larger drawing, one with images in it, is shown as PNG."""
PNG_DPI = 150
"""Of the images that are written."""
_CSS_DPI = 96


@dataclass(frozen=True)
class RenderedFigure:
    """A figure as files, or why there is none.

    Attributes:
        key: Such as ``figure-4``.
        title: What it is.
        caption: What it shows.
        svg: The drawing; empty without one.
        png: The same as an image.
        absent: Why there is none.
        notes: Sentences below it.
    """

    key: str
    title: str
    caption: str
    svg: bytes = b""
    png: bytes = b""
    absent: Absent | None = None
    notes: tuple[str, ...] = ()

    @property
    def width_px(self) -> int:
        """Return its width on the page in CSS pixels, from the header of the PNG; 0 without one."""
        return round(int.from_bytes(self.png[16:20], "big") * _CSS_DPI / PNG_DPI)

    @property
    def name(self) -> str:
        """Return ``Figure 4`` for ``figure-4``."""
        return self.key.replace("-", " ", 1).capitalize()


@dataclass(frozen=True)
class _Section:
    anchor: str
    name: str
    title: str
    html: Markup
    marks: tuple[str, ...]


@dataclass(frozen=True)
class EmptyPlace:
    """A reason for empty cells: where it applies, and the command that would fill them."""

    where: str
    reason: str
    command: str


def list_empty(tables: Sequence[Table], figures: Sequence[RenderedFigure]) -> list[EmptyPlace]:
    """List each reason for empty cells once, with all tables and figures that it empties.

    Args:
        tables: In the order of the page.
        figures: Likewise.

    Returns:
        The reasons in the order in which they come.
    """
    reasons: dict[Absent, list[str]] = {}
    for table in tables:
        for reason in table.list_absent():
            reasons.setdefault(reason, []).append(name_of(table))
    # A figure is empty as one, not by cells.
    for figure in figures:
        if figure.absent is not None:
            reasons.setdefault(figure.absent, []).append(figure.name)
    return [EmptyPlace(_join(names), reason.reason, reason.command) for reason, names in reasons.items()]


def _join(names: Sequence[str]) -> str:
    """Join ``Table 2, Table 3`` to ``Table 2, 3``."""
    parts = []
    # Names come in the order of the page, tables before figures.
    for kind, members in groupby(names, key=lambda name: name.split()[0]):
        parts.append(f"{kind} {', '.join(name.split(' ', 1)[1] for name in members)}")
    return "; ".join(parts)


def render_page(
    tables: Sequence[Table], figures: Sequence[RenderedFigure], *, title: str, about: Sequence[str], is_toy: bool
) -> Markup:
    """Render the page.

    Args:
        tables: In their order.
        figures: Likewise, below the tables.
        title: Headline.
        about: Paragraphs below it.
        is_toy: Whether the results are of the toy world.

    Returns:
        HTML with its style and images inside.
    """
    # Tables first, as in the paper's own order of results.
    sections = [_Section(table.key, name_of(table), table.title, _render_table(table), table.marks) for table in tables]
    toy = ("toy world",) if is_toy else ()
    sections += [_Section(figure.key, figure.name, figure.title, _render_figure(figure), toy) for figure in figures]
    # The report's style, so that both pages look alike.
    style = files("wm.evaluation.report.templates").joinpath("report.css").read_text(encoding="utf-8")
    return _render(
        "page.html",
        title=title,
        about=about,
        sections=sections,
        empty=list_empty(tables, figures),
        is_toy=is_toy,
        report_style=Markup(style),
    )


def _render_table(table: Table) -> Markup:
    # Neighbouring columns of one group share its head.
    spans = [(group, len(list(members))) for group, members in groupby(table.columns, key=lambda column: column.group)]
    return _render(
        "table.html",
        table=table,
        groups=spans if any(group for group, _ in spans) else [],
        notes=list_notes(table),
    )


def _render_figure(figure: RenderedFigure) -> Markup:
    # Lines stay sharp as SVG; images in it would be as large as the page.
    is_small = 0 < len(figure.svg) <= _MAX_SVG_BYTES
    kind, data = ("svg+xml", figure.svg) if is_small else ("png", figure.png)
    # As an image of its own: ids inside of two drawings may be the same.
    image = f"data:image/{kind};base64,{base64.b64encode(data).decode()}" if data else ""
    reason = "" if figure.absent is None else figure.absent.reason
    return _render(
        "figure.html", image=image, title=figure.title, caption=figure.caption, notes=figure.notes, reason=reason,
        width=figure.width_px,
    )  # fmt: skip


def _render(name: str, **values: object) -> Markup:
    return render_template("wm.evaluation.paper", "templates", name, **values)
