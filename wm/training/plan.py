"""What a recipe would do, found out without training: rows, steps, tokens, parameters."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wm.models import load_codec, load_model
from wm.training.adapters import prepare
from wm.training.batches import Rows, read_sources, tensorise
from wm.training.order import SampleOrder
from wm.training.recipe import TrainRecipe


@dataclass(frozen=True)
class Plan:
    """Numbers of a dry run. ``sources``: path, rows, weight and skipped rows of each table."""

    sources: list[dict[str, Any]]
    rows_per_epoch: int
    num_steps: int
    epochs: float
    trained_parameters: int
    total_parameters: int
    tokens_per_batch: int
    completion_tokens_per_batch: int
    longest_row: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def check_data(recipe: TrainRecipe) -> list[Rows]:
    """Read the triplets against the base model's codec, whose weights alone are read.

    Raises :class:`wm.errors.InputError` on anything wrong with them.
    """
    codec = load_codec(recipe.base)
    return read_sources(
        recipe.triplets, codec_id=codec.codec_id, tokens_per_image=codec.tokens_per_image, seed=recipe.seed
    )


def order_of(recipe: TrainRecipe, rows: Sequence[Rows]) -> SampleOrder:
    """The order in which the recipe shows these rows."""
    return SampleOrder([part.table.num_rows for part in rows], [part.source.weight for part in rows], recipe.seed)


def plan(recipe: TrainRecipe) -> Plan:
    """Read the base model and every row as training would; touches no output."""
    rows = check_data(recipe)
    order = order_of(recipe, rows)
    num_steps = recipe.num_steps(order)
    vlm = load_model(recipe.base)
    tokens = tensorise(rows, vlm, recipe.task, recipe.weights)
    counts = prepare(vlm, recipe.lora, recipe.seed)
    epoch = order.epoch(0)
    return Plan(
        sources=[
            {
                "path": part.source.path,
                "rows": part.table.num_rows,
                "weight": part.source.weight,
                "skipped": part.num_skipped,
            }
            for part in rows
        ],
        rows_per_epoch=order.rows_per_epoch,
        num_steps=num_steps,
        epochs=num_steps * recipe.global_batch / order.rows_per_epoch,
        trained_parameters=counts.trained,
        total_parameters=counts.total,
        tokens_per_batch=round(float(np.mean(tokens.length_R.numpy()[epoch])) * recipe.global_batch),
        completion_tokens_per_batch=round(tokens.num_completion_tokens(epoch) / len(epoch) * recipe.global_batch),
        longest_row=int(tokens.length_R.max()),
    )
