"""Cells and tables as Markdown, LaTeX and CSV."""

import csv
import io
import re

import pytest

from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table, mark_best
from wm.evaluation.paper.formats import CSV_COLUMNS, escape_latex, to_csv, to_latex, to_markdown

COLUMNS = (Column("A_1", "model", "left"), Column("B", "reference", "left"), Column("C", "oracle", "right"))
ABSENT = Absent("not judged", "wm judge out=J")
FULL = Cell(
    mean=3.456, std=0.1, num_values=3, ci_low=3.0, ci_high=4.0, n=40, expected=48, published=3.67, published_digits=2,
    is_best=True, is_published_best=True,
)  # fmt: skip
PRINTED = Cell(absent=ABSENT, published=1.0, published_digits=0, published_mark="†")
TABLE = Table(
    "table-2", "50 % & more", COLUMNS,
    (
        Row("[x]", (FULL, PRINTED, Cell(mean=0.5)), "G|1"),
        Row("y", (Cell(mean=-0.001, is_signed=True), Cell(is_blank=True), Cell(absent=ABSENT)), "G|1", is_summary=True),
    ),
    source="ACL, Table 2", notes=("A note_with {braces}.",),
)  # fmt: skip


def test_a_cell_says_spread_and_number_of_items() -> None:
    assert FULL.text() == "3.46" and FULL.spread_text() == "± 0.10 (3 training seeds; n 40 of 48)"
    assert FULL.interval_text() == "[3.00, 4.00]" and FULL.published_text() == "3.67"
    assert Cell(mean=1.0, n=48, expected=48).spread_text() == ""
    assert Cell(absent=ABSENT).text() == "–" and Cell(is_blank=True).text() == ""
    # No sign of a zero, and no spread of one run.
    assert Cell(mean=-0.001).text() == "0.00" and Cell(mean=0.25, is_signed=True).text() == "+0.25"
    assert Cell(mean=19658, digits=0).text() == "19,658"


def test_the_best_of_a_row_leaves_out_references_and_oracles() -> None:
    columns = [Column("m"), Column("n"), Column("o", "oracle"), Column("r", "reference")]
    cells = [Cell(mean=1.0), Cell(mean=1.004), Cell(mean=9.0), Cell(mean=9.0)]
    # Equal as printed: both.
    assert [cell.is_best for cell in mark_best(cells, columns)] == [True, True, False, False]
    lower = [Cell(mean=mean, lower_is_better=True) for mean in (0.2, 0.1, 0.0, 0.0)]
    assert [cell.is_best for cell in mark_best(lower, columns)] == [False, True, False, False]
    alone = mark_best([Cell(mean=1.0), Cell(), Cell(mean=2.0), Cell()], columns)
    assert not any(cell.is_best for cell in alone)


def test_markdown_has_all_cells_and_commands_of_empty_ones() -> None:
    text = to_markdown(TABLE)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(COLUMNS) + 3}
    assert (
        "**3.46** ± 0.10 (3 training seeds; n 40 of 48)<br><sub>[3.00, 4.00]</sub><br><sub>paper 3.67</sub>" in rows[2]
    )
    assert r"G\|1" in rows[2] and "–<br><sub>paper 1†</sub>" in rows[2]
    assert "- not judged: `wm judge out=J`" in text and text.count("not judged") == 1


def test_latex_is_balanced_and_escaped() -> None:
    text = to_latex(TABLE)
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    # Every line has as many columns as are declared; multicolumn stands for several.
    for row in rows:
        spans = sum(int(count) - 1 for count in re.findall(r"\\multicolumn\{(\d)\}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + 1 + spans == len(COLUMNS) + 2, row
    assert r"\begin{tabular}{llrrr}" in text and r"50 \% \& more" in text
    assert re.sub(r"\\[{}]", "", text).count("{") == re.sub(r"\\[{}]", "", text).count("}")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    assert r"\textbf{3.46} {\scriptsize $\pm$ 0.10 (3 training seeds; n 40 of 48)}" in text
    assert r"\textcolor{gray}{3.67} & \textcolor{gray}{1$^{\dagger}$} & " in text
    # What begins with a bracket is no argument of the line break before it.
    assert "& {}[x] &" in text
    known = (
        "usepackage begin end centering small caption label resizebox ifdim width linewidth else fi toprule midrule "
        "bottomrule multicolumn textbf textcolor scriptsize pm dagger par smallskip parbox textbackslash"
    )
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= set(known.split())


@pytest.mark.parametrize("text", ["\\input{x}", "a_b^c~d", "100 % # $5 & {x}", "±Δ†–<>"])
def test_no_text_is_a_latex_command(text: str) -> None:
    escaped = escape_latex(text)
    known = {"textbackslash", "textasciicircum", "textasciitilde", "pm", "Delta", "dagger", "textless", "textgreater"}
    assert set(re.findall(r"\\([a-zA-Z]+)", escaped)) <= known
    assert not re.search(r"(?<!\\)[_#%&]", escaped)


def test_a_label_with_signs_of_the_format_stays_one_cell() -> None:
    label = "a|b*c\n\nd"
    table = Table("t", label, (Column(label),), (Row(label, (Cell(absent=Absent("why", f"wm `{label}`")),)),))
    text = to_markdown(table)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in text.splitlines() if row.startswith("|")} == {3}
    assert r"a\|b\*c d" in text and "`` wm `a|b*c d` ``" in text
    # An empty line inside of an argument is an error of LaTeX.
    assert "\n\n" not in to_latex(table)
    assert [row["row"] for row in csv.DictReader(io.StringIO(to_csv(table)))] == [label]


def test_csv_is_one_line_a_cell_with_numbers_in_full() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TABLE))))
    assert len(rows) == 5 and tuple(rows[0]) == CSV_COLUMNS
    assert rows[0]["mean"] == "3.456" and rows[0]["n"] == "40" and rows[0]["expected"] == "48"
    assert rows[0]["published"] == "3.67" and rows[0]["published_source"] == "ACL, Table 2"
    assert rows[0]["column"] == "left A_1" and rows[0]["group"] == "G|1" and rows[0]["is_best"] == "1"
    assert rows[1]["mean"] == "" and rows[1]["command"] == "wm judge out=J" and rows[1]["published_mark"] == "†"
    assert rows[3]["published_source"] == ""


def test_a_row_with_too_few_cells_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="1 cells, 3 columns"):
        Table("t", "t", COLUMNS, (Row("x", (Cell(),)),))
