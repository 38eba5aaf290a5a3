"""A small bench and prediction sets for studies: three subsets of four triplets, systems with known images."""

from pathlib import Path

from tests.helpers.triplet_files import picture, triplet, write_output
from wm.evaluation.predictions import View, prediction_row, predictions_folder, write_predictions
from wm.images import Pixels, fit_square
from wm.runs import write_json
from wm.study.study import Study, StudyItem

SUBSETS = ("kubric", "ag", "magicbrush")
PER_SUBSET = 4
SIDE_PX = 16


def image_of(system: str, number: int, candidate: int = 0) -> Pixels:
    """Generate what a system predicts for a triplet: ``square`` ones the centre square, others the full frame."""
    seed = 10_000 * (1 + sum(map(ord, system))) + 10 * number + candidate
    height, width = (SIDE_PX, SIDE_PX) if system.startswith("square") else (12, 20)
    return picture(seed, height, width)


def write_bench(folder: Path) -> Path:
    """Write the triplets of a bench, 12 of three subsets in turn; return the folder."""
    rows = [triplet(number, class_label=SUBSETS[number % 3]) for number in range(3 * PER_SUBSET)]
    return write_output(folder, rows, num_rejects=0)


def write_set(folder: Path, system: str, numbers: range | list[int], num_candidates: int = 1, run: int = 0) -> str:
    """Write a system's prediction set; the verifier of several candidates likes the last one best.

    Args:
        folder: Of the set.
        system: Its name; ``square…`` predicts centre squares.
        numbers: Triplets that it has a prediction for.
        num_candidates: Of each; 1: without a verifier.
        run: Number of the run.

    Returns:
        The folder.
    """
    view: View = "square" if system.startswith("square") else "full"
    rows = [
        prediction_row(
            image_of(system, number, candidate),
            triplet_id=f"{number:024x}",
            system=system,
            run=run,
            candidates=(candidate,),
            verifier_logprob=None if num_candidates == 1 else float(candidate),
            view=view,
            origin="external",
        )
        for number in numbers
        for candidate in range(num_candidates)
    ]
    write_predictions(rows, predictions_folder(folder) / "part-00000.parquet")
    write_json(folder / "run.json", {"stage": "collect"})
    return str(folder)


def square(pixels_HWC: Pixels) -> Pixels:
    """Crop an image as a study of ``SIDE_PX`` does."""
    return fit_square(pixels_HWC, SIDE_PX)


def make_study(num_systems: int, num_items: int, seed: int = 0, num_checks: int = 0) -> Study:
    """Build a study without images: systems ``S0``, ``S1``, …; its checks have systems of their own."""
    systems = [f"S{number}" for number in range(num_systems)]
    checks = [f"check {number}" for number in range(num_systems)]
    items = [
        StudyItem(f"i{number}", f"t{number}", "", "act", "s.png", dict.fromkeys(systems, "c.png"))
        for number in range(num_items)
    ]
    for number in range(num_checks):
        images = dict.fromkeys(checks, "c.png")
        items.append(StudyItem(f"c{number}", f"u{number}", "", "act", "s.png", images, True, checks[0], checks[-1]))
    return Study("study", "title", "consent", "how", tuple(systems), tuple(items), 14, seed, 64)
