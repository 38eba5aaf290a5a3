"""Vote in a study as people of known taste would, to see that all of it works before anybody is asked. Simulated votes
are marked as such wherever they are shown."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from pydantic import Field, model_validator

from wm.cli import main as cli_main
from wm.config import Recipe
from wm.errors import InputError
from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.votes.records import Vote
from wm.files.mirror import shown
from wm.names import quote_names
from wm.paths import InputPath, OutputPath
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.study.codes import make_code
from wm.study.simulation import expected_votes, find_utilities, simulate_votes
from wm.study.store import VoteStore
from wm.study.study import STORE_FILE, Study, load_study

Utilities = Mapping[str, Mapping[str, float]]
"""Item → system → utility."""


class StudySimulateRecipe(Recipe):
    """Which study, and how its simulated participants choose."""

    study: InputPath
    """Output folder of wm study make."""
    means: dict[str, float] = Field(default_factory=dict)
    """System → its true mean vote, from -1 to 1, the same on every item: means.GoT=-0.2. Their sum is 0."""
    scores: InputPath = ""
    """Output folder of wm judge, in place of means: on each item an image with a higher score is chosen more often."""
    noise: float = Field(default=1.0, gt=0)
    """With scores: of two images whose scores differ by so many points, the higher one is e times as often the best
    beside the same worst one, and the lower one e times as often the worst beside the same best one."""
    participants: int = Field(default=0, ge=0, le=10_000)
    """How many vote, on all items; 0: as many as the study plans."""
    inattentive: int = Field(default=0, ge=0)
    """So many of them choose at random, in attention checks too."""
    seed: int = Field(default=0, ge=0)
    """Of the choices."""
    out: OutputPath
    """Folder for run.json and votes.sqlite: not the study's own store, whose seats are for real participants."""

    @model_validator(mode="after")
    def _check_taste(self) -> "StudySimulateRecipe":
        if bool(self.means) == bool(self.scores):
            raise ValueError("give means, or scores in their place")
        return self


