"""Choose what a study shows: which prediction of each system, and which triplets of each subset.

Not known here: images, pages, votes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wm.errors import InputError
from wm.evaluation.aurora_bench import order_subsets
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.judge.items import choose_items
from wm.evaluation.predictions import PredictionFacts
from wm.evaluation.subsets import SubsetColumn
from wm.names import quote_names
from wm.study.order import digest_key, shuffle

MAX_SYSTEMS = 10
"""Nobody compares more images on one page."""


@dataclass(frozen=True)
class SystemChoice:
    """Which predictions of a system are shown.

    Attributes:
        system: Its name.
        run: The one run that they are of, the lowest there is.
        sampling_seed: Likewise the lowest of that run.
        num_candidates: The verifier's choice among so many; 1: the first candidate.
        predictions: Triplet → its prediction.
    """

    system: str
    run: int
    sampling_seed: int
    num_candidates: int
    predictions: Mapping[str, PredictionFacts]


@dataclass(frozen=True)
class Design:
    """Which triplets are shown.

    Attributes:
        rows: Triplets of the items, by subset in the order of tables, within one in the order of the bench.
        spares: All others, shuffled: attention checks are made of them.
        missing: System → triplets of the bench that it has no prediction for, in the bench's order.
        num_complete: Triplets that all systems have.
    """

    rows: list[BenchRow]
    spares: list[BenchRow]
    missing: dict[str, list[str]]
    num_complete: int


def choose_predictions(
    facts: Sequence[PredictionFacts], ids: Sequence[str], systems: Sequence[str], num_candidates: int
) -> list[SystemChoice]:
    """Choose one prediction a triplet of each system: of its first run and seed, by the verifier if it has one.

    Args:
        facts: Rows of prediction sets.
        ids: Triplets of the bench.
        systems: Names in the order of the tables; empty: all, in the order of ``facts``.
        num_candidates: Take the verifier's choice among so many candidates; of a system without a verifier the first
            candidate, as with 1.

    Returns:
        The systems, two at least.

    Raises:
        InputError: A system is not there or has no such prediction, there are too few or too many, or the predictions
            are of another bench.
    """
    # 1. Which systems, before anything is said about their predictions.
    names = list(systems) or list(dict.fromkeys(row["system"] for row in facts))
    if not 2 <= len(names) <= MAX_SYSTEMS:
        raise InputError(
            f"the study would compare {len(names)} systems ({quote_names(names)}); expected 2 to {MAX_SYSTEMS}: name "
            "them by systems"
        )
    # 2. The predictions that figures of single predictions, and of K candidates, are about.
    items = choose_items(facts, ids, sorted({1, num_candidates}), names)
    choices = []
    for name in names:
        own = [item for item in items if item.system == name]
        # Without a verifier there is nothing at a higher K.
        count = max((item.num_candidates for item in own), default=0)
        if not own:
            raise InputError(f"system {name!r:.100} has no sampled prediction for a triplet of this bench")
        # One run throughout: items of two trainings would be two systems under one name.
        run, seed = min((item.run, item.sampling_seed) for item in own)
        predictions = {
            item.triplet_id: item.prediction
            for item in own
            if (item.run, item.sampling_seed, item.num_candidates) == (run, seed, count) and item.prediction is not None
        }
        choices.append(SystemChoice(name, run, seed, count, predictions))
    return choices


def choose_rows(
    rows: Sequence[BenchRow], choices: Sequence[SystemChoice], subset: SubsetColumn, per_subset: int, seed: int
) -> Design:
    """Choose triplets at random, as many of each subset, among those that all systems have a prediction for.

    Args:
        rows: The bench.
        choices: The systems.
        subset: Column that separates subsets.
        per_subset: Triplets of each.
        seed: Of the choice. A triplet that one more system lacks is replaced by the next one, the others stay.

    Returns:
        The design.

    Raises:
        InputError: A subset has too few such triplets; it names the subsets, and which system lacks how many.
    """
    missing = {
        choice.system: [row.triplet_id for row in rows if row.triplet_id not in choice.predictions]
        for choice in choices
    }
    # As sets: benches may have thousands of triplets.
    absent_ids = {system: set(absent) for system, absent in missing.items()}
    lacking = set().union(*absent_ids.values())
    items: list[BenchRow] = []
    problems = []
    for name in order_subsets(row.subset(subset) for row in rows):
        members = [row for row in rows if row.subset(subset) == name]
        complete = [row for row in members if row.triplet_id not in lacking]
        if len(complete) < per_subset:
            counts = {system: sum(row.triplet_id in absent for row in members) for system, absent in absent_ids.items()}
            lacks = ", ".join(f"{system} lacks {count}" for system, count in counts.items() if count)
            problems.append(f"subset {name!r:.60} has {len(complete)} of {len(members)}{lacks and f' ({lacks})'}")
        # By a digest of each id, so that the choice does not depend on the file's order or on the other triplets.
        shuffled = sorted(complete, key=lambda row: digest_key(f"triplets\n{seed}\n{row.triplet_id}"))
        first_ids = {row.triplet_id for row in shuffled[:per_subset]}
        items += [row for row in complete if row.triplet_id in first_ids]
    # All subsets at once: each would otherwise cost one more try.
    if problems:
        raise InputError(f"per_subset = {per_subset}: too few triplets that all systems have: {'; '.join(problems)}")
    # The rest in an order of its own: checks are made of the first ones.
    item_ids = {row.triplet_id for row in items}
    spares = shuffle((row for row in rows if row.triplet_id not in item_ids), f"spares\n{seed}")
    return Design(items, spares, missing, len(rows) - len(lacking))
