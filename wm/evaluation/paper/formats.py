"""Write tables as Markdown, LaTeX and CSV. Knows nothing of where their figures come from."""

import csv
import io
import re
from collections.abc import Sequence
from itertools import groupby

from wm.evaluation.paper.cells import Cell, Column, Row, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$^{\dagger}$",
    "–": "--", "≤": r"$\leq$", "→": r"$\rightarrow$", "<": r"\textless{}", ">": r"\textgreater{}", "…": r"\ldots{}",
}  # fmt: skip


def title_of(table: Table) -> str:
    """Return a table's title, marked where its results are of the toy world or its votes are simulated."""
    return f"{table.title}{_mark(table)}"


def _mark(table: Table) -> str:
    return f" ({', '.join(table.marks)})" if table.marks else ""


def to_markdown(table: Table) -> str:
    """Write a table as Markdown: ours, then the interval and the published figure in small print.

    Args:
        table: The table.

    Returns:
        Markdown of GitHub's flavour.
    """
    # Groups have a column of their own, empty where no table row has one.
    has_groups = any(row.group for row in table.rows)
    head = [*([""] if has_groups else []), "", *(_escape_markdown(column.name) for column in table.columns)]
    lines = [f"### {name_of(table)}. {_escape_markdown(title_of(table))}", "", _markdown_row(head)]
    lines.append(_markdown_row(["---"] * (len(head) - len(table.columns)) + ["---:"] * len(table.columns)))
    for row in table.rows:
        cells = [_escape_markdown(row.group)] if has_groups else []
        cells += [_escape_markdown(row.title), *(_markdown_cell(cell) for cell in row.cells)]
        lines.append(_markdown_row(cells))
    lines += ["", *(f"{_escape_markdown(note)}\n" for note in list_notes(table, word="“paper”"))]
    # Each reason once, however many cells it empties.
    if reasons := table.list_absent():
        lines += ["Empty cells:", ""]
        lines += [
            f"- {_escape_markdown(reason.reason)}" + (f": {_markdown_code(reason.command)}" if reason.command else "")
            for reason in reasons
        ]
    return "\n".join(lines).rstrip() + "\n"


def name_of(table: Table) -> str:
    """Return ``Table 2`` for ``table-2``."""
    return table.key.replace("-", " ", 1).capitalize().replace("v3-", "V3-")


def list_notes(table: Table, *, word: str = "Grey") -> list[str]:
    """List the notes below a table, where the published numbers are printed first.

    Args:
        table: The table.
        word: How a reader knows them from ours.

    Returns:
        Sentences.
    """
    notes = [f"{word}: {table.source}."] if table.source else []
    # Explained where there are some.
    if any(cell.interval_text() for row in table.rows for cell in row.cells):
        notes.append(f"Brackets: 95 % interval over {table.interval_over}.")
    return [*notes, *table.notes]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    text = cell.text()
    text = f"**{text}**" if cell.is_best else text
    # Ours first, then in small print what it is held against.
    small = [cell.interval_text(), f"paper {cell.published_text()}" if cell.published is not None else ""]
    lines = [
        " ".join(part for part in (text, cell.spread_text()) if part),
        *(f"<sub>{part}</sub>" for part in small if part),
    ]
    return "<br>".join(line for line in lines if line)


def _markdown_code(text: str) -> str:
    # More backticks around it than any row of them inside, and a blank between, as one may begin or end with one.
    longest = max((len(row) for row in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"


def _escape_markdown(text: str) -> str:
    for sign in "\\|*_<>[]`~$&":
        text = text.replace(sign, f"\\{sign}")
    # A line break would end the row.
    return " ".join(text.split())


def to_latex(table: Table) -> str:
    r"""Write a table as LaTeX with booktabs: a line of ours, one of intervals, one of the published figures in grey.

    Args:
        table: The table.

    Returns:
        A ``table`` environment; it needs ``\usepackage{booktabs,xcolor,graphicx}``.
    """
    has_groups = any(row.group for row in table.rows)
    first = 2 if has_groups else 1
    lines = [
        r"% Needs \usepackage[utf8]{inputenc} and \usepackage{booktabs,xcolor,graphicx}.",
        r"\begin{table}[t]", r"\centering", r"\small",
        rf"\caption{{{escape_latex(title_of(table))}}}", rf"\label{{tab:{table.key}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * first}{'r' * len(table.columns)}}}", r"\toprule",
        *_latex_head(table.columns, first),
        r"\midrule",
    ]  # fmt: skip
    previous = ""
    for number, row in enumerate(table.rows):
        # Rules between groups, and before averages.
        starts_group = has_groups and number and row.group != previous
        if starts_group or (row.is_summary and number and not table.rows[number - 1].is_summary):
            lines.append(r"\midrule")
        lines += _latex_rows(row, has_groups=has_groups, shows_group=row.group != previous)
        previous = row.group
    lines += [r"\bottomrule", r"\end{tabular}}"]
    for note in list_notes(table):
        lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {escape_latex(note)}}}")
    return "\n".join([*lines, r"\end{table}", ""])


