"""Write controls for the nano world: the chosen annotated triplets with other labels, the true ones or shuffled ones.

What true labels give bounds what any inverse model could; what shuffled ones give is owed to seeing more images.
"""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from wm.cli import main as cli_main
from wm.config import Recipe
from wm.datasets.card import write_dataset_card
from wm.errors import InputError
from wm.images import decode_image, fit_square
from wm.nano.world.actions import action_between
from wm.nano.world.oracle import read_states
from wm.nano.world.scenes import SIDE_PX, State
from wm.paths import OutputPath, TablePath
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, RejectRow, TripletRow, reject_row
from wm.runs import Run, RunRecord, digest_of
from wm.tables import read_table, triplets_folder, write_table


class RelabelRecipe(Recipe):
    """Which triplets, and which labels they get."""

    triplets: TablePath
    """Folder of annotated triplets of the tabletop."""
    selection: TablePath
    """Folder of wm select: the rows to take."""
    out: OutputPath
    """Folder for out/triplets, out/rejects and out/run.json."""
    labels: Literal["truth", "shuffled"]
    """truth: the one action that leads from source to target, read from the images; rows between which there is
    none or more than one become rejects. shuffled: the inverse model's labels, dealt out anew among the rows."""
    seed: int = Field(default=0, ge=0)
    """Of the shuffling."""


def run(recipe: RelabelRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the relabelled triplets.

    Args:
        recipe: Which triplets, and which labels they get.
        dry_run: Print what would be written, write nothing.

    Returns:
        The run's record; empty on a dry run, or where nothing is left to do.

    Raises:
        InputError: The selection names other triplets, or the folder is another run's.
    """
    inputs = {"triplets": digest_of(recipe.triplets), "selection": digest_of(recipe.selection)}
    stage = Run(recipe.out, "relabel", recipe, inputs)
    is_finished = stage.is_complete()
    if dry_run or is_finished:
        print(
            f"relabel: {'already complete in' if is_finished else 'would write'} {recipe.out}, labels {recipe.labels}"
        )
        return {}
    stage.start()
    rows = _load_chosen(recipe)
    with stage.timed("relabel_s"):
        actions = _shuffle_actions(rows, recipe.seed) if recipe.labels == "shuffled" else _read_actions(rows)
        triplets = [_relabel_row(row, action) for row, action in zip(rows, actions, strict=True) if action is not None]
        rejects = [_build_reject(row) for row, action in zip(rows, actions, strict=True) if action is None]
        write_table(rejects, Path(recipe.out) / "rejects" / "part-00000.parquet", REJECT_SCHEMA)
        write_table(triplets, Path(recipe.out) / "triplets" / "part-00000.parquet", TRIPLET_SCHEMA)
        write_dataset_card(recipe.out, title=f"triplets with {recipe.labels} labels")
    # How many labels stay as they were says how far the control is from the original.
    agree = sum(row["action"] == action for row, action in zip(rows, actions, strict=True))
    counts = {"rows": len(rows), "triplets": len(triplets), "rejects": len(rejects), "same_words": agree}
    record = stage.finish(counts)
    print(
        f"relabel: {len(triplets):,} of {len(rows):,} triplets with {recipe.labels} labels → {recipe.out}/triplets, "
        f"{len(rejects):,} rejects in {recipe.out}/rejects"
    )
    return record


def _load_chosen(recipe: RelabelRecipe) -> list[TripletRow]:
    import pyarrow.compute as pc

    from wm.datasets.selection.algorithm import SELECTION_SCHEMA

    ids = read_table(recipe.selection, SELECTION_SCHEMA, ["triplet_id"]).column("triplet_id").combine_chunks()
    table = read_table(triplets_folder(recipe.triplets))
    rows: list[TripletRow] = table.filter(pc.is_in(table.column("triplet_id"), ids)).to_pylist()
    # A control that is smaller than what it is compared with would prove nothing.
    if len(rows) != len(ids):
        raise InputError(f"{recipe.selection} names {len(ids)} triplets, {recipe.triplets} holds {len(rows)} of them")
    # By id, so that a shuffle depends on the rows alone.
    return sorted(rows, key=lambda row: row["triplet_id"])


def _shuffle_actions(rows: list[TripletRow], seed: int) -> list[str | None]:
    order = np.random.default_rng([seed, 41]).permutation(len(rows))
    return [rows[int(index)]["action"] for index in order]


def _read_actions(rows: list[TripletRow]) -> list[str | None]:
    def states(column: Literal["source_image", "target_image"]) -> list[State]:
        images = [fit_square(decode_image(row[column]["bytes"], row["triplet_id"]), SIDE_PX) for row in rows]
        return read_states(np.stack(images))

    pairs = zip(states("source_image"), states("target_image"), strict=True)
    actions = [action_between(source, target) for source, target in pairs]
    return [None if action is None else action.text(index % 2) for index, action in enumerate(actions)]


def _relabel_row(row: TripletRow, action: str) -> TripletRow:
    """Replace the model's words by human ones, which have no likelihood."""
    return {**row, "action": action, "action_logprob": None, "action_tokens": None, "origin": "human"}


def _build_reject(row: TripletRow) -> RejectRow:
    """Build the reject row of a triplet that the truth has no label for."""
    return reject_row(
        uri=row["triplet_id"],
        stage="relabel",
        outcome="filtered",
        reason="no_single_action",
        detail=f"{row['triplet_id']}: not exactly one action leads from source to target; it was {row['action']!r}",
        dataset=row["dataset"],
        split=row["split"],
        class_label=row["class_label"] or "",
    )


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(RelabelRecipe, run, name="relabel", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
