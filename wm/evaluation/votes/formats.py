"""Write the figures of a study as Markdown, CSV and text for a terminal. Computes nothing."""

from wm.evaluation.paper.figures.style import write_csv
from wm.evaluation.report.summary import format_grid, format_p
from wm.evaluation.votes.figures import StudyFigures, VoteFigure
from wm.evaluation.votes.findings import describe, list_findings
from wm.evaluation.votes.numbers import DASH, format_interval, format_mean, format_number, headline, row_title

CSV_COLUMNS = ("kind", "row", "system", "reference", *VoteFigure.__annotations__)
"""Columns of ``table.csv``: one line a row and system, numbers in full."""


def to_markdown(figures: StudyFigures) -> str:
    """Write all of a report but its charts as Markdown.

    Args:
        figures: Of the study.

    Returns:
        Markdown of GitHub's flavour.
    """
    systems = [escape_markdown(system) for system in figures["systems"]]
    lines = [f"# {escape_markdown(headline(figures))}", ""]
    lines += [f"{escape_markdown(text)}\n" for text in describe(figures)]
    # 1. The paper's table 5.
    lines += [f"| mean vote | {' | '.join(systems)} |", f"| --- |{' ---: |' * len(systems)}"]
    for row in figures["rows"]:
        cells = [_markdown_cell(figures["table"][row][system]) for system in figures["systems"]]
        lines.append(f"| {escape_markdown(row_title(row))} | {' | '.join(cells)} |")
    # 2. The tests behind its marks.
    lines += ["", f"## Tests against {escape_markdown(figures['reference'])}", ""]
    lines += ["| | | difference | p | exact p | Pratt's p | n | zeros | p over items | items |"]
    lines += ["| --- | --- |" + " ---: |" * 8]
    lines += [f"| {' | '.join(map(escape_markdown, cells))} |" for cells in list_tests(figures)]
    # 3. Pairs of systems.
    lines += ["", "## Win rates", ""]
    for title, rows in list_win_tables(figures):
        lines += [f"{escape_markdown(title)}\n", f"| | {' | '.join(systems)} |", f"| --- |{' ---: |' * len(systems)}"]
        lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
        lines.append("")
    # 4. What the tables do not say.
    lines += ["## How it was voted", "", *(f"- {escape_markdown(text)}" for text in list_findings(figures))]
    return "\n".join([*lines, "", *(f"{escape_markdown(text)}\n" for text in figures["method"])]).rstrip() + "\n"


def _markdown_cell(figure: VoteFigure) -> str:
    # A mean over fewer votes than there should be is never printed without saying so.
    interval = format_interval(figure["ci_low"], figure["ci_high"])
    partial = f" (n {figure['votes']:,} of {figure['expected']:,})" if figure["votes"] < figure["expected"] else ""
    text = format_mean(figure) + partial
    return escape_markdown(text) + (f"<br><sub>{escape_markdown(interval)}</sub>" if interval else "")


def escape_markdown(text: str) -> str:
    """Escape a text for a cell of Markdown.

    Args:
        text: Anything, such as a title that somebody chose.
    """
    for sign in "\\|*_<>[]`~$&#":
        text = text.replace(sign, f"\\{sign}")
    # A line break would end the row.
    return " ".join(text.split())


def to_csv(figures: StudyFigures) -> str:
    """Write a line a row and system with all numbers of its votes and tests.

    Args:
        figures: Of the study.

    Returns:
        CSV with :data:`CSV_COLUMNS`; an absent number is empty.
    """
    lines = []
    for row in figures["rows"]:
        for system in figures["systems"]:
            figure = figures["table"][row][system]
            # 0 and 1, as in the CSV of wm paper.
            values = [int(value) if isinstance(value, bool) else value for value in figure.values()]
            lines.append((figures["kind"], row, system, figures["reference"], *values))
    return write_csv(CSV_COLUMNS, lines)


def list_tests(figures: StudyFigures) -> list[list[str]]:
    """List the tests of all rows and systems but the reference as texts.

    Args:
        figures: Of the study.

    Returns:
        Row, system, difference with its interval, p, exact p, Pratt's p, n, zeros, p over items, items.
    """
    rows = []
    for row in figures["rows"]:
        for system in figures["systems"]:
            figure = figures["table"][row][system]
            # It is not tested against itself.
            if system == figures["reference"]:
                continue
            difference = format_number(figure["difference"], signed=True)
            interval = format_interval(figure["difference_low"], figure["difference_high"])
            texts = [format_p(figure[name]) for name in ("p", "p_exact", "p_pratt")]
            rows.append(
                [
                    row_title(row), system, f"{difference} {interval}".strip(), *texts, f"{figure['n']:,}",
                    f"{figure['zeros']:,}", format_p(figure["item_p"]),
                    f"{figure['item_n'] + figure['item_zeros']:,}",
                ]
            )  # fmt: skip
    return rows


def list_win_tables(figures: StudyFigures) -> list[tuple[str, list[list[str]]]]:
    """List the tables of win rates as texts: by item, by vote, and the judge's where there is one.

    Args:
        figures: Of the study.

    Returns:
        Title and rows of each, a row beginning with its system; ties in brackets.
    """
    # By item first, as arXiv v3 has it.
    judge = figures["judge"]
    tables = [
        ("People, by item (ties in brackets)", figures["wins_by_item"]),
        ("People, by vote (ties: neither is best or worst)", figures["wins_by_vote"]),
        *([(f"{judge['model']}, by item", judge["wins"])] if judge is not None else []),
    ]
    return [
        (
            title,
            [
                [row, *("" if row == column else _format_win(wins["wins"][row][column], wins["ties"][row][column])
                        for column in figures["systems"])]
                for row in figures["systems"]
            ],
        )
        for title, wins in tables
    ]  # fmt: skip


def _format_win(wins: float | None, ties: float | None) -> str:
    if wins is None:
        return DASH
    return f"{wins:.3f}" + (f" ({ties:.3f})" if ties else "")


def to_text(figures: StudyFigures) -> str:
    """Write table 5 and what else is to be read first for a terminal.

    Args:
        figures: Of the study.

    Returns:
        Text.
    """
    rows = [
        [row_title(row), *(format_mean(figures["table"][row][system]) for system in figures["systems"])]
        for row in figures["rows"]
    ]
    return "\n".join(
        [
            headline(figures), "", *describe(figures), "",
            format_grid(["mean vote", *figures["systems"]], rows), "",
            f"†: differs from {figures['reference']} (Wilcoxon's signed-rank test, p < .05)", "",
            *list_findings(figures),
        ]
    )  # fmt: skip