def run(recipe: StudySimulateRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the votes to a store of their own, all of them or none, and print the true means beside theirs.

    Args:
        recipe: Which study, which taste.
        dry_run: Print the true means, vote on nothing.

    Returns:
        The run's record, whose ``true_means`` are by subset and system; empty on a dry run.

    Raises:
        InputError: The means are of no choice, a score is missing, or the folder holds another run.
    """
    # 1. How the participants choose.
    study = load_study(recipe.study)
    count = recipe.participants or study.num_participants
    # A number too high would be cut in silence.
    if recipe.inattentive > count:
        raise InputError(f"inattentive = {recipe.inattentive}: the study has {count} participants")
    utilities = _read_utilities(recipe, study) if recipe.scores else _spread_utilities(study, recipe.means)
    truth = _average(study, utilities)
    inputs = {"study": digest_of(recipe.study)} | ({"scores": digest_of(recipe.scores)} if recipe.scores else {})
    stage = Run(recipe.out, "study-simulate", recipe, inputs)
    if stage.is_complete():
        print(f"simulate: already complete in {shown(recipe.out)}")
        return read_run(recipe.out) or {}
    if dry_run:
        _print_means(study, truth, [])
        return {}
    # 2. Vote. One write: an attempt that was killed has left all votes or none.
    stage.start()
    path = stage.out / STORE_FILE
    with VoteStore(path) as store:
        votes = store.list_votes(study.study_id)
        if not votes:
            codes = [make_code() for _ in range(count)]
            votes = simulate_votes(study, utilities, codes, seed=recipe.seed, num_inattentive=recipe.inattentive)
            store.add_votes(votes)
    # 3. What the report should come back to.
    _print_means(study, truth, votes)
    checks = sum(vote.is_check for vote in votes)
    record = stage.finish({"participants": count, "votes": len(votes) - checks, "checks": checks}, true_means=truth)
    print(f"simulate: {len(votes):,} votes of {count} simulated participants in {shown(recipe.out)}")
    print(
        f"their report: wm study report study={shown(recipe.study)} store={shown(recipe.out)}/{STORE_FILE} out=REPORT"
    )
    return record


def _spread_utilities(study: Study, means: Mapping[str, float]) -> Utilities:
    if set(means) != set(study.systems):
        raise InputError(
            f"means are of {quote_names(means)}; the systems of the study are {quote_names(study.systems)}: expected "
            "one for each"
        )
    utilities = find_utilities(means)
    return {item.item_id: utilities for item in study.items if not item.is_check}


def _read_utilities(recipe: StudySimulateRecipe, study: Study) -> Utilities:
    """Read the judge's scores of the very images that the study shows; repeats of a question are averaged."""
    # Imported here: it brings torch, whose import takes longer than the votes.
    from wm.evaluation.judge.score_files import read_scores

    # Of other candidates or runs the judge may think otherwise.
    record = read_run(recipe.study) or {}
    names = ("system", "run", "sampling_seed", "num_candidates")
    shown_predictions = {tuple(row[name] for name in names) for row in record.get("systems", [])}
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_scores(recipe.scores):
        prediction = (row.system, row.run, row.sampling_seed, row.num_candidates)
        if row.final is not None and prediction in shown_predictions:
            scores[row.triplet_id, row.system].append(row.final)
    items = [item for item in study.items if not item.is_check]
    # A mean of what is there would make one system look better than it is.
    missing = [(item, system) for item in items for system in study.systems if (item.triplet_id, system) not in scores]
    if missing:
        item, system = missing[0]
        raise InputError(
            f"scores = {shown(recipe.scores)!r}: no score for {len(missing)} of the {len(items) * len(study.systems)} "
            f"images of the study, {system!r} for triplet {item.triplet_id} the first; judge the same predictions, at "
            "the same num_candidates"
        )
    return {
        item.item_id: {system: fmean(scores[item.triplet_id, system]) / recipe.noise for system in study.systems}
        for item in items
    }


def _average(study: Study, utilities: Utilities) -> dict[str, dict[str, float]]:
    """Compute the true means by subset; those of inattentive participants, which are 0, take no part."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for item in study.items:
        if not item.is_check:
            own = utilities[item.item_id]
            rows[item.subset].append(expected_votes(np.array([own[name] for name in study.systems])).tolist())
    return {subset: _to_means(study, values) for subset, values in rows.items()}


def _to_means(study: Study, values: Sequence[Sequence[float]]) -> dict[str, float]:
    return dict(zip(study.systems, np.mean(values, axis=0).tolist(), strict=True))


def _print_means(study: Study, truth: Mapping[str, Mapping[str, float]], votes: Sequence[Vote]) -> None:
    """Print a line a subset: the true mean of each system, and the simulated one, where there are votes."""
    width = max(len(subset_title(name)) for name in (*truth, "All"))
    print(f"simulate: true means{' and, in brackets, those of the simulated votes' if votes else ''}")
    counted = [vote for vote in votes if not vote.is_check]
    for subset in truth:
        own = [vote for vote in counted if vote.subset == subset]
        cells = [_cell(system, truth[subset][system], own) for system in study.systems]
        print(f"  {subset_title(subset):{width}}  {'  '.join(cells)}")
    # Subsets count alike, as in the paper's table.
    overall = {system: fmean(means[system] for means in truth.values()) for system in study.systems}
    cells = [_cell(system, overall[system], counted) for system in study.systems]
    print(f"  {'All':{width}}  {'  '.join(cells)}")


def _cell(system: str, mean: float, votes: Sequence[Vote]) -> str:
    simulated = f" ({fmean(vote.score(system) for vote in votes):+.2f})" if votes else ""
    return f"{system} {mean:+.2f}{simulated}"


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(StudySimulateRecipe, run, name="study simulate", description=__doc__ or "")
