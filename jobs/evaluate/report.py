"""Print what ``evaluate`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.evaluate.recipe import EvaluateRecipe
from wm.evaluation.counterfactuals import Counterfactuals
from wm.evaluation.report.summary import format_tables
from wm.evaluation.rows import Tables


def print_complete(recipe: EvaluateRecipe) -> None:
    """Print that nothing is left to do."""
    print(f"{recipe.out} is complete: nothing to do")


def print_plan(recipe: EvaluateRecipe, counts: dict[str, int]) -> None:
    """Print what would be evaluated.

    Args:
        recipe: As it was given.
        counts: Number of models, triplets and units.
    """
    print(
        f"would evaluate {counts['models']} models on {counts['triplets']} triplets in {counts['units']} units "
        f"into {recipe.out}"
    )


def print_crossing(recipe: EvaluateRecipe, labels: Sequence[str]) -> None:
    """Warn that the probe would take negatives of one task for triplets of another.

    Args:
        recipe: Its subset has one value in all triplets.
        labels: The different class labels.
    """
    print(
        f"warning: subset = {recipe.subset!r} is one subset, but class_label has {len(labels)} values "
        f"({_join_few(labels)}): the probe's negatives cross them, and no figure is given by subset; is "
        "subset = 'class_label' meant?"
    )


def print_choice(recipe: EvaluateRecipe, labels: Sequence[str]) -> None:
    """Print which column separates the subsets, where the recipe left it open.

    Args:
        recipe: With the column.
        labels: Its different values.
    """
    print(
        f"subset = {recipe.subset!r} ({len(labels)} values: {_join_few(labels)}): figures by subset, and the probe's "
        "negatives, keep to them; subset=dataset does not"
    )


def _join_few(names: Sequence[str]) -> str:
    # A few names are enough to recognise the set.
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def print_counterfactuals(counterfactuals: Counterfactuals | None) -> None:
    """Print which triplets have no counterfactual action, if others have one."""
    if counterfactuals is not None and counterfactuals.num_absent:
        same = f" ({counterfactuals.num_same:,} because theirs reads as the true action)"
        print(
            f"probe: {counterfactuals.num_absent:,} of {len(counterfactuals.actions):,} triplets have no "
            f"counterfactual action{same if counterfactuals.num_same else ''}, from {counterfactuals.source}"
        )


def print_tables(tables: Tables, counts: dict[str, int], path: Path) -> None:
    """Print the tables and where they are.

    Args:
        tables: The content of ``tables.json``.
        counts: As they are in ``run.json``.
        path: File of the tables.
    """
    print(format_tables(tables))
    print(f"evaluated {counts['models']} models on {counts['triplets']} triplets: {path}")


def print_editor_failures(
    name: str, withheld: Mapping[str, int], contradicted: Mapping[str, int], cut_actions: int
) -> None:
    """Print what an image editor did not give, or did not read.

    Args:
        name: Of its entry.
        withheld: Images under the true actions, by reason.
        contradicted: The same under other actions, which action sensitivity compares.
        cut_actions: Triplets whose action is longer than it reads.
    """
    # All change what a figure is of, so that none may pass in silence.
    for images, outcome in (
        (withheld, "further candidates took their places"),
        (contradicted, "under other actions; action sensitivity leaves these triplets out"),
    ):
        if images:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(images.items()))
            print(f"models.{name} withheld images ({reasons}); {outcome}")
    if cut_actions:
        print(
            f"warning: models.{name} does not read {cut_actions:,} actions to their end: they are longer than its text "
            "model reads"
        )
