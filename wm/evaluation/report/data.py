"""Render the sections of the report that come from the stages' own records: training, data, time."""

from collections.abc import Mapping

from markupsafe import Markup

from wm.evaluation.report.cells import Grid
from wm.evaluation.report.charts import Line, line_chart, thin_out
from wm.evaluation.report.findings import Findings, LossCurve, Stage
from wm.evaluation.report.templates import render

_KIND_WORDS = {"idm": "Inverse model: loss", "fdm": "Forward model: loss", "pretrain": "Base: loss"}
_DATA_KINDS = ("tabletop", "ingest", "annotate", "select")


def training_section(findings: Findings) -> Markup:
    """Render loss curves, one chart a task, one line a run."""
    if not findings.curves:
        return Markup()
    stages = {stage.name: stage for stage in findings.stages}
    labels = [findings.label_of(stages[curve.name]) for curve in findings.curves]
    # A label has one colour in all charts.
    colours = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    charts = []
    for kind in dict.fromkeys(curve.kind for curve in findings.curves):
        lines = [
            _build_loss_line(curve, label, colours[label])
            for curve, label in zip(findings.curves, labels, strict=True)
            if curve.kind == kind
        ]
        title = _KIND_WORDS.get(kind, f"{kind}: loss")
        charts.append(line_chart(title, lines, x_label="optimiser steps", y_label="nats/token"))
    return render("training.html", charts=charts)


def _build_loss_line(curve: LossCurve, label: str, colour: int) -> Line:
    # A mean has no step of its own: it is plotted at the middle one of its stretch.
    points = thin_out(curve.losses)
    steps = [curve.steps[round(index)] for index, _ in points]
    return Line(label, steps, [loss for _, loss in points], colour, thin=True)


def data_section(findings: Findings) -> Markup:
    """Render what each data stage counted, and what was left out for which reason."""
    stages = [stage for stage in findings.stages if stage.kind in _DATA_KINDS]
    if not stages:
        return Markup()
    # A row a stage and reason, so that loss is seen where it happens.
    reasons = [
        [stage.name, reason.replace("_", " "), f"{count:,}"]
        for stage in stages
        for reason, count in stage.table("counts", "rejects_by_reason").items()
    ]
    # Only stages that chose by class have such a table.
    selections = [
        (stage.name, _build_class_grid(classes))
        for stage in stages
        if stage.kind == "select" and (classes := stage.table("counts", "by_class"))
    ]
    rows = [[stage.name, stage.kind, _format_counts(stage.table("counts"))] for stage in stages]
    return render(
        "data.html",
        stages=Grid(["folder", "stage", "counted"], rows),
        reasons=Grid(["folder", "reason", "count"], reasons),
        selections=selections,
    )


def _format_counts(counts: Mapping[str, object]) -> str:
    return " · ".join(
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int | float) else f"{name.replace('_', ' ')} {value}"
        for name, value in counts.items()
        if isinstance(value, int | float | str)
    )


def _build_class_grid(classes: Mapping[str, Mapping[str, object]]) -> Grid:
    # Classes of an earlier version may lack a column.
    columns = list(dict.fromkeys(name for counts in classes.values() for name in counts))
    rows = [
        [label or "(no class)", *(_format_number(counts.get(name)) for name in columns)]
        for label, counts in classes.items()
    ]
    return Grid(["class", *columns], rows)


def _format_number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def timing_section(findings: Findings) -> Markup:
    """Render the wall-clock time of every stage and of its parts."""
    stages = [
        {"name": stage.name, "kind": _name_stage(stage), "wall_s": stage.wall_s, "parts": _format_parts(stage)}
        for stage in findings.stages
    ]
    times_s = [stage.wall_s for stage in findings.stages]
    return render("time.html", stages=stages, longest_s=max(times_s) or 1.0, total_s=findings.wall_s)


def _name_stage(stage: Stage) -> str:
    task = stage.table("recipe").get("task")
    return f"{stage.kind} {task}" if task else stage.kind


def _format_parts(stage: Stage) -> str:
    timings = stage.table("timings_s").items()
    return " · ".join(f"{name.removesuffix('_s').replace('_', ' ')} {value:,.1f}" for name, value in timings)
