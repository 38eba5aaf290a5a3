"""Plan a run without training: rows, steps, tokens, parameters, memory, what does not fit."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch

from wm.errors import InputError
from wm.models.kinds import reads_pixels
from wm.models.pixels.model import load_pixel_skeleton
from wm.models.skeleton import load_skeleton
from wm.models.vlm import UnifiedVLM
from wm.training.adapters import ParameterCounts, prepare
from wm.training.data.batches import fitting_rows, open_tokens
from wm.training.data.order import SampleOrder
from wm.training.data.prompt_batches import RowLayout
from wm.training.data.sources import CodecShape
from wm.training.data.token_cache import cache_bytes, find_source
from wm.training.data.tokenized import SourceFacts, SourceReader
from wm.training.pixels.batches import TrainingSet, measure_rows, open_pair_set
from wm.training.pixels.checks import check_pixel_recipe
from wm.training.pixels.store import survey_pairs
from wm.training.planning.fit_check import disk_complaints, memory_complaints, state_complaints, usable_bytes
from wm.training.planning.memory import StepMemory, step_memory
from wm.training.planning.schedule import peak_share, schedule_warnings
from wm.training.planning.settle import chooser, recompute_layers, settled, state_chooser
from wm.training.planning.state_memory import StateMemory, state_memory
from wm.training.recipe import TrainRecipe


class SourcePlan(TypedDict):
    """Numbers of a source of triplets."""

    path: str
    rows: int
    mix_weight: float
    epoch_share: float
    """Of the rows that an epoch shows."""
    skipped: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """Numbers of a dry run."""

    sources: list[SourcePlan]
    rows_per_epoch: int
    num_steps: int
    epochs: float
    warmup_steps: int
    peak_share: float
    """Highest learning rate that the run reaches, as a fraction of the recipe's ``lr``."""
    trained_parameters: int
    total_parameters: int
    tokens_per_batch: int
    completion_tokens_per_batch: int
    longest_row: int
    zero_stage: int
    recomputes: bool
    """Whether layers are computed again in the backward pass."""
    memory: StepMemory | StateMemory
    """Of a step whose micro-batch is all longest rows; of a model that reads pixels what is known without a pass."""
    does_not_fit: list[str]
    """What the machine has not the room for, a line each."""
    warnings: list[str]
    """What of the schedule the run is too short for, a line each."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def check_data(recipe: TrainRecipe) -> TrainingSet:
    """Read the triplets into the cache and check them against the base model: its codec, whose weights alone are read,
    or its processor.

    Args:
        recipe: The run.

    Raises:
        InputError: Something is wrong with them, or with settings that do not fit a base that reads pixels.
    """
    if reads_pixels(recipe.base):
        check_pixel_recipe(recipe)
        model = load_pixel_skeleton(recipe.base)
        return open_pair_set(recipe.triplets, model, root=recipe.token_root, seed=recipe.seed)
    vlm = load_skeleton(recipe.base)
    return open_tokens(recipe.triplets, vlm, recipe.task, recipe.recognition, root=recipe.token_root, seed=recipe.seed)


def order_of(recipe: TrainRecipe, facts: Sequence[SourceFacts]) -> SampleOrder:
    """Build the order in which the recipe shows these rows.

    Args:
        recipe: Mix weights and seed.
        facts: Of each source.

    Raises:
        InputError: An epoch shows no row of a source.
    """
    # Rounded as the order rounds it.
    for part in facts:
        if round(part.source.mix_weight * part.num_rows) == 0:
            raise InputError(
                f"triplets {part.source.path}: mix_weight = {part.source.mix_weight:g} shows none of its "
                f"{part.num_rows} rows in an epoch; expected {0.5 / part.num_rows:.2g} or more, or leave the source out"
            )
    return SampleOrder([part.num_rows for part in facts], [part.source.mix_weight for part in facts], recipe.seed)


def plan(recipe: TrainRecipe) -> Plan:
    """Read configuration, tokenizer and every row as training would; no weights but the codec's, and no output.

    Args:
        recipe: The run.

    Raises:
        InputError: As :func:`check_data`.
    """
    return _plan_pixels(recipe) if reads_pixels(recipe.base) else _plan_codes(recipe)


def _plan_codes(recipe: TrainRecipe) -> Plan:
    # 1. Rows, as the base model reads them.
    vlm = load_skeleton(recipe.base, without_codec=True)
    layout = RowLayout(vlm, recipe.task)
    codec = CodecShape(vlm.codec_id, vlm.tokens_per_image, len(vlm.image_rows))
    surveyed = _survey(recipe, vlm, codec)
    facts = [fitting_rows(part, layout, vlm.max_positions)[1] for part, _ in surveyed]
    order = order_of(recipe, facts)

    # 2. Tokens. Rows of one length of action are laid out alike, so that one template a length is enough.
    lengths, at_R = np.unique(np.concatenate([part.action_tokens_R for part in facts]), return_inverse=True)
    templates = [layout.template(int(length)) for length in lengths]
    tokens_R = np.array([len(template.ids_T) for template in templates])[at_R]
    learned_R = np.array([template.num_completion_tokens for template in templates])[at_R]

    # 3. Memory, on the meta device.
    with torch.device("meta"):
        parameters = prepare(vlm, recipe.lora, recipe.seed)
    recipe = settled(recipe, chooser(recipe, vlm, facts, usable_bytes(recipe)))
    recompute_layers(vlm, bool(recipe.resources.gradient_checkpointing))
    memory = step_memory(
        vlm, recipe, max(templates, key=lambda template: len(template.ids_T)), stage=int(recipe.resources.zero_stage)
    )
    # Rows that an earlier run left in the cache take no more space.
    not_cached = sum(cache_bytes(part.num_rows, codec) for part, is_cached in surveyed if not is_cached)
    complaints = [*memory_complaints(recipe, memory), *disk_complaints(recipe, not_cached, parameters.trained)]
    return _build_plan(recipe, _Rows(facts, order, tokens_R, learned_R), parameters, memory, complaints)


def _plan_pixels(recipe: TrainRecipe) -> Plan:
    check_pixel_recipe(recipe)
    # 1. Rows and their tokens, as the processor makes them. Images are not decoded, but for their sizes.
    model = load_pixel_skeleton(recipe.base)
    surveyed = [
        survey_pairs(recipe.token_root, source, number, recipe.seed) for number, source in enumerate(recipe.triplets)
    ]
    measured = [measure_rows(part, model) for part in surveyed]
    facts = [part.facts for part in measured]
    tokens_R = np.concatenate([part.lengths_R for part in measured])
    learned_R = np.concatenate([part.facts.action_tokens_R for part in measured]).astype(np.int64)

    # 2. Memory, as far as it is known: vision towers read sizes from numbers, of which the meta device has none.
    with torch.device("meta"):
        parameters = prepare(model, recipe.lora, recipe.seed)
    recipe = settled(recipe, state_chooser(recipe, model, usable_bytes(recipe)))
    memory = state_memory(model.module, recipe, stage=int(recipe.resources.zero_stage))
    not_cached = sum(part.num_bytes for part in surveyed)
    complaints = [*state_complaints(recipe, memory), *disk_complaints(recipe, not_cached, parameters.trained)]
    rows = _Rows(facts, order_of(recipe, facts), tokens_R, learned_R)
    return _build_plan(recipe, rows, parameters, memory, complaints)


@dataclass(frozen=True)
class _Rows:
    """All rows of a run with their numbers of tokens, and of those that are learned."""

    facts: list[SourceFacts]
    order: SampleOrder
    tokens_R: npt.NDArray[np.int64]  # noqa: N815
    learned_R: npt.NDArray[np.int64]  # noqa: N815


def _build_plan(
    recipe: TrainRecipe,
    rows: _Rows,
    parameters: ParameterCounts,
    memory: StepMemory | StateMemory,
    complaints: list[str],
) -> Plan:
    # Figures of the first epoch: with mix weights below 1 another one shows other rows, of the same kind.
    order = rows.order
    num_steps, epoch = recipe.num_steps(order), order.epoch(0)
    return Plan(
        sources=[
            {
                "path": part.source.path,
                "rows": part.num_rows,
                "mix_weight": part.source.mix_weight,
                "epoch_share": round(round(part.source.mix_weight * part.num_rows) / order.rows_per_epoch, 4),
                "skipped": part.num_skipped,
                "left_out": part.left_out,
            }
            for part in rows.facts
        ],
        rows_per_epoch=order.rows_per_epoch,
        num_steps=num_steps,
        epochs=num_steps * recipe.global_batch_size / order.rows_per_epoch,
        warmup_steps=recipe.num_warmup_steps(num_steps),
        peak_share=round(peak_share(recipe, num_steps), 4),
        trained_parameters=parameters.trained,
        total_parameters=parameters.total,
        tokens_per_batch=round(float(rows.tokens_R[epoch].mean()) * recipe.global_batch_size),
        completion_tokens_per_batch=round(float(rows.learned_R[epoch].mean()) * recipe.global_batch_size),
        longest_row=int(rows.tokens_R[epoch].max()),
        zero_stage=int(recipe.resources.zero_stage),
        recomputes=bool(recipe.resources.gradient_checkpointing),
        memory=memory,
        does_not_fit=complaints,
        warnings=schedule_warnings(recipe, num_steps),
    )


def _survey(recipe: TrainRecipe, vlm: UnifiedVLM, codec: CodecShape) -> list[tuple[SourceFacts, bool]]:
    """Survey each source, from the token cache where an earlier run left it, else by reading all rows; and which it
    was."""
    reader = SourceReader(vlm, codec, recipe.seed)
    tokenizer_digest = reader.tokenizer_digest()
    facts = []
    for number, source in enumerate(recipe.triplets):
        cached = find_source(recipe.token_root, source, number, reader, tokenizer_digest)
        facts.append((cached.facts, True) if cached is not None else (reader.survey(source, number), False))
    return facts
