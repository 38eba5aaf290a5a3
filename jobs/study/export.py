"""Export a study: its votes as CSV, Parquet or annotated tasks of Label Studio, or its items as tasks for Label Studio,
whose answers wm study import takes in.

  wm study export study=STUDY format=csv out=votes.csv
  wm study export study=STUDY format=label_studio_tasks out=tasks.json
  wm study export store=FILE format=csv out=votes.csv      (choices of a playground: wm serve comparisons=FILE)
"""

import json
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from wm import cli
from wm.config import Recipe
from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.evaluation.votes.tables import write_votes
from wm.files.mirror import publish, shown
from wm.paths import InputPath, OutputPath
from wm.runs import write_text
from wm.study.label_studio import LOCAL_FILES, build_annotated_tasks, build_config, build_tasks
from wm.study.playground import load_playground
from wm.study.reading import read_study_votes
from wm.study.study import load_study
from wm.study.vote_files import to_csv

CONFIG_SUFFIX: Final = ".xml"
"""Of the configuration of Label Studio's page, beside the tasks."""


class StudyExportRecipe(Recipe):
    """What of which study, and where to."""

    study: InputPath = ""
    """Output folder of wm study make; empty: the choices of a playground, in store."""
    format: Literal["csv", "parquet", "label_studio", "label_studio_tasks"] = "csv"
    """csv, parquet: a row a vote. label_studio: the votes as annotated tasks, which say whose each image is.
    label_studio_tasks: the items as tasks without answers, blind, and beside them a file .xml with the configuration of
    the labelling page."""
    out: OutputPath
    """The file, which must not be there yet."""
    store: InputPath = ""
    """File of the votes; empty: votes.sqlite in the study's folder."""
    order: int = Field(default=0, ge=0)
    """Of label_studio_tasks: number of the participant whose orders of systems the tasks have. One set of tasks shows
    all who annotate it one order, balanced over items; a set with another number for others balances it over people."""
    images: str = LOCAL_FILES
    """Of Label Studio's formats: address below which the images are, such as https://host/images/; the default is that
    of Label Studio's local files, with the study's folder as their root."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if not (self.study or self.store):
            raise ValueError("study is missing: expected the output folder of wm study make, or store=FILE alone")
        if self.format.startswith("label_studio") and not self.study:
            raise ValueError(f"format = {self.format!r} needs study: a playground keeps no images; give csv or parquet")
        return self


def run(recipe: StudyExportRecipe, *, dry_run: bool = False) -> int:
    """Write the file.

    Args:
        recipe: What of which study.
        dry_run: Print what would be written.

    Returns:
        How many votes or tasks were written, or would be.

    Raises:
        InputError: The study or its store cannot be read, or the file is there already.
    """
    out = Path(recipe.out)
    is_blind = recipe.format == "label_studio_tasks"
    paths = [out, out.with_name(out.name + CONFIG_SUFFIX)] if is_blind else [out]
    for path in paths:
        # Maybe somebody's only copy of votes.
        if path.exists():
            raise InputError(f"out = {shown(path)!r:.300} is there already; choose another name, or remove it")
    # Blind tasks need no vote: nobody may have voted yet.
    study = load_study(recipe.study) if recipe.study else load_playground(recipe.store)
    votes: list[Vote] = [] if is_blind else read_study_votes(study, recipe.study, recipe.store).votes
    count = len(study.items) if is_blind else len(votes)
    unit = "tasks" if is_blind else "votes"
    if dry_run:
        print(f"study export: would write {count:,} {unit} to {shown(out)}")
        return count
    # Everything is built before anything is written.
    if recipe.format == "parquet":
        out.parent.mkdir(parents=True, exist_ok=True)
        write_votes(votes, out)
    else:
        texts = [_build_text(recipe, votes), *([build_config(study)] if is_blind else [])]
        out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            write_text(path, text)
            # Of a bucket the copy here is not the output.
            publish(path)
    print(f"study export: {count:,} {unit} in {shown(out)}")
    if is_blind:
        print(f"  the labelling page's configuration: {shown(paths[1])}; answers come back by wm study import")
    return count


def _build_text(recipe: StudyExportRecipe, votes: list[Vote]) -> str:
    if recipe.format == "csv":
        return to_csv(votes)
    # Label Studio's two forms: without answers and without names, or with both.
    study = load_study(recipe.study)
    tasks = (
        build_tasks(study, number=recipe.order, images=recipe.images)
        if recipe.format == "label_studio_tasks"
        else build_annotated_tasks(study, votes, images=recipe.images)
    )
    return json.dumps(tasks, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(StudyExportRecipe, run, name="study export", description=__doc__ or "")
