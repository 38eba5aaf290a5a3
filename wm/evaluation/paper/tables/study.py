"""Build the tables of the human study: mean votes (5), and win rates between pairs of systems (V3's 6)."""

import json
import shlex
from collections.abc import Mapping, Sequence

from wm.evaluation.aurora_bench import SUBSET_NAMES, order_subsets
from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table, mark_best
from wm.evaluation.paper.measured import AVERAGE
from wm.evaluation.paper.study_source import MAKING_STAGE, STUDY_STAGE
from wm.evaluation.paper.systems import BENCH, explain_unscored
from wm.evaluation.paper.tables.common import BLANK, Layout, column_of
from wm.evaluation.published import load_published
from wm.evaluation.votes.figures import CorrelationFigure, StudyFigures, VoteFigure
from wm.evaluation.votes.means import ALL

_WIN_SYSTEMS = (("SmartEdit", "SE"), ("C-FT", "C-FT"), ("C-FDM", "C-FDM"), ("GoT", "GoT"))
"""V3's name → the paper's system."""
_VOTED = ("GoT", "SE", "C-FT", "C-FDM")
"""Systems of table 5."""


def build_study_table(layout: Layout) -> Table:
    """Build table 5: mean votes by subset, with the mark of the test against the study's reference.

    Args:
        layout: The results, which may hold one report of a study.

    Returns:
        The table; published votes stand beside those of people on the paper's five subsets alone.
    """
    study = layout.sources.study
    printed = load_published()["table-5"]
    is_published = _is_published(layout, study)
    own = {layout.sources.label(system): system for system in printed.columns}
    extra = [label for label in study["systems"] if label not in own] if study is not None else []
    # A system of the paper that is neither printed nor in the study has no column.
    titles = [name for name in printed.columns if is_published or study is None or _has(layout, study, name)]
    columns = (*(Column(title) for title in titles), *map(column_of, extra))
    rows = []
    for subset in (*_list_subsets(layout, study), AVERAGE):
        title = "All" if subset == AVERAGE else layout.short(subset)
        cells = [_vote_cell(layout, study, subset, layout.sources.label(system)) for system in titles]
        if is_published:
            pairs = zip(cells, titles, strict=True)
            cells = [layout.add_published(cell, (printed, title, system)) for cell, system in pairs]
        cells += [_vote_cell(layout, study, subset, label) for label in extra]
        rows.append(Row(title, mark_best(cells, columns), is_summary=subset == AVERAGE))
    return Table(
        key="table-5",
        title="Human study: mean of +1 for the best, -1 for the worst, 0 for the others",
        columns=columns,
        rows=tuple(rows),
        source=printed.source if is_published else "",
        notes=(*_describe_votes(study), *layout.notes("table-5")),
        is_toy=layout.sources.is_toy,
        is_simulated=_is_simulated(study),
        interval_over="items and people",
        absent=_explain_no_study(layout) if study is None else None,
    )


def _is_published(layout: Layout, study: StudyFigures | None) -> bool:
    """Return whether published votes may stand beside ours: not beside simulated ones, nor those of other subsets."""
    if study is None:
        return layout.is_published
    return layout.is_published and study["kind"] == "people" and set(study["items"]) == set(SUBSET_NAMES)


def _is_simulated(study: StudyFigures | None) -> bool:
    return study is not None and study["kind"] == "simulated"


def _has(layout: Layout, study: StudyFigures, system: str) -> bool:
    return layout.sources.label(system) in study["systems"]


def _list_subsets(layout: Layout, study: StudyFigures | None) -> list[str]:
    return order_subsets(study["items"]) if study is not None else layout.subsets


def _vote_cell(layout: Layout, study: StudyFigures | None, subset: str, label: str) -> Cell:
    if study is None:
        return Cell(absent=_explain_no_study(layout))
    # Three ways of being empty, each with another command.
    figure: VoteFigure | None = study["table"][ALL if subset == AVERAGE else subset].get(label)
    folder = shlex.quote(str(layout.sources.of(STUDY_STAGE)[0].recipe("study", "STUDY")))
    if figure is None:
        return Cell(absent=Absent(f"{label} is not in the study", _explain_no_study(layout).command))
    if figure["mean"] is None:
        where = "a subset" if subset == AVERAGE else layout.short(subset)
        return Cell(absent=Absent(f"no vote on {where}", f"wm study serve study={folder}"))
    return Cell(
        mean=figure["mean"],
        ci_low=figure["ci_low"],
        ci_high=figure["ci_high"],
        n=figure["votes"],
        expected=figure["expected"],
        mark="†" if figure["is_different"] else "",
    )


def _explain_no_study(layout: Layout) -> Absent:
    """Say which commands make a study of the paper's systems, from the prediction sets that are there."""
    # Sets that are there by their folders, the others by a word to be replaced.
    labels = [layout.sources.label(system) for system in _VOTED]
    reference = shlex.quote(labels[-1])
    # Somebody is half way there.
    for source in layout.sources.of(MAKING_STAGE):
        folder = shlex.quote(str(source.folder))
        command = f"wm study report study={folder} reference={reference} out=VOTED"
        return Absent(f"the study {source.folder} has no report among the results", command)
    predicted = layout.sources.predicted_in
    folders = list(dict.fromkeys(predicted.get(label, "PREDICTIONS") for label in labels))
    bench = shlex.quote(layout.sources.triplets or BENCH)
    return Absent(
        "no study with people",
        f"wm study make predictions={_list(folders)} systems={_list(labels)} triplets={bench} out=STUDY && "
        f"wm study serve study=STUDY && wm study report study=STUDY reference={reference} out=VOTED",
    )


