"""Describe the run that a checkpoint belongs to, and refuse one of another run before it is loaded or overwritten."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from wm.errors import InputError
from wm.models import base_id_of
from wm.runs import recipe_difference
from wm.training.checkpoint.store import Checkpoint, CheckpointStore
from wm.training.data.tokenized import SourceFacts
from wm.training.recipe import TrainRecipe


def identity_of(recipe: TrainRecipe, base_id: str, facts: Sequence[SourceFacts]) -> dict[str, object]:
    """Return what a checkpoint belongs to: the recipe's identity settings, its folders known by what is in them.

    Args:
        recipe: The run.
        base_id: Digest of the base model.
        facts: Of each source of triplets.

    Returns:
        Plain values, for the manifest.
    """
    settings = recipe.identity_settings(recipe.model_dump(mode="json"))
    # Paths differ between machines that train the same: the base and the triplets are known by content.
    settings = {key: value for key, value in settings.items() if key not in ("out", "base", "triplets")}
    settings["eval"] = {key: value for key, value in settings["eval"].items() if key != "triplets"}
    sources = [
        {"path": Path(part.source.path).name, "mix_weight": part.source.mix_weight, "rows": part.num_rows}
        for part in facts
    ]
    return settings | {"base": base_id, "triplets": sources}


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, object], root: str) -> None:
    """Check that a checkpoint is of this run; keys that an earlier version named otherwise are the same.

    Args:
        checkpoint: The checkpoint.
        identity: Of this run (:func:`identity_of`).
        root: Where the checkpoint is stored, for the message.

    Raises:
        InputError: It names the first key in which the two differ.
    """
    # A key that is null, in a table too, is the same as one that an older version did not have.
    theirs, ours = (TrainRecipe.identity_settings(side) for side in (checkpoint.manifest["identity"], identity))
    for key in sorted(set(theirs) | set(ours)):
        if theirs.get(key) != ours.get(key):
            raise InputError(
                f"checkpoint {checkpoint.name} of {root} is of another recipe: "
                f"{recipe_difference(key, theirs, ours)}; choose another folder (out or checkpoint.folder), or remove "
                "it"
            )


def check_writable(recipe: TrainRecipe) -> None:
    """Raise :class:`InputError` if the recipe names a folder for checkpoints that cannot be written to."""
    if recipe.checkpoint.folder:
        CheckpointStore(recipe.checkpoint.folder).check()


def check_newest(recipe: TrainRecipe, facts: Sequence[SourceFacts]) -> int:
    """Check that the newest checkpoint, from which a run would resume, is of this run.

    Args:
        recipe: The run.
        facts: Of each source of triplets.

    Returns:
        Steps of that checkpoint; 0 if there is none.

    Raises:
        InputError: It is of another recipe.
    """
    store = CheckpointStore(recipe.checkpoint_root)
    # Older ones are never resumed from.
    step = 0
    for checkpoint in store.checkpoints()[-1:]:
        check_identity(checkpoint, identity_of(recipe, base_id_of(recipe.base), facts), store.root_uri)
        step = checkpoint.step
    return step
