"""Make the paper's tables and figures from result folders: Markdown, LaTeX and CSV of each table, SVG and PNG of each
figure, and one HTML page. One's own numbers stand beside the published ones; an empty cell names the command for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.paper import report
from jobs.paper.recipe import PaperRecipe
from wm import cli
from wm.datasets.statistics import count_table7
from wm.evaluation.paper.cells import Table
from wm.evaluation.paper.drawing import draw_figure
from wm.evaluation.paper.formats import to_csv, to_latex, to_markdown
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.page import RenderedFigure, list_empty, render_page
from wm.evaluation.paper.sources import Sources, read_sources
from wm.evaluation.paper.tables import TABLES
from wm.evaluation.paper.tables.common import Layout
from wm.files.atomic import replace_file
from wm.files.mirror import shown, uri_of
from wm.runs import Run, RunRecord, digest_of, read_run, write_text

PAGE = "paper.html"


def run(recipe: PaperRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the tables, the figures and ``paper.html`` below ``out``.

    Args:
        recipe: Which of them, from which results.
        dry_run: Print what would be there and what would be absent, with the command that would give it.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A folder is no finished result, two are of different benches, or hold one system both.
    """
    # 1. Check all folders before anything is made.
    inputs = {f"results {number}": digest_of(folder) for number, folder in enumerate(recipe.results)}
    read_beside = {"triplets": recipe.triplets, "codec": recipe.figures.codec}
    inputs |= {name: digest_of(folder) for name, folder in read_beside.items() if folder}
    job = Run(recipe.out, "paper", recipe, inputs)
    if job.is_complete():
        print(f"{recipe.out} is complete: nothing to do")
        return read_run(recipe.out) or {}
    sources = read_sources(
        recipe.results, names=recipe.names, triplets=recipe.triplets, subset=recipe.subset, options=recipe.figures
    )
    report.print_sources(sources)
    if dry_run:
        tables, figures, _ = _make(recipe, sources)
        report.print_items(tables, figures)
        report.print_empty(list_empty(tables, figures))
        return {}
    # 2. Make everything, then write: bad input among it leaves no half of a page.
    job.start()
    with job.timed("make"):
        tables, figures, figure_csv = _make(recipe, sources)
    # Copies of buckets are of this node: what is written names URIs.
    paths = (*recipe.results, recipe.triplets, sources.triplets, recipe.out)
    names = {path: shown(path) for path in paths if uri_of(path) is not None}
    with job.timed("write"):
        _write_tables(job.out, tables, names)
        _write_figures(job.out, figures, figure_csv)
        html = render_page(
            tables, figures, title=recipe.title, about=report.describe_sources(sources), is_toy=sources.is_toy
        )
        write_text(job.out / PAGE, _write_uris(html, names))
    # What is empty is counted too: a page without gaps says so.
    empty = list_empty(tables, figures)
    counts = {
        "tables": len(tables),
        "figures": sum(figure.absent is None for figure in figures),
        "absent_figures": sum(figure.absent is not None for figure in figures),
        "filled_cells": sum(cell.mean is not None for table in tables for row in table.rows for cell in row.cells),
        "empty_cells": sum(cell.absent is not None for table in tables for row in table.rows for cell in row.cells),
        "reasons": len(empty),
    }
    record = job.finish(counts)
    report.print_items(tables, figures)
    report.print_empty(empty)
    print(f"paper: {counts['filled_cells']:,} cells filled, {counts['empty_cells']:,} empty: {job.out / PAGE}")
    return record


def _make(recipe: PaperRecipe, sources: Sources) -> tuple[list[Table], list[RenderedFigure], dict[str, str]]:
    """Build the tables and draw the figures; of figures the data as CSV too."""
    layout = Layout(Measured(sources), recipe.version, recipe.caption_of, count_table7)
    tables: list[Table] = []
    figures: list[RenderedFigure] = []
    figure_csv: dict[str, str] = {}
    # One bar over both: a figure with images takes longest.
    items = recipe.chosen()
    with cli.progress_bar(len(items), "item", "paper") as bar:
        for item in items:
            bar.set_postfix_str(item)
            kind, number = item.split()
            if kind == "table":
                tables.append(TABLES[number](layout))
            else:
                figure, text = draw_figure(number, sources)
                figures.append(figure)
                figure_csv[figure.key] = text
            bar.update()
    return tables, figures, figure_csv


def _write_uris(text: str, names: Mapping[str, str]) -> str:
    """Replace the paths of local copies by what they are copies of."""
    for path, uri in names.items():
        text = text.replace(path, uri)
    return text


def _write_tables(out: Path, tables: Sequence[Table], names: Mapping[str, str]) -> None:
    for table in tables:
        # Three forms of the same cells.
        for ending, text in (("md", to_markdown(table)), ("tex", to_latex(table)), ("csv", to_csv(table))):
            write_text(out / f"{table.key}.{ending}", _write_uris(text, names))


def _write_figures(out: Path, figures: Sequence[RenderedFigure], figure_csv: dict[str, str]) -> None:
    for figure in figures:
        if figure.absent is not None:
            continue
        for ending, data in (("svg", figure.svg), ("png", figure.png), ("csv", figure_csv[figure.key].encode())):
            # Figures without a table of their data have no CSV.
            if data:
                with replace_file(out / f"{figure.key}.{ending}") as temporary:
                    temporary.write_bytes(data)


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(PaperRecipe, run, name="paper", description=__doc__ or "")
