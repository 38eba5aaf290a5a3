"""Build the tables of the judge's scores: by subset (2), editing success and minimal editing (3), ablations (4)."""

from dataclasses import replace

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.judge.figures import Criterion
from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table, mark_best
from wm.evaluation.paper.measured import AVERAGE, NUM_BEST_OF
from wm.evaluation.paper.spatial import SpatialAnswers, list_asked, read_spatial, spatial_cell
from wm.evaluation.paper.systems import BENCH, explain_unscored
from wm.evaluation.paper.tables.common import BLANK, Layout, cell_or, column_of, drop_empty
from wm.evaluation.published import PublishedTable, load_published
from wm.evaluation.rows import COPY

BEST_OF = " +Best-of-3"
"""Ending of a column whose samples are the best of three by the judge."""
_ABSENT_BEST = (
    f"fewer than {NUM_BEST_OF} judged samples a prediction: evaluate with seeds=[0,1,2]",
    "wm evaluate paper/evaluate-aurora-bench seeds='[0, 1, 2]' && "
    f"wm judge predictions='[\"runs/paper/evaluate-aurora-bench\"]' triplets={BENCH} out=JUDGED",
)


def build_judge_table(layout: Layout) -> Table:
    """Build table 2: the judge's score by subset. Columns of ``version = v1`` are those of V1's Table 2.

    Args:
        layout: The results, and which version.

    Returns:
        The table; systems of the results that the paper does not have are behind the paper's.
    """
    printed = load_published()["table-2" if layout.version == "acl" else "table-2-v1"]
    digits = 2 if layout.version == "acl" else 3
    # Systems that the paper does not have come behind its own.
    judged = [score.system for score in layout.sources.judgements]
    systems = [*printed.columns, *layout.extra_systems(printed.columns, judged)]
    # Accuracies of other benchmarks, which only the later text prints.
    answers = read_spatial(layout.sources) if layout.version == "acl" else []
    # Models that were asked questions, and predict no images.
    readers = [label for label in layout.extra_systems(printed.columns, list_asked(answers)) if label not in systems]
    columns = [_column(system) for system in (*systems, *readers)]
    rows = []
    for subset in (*layout.subsets, AVERAGE):
        title = "Avg." if subset == AVERAGE else subset_title(subset)
        cells = [
            layout.add_published(judge_cell(layout, system, subset, digits=digits), (printed, title, system))
            for system in systems
        ]
        rows.append((title, [*cells, *[BLANK] * len(readers)]))
    for of_benchmark in answers:
        # In another world, or of another bench, only what was asked.
        if layout.is_published or of_benchmark.rows:
            cells = [_spatial_cell(layout, printed, of_benchmark, system) for system in (*systems, *readers)]
            rows.append((of_benchmark.title, cells))
    # In another world than the paper's, its systems without results are no columns.
    filled = drop_empty(columns, [cells for _, cells in rows])
    columns = [columns[number] for number in filled]
    return Table(
        key="table-2",
        title=f"{layout.judge} score by subset, 0 to 10: mean over items of min(editing success, minimal editing)",
        columns=tuple(columns),
        rows=tuple(
            Row(title, mark_best([cells[number] for number in filled], columns), is_summary=title == "Avg.")
            for title, cells in rows
        ),
        source=printed.source if layout.is_published else "",
        notes=(
            *_judge_notes(layout),
            *(note for of in answers for note in of.notes),
            *layout.notes("table-2"),
        ),
        is_toy=layout.sources.is_toy,
    )


def _column(system: str) -> Column:
    if system == COPY:
        return Column(system, "reference")
    return Column(system, "oracle") if system.endswith(BEST_OF) else column_of(system)


def _spatial_cell(layout: Layout, printed: PublishedTable, answers: SpatialAnswers, system: str) -> Cell:
    # The paper asks its vision-language models alone: editors of images answer nothing.
    is_asked = layout.sources.label(system) in answers.labels
    if not is_asked and printed.cell(answers.title, system) is None:
        return BLANK
    cell = spatial_cell(layout.sources, answers, system)
    # More questions than the published set has are another set: fewer are marked in the cell.
    if cell.n is not None and cell.expected is not None and cell.n > cell.expected:
        return cell
    return layout.add_published(cell, (printed, answers.title, system))


