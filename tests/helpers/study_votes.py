"""A small study made by hand, and votes on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wm.evaluation.aurora_bench import SUBSET_NAMES
from wm.evaluation.votes.arrays import VotedItem
from wm.evaluation.votes.figures import TABLE_FILE
from wm.evaluation.votes.records import Vote
from wm.evaluation.votes.report import StudyFacts, build_figures
from wm.evaluation.votes.selection import select_votes
from wm.evaluation.votes.tables import VOTES_FILE, write_votes
from wm.runs import write_json
from wm.study.order import order_systems
from wm.study.study import Study, StudyItem, write_study

SYSTEMS = ("GoT", "SE", "C-FT", "C-FDM")


def make_study(*, systems: Sequence[str] = SYSTEMS, per_subset: int = 1, num_checks: int = 0) -> Study:
    """A study with items in the paper's five subsets; attention checks are the last items."""
    subsets = [name for name in SUBSET_NAMES for _ in range(per_subset)]
    items = [
        StudyItem(
            item_id=f"item{number}", triplet_id=f"t{number}", subset=subset, action=f"do <{number}> & more",
            source=f"s{number}.png", candidates={name: f"c{number}{place}.png" for place, name in enumerate(systems)},
        )
        for number, subset in enumerate(subsets)
    ]  # fmt: skip
    names = [f"check: {place}" for place in range(len(systems))]
    checks = [
        StudyItem(
            f"check{number}", "", "", "look", "x.png", {name: f"k{name[-1]}.png" for name in names}, True,
            names[0], names[-1],
        )
        for number in range(num_checks)
    ]  # fmt: skip
    return Study("study1", "Which is <best>?", "yes?", "Look.\n\nChoose.", tuple(systems), (*items, *checks), 3, 7, 64)


def write_made_study(folder: Path, study: Study, **record: object) -> Path:
    """The folder that ``wm study make`` would leave, without images."""
    folder.mkdir(parents=True)
    write_study(study, folder)
    write_json(folder / "run.json", {"stage": "study-make", "recipe": {"triplets": ""}, "counts": {}, **record})
    return folder


def items_of(study: Study) -> tuple[VotedItem, ...]:
    """Its items as the statistics know them."""
    return tuple(VotedItem(item.item_id, item.triplet_id, item.subset) for item in study.items if not item.is_check)


def vote_on(study: Study, item: StudyItem, number: int, best: str | None, worst: str | None, **changes: object) -> Vote:
    """A vote of participant ``number``, in the order in which that one sees the systems."""
    values: dict[str, object] = {
        "study_id": study.study_id, "participant": f"code{number}", "item_id": item.item_id,
        "triplet_id": item.triplet_id, "subset": item.subset, "systems": tuple(order_systems(study, item, number)),
        "best": best, "worst": worst, "seconds": 20.0 + number, "stored_at": "2026-11-28T20:00:00+00:00",
    }  # fmt: skip
    if item.is_check:
        values |= {"is_check": True, "passed_check": (best, worst) == (item.best, item.worst)}
    return Vote(**(values | changes))  # type: ignore[arg-type]


def vote_all(
    study: Study, num_people: int, utilities: Sequence[float], *, seed: int = 0, **changes: object
) -> list[Vote]:
    """Votes of everybody on every item: the largest and the smallest of utilities with Gumbel's noise."""
    rng = np.random.default_rng(seed)
    votes = []
    for number in range(num_people):
        for item in study.items:
            if item.is_check:
                votes.append(vote_on(study, item, number, item.best, item.worst, **changes))
                continue
            order = np.argsort(np.array(utilities) + rng.gumbel(size=len(utilities)))
            names = list(item.candidates)
            votes.append(vote_on(study, item, number, names[order[-1]], names[order[0]], **changes))
    return votes


def report_study(folder: Path, study: Study, votes: Sequence[Vote], **options: object) -> Path:
    """The folder that ``wm study report`` would leave of these votes, without its page."""
    items = items_of(study)
    counted = select_votes(votes, [item.item_id for item in items])
    facts = StudyFacts(study.study_id, study.title, study.systems, items)
    figures = build_figures(facts, counted, reference=study.systems[-1], num_resamples=200, **options)  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    write_votes(counted.votes, folder / VOTES_FILE)
    write_json(folder / TABLE_FILE, figures)
    write_json(folder / "run.json", {"stage": "study", "recipe": {"study": "STUDY"}, "counts": {}, "datasets": []})
    return folder
