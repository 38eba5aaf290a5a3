"""Report a study with people: mean votes by subset and system (the paper's table 5) with tests, intervals, agreement,
win rates and, given the scores of wm judge, how far people and judge agree; a page with charts, the votes as a table.

  wm study report study=STUDY reference=C-FDM judge=JUDGED out=REPORT
  wm study report store=FILE out=REPORT                    (choices of a playground: wm serve comparisons=FILE)
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from wm import cli
from wm.config import Recipe
from wm.evaluation.bench_rows import read_bench_rows
from wm.evaluation.paper.drawing import save_png, save_svg
from wm.evaluation.recorded_inputs import fetch_recorded
from wm.evaluation.votes.arrays import VotedItem
from wm.evaluation.votes.charts import draw_means, draw_positions, draw_wins
from wm.evaluation.votes.figures import TABLE_FILE, StudyFigures
from wm.evaluation.votes.formats import to_csv, to_markdown, to_text
from wm.evaluation.votes.judged import ShownImages, read_judge
from wm.evaluation.votes.page import Chart, render_page
from wm.evaluation.votes.report import StudyFacts, build_figures
from wm.evaluation.votes.selection import CountedVotes, Kind, Rule, select_votes
from wm.evaluation.votes.tables import VOTES_FILE, write_votes
from wm.files.atomic import replace_file
from wm.paths import InputPath, OutputPath
from wm.runs import Run, RunRecord, digest_of, read_run, write_json, write_text
from wm.study.playground import STUDY_ID, load_playground
from wm.study.reading import StoredVotes, read_study_votes
from wm.study.study import Study, load_study

PAGE: Final = "report.html"
PAPER_REFERENCE: Final = "C-FDM"
STAGE: Final = "study"
"""Stage of the folder, by which ``wm paper`` knows it."""


class StudyReportRecipe(Recipe):
    """Whose votes, and what they are held against."""

    study: InputPath = ""
    """Output folder of wm study make; empty: the choices of a playground, in store."""
    store: InputPath = ""
    """File of the votes; empty: votes.sqlite in the study's folder."""
    reference: str = ""
    """System that the others are tested against; empty: C-FDM, as the paper's table 5 has it, or of a playground the
    first model by name."""
    judge: InputPath = ""
    """Output folder of wm judge over the same predictions: win rates of the judge, Spearman between votes and scores,
    on how many items both name the same best; empty: without."""
    out: OutputPath
    """Folder for report.html, table.json, table.csv, table.md, votes.parquet and the charts."""
    kind: Kind | None = None
    """people or simulated: whose votes, where the store holds both, which are never mixed."""
    failed_checks: Rule = "keep"
    """What is done with the votes of participants who failed an attention check: keep or leave_out."""
    incomplete: Rule = "keep"
    """What is done with the votes of participants who have not voted on all items: keep or leave_out."""
    fast_s: float = Field(default=3.0, ge=0)
    """Votes given in less time, s, are named as too fast; they count all the same."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if not (self.study or self.store):
            raise ValueError("study is missing: expected the output folder of wm study make, or store=FILE alone")
        if self.judge and not self.study:
            raise ValueError("judge without study: a judge scores predictions of a bench, which a playground has not")
        return self


def run(recipe: StudyReportRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the report below ``out`` and print its table.

    Args:
        recipe: Whose votes.
        dry_run: Print the table, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The study, its store or the judging cannot be read, no vote counts, or there are votes of both
            kinds.
    """
    # 1. Read everything before anything is written.
    study = load_study(recipe.study) if recipe.study else load_playground(recipe.store)
    stored = read_study_votes(study, recipe.study, recipe.store)
    digests = {"votes": _digest(stored)} | ({"study": digest_of(recipe.study)} if recipe.study else {})
    digests |= {"judge": digest_of(recipe.judge)} if recipe.judge else {}
    # Under another name: the paper's tables must not take choices about images that people picked for its study.
    stage = Run(recipe.out, STAGE if recipe.study else STUDY_ID, recipe, digests)
    is_complete = stage.is_complete()
    # 2. The figures.
    counted, figures = _compute(recipe, study, stored)
    print(to_text(figures))
    if dry_run:
        return {}
    if is_complete:
        print(f"study report: {recipe.out} is complete: nothing to write")
        return read_run(recipe.out) or {}
    # 3. The files.
    stage.start()
    with stage.timed("write"):
        _write(stage.out, figures, counted)
    counts = {
        "votes": figures["num_votes"],
        "participants": len(figures["participants"]),
        "items": sum(figures["items"].values()),
        "votes_left_out": figures["left_out"],
        "votes_on_checks": sum(person["num_checks"] for person in figures["participants"]),
    }
    record = stage.finish(counts, kind=figures["kind"], datasets=_list_datasets(recipe.study, study))
    print(f"study report: {stage.out / PAGE}")
    return record