def judge_cell(layout: Layout, system: str, subset: str, criterion: Criterion = "final", *, digits: int = 2) -> Cell:
    """Build the judge's cell of a system or of its best of three, with the reason where there is none.

    Args:
        layout: The results.
        system: Key of the paper's system, with :data:`BEST_OF` behind it for the best of three; or a label.
        subset: Of the bench, or the average.
        criterion: Which score.
        digits: After the point.

    Returns:
        The cell.
    """
    # The best of three is a column of the same system.
    measured, sources = layout.measured, layout.sources
    if system.endswith(BEST_OF):
        base = system.removesuffix(BEST_OF)
        cell = measured.best_judge_cell(sources.label(base), subset, digits=digits)
        if cell is not None or measured.judged(sources.label(base)) is None:
            return cell_or(cell, explain_unscored(sources, base, "judge"), digits=digits)
        return Cell(absent=Absent(*_ABSENT_BEST), digits=digits)
    cell = measured.judge_cell(sources.label(system), subset, criterion, digits=digits)
    return cell_or(cell, explain_unscored(sources, system, "judge"), digits=digits)


def _judge_notes(layout: Layout) -> tuple[str, ...]:
    notes = [*layout.judge_notes(), "Avg.: unweighted mean of the subsets' means."]
    if layout.version == "v1":
        notes.append(
            "+Best-of-3: of three samples the one that the judge likes best, which no system can know beforehand."
        )
    return tuple(notes)


def build_criteria_table(layout: Layout) -> Table:
    """Build table 3: editing success and minimal editing of C-FDM, trained with the weighted and the standard loss."""
    printed = load_published()["table-3"]
    losses = (("Weighted", "C-FDM"), ("Standard", "C-FDM w/o LW"))
    criteria: tuple[tuple[str, Criterion], ...] = (("ES", "editing_success"), ("ME", "minimal_editing"))
    # Facts: editing success and minimal editing are not compared with each other.
    columns = tuple(Column(short, "fact", loss) for loss, _ in losses for short, _ in criteria)
    rows = []
    for subset in (*layout.subsets, AVERAGE):
        title = "Avg." if subset == AVERAGE else layout.short(subset)
        cells = tuple(
            layout.add_published(judge_cell(layout, system, subset, criterion), (printed, title, f"{loss} {short}"))
            for loss, system in losses
            for short, criterion in criteria
        )
        rows.append(Row(title, cells, is_summary=subset == AVERAGE))
    # What editing success and minimal editing are the minimum of: one figure a loss.
    finals = []
    for loss, system in losses:
        cell = judge_cell(layout, system, AVERAGE)
        finals += [layout.add_published(cell, (printed, "GPT4o (final)", f"{loss} ES")), BLANK]
    return Table(
        key="table-3",
        title="Editing success (ES) and minimal editing (ME) of C-FDM, by weighted and standard loss, 0 to 10",
        columns=columns,
        rows=(*rows, Row(f"{layout.judge} (final)", tuple(finals), is_summary=True)),
        source=printed.source if layout.is_published else "",
        notes=(*layout.judge_notes(), "(final): mean of min(ES, ME), averaged over subsets.", *layout.notes("table-3")),
        is_toy=layout.sources.is_toy,
    )


def build_ablation_table(layout: Layout) -> Table:
    """Build table 4: C-FDM, and the paired differences to it without synthetic triplets and without weights."""
    printed = load_published()["table-4"]
    sources = layout.sources
    ablations = ("w/o Synth.", "w/o LW")
    rows = []
    for subset in (*layout.subsets, AVERAGE):
        title = "All" if subset == AVERAGE else layout.short(subset)
        # The model itself, then what is lost without a part of it.
        cells = [layout.add_published(judge_cell(layout, "C-FDM", subset), (printed, title, "C-FDM"))]
        for name in ablations:
            system = f"C-FDM {name}"
            # Paired with the model itself, item by item.
            cell = layout.measured.difference_cell(sources.label(system), sources.label("C-FDM"), subset)
            reason = _explain_difference(layout, system)
            cell = replace(cell_or(cell, reason), is_signed=True)
            cells.append(layout.add_published(cell, (printed, title, name)))
        rows.append(Row(title, tuple(cells), is_summary=subset == AVERAGE))
    return Table(
        key="table-4",
        title=f"Ablations of C-FDM: {layout.judge} score, and differences to it",
        columns=(Column("C-FDM", "fact"), *(Column(f"Δ {name}", "fact") for name in ablations)),
        rows=tuple(rows),
        source=printed.source if layout.is_published else "",
        notes=(
            *layout.judge_notes(),
            "Δ is paired: over items that both have (95 % interval of the bootstrap), and over equal training and "
            "sampling seeds (±). All: unweighted mean of the subsets' means.",
            *layout.notes("table-4"),
        ),
        is_toy=sources.is_toy,
    )


def _explain_difference(layout: Layout, system: str) -> Absent:
    # The side that is missing.
    missing = [name for name in (system, "C-FDM") if layout.measured.judged(layout.sources.label(name)) is None]
    if not missing:
        return Absent(f"{system} and C-FDM were judged on no item of this subset both")
    return explain_unscored(layout.sources, missing[0], "judge")
