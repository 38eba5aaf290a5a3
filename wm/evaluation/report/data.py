"""Render the sections of the report that come from the stages' own records: training, data, time."""

from collections.abc import Mapping
from html import escape
from typing import Any

from wm.evaluation.report.charts import Line, line_chart, thin_out
from wm.evaluation.report.findings import Findings, LossCurve, Stage
from wm.evaluation.report.page import prose, section, table

_KIND_WORDS = {"idm": "Inverse model: loss", "fdm": "Forward model: loss", "pretrain": "Base: loss"}
_DATA_KINDS = ("tabletop", "ingest", "annotate", "select")


def training_section(findings: Findings) -> str:
    """Render loss curves, one chart a task, one line a run."""
    if not findings.curves:
        return ""
    stages = {stage.name: stage for stage in findings.stages}
    labels = [findings.label_of(stages[curve.name]) for curve in findings.curves]
    colours = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    charts = []
    for kind in dict.fromkeys(curve.kind for curve in findings.curves):
        lines = [
            _build_loss_line(curve, label, colours[label])
            for curve, label in zip(findings.curves, labels, strict=True)
            if curve.kind == kind
        ]
        title = _KIND_WORDS.get(kind, f"{kind}: loss")
        chart = line_chart(title, lines, x_label="optimiser steps", y_label="nats/token")
        charts.append(f'<div class="card">{chart}</div>')
    explanation = (
        "Each line is one run; each point is the mean of a stretch of steps. The loss is the one trained on: "
        "with recognition weights, it is the weighted one, which compares with no other."
    )
    return section("training", "Training", prose(explanation), f'<div class="charts">{"".join(charts)}</div>')


def _build_loss_line(curve: LossCurve, label: str, colour: int) -> Line:
    points = thin_out(curve.losses)
    steps = [curve.steps[round(index)] for index, _ in points]
    return Line(label, steps, [loss for _, loss in points], colour, thin=True)


def data_section(findings: Findings) -> str:
    """Render what each data stage counted, and what was left out for which reason."""
    stages = [stage for stage in findings.stages if stage.kind in _DATA_KINDS]
    if not stages:
        return ""
    rows = [
        [escape(stage.name), escape(stage.kind), escape(_format_counts(stage.record.get("counts", {})))]
        for stage in stages
    ]
    parts = [table(["folder", "stage", "counted"], rows, wrap_last=True)]
    reasons = [
        [escape(stage.name), escape(reason.replace("_", " ")), f"{count:,}"]
        for stage in stages
        for reason, count in stage.record.get("counts", {}).get("rejects_by_reason", {}).items()
    ]
    if reasons:
        parts += ["<h3>Left out, by reason</h3>", table(["folder", "reason", "count"], reasons)]
    for stage in stages:
        classes = stage.record.get("counts", {}).get("by_class")
        if stage.kind == "select" and isinstance(classes, dict) and classes:
            parts += [f"<h3>Selected by class ({escape(stage.name)})</h3>", _render_class_table(classes)]
    return section("data", "Data", *parts)


def _format_counts(counts: Mapping[str, Any]) -> str:
    plain = {name: value for name, value in counts.items() if isinstance(value, int | float | str)}
    return " · ".join(
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int | float) else f"{name.replace('_', ' ')} {value}"
        for name, value in plain.items()
    )


def _render_class_table(classes: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for counts in classes.values() for name in counts))
    rows = [
        [escape(label or "(no class)"), *(_format_number(counts.get(name)) for name in columns)]
        for label, counts in classes.items()
    ]
    return table(["class", *columns], rows)


def _format_number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return escape(f"{value:,}" if isinstance(value, int) else str(value))


def timing_section(findings: Findings) -> str:
    """Render the wall-clock time of every stage and of its parts."""
    longest = max(float(stage.record.get("wall_s", 0.0)) for stage in findings.stages) or 1.0
    rows = []
    for stage in findings.stages:
        wall_s = float(stage.record.get("wall_s", 0.0))
        bar = f'<td class="barcell"><div class="bar" style="width:{100 * wall_s / longest:.1f}%"></div></td>'
        rows.append(
            [escape(stage.name), escape(_name_stage(stage)), f"{wall_s:,.1f}", bar, escape(_format_parts(stage))]
        )
    total = sum(float(stage.record.get("wall_s", 0.0)) for stage in findings.stages)
    rows.append(["all", "", f"{total:,.1f}", "<td></td>", ""])
    return section("time", "Time", table(["folder", "stage", "seconds", "", "of which"], rows, wrap_last=True))


def _name_stage(stage: Stage) -> str:
    task = stage.record.get("recipe", {}).get("task")
    return f"{stage.kind} {task}" if task else stage.kind


def _format_parts(stage: Stage) -> str:
    timings = stage.record.get("timings_s", {})
    return " · ".join(f"{name.removesuffix('_s').replace('_', ' ')} {value:,.1f}" for name, value in timings.items())
