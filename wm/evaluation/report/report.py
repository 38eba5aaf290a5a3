"""Render the report of a run: one HTML file that needs no other."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from wm.errors import InputError
from wm.evaluation.report.claims import Labels
from wm.evaluation.report.data import data_section, timing_section, training_section
from wm.evaluation.report.figures import (
    claims_section,
    forward_section,
    inverse_section,
    probe_section,
    sensitivity_section,
)
from wm.evaluation.report.findings import Findings, read_findings
from wm.evaluation.report.images import heat_uri, image_uri
from wm.evaluation.report.templates import render

PAPER_PAGE = "paper.html"


class _Section(NamedTuple):
    anchor: str
    title: str
    html: Markup
    is_optional: bool = False  # a complete run may lack it


def render_report(folder: str | Path, labels: Labels, notes: Mapping[str, str], *, title: str = "") -> str:
    """Render everything found below ``folder`` as HTML; what is missing is left out and named.

    Args:
        folder: Folder of the run, with its stages' folders below it.
        labels: Which label of the tables plays which part in the claims.
        notes: Claim key → text shown with that claim.
        title: Headline; empty: the name of the folder.

    Returns:
        The page.

    Raises:
        InputError: If there is nothing to report.
    """
    findings = read_findings(folder)
    sections = [
        _Section("claims", "Claims", claims_section(findings, labels, notes)),
        _Section("sensitivity", "Action sensitivity", sensitivity_section(findings), is_optional=True),
        _Section("forward", "Forward dynamics", forward_section(findings)),
        _Section("inverse", "Inverse dynamics", inverse_section(findings)),
        _Section("probe", "Preference probe", probe_section(findings)),
        _Section("paper", "The paper's tables and figures", paper_section(findings), is_optional=True),
        _Section("wall", "Examples", examples_section(findings)),
        _Section("training", "Training", training_section(findings)),
        _Section("data", "Data", data_section(findings)),
        _Section("time", "Time", timing_section(findings)),
    ]
    return render(
        "page.html",
        title=title or f"World model run: {findings.folder.resolve().name}",
        about=_describe_run(findings),
        sections=[section for section in sections if section.html],
        # Named, so that nobody takes an unfinished run for a complete one.
        missing=[section.title for section in sections if not section.html and not section.is_optional],
    )


def examples_section(findings: Findings) -> Markup:
    """Render the wall of examples: images, change weights, and every model's candidates."""
    if not findings.examples or findings.evaluation is None:
        return Markup()
    folder = findings.evaluation.folder
    return render(
        "wall.html",
        examples=findings.examples,
        uri=lambda name: image_uri(folder / name),
        heat_uri=heat_uri,
    )


def paper_section(findings: Findings) -> Markup:
    """Render the pages that ``wm paper`` made in the run.

    Args:
        findings: What the run holds.

    Returns:
        HTML; empty without such a page.

    Raises:
        InputError: A page is missing, though its stage is complete.
    """
    pages = []
    # Into the report itself, which is sent as one file.
    for stage in findings.of("paper"):
        path = stage.folder / PAPER_PAGE
        try:
            pages.append({"folder": stage.name, "html": path.read_text(encoding="utf-8")})
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is missing or damaged, though its stage is complete") from error
    return render("paper.html", pages=pages) if pages else Markup()


def _describe_run(findings: Findings) -> str:
    parts = []
    if findings.tables is not None:
        tables = findings.tables
        judge = "the tabletop's oracle" if tables["judge"] == "oracle" else "no judge, image distances only"
        # Sampling seeds: training seeds are in the tables' spread.
        count = len(tables["seeds"])
        parts.append(
            f"Measured on {tables['items']} held-out triplets with {count} sampling "
            f"seed{'s' * (count != 1)}; predictions scored by {judge}."
        )
    count = len(findings.stages)
    parts.append(f"{count} finished stage{'s' * (count != 1)} took {format_duration(findings.wall_s)} of wall time.")
    versions = sorted({str(stage.record.get("wm_version", "?")) for stage in findings.stages})
    parts.append(f"wm {', '.join(versions)}; report of {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.")
    return " ".join(parts)


def format_duration(seconds: float) -> str:
    """Format seconds: ``8.4 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
