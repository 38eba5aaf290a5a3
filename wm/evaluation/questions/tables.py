"""Collect the figures of all models, with the published numbers where they may stand beside."""

from collections.abc import Collection, Sequence
from typing import TypedDict

from wm.evaluation.published import load_published
from wm.evaluation.questions.figures import ModelRow
from wm.evaluation.questions.formats import NUM_RELEASED, TITLES
from wm.evaluation.questions.items import Benchmark
from wm.evaluation.questions.parsing import Reading
from wm.evaluation.questions.wording import OptionStyle

PUBLISHED_TABLE = "table-2"


class AskTables(TypedDict):
    """What ``tables.json`` of ``wm ask`` holds.

    ``is_complete``: whether these are all questions of the published test set. ``toy_models``: models of the nano
    world. ``published_source``: where the published accuracies are printed; empty where none is shown.
    """

    benchmark: Benchmark
    title: str
    reading: Reading
    style: OptionStyle
    prompt: str
    num_questions: int
    num_rejects: int
    is_complete: bool
    toy_models: list[str]
    published_source: str
    rows: list[ModelRow]


def build_tables(
    rows: Sequence[ModelRow],
    *,
    benchmark: Benchmark,
    reading: Reading,
    style: OptionStyle,
    prompt: str,
    num_questions: int,
    num_rejects: int,
    has_limit: bool,
    toy_models: Collection[str],
) -> AskTables:
    """Build the content of ``tables.json``.

    Args:
        rows: Figures of the models.
        benchmark: Format of the questions.
        reading: Which reading the accuracies are by.
        style: How answers name an option.
        prompt: The prompt's text.
        num_questions: Asked of each model.
        num_rejects: Entries that could not be asked.
        has_limit: Whether usable questions were left out.
        toy_models: Names of models of the nano world.

    Returns:
        The tables. A model of a published label that was asked all questions of the set has the published number.
    """
    is_complete = NUM_RELEASED.get(benchmark) == num_questions and not num_rejects and not has_limit
    printed = load_published()[PUBLISHED_TABLE]
    # By label: the paper's names are those that the recipes give.
    filled: list[ModelRow] = []
    for row in rows:
        cell = printed.cell(TITLES.get(benchmark, ""), row["label"])
        # Another set, or the toy world: the numbers would not be of the same thing.
        if cell is not None and is_complete and row["name"] not in toy_models and not row["num_failed"]:
            filled.append({**row, "published": cell.value})
        else:
            filled.append(row)
    return {
        "benchmark": benchmark,
        "title": TITLES.get(benchmark, "the questions of a folder"),
        "reading": reading,
        "style": style,
        "prompt": prompt,
        "num_questions": num_questions,
        "num_rejects": num_rejects,
        "is_complete": is_complete,
        "toy_models": list(toy_models),
        "published_source": printed.source if any("published" in row for row in filled) else "",
        "rows": filled,
    }