def _compute(recipe: StudyReportRecipe, study: Study, stored: StoredVotes) -> tuple[CountedVotes, StudyFigures]:
    """Choose the votes that count, and compute all figures of them."""
    # Attention checks are no items of any figure.
    items = [item for item in study.items if not item.is_check]
    counted = select_votes(
        stored.votes,
        [item.item_id for item in items],
        {participant.code: participant.origin for participant in stored.participants},
        kind=recipe.kind,
        failed_checks=recipe.failed_checks,
        incomplete=recipe.incomplete,
        fast_s=recipe.fast_s,
        shows_all=bool(recipe.study),
    )
    figures = build_figures(
        StudyFacts(
            study_id=study.study_id,
            title=study.title,
            systems=study.systems,
            items=tuple(VotedItem(item.item_id, item.triplet_id, item.subset) for item in items),
            num_planned=study.num_participants,
            num_withdrawn=stored.num_withdrawn,
            shows_all=bool(recipe.study),
        ),
        counted,
        reference=recipe.reference or (PAPER_REFERENCE if recipe.study else study.systems[0]),
        judge=read_judge(recipe.judge, _find_images(recipe.study)) if recipe.judge else None,
        fast_s=recipe.fast_s,
        failed_checks=recipe.failed_checks,
        incomplete=recipe.incomplete,
        seed=recipe.seed,
    )
    return counted, figures


def _digest(stored: StoredVotes) -> str:
    """Compute a digest of all that a report says of a store: one of fewer votes, or people, is another run."""
    # In their order, so that what is added later is another digest.
    text = json.dumps(asdict(stored), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _find_images(folder: str) -> dict[str, ShownImages]:
    """Find which images of each system the study shows, as its record says."""
    # Studies that were put together otherwise have no such record: then single candidates are compared.
    entries = (read_run(folder) or {}).get("systems", [])
    return {
        entry["system"]: ShownImages(entry["run"], entry["sampling_seed"], entry["num_candidates"]) for entry in entries
    }


def _list_datasets(folder: str, study: Study) -> list[str]:
    """List the data sets of the study's bench, so that those of the toy world are known; none where it has gone."""
    # The toy world must be known as such wherever its figures are shown.
    bench = (read_run(folder) or {}).get("recipe", {}).get("triplets", "") if folder else ""
    path = fetch_recorded(str(bench)) if bench else ""
    if not path or not Path(path).is_dir():
        return []
    rows = read_bench_rows(path)
    # A folder that holds another bench by now says nothing of this study.
    ids = {item.triplet_id for item in study.items if not item.is_check}
    return sorted({row.dataset for row in rows}) if ids <= {row.triplet_id for row in rows} else []


def _write(out: Path, figures: StudyFigures, counted: CountedVotes) -> None:
    """Write the votes, the tables, the charts and the page."""
    write_votes(counted.votes, out / VOTES_FILE)
    write_json(out / TABLE_FILE, figures)
    write_text(out / "table.csv", to_csv(figures))
    write_text(out / "table.md", to_markdown(figures))
    names: tuple[tuple[Literal["votes", "wins", "positions"], str], ...] = (
        ("votes", "Mean vote of each system, with its 95 % interval over items and people; the reference in orange."),
        ("wins", "On which share of items a row's system has the higher mean vote than a column's; blue: more often."),
        ("positions", "How often each position was chosen; dashed: what is expected where position plays no part."),
    )
    drawings = {"votes": draw_means, "wins": draw_wins, "positions": draw_positions}
    # Vectors for the page, pixels for slides.
    charts = []
    for name, caption in names:
        figure = drawings[name](figures)
        charts.append(Chart(name, caption, save_svg(figure)))
        for ending, data in (("svg", charts[-1].svg), ("png", save_png(figure))):
            with replace_file(out / f"{name}.{ending}") as temporary:
                temporary.write_bytes(data)
    write_text(out / PAGE, render_page(figures, charts))


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(StudyReportRecipe, run, name="study report", description=__doc__ or "")
