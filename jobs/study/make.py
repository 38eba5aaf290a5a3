"""Make a study of prediction sets: choose triplets of each subset at random, bring all images to one form under random
names, and write study.json. By default the protocol of the paper: 5 triplets of each subset, 14 participants, best and
worst by three criteria."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from jobs.study.plan import count_study, print_plan
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.evaluation.bench_rows import BenchRow, read_bench_rows
from wm.evaluation.predictions import check_systems, list_predictions
from wm.evaluation.rows import check_label
from wm.evaluation.subsets import SubsetColumn
from wm.files.mirror import shown
from wm.paths import INPUT, InputPath, OptionalInputPath, OutputPath
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.study.assembly import StudySettings, assemble_study, iterate_images, resume_study
from wm.study.design import SystemChoice, choose_predictions, choose_rows
from wm.study.images import write_images
from wm.study.study import IMAGES, Study, write_study
from wm.study.texts import INSTRUCTIONS, TITLE, build_consent, load_text

_MAX_NAMED = 20
"""Triplets that the record names where there are many."""


class StudyMakeRecipe(Recipe):
    """Whose predictions people compare, and on how many triplets."""

    predictions: Annotated[list[InputPath], INPUT] = Field(min_length=1)
    """Prediction sets: output folders of wm evaluate, wm collect, wm edit."""
    triplets: InputPath
    """Folder of the bench's triplets, which have sources and actions."""
    out: OutputPath
    """Output folder: study.json, images, run.json; later votes.sqlite. study.json says whose an image is: nobody who
    takes part may see the folder."""
    systems: list[str] = []
    """Compare these systems, in this order of tables; empty: all of the sets. From 2 to 10."""
    subset: SubsetColumn = "class_label"
    """Column whose values are the table's rows."""
    per_subset: int = Field(default=5, ge=1)
    """Triplets of each subset, chosen at random among those that all systems have a prediction for."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of triplets. Names and orders depend on random numbers besides, which study.json keeps."""
    participants: int = Field(default=14, ge=1, le=10_000)
    """How many people are planned; more or fewer may take part. Positions of systems are balanced over each K of them,
    K being the number of systems."""
    num_candidates: int = Field(default=1, ge=1)
    """Show what the verifier chooses among so many candidates; of systems without a verifier, and with 1, the first
    candidate. Always of the lowest run and sampling seed of a system."""
    image_px: int = Field(default=0, ge=0, le=2048)
    """Width and height of every image; 0: the largest at which no prediction is enlarged, 512 at most."""
    attention_checks: int = Field(default=0, ge=0, le=20)
    """Add so many items whose answer is known, and which count in no figure: the true target of another triplet among
    copies of it that are spoilt more and more."""
    title: str = Field(default=TITLE, min_length=1, max_length=200)
    """Headline of the pages."""
    instructions: OptionalInputPath = None
    """Text file that says how to choose, paragraphs separated by empty lines; left out: the paper's criteria."""
    consent: OptionalInputPath = None
    """Text file that a participant agrees to; left out: a short text on what is stored. Your institution may have its
    own."""

    @field_validator("predictions", "systems")
    @classmethod
    def _check_distinct(cls, values: list[str]) -> list[str]:
        if len(set(values)) != len(values):
            raise ValueError("expected different names")
        return values

    @field_validator("systems")
    @classmethod
    def _check_labels(cls, values: list[str]) -> list[str]:
        # Names of references, such as Copy, are no systems of a set.
        return [check_label(value) for value in values]


def run(recipe: StudyMakeRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the study below ``out``.

    Args:
        recipe: Whose predictions, how many triplets.
        dry_run: Check everything and print what the study would show.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A set or the bench is wrong, a subset has too few triplets, or the folder holds another run.
    """
    # 1. Choose before anything is written. Two systems of one name would share a row of the table.
    rows = read_bench_rows(recipe.triplets)
    sets = [(folder, list_predictions(folder)) for folder in recipe.predictions]
    check_systems(sets)
    facts = [row for _, own in sets for row in own]
    choices = choose_predictions(facts, [row.triplet_id for row in rows], recipe.systems, recipe.num_candidates)
    design = choose_rows(rows, choices, recipe.subset, recipe.per_subset, recipe.seed)
    study = assemble_study(design, choices, _settings(recipe, len(design.rows), len(choices)))
    stage = Run(recipe.out, "study-make", recipe, _digest_inputs(recipe))
    if stage.is_complete():
        print(f"study: already complete in {shown(recipe.out)}")
        return read_run(recipe.out) or {}
    counts = count_study(study, len(rows), design, choices)
    print_plan(study, counts, design, choices)
    if dry_run:
        return {}
    # 2. The names first: a killed run resumes with them, so that no image is there under two.
    stage.start()
    study = resume_study(study, stage.out)
    write_study(study, stage.out)
    with stage.timed("images"):
        _write_all(study, rows, choices, stage.out / IMAGES)
    # 3. What was shown of whom, for whoever compares the votes with figures of the same images.
    names = ("system", "run", "sampling_seed", "num_candidates")
    record = stage.finish(
        dict(counts),
        systems=[{name: getattr(choice, name) for name in names} for choice in choices],
        missing={system: ids[:_MAX_NAMED] for system, ids in design.missing.items() if ids},
    )
    folder = shown(recipe.out)
    print(f"study: {len(study.items)} items in {folder}; to see its pages: wm study serve study={folder}")
    return record


def _settings(recipe: StudyMakeRecipe, num_rows: int, num_systems: int) -> StudySettings:
    # Checks are pages too: the text says how long it takes.
    consent = build_consent(num_rows + recipe.attention_checks, num_systems)
    return StudySettings(
        title=recipe.title,
        consent=consent if recipe.consent is None else load_text(recipe.consent, "consent"),
        instructions=INSTRUCTIONS if recipe.instructions is None else load_text(recipe.instructions, "instructions"),
        num_participants=recipe.participants,
        seed=recipe.seed,
        image_px=recipe.image_px,
        subset=recipe.subset,
        num_checks=recipe.attention_checks,
    )


def _digest_inputs(recipe: StudyMakeRecipe) -> dict[str, str]:
    # Texts are inputs as well: one that was edited since makes another study.
    inputs = {"triplets": digest_of(recipe.triplets)}
    inputs |= {f"predictions {number}": digest_of(folder) for number, folder in enumerate(recipe.predictions)}
    texts = {"instructions": recipe.instructions, "consent": recipe.consent}
    return inputs | {name: digest_of(path) for name, path in texts.items() if path is not None}


def _write_all(study: Study, rows: list[BenchRow], choices: list[SystemChoice], folder: Path) -> None:
    # One item is in memory at a time.
    with progress_bar(len(study.items), "item", "study") as bar:
        for images in iterate_images(study, rows, choices):
            write_images(folder, images)
            bar.update()


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(StudyMakeRecipe, run, name="study make", description=__doc__ or "")