def _latex_head(columns: Sequence[Column], first: int) -> list[str]:
    lines = []
    if any(column.group for column in columns):
        # Only neighbours share a head.
        spans = [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)]
        heads = [rf"\multicolumn{{{count}}}{{c}}{{{escape_latex(group)}}}" for group, count in spans]
        lines.append(" & ".join([*[""] * first, *heads]) + r" \\")
    lines.append(" & ".join([*[""] * first, *(escape_latex(column.title) for column in columns)]) + r" \\")
    return lines


def _latex_rows(row: Row, *, has_groups: bool, shows_group: bool) -> list[str]:
    # An opening bracket behind a line break would be read as its argument: the empty group prevents it.
    head = [f"{{}}{escape_latex(row.group) if shows_group else ''}"] if has_groups else []
    head.append(f"{{}}{escape_latex(row.title)}")
    ours = []
    for cell in row.cells:
        text = escape_latex(cell.text())
        text = rf"\textbf{{{text}}}" if cell.is_best else text
        spread = escape_latex(cell.spread_text())
        ours.append(rf"{text} {{\scriptsize {spread}}}" if spread else text)
    lines = [ours]
    # A line of their own: beside the figures they would not fit a page.
    intervals = [escape_latex(cell.interval_text()) for cell in row.cells]
    if any(intervals):
        lines.append([rf"{{\scriptsize {text}}}" if text else "" for text in intervals])
    published = [escape_latex(cell.published_text()) for cell in row.cells]
    if any(published):
        lines.append([rf"\textcolor{{gray}}{{{text}}}" if text else "" for text in published])
    # Only the first line has the row's name.
    blank = ["{}"] * len(head)
    return [" & ".join([*(head if number == 0 else blank), *cells]) + r" \\" for number, cells in enumerate(lines)]


def escape_latex(text: str) -> str:
    """Escape a text for LaTeX, a sign at a time: none of it can be a command."""
    # An empty line would end a paragraph inside of an argument, which is an error.
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


CSV_COLUMNS = (
    "table", "group", "row", "column", "mean", "mark", "std", "num_values", "over", "ci_low", "ci_high", "n",
    "expected", "is_best", "published", "published_mark", "published_source", "is_published_best", "absent", "command",
)  # fmt: skip
"""Columns of the CSV: one line a cell, numbers in full."""


def to_csv(table: Table) -> str:
    """Write a table as CSV in long form, one line a cell.

    Args:
        table: The table.

    Returns:
        CSV with :data:`CSV_COLUMNS`; an absent number is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            # Nothing is there in the paper either.
            if cell.is_blank and cell.published is None:
                continue
            # The reason travels with the cell, so that a spreadsheet shows it too.
            reason = cell.absent
            writer.writerow(
                [
                    f"{table.key}{_mark(table)}",
                    row.group, row.title, column.name,
                    "" if cell.mean is None else repr(cell.mean), cell.mark if cell.mean is not None else "",
                    "" if cell.std is None else repr(cell.std), cell.num_values or "",
                    cell.over if cell.num_values else "",
                    *("" if value is None else repr(value) for value in (cell.ci_low, cell.ci_high)),
                    "" if cell.n is None else cell.n, "" if cell.expected is None else cell.expected,
                    int(cell.is_best),
                    "" if cell.published is None else repr(cell.published), cell.published_mark,
                    table.source if cell.published is not None else "", int(cell.is_published_best),
                    "" if reason is None else reason.reason, "" if reason is None else reason.command,
                ]
            )  # fmt: skip
    return text.getvalue()
