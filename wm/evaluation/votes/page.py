"""Render the one HTML page of a study's report, with its charts inside. Computes nothing."""

import base64
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from wm.evaluation.votes.figures import StudyFigures, VoteFigure
from wm.evaluation.votes.findings import describe, list_findings
from wm.evaluation.votes.formats import list_tests, list_win_tables
from wm.evaluation.votes.numbers import SIMULATED_MARK, format_interval, format_mean, row_title
from wm.templates import render_template


@dataclass(frozen=True)
class Chart:
    """A chart as an SVG file, and what it shows."""

    name: str
    caption: str
    svg: bytes

    @property
    def data_uri(self) -> str:
        """Return the drawing as an address that an image of the page can have."""
        # As an image of its own: ids inside of two drawings may be the same.
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def render_page(figures: StudyFigures, charts: list[Chart]) -> Markup:
    """Render the page.

    Args:
        figures: Of the study.
        charts: In their order; the first below the summary, the others below the table.

    Returns:
        HTML with its style and images inside; it loads nothing.
    """
    # The style of the other reports, so that all pages look alike.
    style = files("wm.evaluation.report.templates").joinpath("report.css").read_text(encoding="utf-8")
    # Texts are made here, so that the template holds no rule of its own.
    table = [
        (
            row_title(row),
            [
                (format_mean(figure), format_interval(figure["ci_low"], figure["ci_high"]), _partial(figure))
                for figure in (figures["table"][row][system] for system in figures["systems"])
            ],
        )
        for row in figures["rows"]
    ]
    return render_template(
        "wm.evaluation.votes", "templates", "study.html",
        figures=figures,
        is_simulated=figures["kind"] == "simulated",
        simulated_mark=SIMULATED_MARK,
        about=describe(figures),
        charts=charts,
        table=table,
        tests=list_tests(figures),
        wins=list_win_tables(figures),
        findings=list_findings(figures),
        report_style=Markup(style),
    )  # fmt: skip


def _partial(figure: VoteFigure) -> str:
    """Say of how many votes a mean is, where that is not all of them."""
    return f"n {figure['votes']:,} of {figure['expected']:,}" if figure["votes"] < figure["expected"] else ""
