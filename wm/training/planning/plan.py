"""Plan a run without training: rows, steps, tokens, parameters, memory, what does not fit."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np
import torch

from wm.errors import InputError
from wm.models.skeleton import load_skeleton
from wm.models.vlm import UnifiedVLM
from wm.training.adapters import prepare
from wm.training.data.batches import TokenSet, fitting_rows, open_tokens
from wm.training.data.order import SampleOrder
from wm.training.data.prompt_batches import RowLayout
from wm.training.data.sources import CodecShape
from wm.training.data.token_cache import find_source
from wm.training.data.tokenized import SourceFacts, SourceReader
from wm.training.planning.fit_check import disk_complaints, memory_complaints, usable_bytes
from wm.training.planning.memory import StepMemory, step_memory
from wm.training.planning.schedule import peak_share, schedule_warnings
from wm.training.planning.settle import chooser, recompute_layers, settled
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
    memory: StepMemory
    """Of a step whose micro-batch is all longest rows."""
    does_not_fit: list[str]
    """What the machine has not the room for, a line each."""
    warnings: list[str]
    """What of the schedule the run is too short for, a line each."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


def check_data(recipe: TrainRecipe) -> TokenSet:
    """Read the triplets into the token cache and check them against the base model's codec, whose weights alone are
    read.

    Raises:
        InputError: Something is wrong with them.
    """
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
    """Read configuration, tokenizer and every row as training would; no weights but the codec's, and no output."""
    # 1. Rows, as the base model reads them.
    vlm = load_skeleton(recipe.base, without_codec=True)
    layout = RowLayout(vlm, recipe.task)
    codec = CodecShape(vlm.codec_id, vlm.tokens_per_image, len(vlm.image_rows))
    surveyed = _survey(recipe, vlm, codec)
    facts = [fitting_rows(part, layout, vlm.max_positions)[1] for part, _ in surveyed]
    order = order_of(recipe, facts)
    num_steps = recipe.num_steps(order)

    # 2. Tokens. Rows of one length of action are laid out alike, so that one template a length is enough.
    epoch = np.concatenate([part.action_tokens_R for part in facts])[order.epoch(0)]
    lengths, counts = np.unique(epoch, return_counts=True)
    templates = [layout.template(int(length)) for length in lengths]
    tokens = np.array([len(template.ids_T) for template in templates])
    learned = np.array([template.num_completion_tokens for template in templates])

    # 3. Memory, on the meta device.
    with torch.device("meta"):
        parameters = prepare(vlm, recipe.lora, recipe.seed)
    recipe = settled(recipe, chooser(recipe, vlm, facts, usable_bytes(recipe)))
    recompute_layers(vlm, bool(recipe.resources.gradient_checkpointing))
    memory = step_memory(
        vlm, recipe, max(templates, key=lambda template: len(template.ids_T)), stage=int(recipe.resources.zero_stage)
    )
    # Rows that an earlier run left in the cache take no more space.
    not_cached = [part.num_rows for part, is_cached in surveyed if not is_cached]
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
            for part in facts
        ],
        rows_per_epoch=order.rows_per_epoch,
        num_steps=num_steps,
        epochs=num_steps * recipe.global_batch_size / order.rows_per_epoch,
        warmup_steps=recipe.num_warmup_steps(num_steps),
        peak_share=round(peak_share(recipe, num_steps), 4),
        trained_parameters=parameters.trained,
        total_parameters=parameters.total,
        tokens_per_batch=round(float(tokens @ counts) / len(epoch) * recipe.global_batch_size),
        completion_tokens_per_batch=round(float(learned @ counts) / len(epoch) * recipe.global_batch_size),
        longest_row=int(tokens.max()),
        zero_stage=int(recipe.resources.zero_stage),
        recomputes=bool(recipe.resources.gradient_checkpointing),
        memory=memory,
        does_not_fit=[
            *memory_complaints(recipe, memory),
            *disk_complaints(recipe, codec, not_cached, parameters.trained),
        ],
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
