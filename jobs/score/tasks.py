"""Score one batch and store its values. Runs as a Ray task."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from jobs.score.recipe import ScoreRecipe
from wm.buckets import localise
from wm.evaluation.feature_cache import FeatureCache
from wm.evaluation.image_scoring import VALUE_SCHEMA, ImageModels, ScoreBatch, score_batch
from wm.evaluation.metrics.encoders import load_blip, load_clip, load_dino
from wm.evaluation.predictions import PredictionFacts
from wm.files.mirror import on_this_node
from wm.models import load_codec
from wm.tables import write_table


def values_file(out: str | Path, batch: ScoreBatch) -> Path:
    """Return the file of a batch's values.

    Args:
        out: Output folder of the run.
        batch: The batch.
    """
    return Path(out) / "values" / f"part-{batch.number:06d}.parquet"


def score_and_store(batch: ScoreBatch, recipe_json: str, is_worker: bool) -> int:
    """Score a batch and write its values; return how many images it has.

    Args:
        batch: The images.
        recipe_json: The recipe with absolute paths, as text: it keys each worker's models.
        is_worker: In a process of Ray, of which as many run as there are cores.

    Raises:
        InputError: An image or a model cannot be read.
        OSError: The disk is full or may not be written.
    """
    if is_worker:
        torch.set_num_threads(1)
    recipe = ScoreRecipe.model_validate_json(recipe_json)
    models = load_models(recipe_json)
    # Beside the values, unless several runs share one.
    cache = FeatureCache(recipe.cache or Path(recipe.out) / "features")
    values = score_batch(_with_own_paths(batch), models, cache)
    write_table(values, values_file(recipe.out, batch), VALUE_SCHEMA)
    return len(values)


def _with_own_paths(batch: ScoreBatch) -> ScoreBatch:
    """Name the batch's files as they are on this node, where the driver of another node has cut it."""
    facts: list[PredictionFacts] = [{**fact, "file": str(on_this_node(fact["file"]))} for fact in batch.facts]
    chunk = [replace(row, file=str(on_this_node(row.file))) for row in batch.chunk]
    return replace(batch, file=str(on_this_node(batch.file)), facts=facts, chunk=chunk)


@lru_cache(maxsize=1)
def load_models(recipe_json: str) -> ImageModels:
    """Load the models that a recipe names; those of the last recipe stay loaded.

    Raises:
        InputError: A folder is missing or holds another model.
    """
    # Models and images are fetched once a process, where this node has not got them yet.
    recipe = localise(ScoreRecipe.model_validate_json(recipe_json))
    device, size = recipe.resources.device, recipe.resources.batch_size
    # What a metric lacks is said by the driver.
    return ImageModels(
        clip=load_clip(recipe.clip, device=device, batch_size=size) if recipe.clip else None,
        dino=load_dino(recipe.dino, device=device, batch_size=size, preparation=recipe.dino_preparation)
        if recipe.dino
        else None,
        blip=load_blip(recipe.blip, device=device, batch_size=max(1, size // 4)) if recipe.blip else None,
        codec=load_codec(recipe.codec, device) if recipe.codec else None,
    )
