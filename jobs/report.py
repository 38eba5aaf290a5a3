"""Write the report of a run: one HTML file with tables, curves, examples, timings and verdicts on the
claims."""

import sys
from typing import Any

from pydantic import Field

from wm import cli
from wm.config import Recipe
from wm.evaluation.report.claims import Labels
from wm.evaluation.report.findings import read_findings
from wm.evaluation.report.report import render_report
from wm.files.mirror import shown, uri_of
from wm.paths import OutputPath, TablePath
from wm.runs import Run, digest_of, write_text

FILE = "report.html"


class ReportRecipe(Recipe):
    """Which run, and what is said about it."""

    run: TablePath
    """Folder of the run, with its stages' folders below it."""
    out: OutputPath
    """Output folder; the report is out/report.html."""
    title: str = ""
    """Headline; empty: the name of the run's folder."""
    labels: Labels = Labels()
    """Which label of the tables plays which part in the claims."""
    notes: dict[str, str] = Field(default_factory=dict)
    """Text shown with a claim, by the claim's key: asymmetry, probe-idm-before, probe-idm-after,
    probe-fdm-before, probe-fdm-after, bootstrapping, weights, verification-LABEL."""


def run(recipe: ReportRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Render and write ``out/report.html``.

    Args:
        recipe: Which run.
        dry_run: Report the number of stages only.

    Returns:
        The record that ``run.json`` holds; empty on a dry run and where the report is up to date.

    Raises:
        InputError: On a folder without a finished stage, or with a damaged file.
    """
    findings = read_findings(recipe.run)
    inputs = {f"stage {stage.name}": digest_of(stage.folder) for stage in findings.stages}
    job = Run(recipe.out, "report", recipe, inputs)
    path = job.out / FILE
    # Stages are known by content: one that has run again makes the report outdated.
    if job.is_complete():
        print(f"{path} is up to date")
        return {}
    if dry_run:
        print(f"would report {len(findings.stages)} stages of {recipe.run} in {path}")
        return {}
    job.start()
    with job.timed("render"):
        # One file, images included, so that a report can be sent as it is.
        html = render_report(recipe.run, recipe.labels, recipe.notes, title=recipe.title)
        # A copy of a bucket is of this node: the report names the URI.
        write_text(path, html if uri_of(recipe.run) is None else html.replace(recipe.run, shown(recipe.run)))
    record = job.finish({"stages": len(findings.stages), "bytes": len(html.encode())})
    print(f"report of {len(findings.stages)} stages: {path} ({len(html) / 1e6:.1f} MB)")
    return record


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(ReportRecipe, run, name="report", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
