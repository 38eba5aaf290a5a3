"""Build the tables of the human study: mean votes (5), and win rates between pairs of systems (V3's 6)."""

from collections.abc import Mapping

from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table
from wm.evaluation.paper.measured import AVERAGE
from wm.evaluation.paper.systems import explain_unscored
from wm.evaluation.paper.tables.common import BLANK, Layout
from wm.evaluation.published import load_published

_NO_STUDY = Absent("no study with people; this version has no command for one")
_WIN_SYSTEMS = (("SmartEdit", "SE"), ("C-FT", "C-FT"), ("C-FDM", "C-FDM"), ("GoT", "GoT"))
"""V3's name → the paper's system."""


def build_study_table(layout: Layout) -> Table:
    """Build table 5: the published votes. A study of one's own is not read: no stage makes one yet."""
    printed = load_published()["table-5"]
    rows = []
    for subset in (*layout.subsets, AVERAGE):
        title = "All" if subset == AVERAGE else layout.short(subset)
        empty = Cell(is_signed=False, absent=_NO_STUDY)
        cells = tuple(layout.add_published(empty, (printed, title, column)) for column in printed.columns)
        rows.append(Row(title, cells, is_summary=subset == AVERAGE))
    return Table(
        key="table-5",
        title="Human study: mean of +1 for the best, -1 for the worst, 0 for the others",
        columns=tuple(Column(column) for column in printed.columns),
        rows=tuple(rows),
        source=printed.source if layout.is_published else "",
        notes=("†: differs from C-FDM by Wilcoxon's signed-rank test, p < .05.", *layout.notes("table-5")),
        is_toy=layout.sources.is_toy,
        absent=_NO_STUDY,
    )


def build_win_rate_table(layout: Layout) -> Table:
    """Build V3's table 6: on which share of items a row's system is preferred to a column's.

    The half of human judges needs a study. The judge's half is computed of the judgements: an item's preference is for
    the system with the higher final score, the mean over runs; ties are for neither.
    """
    published = load_published()
    finals = {title: _finals(layout, system) for title, system in _WIN_SYSTEMS}
    rows = []
    # Two halves of the same layout, as the paper prints them.
    for judge in ("human", "judge"):
        printed = published[f"table-v3-6-{judge}"]
        for title, _ in _WIN_SYSTEMS:
            cells = []
            for other, _ in _WIN_SYSTEMS:
                cell = BLANK if title == other else _win_cell(layout, finals, title, other, judge)
                # Published or not, a system is never compared with itself.
                cells.append(layout.add_published(cell, (printed, title, other)))
            rows.append(Row(title, tuple(cells), "Human" if judge == "human" else layout.judge))
    return Table(
        key="table-v3-6",
        title="Win rates: share of items on which the row's system is preferred to the column's",
        columns=tuple(Column(title, "fact") for title, _ in _WIN_SYSTEMS),
        rows=tuple(rows),
        source=published["table-v3-6-human"].source if layout.is_published else "",
        notes=(
            *layout.judge_notes(),
            f"{layout.judge}: the higher final score wins; ties are for neither, so that two opposite cells need "
            "not add up to 1.",
            *layout.notes("table-v3-6"),
        ),
        is_toy=layout.sources.is_toy,
    )


def _finals(layout: Layout, system: str) -> Mapping[str, float]:
    return layout.measured.finals_by_item(layout.sources.label(system))


def _win_cell(layout: Layout, finals: Mapping[str, Mapping[str, float]], title: str, other: str, judge: str) -> Cell:
    if judge == "human":
        return Cell(digits=3, absent=_NO_STUDY)
    first, second = finals[title], finals[other]
    # Items that both were judged on.
    shared = [triplet_id for triplet_id in first if triplet_id in second]
    if not shared:
        missing = title if not first else other
        system = dict(_WIN_SYSTEMS)[missing]
        return Cell(digits=3, absent=explain_unscored(layout.sources, system, "judge"))
    # Ties are for neither.
    wins = sum(first[triplet_id] > second[triplet_id] for triplet_id in shared)
    return Cell(mean=wins / len(shared), n=len(shared), expected=len(layout.sources.rows), digits=3)
