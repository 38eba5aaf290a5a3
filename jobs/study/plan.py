"""Count and print what a study shows. Knows nothing of how it is made."""

from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

from wm.evaluation.aurora_bench import subset_title
from wm.study.assembly import count_enlarged, count_equal
from wm.study.design import Design, SystemChoice
from wm.study.study import Study


class StudyCounts(TypedDict):
    """What ``run.json`` counts of a study."""

    items: int
    attention_checks: int
    items_by_subset: dict[str, int]
    bench: int  # triplets
    complete: int  # triplets of the bench that all systems have
    missing: dict[str, int]  # system → triplets of the bench that it has no prediction for
    images: int
    image_px: int
    enlarged: dict[str, int]  # system → images that are smaller than image_px
    items_with_equal_images: int
    votes_planned: int


def count_study(study: Study, num_rows: int, design: Design, choices: Sequence[SystemChoice]) -> StudyCounts:
    """Count what a study shows, and what it leaves out.

    Args:
        study: The study.
        num_rows: Triplets of the bench.
        design: Which of them were chosen.
        choices: Which predictions.
    """
    items = [item for item in study.items if not item.is_check]
    return {
        "items": len(items),
        "attention_checks": len(study.items) - len(items),
        "items_by_subset": dict(Counter(item.subset for item in items)),
        "bench": num_rows,
        "complete": design.num_complete,
        "missing": {system: len(ids) for system, ids in design.missing.items()},
        "images": sum(1 + len(item.candidates) for item in study.items),
        "image_px": study.image_px,
        "enlarged": count_enlarged(study, choices),
        "items_with_equal_images": count_equal(study, choices),
        "votes_planned": len(items) * study.num_participants,
    }


def print_plan(study: Study, counts: StudyCounts, design: Design, choices: Sequence[SystemChoice]) -> None:
    """Print what a study shows, and what may give a system away.

    Args:
        study: The study.
        counts: Of it.
        design: Which triplets were chosen.
        choices: Which predictions.
    """
    print(
        f"study: {counts['items']} items, {len(choices)} systems, {study.num_participants} participants: "
        f"{counts['votes_planned']:,} votes; images of {study.image_px} px"
    )
    print("  " + ", ".join(f"{subset_title(name)} {count}" for name, count in counts["items_by_subset"].items()))
    for choice in choices:
        shown_as = "first candidate" if choice.num_candidates == 1 else f"verifier's choice of {choice.num_candidates}"
        absent = len(design.missing[choice.system])
        note = f"; {absent:,} of {counts['bench']:,} triplets have none" if absent else ""
        print(f"  {choice.system}: run {choice.run}, sampling seed {choice.sampling_seed}, {shown_as}{note}")
    if counts["attention_checks"]:
        print(f"  and {counts['attention_checks']} attention checks, which count in no figure")
    # Nothing is refused for these: whoever makes the study decides.
    if counts["enlarged"]:
        systems = ", ".join(f"{count} of {system}" for system, count in counts["enlarged"].items())
        print(
            f"warning: images smaller than {study.image_px} px are enlarged, and blur may say whose they are: {systems}"
        )
    if counts["items_with_equal_images"]:
        print(f"warning: in {counts['items_with_equal_images']} items two systems show the very same image")
