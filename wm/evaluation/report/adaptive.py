"""Render adaptive N in the report: what the rule's candidates are worth beside a fixed number of them."""

from collections.abc import Sequence

from markupsafe import Markup

from wm.evaluation.report.cells import METRICS, Cell, Grid
from wm.evaluation.report.charts import Line, line_chart
from wm.evaluation.report.templates import render
from wm.evaluation.rows import AdaptiveRow


def adaptive_part(rows: Sequence[AdaptiveRow], names: Sequence[str]) -> Markup:
    """Render the table by minimum gain, and a chart a metric.

    Args:
        rows: ``adaptive`` of ``tables.json``.
        names: Metrics, keys of :data:`METRICS`.

    Returns:
        HTML; empty where nothing was replayed.
    """
    adaptive_rows = [row for row in rows if row["margin"] is not None]
    if not adaptive_rows:
        return Markup()
    cells: list[list[str | Cell]] = []
    label = ""
    for row in adaptive_rows:
        # A label is shown once, in its first row.
        first, label = ("" if row["label"] == label else row["label"]), row["label"]
        count = f"{row['metrics']['draws']['mean']:.2f}"
        cells.append([first, f"{row['margin']:g}", count, *(_compare_cell(row, name) for name in names)])
    charts = [_draw_chart(rows, name) for name in names]
    return render(
        "adaptive.html",
        rows=Grid(["model", "min gain", "candidates", *(METRICS[name].word for name in names)], cells),
        charts=[chart for chart in charts if chart],
    )


def _compare_cell(row: AdaptiveRow, name: str) -> Cell:
    metric = METRICS[name]
    return Cell(metric.text(row["metrics"][name]["mean"]), f" fixed {metric.text(row['fixed'][name])}")


def _draw_chart(rows: Sequence[AdaptiveRow], name: str) -> Markup:
    metric = METRICS[name]
    lines = []
    for colour, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        for is_fixed in (False, True):
            own = [row["metrics"] for row in rows if row["label"] == label and (row["margin"] is None) == is_fixed]
            # By what they cost, which is what adaptive N saves.
            points = sorted((metrics["draws"]["mean"], metrics[name]["mean"] * metric.scale) for metrics in own)
            xs, ys = [x for x, _ in points], [y for _, y in points]
            lines.append(Line("" if is_fixed else label, xs, ys, colour, dashed=is_fixed))
    return line_chart(
        f"{metric.word} by candidates sampled (dashed: fixed N)",
        lines,
        x_label="candidates sampled",
        y_label=metric.word,
    )
