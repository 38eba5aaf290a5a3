"""Render adaptive N in the report: what the rule's candidates are worth beside a fixed number of them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from wm.evaluation.report.charts import Line, line_chart
from wm.evaluation.report.page import prose, table

_HOW = (
    "Adaptive N, replayed on the same candidates: they are scored in rounds, each as large as all before it, until "
    "another one is expected to gain no more than the margin, in nats an action token. Beside each figure is what a "
    "fixed N gives for as many candidates on average. Every rotation of the candidates' order is replayed."
)


def adaptive_part(tables: Mapping[str, Any], metrics: Sequence[tuple[str, str, float]]) -> str:
    """Render the table by margin, and a chart a metric. ``metrics``: (name, heading, factor). Empty where nothing was
    replayed."""
    rows = [row for row in tables.get("adaptive", []) if row["margin"] is not None]
    if not rows:
        return ""
    header = ["model", "margin", "draws", *(word for _, word, _ in metrics)]
    cells = []
    for index, row in enumerate(rows):
        first = index == 0 or rows[index - 1]["label"] != row["label"]
        figures = [_render_cell(row, name, factor) for name, _, factor in metrics]
        count = f"{row['metrics']['draws']['mean']:.2f}"
        cells.append([escape(row["label"]) if first else "", f"{row['margin']:g}", count, *figures])
    charts = [_render_chart(tables["adaptive"], name, word, factor) for name, word, factor in metrics]
    inside = "".join(f'<div class="card">{chart}</div>' for chart in charts if chart)
    return f'<h3>Adaptive N</h3>{prose(_HOW)}{table(header, cells)}<div class="charts">{inside}</div>'


def _render_cell(row: Mapping[str, Any], name: str, factor: float) -> str:
    digits = 1 if factor == 100 else 3 if name == "l1" else 2
    mean, fixed = row["metrics"][name]["mean"] * factor, row["fixed"][name] * factor
    return f'{mean:.{digits}f} <span class="pm">fixed {fixed:.{digits}f}</span>'


def _render_chart(rows: Sequence[Mapping[str, Any]], name: str, word: str, factor: float) -> str:
    lines = []
    for colour, label in enumerate(dict.fromkeys(row["label"] for row in rows)):
        for is_fixed in (False, True):
            own = [row["metrics"] for row in rows if row["label"] == label and (row["margin"] is None) == is_fixed]
            points = sorted((metrics["draws"]["mean"], metrics[name]["mean"] * factor) for metrics in own)
            xs, ys = [x for x, _ in points], [y for _, y in points]
            lines.append(Line("" if is_fixed else label, xs, ys, colour, dashed=is_fixed))
    return line_chart(
        f"{word} by candidates sampled (dashed: fixed N)", lines, x_label="candidates sampled", y_label=word
    )
