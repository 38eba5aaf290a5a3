"""Assemble a study of a design: names that say nothing, texts, attention checks, and the images of every item.

An attention check is an item whose answer is known: the true target of a triplet that the study does not ask about,
among copies of it of which a part of the pixels is exchanged, the worst of them all. Not known here: pages, votes.
"""

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.predictions import read_image_bytes
from wm.evaluation.subsets import SubsetColumn
from wm.files.mirror import shown
from wm.images import Pixels, decode_image
from wm.study.design import Design, SystemChoice
from wm.study.images import MAX_IMAGE_PX, ItemImages, fit_images, fit_view, side_px, spoil_image
from wm.study.study import STUDY_FILE, Study, StudyItem, load_study

INTACT, NOISE = "check: intact", "check: noise"
"""Systems of an attention check: the target as it is, and nothing but its colours."""
_DAMAGE = (0.3, 0.6)
"""Exchanged share of the pixels of what is between the two, first and last."""


@dataclass(frozen=True)
class StudySettings:
    """What a study is besides its items.

    Attributes:
        title: Headline of its pages.
        consent: Text that a participant agrees to.
        instructions: Text that says how to choose.
        num_participants: How many are planned.
        seed: Of the orders that participants see.
        image_px: Side of every image; 0: the largest at which no prediction is enlarged, 512 at most.
        subset: Column that separates subsets.
        num_checks: Attention checks beside the items.
    """

    title: str
    consent: str
    instructions: str
    num_participants: int
    seed: int
    image_px: int
    subset: SubsetColumn
    num_checks: int


def assemble_study(design: Design, choices: Sequence[SystemChoice], settings: StudySettings) -> Study:
    """Name items and images at random and put the study together; attention checks are its last items.

    Args:
        design: Which triplets.
        choices: Which predictions.
        settings: All else.

    Returns:
        The study. Two calls differ in its names and its secret, and so in the orders.

    Raises:
        InputError: A triplet has no action, or the bench has none left for a check.
    """
    if settings.num_checks > len(design.spares):
        raise InputError(
            f"attention_checks = {settings.num_checks}: they are made of triplets that the study does not ask about, "
            f"of which the bench has {len(design.spares)}"
        )
    # Checks come last, so that the orders of the other items do not depend on them.
    systems = tuple(choice.system for choice in choices)
    checks = list_check_systems(len(systems))
    items = [_name_item(row, systems, settings.subset) for row in design.rows]
    for row in design.spares[: settings.num_checks]:
        items.append(replace(_name_item(row, checks, settings.subset), is_check=True, best=INTACT, worst=NOISE))
    return Study(
        study_id=secrets.token_hex(8),
        title=settings.title,
        consent=settings.consent,
        instructions=settings.instructions,
        systems=systems,
        items=tuple(items),
        num_participants=settings.num_participants,
        seed=settings.seed,
        image_px=settings.image_px or min(MAX_IMAGE_PX, _largest_px(design, choices)),
        secret=secrets.token_hex(16),
    )


def list_check_systems(num_systems: int) -> list[str]:
    """List the systems of an attention check: as many as an item has, so that its page looks like all others.

    Args:
        num_systems: Two at least.
    """
    return [INTACT, *(f"check: damaged {number}" for number in range(1, num_systems - 1)), NOISE]


def _name_item(row: BenchRow, systems: Sequence[str], subset: SubsetColumn) -> StudyItem:
    # Nobody can judge how an instruction was followed that is not there.
    if not row.action.strip():
        raise InputError(f"triplet {row.triplet_id} in {row.file} has no action, which its page would show")
    # Of the system's own generator of secrets: a seeded one would let a participant compute whose an image is.
    source, *names = (f"{secrets.token_hex(12)}.png" for _ in range(len(systems) + 1))
    candidates = dict(zip(systems, names, strict=True))
    return StudyItem(secrets.token_hex(8), row.triplet_id, row.subset(subset), row.action, source, candidates)


def _largest_px(design: Design, choices: Sequence[SystemChoice]) -> int:
    """Compute the largest side at which no prediction is enlarged."""
    sides_px = [_sides_px(row.triplet_id, choices) for row in design.rows]
    return min(min(item.values()) for item in sides_px)


def _sides_px(triplet_id: str, choices: Sequence[SystemChoice]) -> dict[str, int]:
    """Compute the side of the square that each system's prediction fills without being enlarged."""
    facts = {choice.system: choice.predictions[triplet_id] for choice in choices}
    is_square = any(row["view"] == "square" for row in facts.values())
    return {system: side_px(row["width_px"], row["height_px"], is_square=is_square) for system, row in facts.items()}


