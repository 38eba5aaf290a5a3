"""Render the report of a run: one HTML file that needs no other."""

import time
from collections.abc import Mapping
from html import escape
from pathlib import Path

from wm.evaluation.report.claims import Labels
from wm.evaluation.report.data import data_section, timing_section, training_section
from wm.evaluation.report.figures import claims_section, forward_section, inverse_section, probe_section
from wm.evaluation.report.findings import Findings, read_findings
from wm.evaluation.report.page import page, prose
from wm.evaluation.report.wall import wall_section


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
    name = title or f"World model run: {findings.folder.resolve().name}"
    sections = [
        ("claims", "Claims", claims_section(findings, labels, notes)),
        ("forward", "Forward dynamics", forward_section(findings)),
        ("inverse", "Inverse dynamics", inverse_section(findings)),
        ("probe", "Preference probe", probe_section(findings)),
        ("wall", "Examples", wall_section(findings)),
        ("training", "Training", training_section(findings)),
        ("data", "Data", data_section(findings)),
        ("time", "Time", timing_section(findings)),
    ]
    present = [(anchor, word, html) for anchor, word, html in sections if html]
    missing = [word for _, word, html in sections if not html]
    links = "".join(f'<a href="#{anchor}">{escape(word)}</a>' for anchor, word, _ in present)
    head = [f"<h1>{escape(name)}</h1>", prose(_describe_run(findings)), f"<nav>{links}</nav>"]
    if missing:
        head.append(prose(f"Left out, because this run folder holds nothing for it: {', '.join(missing)}."))
    return page(name, [*head, *(html for _, _, html in present)])


def _describe_run(findings: Findings) -> str:
    parts = []
    if findings.tables is not None:
        tables = findings.tables
        judge = "the tabletop's oracle" if tables["judge"] == "oracle" else "no judge, image distances only"
        count = len(tables["seeds"])
        parts.append(
            f"Measured on {tables['items']} held-out triplets with {count} sampling "
            f"seed{'s' * (count != 1)}; predictions scored by {judge}."
        )
    total_s = sum(float(stage.record.get("wall_s", 0.0)) for stage in findings.stages)
    parts.append(f"{len(findings.stages)} finished stages took {duration(total_s)} in all.")
    versions = sorted({str(stage.record.get("wm_version", "?")) for stage in findings.stages})
    parts.append(f"wm {', '.join(versions)}; report of {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.")
    return " ".join(parts)


def duration(seconds: float) -> str:
    """Format seconds: ``8.4 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
