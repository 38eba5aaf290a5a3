"""Score the actions of prediction sets as texts. In this process: texts are few and short, next to images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from jobs.score.recipe import ScoreRecipe
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.image_scoring import Values
from wm.evaluation.metrics.bertscore import BertScorer, load_bertscore
from wm.evaluation.metrics.text import report_text
from wm.evaluation.metrics.text_items import TEXT_ITEM_METRICS, score_texts
from wm.evaluation.predicted_actions import ActionRow
from wm.evaluation.score_tables import ScoreRow, build_score_rows
from wm.tables import write_table

ACTION_VALUE_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("system", pa.string()),
        ("run", pa.int32()),
        ("action", pa.string()),
        ("reference", pa.string()),
        *((name, pa.float64()) for name in TEXT_ITEM_METRICS),
    ]
)
"""One row = the metrics of one action; null where a metric cannot be had."""


class ActionScores(TypedDict):
    """The part of ``scores.json`` that is about actions."""

    rows: list[ScoreRow]
    corpus_bleu: dict[str, dict[str, float]]  # system → run → BLEU of all its texts as one corpus
    notes: dict[str, str]  # metric → by which tokens it was computed, or why it is absent


def load_scorer(recipe: ScoreRecipe) -> BertScorer | None:
    """Load the model of BERTScore, if one is given.

    Raises:
        InputError: The folder holds no such model, or its layer or baseline are not known.
    """
    settings = recipe.bertscore
    if not settings.model:
        return None
    return load_bertscore(
        settings.model,
        layer=settings.layer,
        baseline=settings.baseline,
        rescale=settings.rescale,
        device=recipe.resources.device,
        batch_size=recipe.resources.batch_size,
    )


def score_actions(recipe: ScoreRecipe, actions: Sequence[ActionRow], rows: Sequence[BenchRow]) -> ActionScores:
    """Score actions against those of the bench, and store the value of each.

    Args:
        recipe: Output folder, subset and model.
        actions: Of all systems.
        rows: The bench.

    Returns:
        Figures by system.
    """
    bert = load_scorer(recipe)
    references = {row.triplet_id: row.action for row in rows}
    expected = [references[action["triplet_id"]] for action in actions]
    items = score_texts([action["action"] for action in actions], expected, bert)
    values: list[Values] = [
        {**action, "reference": reference, **scores}
        for action, reference, scores in zip(actions, expected, items, strict=True)
    ]
    stored_values = [
        {name: value for name, value in row.items() if name in ACTION_VALUE_SCHEMA.names} for row in values
    ]
    write_table(stored_values, Path(recipe.out) / "action_values" / "part-00000.parquet", ACTION_VALUE_SCHEMA)
    # As rows of predictions with one candidate each.
    single: Values = {"sampling_seed": 0, "decoding": "unknown", "candidates": [0], "chosen_at": []}
    subsets = {row.triplet_id: row.subset(recipe.subset) for row in rows}
    table = build_score_rows([row | single for row in values], subsets, TEXT_ITEM_METRICS)
    corpus_bleu, notes = _score_corpora(actions, references)
    if bert is None:
        notes["bertscore"] = "absent, needs bertscore.model (a folder such as FacebookAI/roberta-large)"
    else:
        notes["bertscore"] = f"layer {bert.layer}, " + (
            "not rescaled" if bert.baseline is None else f"rescaled by the baseline {bert.baseline}"
        )
    return {"rows": table, "corpus_bleu": corpus_bleu, "notes": notes}


def _score_corpora(
    actions: Sequence[ActionRow], references: dict[str, str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Compute what is a figure of a set of texts alone, for each system and run."""
    figures: dict[str, dict[str, float]] = {}
    notes: dict[str, str] = {}
    # Runs are corpora of their own: their texts are not independent.
    for system, run in dict.fromkeys((action["system"], action["run"]) for action in actions):
        own = [action for action in actions if (action["system"], action["run"]) == (system, run)]
        report = report_text([row["action"] for row in own], [references[row["triplet_id"]] for row in own])
        if "bleu" in report.figures:
            figures.setdefault(system, {})[str(run)] = report.figures["bleu"]
        notes |= report.notes
    return figures, notes