def count_enlarged(study: Study, choices: Sequence[SystemChoice]) -> dict[str, int]:
    """Count each system's images that are smaller than the study shows them: their blur may say whose they are.

    Args:
        study: The study.
        choices: Its predictions.

    Returns:
        System → images; systems without any are left out.
    """
    # By item: how much of a prediction is shown depends on the views of the others.
    counts: Counter[str] = Counter()
    for item in study.items:
        if not item.is_check:
            sides_px = _sides_px(item.triplet_id, choices)
            counts.update(system for system, side in sides_px.items() if side < study.image_px)
    return dict(counts)


def count_equal(study: Study, choices: Sequence[SystemChoice]) -> int:
    """Count the items of which two systems show the very same image, so that a choice between them says nothing.

    Args:
        study: The study.
        choices: Its predictions.
    """
    # By pixels, however they were encoded.
    ids = [item.triplet_id for item in study.items if not item.is_check]
    return sum(len({choice.predictions[id_]["pixels_sha256"] for choice in choices}) < len(choices) for id_ in ids)


def resume_study(study: Study, folder: Path) -> Study:
    """Return the study that an earlier attempt has begun in a folder, whose images have its names; else the new one.

    Args:
        study: As it would be made now.
        folder: Output folder of the run.

    Raises:
        InputError: What is there is damaged, or another study.
    """
    if not (folder / STUDY_FILE).exists():
        return study
    # The recipe is the same, or its run would have been refused; another version may have other texts or choices.
    earlier = load_study(folder)
    if _without_names(earlier) != _without_names(study):
        raise InputError(f"{shown(folder)} holds an unfinished study of other items or texts; remove the folder")
    return earlier


def _without_names(study: Study) -> dict[str, object]:
    """Return what the recipe decides of a study."""
    items = [
        (item.triplet_id, item.subset, item.action, sorted(item.candidates), item.is_check) for item in study.items
    ]
    return asdict(study) | {"study_id": "", "secret": "", "items": items}


def iterate_images(
    study: Study, rows: Sequence[BenchRow], choices: Sequence[SystemChoice]
) -> Iterator[dict[str, Pixels]]:
    """Prepare the images of a study, item by item.

    Args:
        study: The study.
        rows: The bench.
        choices: The predictions.

    Yields:
        File name → pixels of all images of an item.

    Raises:
        InputError: An image cannot be read.
    """
    by_id = {row.triplet_id: row for row in rows}
    is_square = False
    for item in study.items:
        row = by_id[item.triplet_id]
        source = _read_image(row.file, row.row, f"source_image of triplet {row.triplet_id}", "source_image")
        if item.is_check:
            yield _prepare_check(item, row, source, study, is_square=is_square)
            continue
        images = _load_item(source, row.triplet_id, choices)
        # Checks come last: they look like the items before them.
        is_square |= images.is_square
        fitted_source, fitted = fit_images(images, study.image_px)
        yield {item.source: fitted_source, **{item.candidates[system]: pixels for system, pixels in fitted.items()}}


def _load_item(source: Pixels, triplet_id: str, choices: Sequence[SystemChoice]) -> ItemImages:
    # Row groups are small: few other images are read with each.
    facts = {choice.system: choice.predictions[triplet_id] for choice in choices}
    candidates = {
        system: _read_image(row["file"], row["row"], f"prediction of {system} for triplet {triplet_id}")
        for system, row in facts.items()
    }
    return ItemImages(source, candidates, {system: row["view"] for system, row in facts.items()})


def _prepare_check(
    item: StudyItem, row: BenchRow, source: Pixels, study: Study, *, is_square: bool
) -> dict[str, Pixels]:
    target = _read_image(row.file, row.row, f"target_image of triplet {row.triplet_id}", "target_image")
    source, target = (fit_view(pixels, study.image_px, is_square=is_square) for pixels in (source, target))
    # From the intact one to noise; the order of the names is the order of the damage.
    damaged = np.linspace(*_DAMAGE, max(len(item.candidates) - 2, 0)).tolist()
    shares = dict(zip(list_check_systems(len(item.candidates)), [0.0, *damaged, 1.0], strict=True))
    # Seeded, so that a resumed run makes the same noise.
    rng = np.random.default_rng([study.seed, row.row])
    spoilt = {item.candidates[system]: spoil_image(target, share, rng) for system, share in shares.items()}
    return {item.source: source, **spoilt}


def _read_image(file: str, row: int, name: str, column: str = "image") -> Pixels:
    (data,) = read_image_bytes(file, [row], column)
    return decode_image(data, f"{name} in {file}")
