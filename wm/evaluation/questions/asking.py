"""Ask one model a run of questions, and write its answers as one file. Runs in a worker, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import torch

from wm.dynamics import BaseSharing
from wm.dynamics.questions import Reply, answer_questions, build_prompt
from wm.dynamics.vlm_questions import answer_questions as answer_from_pixels
from wm.dynamics.vlm_questions import check_question
from wm.errors import InputError
from wm.evaluation.bench import load_cached_scorer, load_entry_role
from wm.evaluation.questions.figures import AnswerRow
from wm.evaluation.questions.images import load_image
from wm.evaluation.questions.items import Question
from wm.evaluation.questions.parsing import READINGS, parse_answer
from wm.evaluation.questions.wording import OptionStyle, list_replies, write_prompt
from wm.images import fit_square
from wm.models import ImageCodec, base_of, load_codec

ANSWER_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("reference", pa.string()),
        ("model", pa.string()),
        ("label", pa.string()),
        ("run", pa.int32()),
        ("answer", pa.string()),
        ("answer_logprob", pa.float64()),
        ("answer_tokens", pa.int32()),
        ("is_parsed_published", pa.bool_()),
        ("is_right_published", pa.bool_()),
        ("is_parsed_one_option", pa.bool_()),
        ("is_right_one_option", pa.bool_()),
        ("option_logprobs", pa.list_(pa.float64())),
        ("option_tokens", pa.list_(pa.int32())),
        ("ranked_sum", pa.string()),
        ("ranked_mean", pa.string()),
        ("failure", pa.string()),
    ]
)
"""One row = one model's answer to one question. Log-probabilities are sums in nats, end tokens among the counted.
``ranked_sum`` and ``ranked_mean``: the likeliest option by the sum, and by the mean a token. ``failure``: why the model
could not be asked this; what an answer would fill is null then."""

_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class AskedModel:
    """A model that is asked.

    Attributes:
        name: In the recipe.
        path: Model folder.
        label: Name in tables.
        run: Training seed.
        base: Base folder of an adapter; empty: the one that its manifest names.
        reads: Image codes or pixels.
    """

    name: str
    path: str
    label: str
    run: int = 0
    base: str = ""
    reads: Literal["codes", "pixels"] = "codes"


@dataclass(frozen=True)
class AskSettings:
    """How models are asked.

    Attributes:
        root: Folder of the images.
        prompt: Text with {question} and {options}.
        style: How an answer names an option.
        max_new_tokens: Of an answer.
        batch_size: Rows of a pass, an option being one.
        device: Of torch.
        dtype: Of the weights.
        base_sharing: How adapters hold their base.
    """

    root: Path
    prompt: str
    style: OptionStyle
    max_new_tokens: int
    batch_size: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    base_sharing: BaseSharing = "merged"


class StoredAnswer(TypedDict, total=False):
    """A row of :data:`ANSWER_SCHEMA`."""

    question_id: str
    group: str
    source: str
    question: str
    options: list[str]
    reference: str
    model: str
    label: str
    run: int
    answer: str
    answer_logprob: float
    answer_tokens: int
    is_parsed_published: bool
    is_right_published: bool
    is_parsed_one_option: bool
    is_right_one_option: bool
    option_logprobs: list[float]
    option_tokens: list[int]
    ranked_sum: str
    ranked_mean: str
    failure: str


def ask_model(model: AskedModel, questions: Sequence[Question], settings: AskSettings) -> list[StoredAnswer]:
    """Ask a model some questions.

    Args:
        model: The model; the last one stays loaded.
        questions: One or more.
        settings: How it is asked.

    Returns:
        A row for each question, in their order. A question that the model cannot be asked, as its words or its length
        do not fit, has a failure instead of an answer.

    Raises:
        InputError: The model cannot be loaded, or an image has changed since it was read.
    """
    prompts = [write_prompt(question, settings.prompt, settings.style) for question in questions]
    replies = [list_replies(question.options, settings.style) for question in questions]
    ask = _ask_codes if model.reads == "codes" else _ask_pixels
    answers = ask(model, questions, prompts, replies, settings)
    return [
        _build_row(model, question, answer, settings.style) for question, answer in zip(questions, answers, strict=True)
    ]


def _ask_codes(
    model: AskedModel,
    questions: Sequence[Question],
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    settings: AskSettings,
) -> list[Reply | str]:
    role = _load_role(model.path, model.base, settings.device, settings.dtype, settings.base_sharing)
    codec = _load_codec(model.path, model.base, settings.device)
    image_BN = _encode(codec, questions, settings.root)
    # 1. Which questions fit this model: one that does not must not stop the others.
    failures: dict[int, str] = {}
    for row, (prompt, of) in enumerate(zip(prompts, options, strict=True)):
        try:
            build_prompt(role.model, image_BN[row].tolist(), prompt, of, settings.max_new_tokens)
        except InputError as error:
            failures[row] = str(error)
    rows = [row for row in range(len(questions)) if row not in failures]
    # 2. Ask them.
    replies = answer_questions(
        role.model,
        image_BN[rows],
        [prompts[row] for row in rows],
        [options[row] for row in rows],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        runner=role.runner,
    )
    # Back in the order of the questions.
    by_row = dict(zip(rows, replies, strict=True))
    return [failures[row] if row in failures else by_row[row] for row in range(len(questions))]


def _encode(codec: ImageCodec, questions: Sequence[Question], root: Path) -> torch.Tensor:
    parts = []
    for start in range(0, len(questions), _ENCODED_AT_ONCE):
        # Squares alone are kept: images may have 40 million pixels.
        squares = [
            fit_square(load_image(root, question.image), codec.side_px)
            for question in questions[start : start + _ENCODED_AT_ONCE]
        ]
        parts.append(codec.encode(np.stack(squares)).cpu())
    return torch.cat(parts)


def _ask_pixels(
    model: AskedModel,
    questions: Sequence[Question],
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    settings: AskSettings,
) -> list[Reply | str]:
    # 1. As for codes: what does not fit this model must not stop the others.
    vlm = load_cached_scorer(model.path, settings.device, settings.dtype)
    answers: dict[int, Reply | str] = {}
    for row, prompt in enumerate(prompts):
        image = load_image(settings.root, questions[row].image)
        try:
            check_question(vlm, image, prompt, options[row])
        except InputError as error:
            answers[row] = str(error)
    rows = [row for row in range(len(questions)) if row not in answers]
    # 2. In parts, so that only so many images are in memory.
    for start in range(0, len(rows), settings.batch_size):
        part = rows[start : start + settings.batch_size]
        replies = answer_from_pixels(
            vlm,
            [load_image(settings.root, questions[row].image) for row in part],
            [prompts[row] for row in part],
            [options[row] for row in part],
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.batch_size,
        )
        answers.update(zip(part, replies, strict=True))
    return [answers[row] for row in range(len(questions))]


# Models are asked one after the other: those that have answered need no memory.
_load_role = lru_cache(maxsize=1)(load_entry_role)


@lru_cache(maxsize=2)
def _load_codec(path: str, base: str, device: str) -> ImageCodec:
    return load_codec(base_of(path, base or None)[0], device)


def _build_row(model: AskedModel, question: Question, reply: Reply | str, style: OptionStyle) -> StoredAnswer:
    # What was asked is in each row, so that answers are read without the benchmark.
    row: StoredAnswer = {
        "question_id": question.question_id,
        "group": question.group,
        "source": question.source,
        "question": question.text,
        "options": list(question.options),
        "reference": question.reference,
        "model": model.name,
        "label": model.label,
        "run": model.run,
    }
    if isinstance(reply, str):
        return {**row, "failure": reply}
    # Of equal ones the first: an order that every run has.
    best = max(range(len(reply.options)), key=lambda number: (reply.options[number].logprob, -number))
    best_mean = max(range(len(reply.options)), key=lambda number: (reply.options[number].mean_logprob, -number))
    published, one_option = (
        parse_answer(reply.answer.text, question.options, question.answer, style=style, reading=reading)
        for reading in READINGS
    )
    return {
        **row,
        "answer": reply.answer.text,
        "answer_logprob": reply.answer.logprob,
        "answer_tokens": reply.answer.num_tokens,
        "is_parsed_published": published.is_parsed,
        "is_right_published": published.is_right,
        "is_parsed_one_option": one_option.is_parsed,
        "is_right_one_option": one_option.is_right,
        "option_logprobs": [option.logprob for option in reply.options],
        "option_tokens": [option.num_tokens for option in reply.options],
        "ranked_sum": question.options[best],
        "ranked_mean": question.options[best_mean],
    }


def to_answer_row(row: StoredAnswer) -> AnswerRow:
    """Return what figures need of a stored answer."""
    # A column of nulls comes back as None.
    has_failed = row.get("failure") is not None
    return {
        "question_id": row["question_id"],
        "group": row["group"],
        "source": row["source"],
        "num_options": len(row["options"]),
        "failure": row["failure"] if has_failed else None,
        "is_right": {"published": row["is_right_published"], "one_option": row["is_right_one_option"]}
        if not has_failed
        else {},
        "is_parsed": {"published": row["is_parsed_published"], "one_option": row["is_parsed_one_option"]}
        if not has_failed
        else {},
        "is_ranked_sum": not has_failed and row["ranked_sum"] == row["reference"],
        "is_ranked_mean": not has_failed and row["ranked_mean"] == row["reference"],
    }
