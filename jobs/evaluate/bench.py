"""Build what all units of an evaluation share. Knows nothing of how units are run."""

import torch

from jobs.evaluate.entries import build_entries, check_codec_and_base, reads_opposites
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.shared.devices import check_device
from wm.dynamics import check_draft_length
from wm.errors import InputError
from wm.evaluation.bench import Bench
from wm.evaluation.counterfactuals import (
    Counterfactuals,
    match_counterfactuals,
    read_counterfactual_column,
    read_counterfactuals,
)
from wm.evaluation.heldout import HeldOut, choose_subset, read_held_out
from wm.models import is_adapter, load_codec, model_folder
from wm.models.sharing import check_shareable
from wm.nano.world.scenes import SIDE_PX


def build_bench(recipe: EvaluateRecipe) -> Bench:
    """Read the codec and the held-out set, and check every model against them; no model is loaded.

    Raises:
        InputError: On a model, triplets or a setting that does not fit.
    """
    resources, entries = recipe.resources, build_entries(recipe)
    check_device(resources.device)
    # 1. The codec: models of pixels have none; beside others they are shown the images of that of the others.
    with_codes = [entry.path for entry in entries.values() if entry.kind == "codes"]
    codec_path = recipe.codec or recipe.base or next(iter(with_codes), "")
    codec = load_codec(codec_path, resources.device) if codec_path else None
    # 2. What must fit it, before images are read.
    for entry in entries.values():
        if entry.kind == "codes" and codec is not None:
            check_codec_and_base(entry, codec)
            if resources.base_sharing == "shared" and is_adapter(entry.path):
                check_shareable(model_folder(entry.path))
    if codec is not None:
        check_draft_length(recipe.search.num_draft_tokens, codec.tokens_per_image)
        # Predictions are compared as images.
        codec.check_decoder()
    elif recipe.judge == "oracle" and recipe.image_side_px != SIDE_PX:
        raise InputError(
            f"image_side_px = {recipe.image_side_px}: judge = 'oracle' reads images of {SIDE_PX} px, and no model has "
            f"a codec that decides their size; give image_side_px={SIDE_PX}"
        )
    # 3. The triplets and their judge.
    subset = choose_subset(recipe.triplets) if recipe.subset == "auto" else recipe.subset
    held_out = read_held_out(
        recipe.triplets, codec, limit=recipe.limit or None, subset=subset, side_px=recipe.image_side_px
    )
    judge_many, action_is_right, opposites = None, None, None
    if recipe.judge == "oracle":
        from jobs.evaluate.oracle import build_oracle

        judge_many, action_is_right, opposites = build_oracle(held_out)
    is_contradicted = reads_opposites(recipe, entries)
    counterfactuals = find_counterfactuals(recipe, held_out, opposites) if is_contradicted else None
    return Bench(
        held_out=held_out,
        codec=codec,
        judge_many=judge_many,
        action_is_right=action_is_right,
        counterfactuals=counterfactuals,
        entries=entries,
        num_candidates=max(recipe.search.num_candidates),
        sampling=recipe.sampling,
        batch_size=resources.batch_size,
        max_new_tokens=recipe.max_new_tokens,
        device=resources.device,
        dtype=getattr(torch, resources.dtype),
        base_sharing=resources.base_sharing,
        num_draft_tokens=recipe.search.num_draft_tokens,
        max_unchanged=recipe.search.max_unchanged,
    )


def find_counterfactuals(
    recipe: EvaluateRecipe, held_out: HeldOut, opposites: list[str | None] | None
) -> Counterfactuals | None:
    """Find the actions that contradict those of the triplets.

    Args:
        recipe: May name a file of them.
        held_out: The triplets.
        opposites: What the state of the tabletop world gives, None of other worlds.

    Returns:
        Those of the recipe's file, else of the bench's column, else ``opposites``; None where there is none of these.

    Raises:
        InputError: The file or the column is wrong.
    """
    ids, actions = held_out.ids, held_out.actions
    if recipe.counterfactuals:
        by_id = read_counterfactuals(recipe.counterfactuals)
        return match_counterfactuals(by_id, ids, actions, f"counterfactuals = {recipe.counterfactuals!r}")
    # A column was put there by somebody who wants just these.
    by_id = read_counterfactual_column(recipe.triplets)
    if by_id:
        return match_counterfactuals(by_id, ids, actions, f"column counterfactual_action of {recipe.triplets}")
    return None if opposites is None else Counterfactuals(opposites, "the state of the tabletop world")
