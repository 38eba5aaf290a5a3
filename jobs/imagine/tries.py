"""Choose what is tried: source images, and the actions for each. Knows nothing of models."""

from dataclasses import dataclass

import pyarrow as pa

from jobs.imagine.recipe import ImagineRecipe
from wm.datasets.pairing import pair_actions
from wm.errors import InputError
from wm.evaluation.heldout import spread_rows
from wm.files.mirror import shown
from wm.records import TRIPLET_SCHEMA, TripletRow, derive_seed, row_seeds
from wm.tables import read_table, triplets_folder

_SOURCE_COLUMNS = ["triplet_id", "dataset", "class_label", "license", "source_image", "codec", "source_codes"]


@dataclass(frozen=True)
class Try:
    """An action to try in the source image of a triplet."""

    row: TripletRow
    action: str
    seed: int


def pair_tries(recipe: ImagineRecipe) -> list[list[Try]]:
    """Pair each source, in the order of the triplets' ids, with the actions to try in it.

    Args:
        recipe: Sources, actions and how many of them.

    Returns:
        The tries of each source; a source without any action of its subset has none.

    Raises:
        InputError: There are no sources, no action fits any of them, or ``subset`` is no column.
    """
    # 1. Sources, spread over the set, so that a limit does not take one class alone.
    table = _load_sorted(recipe, recipe.sources, _SOURCE_COLUMNS)
    if not table.num_rows:
        raise InputError(f"no triplet in {shown(recipe.sources)}")
    rows: list[TripletRow] = table.take(spread_rows(table.num_rows, recipe.limit or None)).to_pylist()
    # 2. Actions, each for sources of its own subset.
    action_rows: list[TripletRow] = _load_sorted(recipe, recipe.actions, ["action"]).to_pylist()
    actions = [(_subset_of(recipe, row), row["action"]) for row in action_rows]
    seeds = row_seeds(recipe.seed, (row["triplet_id"] for row in rows))
    subsets = [_subset_of(recipe, row) for row in rows]
    actions_by_row = pair_actions(subsets, actions, each=recipe.actions_each, seeds=seeds)
    if not any(actions_by_row):
        raise InputError(
            f"no action of {shown(recipe.actions)} is of the {recipe.subset} of any source in {shown(recipe.sources)}"
        )
    # 3. Every try has noise of its own, from the source's id and the action: neither the parts nor ``limit`` change it.
    return [
        [Try(row, action, derive_seed(seed, action)) for action in row_actions]
        for row, seed, row_actions in zip(rows, seeds, actions_by_row, strict=True)
    ]


def _load_sorted(recipe: ImagineRecipe, folder: str, columns: list[str]) -> pa.Table:
    """Load columns of triplets, and that of the subsets, by the triplets' ids."""
    if recipe.subset and recipe.subset not in TRIPLET_SCHEMA.names:
        raise InputError(f"subset = {recipe.subset!r}: triplets have no such column")
    names = dict.fromkeys(["triplet_id", *columns, *([recipe.subset] if recipe.subset else [])])
    # By id, so that tries do not depend on how rows are spread over files.
    return read_table(triplets_folder(folder), columns=list(names)).sort_by("triplet_id")


def _subset_of(recipe: ImagineRecipe, row: TripletRow) -> str:
    return str(row.get(recipe.subset) or "") if recipe.subset else ""
