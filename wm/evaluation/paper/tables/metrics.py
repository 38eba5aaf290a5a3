"""Build table 6: image metrics and the judge's score of every system, by subset."""

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table, mark_best
from wm.evaluation.paper.measured import AVERAGE
from wm.evaluation.paper.systems import explain_unscored
from wm.evaluation.paper.tables.common import Layout, cell_or, column_of, drop_empty
from wm.evaluation.paper.tables.judged import BEST_OF, judge_cell
from wm.evaluation.published import load_published
from wm.evaluation.rows import COPY

_METRICS = (
    ("L1", "l1", ""),
    ("CLIP-I", "clip_i", "clip=CLIP"),
    ("CLIP-T", "clip_t_{caption_of}", "clip=CLIP blip=BLIP"),
    ("DINO", "dino", "dino=DINO"),
)
"""Title, column of the scoring's values, and the keys of ``wm score`` that it needs."""


def build_metric_table(layout: Layout) -> Table:
    """Build table 6.

    Args:
        layout: The results.

    Returns:
        The table; systems that the paper does not have are behind the paper's.
    """
    printed = load_published()["table-6"]
    sources = layout.sources
    # Scored or judged: either fills a part of a column.
    labels = [str(row["system"]) for row in sources.values] + [score.system for score in sources.judgements]
    systems = [*printed.columns, *layout.extra_systems(printed.columns, labels)]
    columns = [_column(system) for system in systems]
    rows: list[tuple[str, str, list[Cell]]] = []
    # A group a subset: the metrics of images, then the judge.
    for subset in layout.subsets:
        group = subset_title(subset)
        for title, metric, key in _METRICS:
            name = metric.format(caption_of=layout.caption_of)
            cells = [
                layout.add_published(
                    _metric_cell(layout, system, subset, name, key), (printed, f"{group} {title}", system)
                )
                for system in systems
            ]
            rows.append((group, title, cells))
        rows.append((group, layout.judge, _judge_row(layout, systems, subset, f"{group} GPT-4o")))
    rows.append(("All", layout.judge, _judge_row(layout, systems, AVERAGE, "All GPT-4o")))
    filled = drop_empty(columns, [cells for *_, cells in rows])
    columns = [columns[number] for number in filled]
    return Table(
        key="table-6",
        title=f"Image metrics and {layout.judge} score by subset",
        columns=tuple(columns),
        rows=tuple(
            Row(title, mark_best([cells[number] for number in filled], columns), group, is_summary=group == "All")
            for group, title, cells in rows
        ),
        source=printed.source if layout.is_published else "",
        notes=(
            *layout.judge_notes(),
            "L1: mean absolute difference of RGB in 0 to 1 over the full target, lower is better. CLIP-I, DINO: cosine "
            "of prediction and target. CLIP-T: cosine of the prediction and a BLIP caption of the "
            f"{layout.caption_of}. Of our models these are means over all candidates. +Best-of-3: the sample of three "
            "that the judge likes best.",
            *layout.notes("table-6"),
        ),
        is_toy=sources.is_toy,
    )


def _column(system: str) -> Column:
    if system == COPY:
        return Column(system, "reference")
    if system.endswith(BEST_OF):
        return Column("+Best-of-3", "oracle", key=system)
    return column_of(system)


def _judge_row(layout: Layout, systems: list[str], subset: str, row: str) -> list[Cell]:
    printed = load_published()["table-6"]
    return [
        layout.add_published(judge_cell(layout, system, subset, digits=3), (printed, row, system)) for system in systems
    ]


def _metric_cell(layout: Layout, system: str, subset: str, metric: str, key: str) -> Cell:
    measured, sources = layout.measured, layout.sources
    # A distance; all others are similarities.
    lower = metric == "l1"
    if system.endswith(BEST_OF):
        base = system.removesuffix(BEST_OF)
        cell = measured.best_metric_cell(sources.label(base), subset, metric, lower_is_better=lower)
        # What the choice lacks is the judge's: without it there is no best.
        if cell is None and measured.metric_cell(sources.label(base), subset, metric) is not None:
            return judge_cell(layout, system, subset, digits=3)
        return cell_or(cell, explain_unscored(sources, base, "score", key), digits=3)
    label = sources.label(system)
    cell = measured.metric_cell(label, subset, metric, lower_is_better=lower)
    # Scored elsewhere by the same metric: no command is missing, but predictions.
    if cell is None and any(measured.metric_cell(label, name, metric) for name in layout.subsets):
        return Cell(absent=Absent(f"no prediction of {system} on a subset was scored"), digits=3)
    return cell_or(cell, explain_unscored(sources, system, "score", key), digits=3)