def _list(names: Sequence[str]) -> str:
    # Paths may have blanks and quotes.
    return shlex.quote(json.dumps(list(names), ensure_ascii=False))


def _describe_votes(study: StudyFigures | None) -> tuple[str, ...]:
    """Describe the test, and whose votes the table is of."""
    if study is None:
        return ("†: differs from C-FDM by Wilcoxon's signed-rank test, p < .05.",)
    test = (
        f"†: differs from {study['reference']} by Wilcoxon's signed-rank test over pairs of participant and item "
        "(two-sided, zero differences dropped, normal approximation with ties), p < .05."
    )
    people = sum(not person["left_out"] and person["num_votes"] > 0 for person in study["participants"])
    votes = f"{study['num_votes']:,} votes of {people:,} participants on {sum(study['items'].values()):,} items."
    if study["kind"] == "simulated":
        return ("Simulated votes: no person was asked.", test, votes)
    return (test, votes)


def build_win_rate_table(layout: Layout) -> Table:
    """Build V3's table 6: on which share of items a row's system is preferred to a column's.

    An item's preference is for the system with the higher mean vote, or with the judge's higher final score, the mean
    over runs; ties are for neither.

    Args:
        layout: The results: the half of people needs the report of a study, the judge's half a judging.

    Returns:
        The table.
    """
    published = load_published()
    study = layout.sources.study
    finals = {title: _finals(layout, system) for title, system in _WIN_SYSTEMS}
    rows = []
    # Two halves of the same layout, as the paper prints them.
    for judge in ("human", "judge"):
        printed = published[f"table-v3-6-{judge}"]
        for title, _ in _WIN_SYSTEMS:
            cells = []
            for other, _ in _WIN_SYSTEMS:
                if title == other:
                    cell = BLANK
                elif judge == "human":
                    cell = _vote_win_cell(layout, study, title, other)
                else:
                    cell = _win_cell(layout, finals, title, other)
                # Published or not, a system is never compared with itself.
                is_published = judge == "judge" or _is_published(layout, study)
                cells.append(layout.add_published(cell, (printed, title, other)) if is_published else cell)
            mark = " (simulated)" if _is_simulated(study) else ""
            rows.append(Row(title, tuple(cells), f"Human{mark}" if judge == "human" else layout.judge))
    return Table(
        key="table-v3-6",
        title="Win rates: share of items on which the row's system is preferred to the column's",
        columns=tuple(Column(title, "fact") for title, _ in _WIN_SYSTEMS),
        rows=tuple(rows),
        source=published["table-v3-6-human"].source if layout.is_published else "",
        notes=(
            *layout.judge_notes(),
            f"Human: the higher mean vote of an item wins; {layout.judge}: the higher final score. Ties are for "
            "neither, so that two opposite cells need not add up to 1.",
            *_compare_judges(layout, study),
            *layout.notes("table-v3-6"),
        ),
        is_toy=layout.sources.is_toy,
        is_simulated=_is_simulated(study),
    )


def _finals(layout: Layout, system: str) -> Mapping[str, float]:
    return layout.measured.finals_by_item(layout.sources.label(system))


def _vote_win_cell(layout: Layout, study: StudyFigures | None, title: str, other: str) -> Cell:
    if study is None:
        return Cell(digits=3, absent=_explain_no_study(layout))
    systems = dict(_WIN_SYSTEMS)
    row, column = (layout.sources.label(systems[name]) for name in (title, other))
    for label in (row, column):
        if label not in study["systems"]:
            return Cell(digits=3, absent=Absent(f"{label} is not in the study", _explain_no_study(layout).command))
    wins = study["wins_by_item"]
    rate = wins["wins"][row][column]
    if rate is None:
        return Cell(digits=3, absent=Absent(f"no item with votes on both {row} and {column}"))
    return Cell(mean=rate, n=wins["counts"][row][column], expected=sum(study["items"].values()), digits=3)


def _win_cell(layout: Layout, finals: Mapping[str, Mapping[str, float]], title: str, other: str) -> Cell:
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


def _compare_judges(layout: Layout, study: StudyFigures | None) -> tuple[str, ...]:
    """Say how far people and judge agree, as arXiv v3 does below its table, where the study's report has it."""
    if study is None:
        return ()
    if study["judge"] is None:
        return ("Votes and judge are not compared: wm study report with judge=JUDGED does it.",)
    # Over single votes first, as arXiv v3 has it.
    judge, same = study["judge"], study["judge"]["same_best"]
    mark = "Simulated votes" if _is_simulated(study) else "Votes"
    texts = [
        f"{mark} and {judge['model']}: Spearman {_describe_rho(judge['correlation_votes'])} over single votes, "
        f"{_describe_rho(judge['correlation_items'])} over mean votes of items"
        + (
            f"; the same best system on {same['share']:.1%} of {same['n']:,} items."
            if same["share"] is not None
            else "."
        )
    ]
    # Whose numbers these are to be held against.
    if _is_published(layout, study):
        printed = load_published()["table-v3-agreement"]
        rho, share = (printed.rows["Votes and GPT-4o"][column].value for column in printed.columns)
        texts.append(
            f"Published ({printed.source}): Spearman {rho:.2f}, the same best system on {share:.0f} % of samples."
        )
    return tuple(texts)


def _describe_rho(figure: CorrelationFigure) -> str:
    if figure["rho"] is None or figure["p"] is None:
        return f"not defined (n {figure['n']:,})"
    p = "< .001" if figure["p"] < 0.001 else f"= {figure['p']:.3f}".replace("0.", ".")
    return f"{figure['rho']:.2f} (p {p}, n {figure['n']:,})"
