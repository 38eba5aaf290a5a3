"""Decide what ``auto`` means in a recipe, by what fits: the ZeRO stage, and whether layers are computed again.

The first of these that fits, the cheapest first: shards of the optimiser's state (stage 1) cost no more communication
than none do, nor do those of gradients (2) without accumulation; computing layers again costs a third more arithmetic;
shards of the weights (3) are fetched anew for each layer, forward and backward (Rajbhandari et al., arXiv 1910.02054).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from wm.models.kinds import reads_pixels
from wm.models.pixels.model import PixelModel, load_pixel_skeleton
from wm.models.skeleton import load_skeleton
from wm.models.vlm import UnifiedVLM
from wm.training.adapters import prepare
from wm.training.data.prompt_batches import RowLayout
from wm.training.data.tokenized import SourceFacts
from wm.training.monitoring.records import RankInfo
from wm.training.planning.fit_check import usable_bytes
from wm.training.planning.memory import step_memory
from wm.training.planning.state_memory import state_memory
from wm.training.recipe import TrainRecipe
from wm.training.trained_models import TrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHOICES = ((1, False), (2, False), (1, True), (2, True), (3, False), (3, True))
"""Stage, and whether layers are computed again."""


def recompute_layers(vlm: TrainedModel, on: bool) -> None:
    """Turn activation checkpointing on or off.

    Args:
        vlm: The model.
        on: Keep only the input of each layer for the backward pass, which computes the layer again.
    """
    inner: PreTrainedModel = vlm.inner
    if on:
        # On the meta device there is no random state to restore.
        settings = {"use_reentrant": False, "preserve_rng_state": vlm.device.type != "meta"}
        inner.activation_checkpointing_enable(settings)
    else:
        inner.activation_checkpointing_disable()


def settled(recipe: TrainRecipe, choose: Callable[[Sequence[tuple[int, bool]]], tuple[int, bool]]) -> TrainRecipe:
    """Replace ``auto`` in the recipe by a ZeRO stage and a choice on recomputing.

    Args:
        recipe: The run.
        choose: Decides between several choices (:data:`CHOICES`).

    Returns:
        The recipe without ``auto``.
    """
    # One rank has nothing to shard; evaluation needs a complete model, and rows of image codes a complete matrix.
    needs_unsharded = recipe.eval.is_on or recipe.lora.train_image_rows
    stages = [1] if recipe.num_ranks == 1 else [1, 2] if needs_unsharded else [1, 2, 3]
    resources = recipe.resources
    stages = stages if resources.zero_stage == "auto" else [resources.zero_stage]
    flags = [False, True]
    if resources.gradient_checkpointing != "auto":
        flags = [resources.gradient_checkpointing]
    choices = [choice for choice in CHOICES if choice[0] in stages and choice[1] in flags]
    if stages == [0]:
        choices = [(0, flag) for flag in flags]
    stage, recomputes = choices[0] if len(choices) == 1 else choose(choices)
    return recipe.with_resources(zero_stage=stage, gradient_checkpointing=recomputes)


def chooser(
    recipe: TrainRecipe, vlm: UnifiedVLM, facts: Sequence[SourceFacts], usable: int | None
) -> Callable[[Sequence[tuple[int, bool]]], tuple[int, bool]]:
    """Build a function that returns the first choice that fits, else the leanest.

    Args:
        recipe: The run.
        vlm: As for :func:`wm.training.planning.memory.step_memory`.
        facts: Of each source.
        usable: Bytes; None: unknown, so the first choice is returned.

    Returns:
        The function, for :func:`settled`.
    """
    # The longest row is the worst case: a batch of them must fit.
    longest = max(int(part.action_tokens_R.max()) for part in facts)
    template = RowLayout(vlm, recipe.task).template(longest)

    def choose(choices: Sequence[tuple[int, bool]]) -> tuple[int, bool]:
        # Of a GPU that is elsewhere nothing is known: the cheapest choice.
        if usable is None:
            return choices[0]
        peaks = {}
        for stage, recomputes in choices:
            recompute_layers(vlm, recomputes)
            peaks[stage, recomputes] = step_memory(vlm, recipe, template, stage=stage).peak
            if peaks[stage, recomputes] <= usable:
                return stage, recomputes
        # Nothing fits: the run may still, by luck, on shorter rows.
        return min(peaks, key=lambda choice: peaks[choice])

    return choose


def state_chooser(
    recipe: TrainRecipe, model: PixelModel, usable: int | None
) -> Callable[[Sequence[tuple[int, bool]]], tuple[int, bool]]:
    """Build a function that returns the first choice of which what is known fits: all but the activations.

    Args:
        recipe: The run.
        model: Prepared for training, on the meta device.
        usable: Bytes; None: unknown, so the first choice is returned.

    Returns:
        The function, for :func:`settled`.
    """

    def choose(choices: Sequence[tuple[int, bool]]) -> tuple[int, bool]:
        if usable is None:
            return choices[0]
        minima = {choice: state_memory(model.module, recipe, stage=choice[0]).minimum for choice in choices}
        fitting = [choice for choice in choices if minima[choice] <= usable]
        return fitting[0] if fitting else min(choices, key=lambda choice: minima[choice])

    return choose


def settled_on_ranks(recipe: TrainRecipe, facts: Sequence[SourceFacts], rank_info: RankInfo) -> TrainRecipe:
    """Apply :func:`settled`, the same on all ranks, by the device with the lowest memory; a collective.

    Args:
        recipe: The run, the same on all ranks.
        facts: Of each source.
        rank_info: This process.
    """

    def choose(choices: Sequence[tuple[int, bool]]) -> tuple[int, bool]:
        # GPUs of a cluster may differ; the smallest decides for all.
        usable = torch.tensor([usable_bytes(recipe) or 0], dtype=torch.float64, device=rank_info.device)
        dist.all_reduce(usable, op=dist.ReduceOp.MIN)
        limit = int(usable.item()) or None
        is_pixels = reads_pixels(recipe.base)
        vlm = load_pixel_skeleton(recipe.base) if is_pixels else load_skeleton(recipe.base, without_codec=True)
        with torch.device("meta"):
            prepare(vlm, recipe.lora, recipe.seed)
        if isinstance(vlm, PixelModel):
            return state_chooser(recipe, vlm, limit)(choices)
        return chooser(recipe, vlm, facts, limit)(choices)

    return settled(recipe, choose)
