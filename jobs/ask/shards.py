"""Cut the asking into shards, a file each, and run them in this process or as Ray tasks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from jobs.ask.entries import build_models
from jobs.ask.recipe import AskRecipe
from jobs.shared.tasks import each
from wm.buckets import localise
from wm.evaluation.questions.asking import ANSWER_SCHEMA, AskedModel, AskSettings, ask_model
from wm.evaluation.questions.formats import find_file, find_images
from wm.evaluation.questions.items import Question
from wm.evaluation.questions.reading import load_questions
from wm.files.mirror import fetch
from wm.tables import write_table


class Shard(NamedTuple):
    """Questions ``start`` to ``stop - 1``, asked of one model."""

    model: str
    number: int
    start: int
    stop: int


def list_shards(models: Mapping[str, object], num_questions: int, shard_questions: int) -> list[Shard]:
    """List all shards, those of one model together, so that each is loaded once.

    Args:
        models: By name.
        num_questions: All of them.
        shard_questions: Questions of a shard.
    """
    return [
        Shard(name, number, start, min(num_questions, start + shard_questions))
        for name in models
        for number, start in enumerate(range(0, num_questions, shard_questions))
    ]


def answers_file(recipe: AskRecipe, shard: Shard) -> Path:
    """Return the file of a shard's answers."""
    return Path(recipe.out) / "answers" / f"{shard.model}-{shard.number:05d}.parquet"


def ask_shards(recipe: AskRecipe, models: Mapping[str, AskedModel], shards: Sequence[Shard]) -> Iterator[Shard]:
    """Ask every shard.

    Args:
        recipe: How many tasks at a time.
        models: By name.
        shards: Those whose files are missing.

    Yields:
        Each shard when its file exists.

    Raises:
        InputError: A model cannot be loaded or asked.
    """
    if not shards:
        return
    num_workers = recipe.resources.num_workers
    if not num_workers:
        settings, questions = _build_settings(recipe), load_questions(Path(recipe.out) / "questions")
        for shard in shards:
            _ask(recipe, models[shard.model], shard, questions, settings)
            yield shard
        return
    # As text it keys each worker's cache; paths are absolute, since workers run in another folder.
    recipe_json = recipe.with_absolute_paths().model_dump_json()
    inputs = [(shard,) for shard in shards]
    # No more at a time than asked for: each worker holds a model.
    with closing(each(_ask_remote, inputs, recipe_json, on_ray=True, max_running=num_workers)) as results:
        yield from results
    # Answers of other nodes are in the bucket; elsewhere they are here already.
    fetch(Path(recipe.out) / "answers")


def _ask_remote(shard: Shard, recipe_json: str) -> Shard:
    """Ask a shard in a worker process; return it."""
    torch.set_num_threads(1)  # as many tasks as cores run at a time
    recipe, models, questions, settings = _prepare_worker(recipe_json)
    _ask(recipe, models[shard.model], shard, questions, settings)
    return shard


@lru_cache(maxsize=1)
def _prepare_worker(recipe_json: str) -> tuple[AskRecipe, dict[str, AskedModel], list[Question], AskSettings]:
    recipe = localise(AskRecipe.model_validate_json(recipe_json))
    questions = load_questions(fetch(Path(recipe.out) / "questions"))
    return recipe, build_models(recipe), questions, _build_settings(recipe)


def _ask(
    recipe: AskRecipe, model: AskedModel, shard: Shard, questions: Sequence[Question], settings: AskSettings
) -> None:
    rows = ask_model(model, questions[shard.start : shard.stop], settings)
    # Complete or not at all: a shard whose file exists is never asked again.
    write_table(rows, answers_file(recipe, shard), ANSWER_SCHEMA)


def _build_settings(recipe: AskRecipe) -> AskSettings:
    resources = recipe.resources
    # That benchmark's list holds its images.
    if recipe.benchmark == "embspatial":
        root = find_file(recipe.benchmark, recipe.data, recipe.file).parent
    else:
        root = find_images(recipe.benchmark, recipe.data, recipe.images)
    return AskSettings(
        root=root,
        prompt=recipe.prompt_text,
        style=recipe.style,
        max_new_tokens=recipe.max_new_tokens,
        batch_size=resources.batch_size,
        device=resources.device,
        dtype=getattr(torch, resources.dtype),
        base_sharing=resources.base_sharing,
    )
