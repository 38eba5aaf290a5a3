"""Word the prompt of a question. The words are ours, their parts and order those of the benchmarks' public scripts.

The paper prints no prompt for its spatial rows ("greedy decoding", "accuracy"), so another one can be given.

* ``words``: as SpatialMQA's authors ask (ziyan-xiaoyu/SpatialMQA, ``Code/experiment/spatial_test_llava.py``): the role,
  the task, one option and no explanation, then question and options with "; " between them, then a cue.
* ``letters``: as lmms-eval asks EmbSpatial-Bench (``lmms_eval/tasks/embspatial``): the letter alone, then the question,
  then a line for each option, ``A) …``. The benchmark's authors have published no script of their own.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Literal, TypeAlias

from wm.errors import InputError
from wm.evaluation.questions.items import Benchmark, Question

OptionStyle: TypeAlias = Literal["words", "letters"]
"""How an answer names an option: by its words, or by its letter."""

STYLES: dict[Benchmark, OptionStyle] = {"spatialmqa": "words", "embspatial": "letters", "folder": "words"}
PROMPTS: dict[OptionStyle, str] = {
    "words": (
        "You are an expert in spatial relations. Look at the image, read the question and its options, and give the "
        "right spatial relation. Choose exactly one of the options and explain nothing.\n"
        "Question: {question} Options: {options}.\nAnswer:"
    ),
    "letters": ("Reply with the letter of the right option and with nothing else.\n{question}\n{options}\nAnswer:"),
}
"""Prompts by style; {question} and {options} are filled in."""
FIELDS = ("{question}", "{options}")


def check_prompt(prompt: str) -> str:
    """Check the text of a prompt.

    Args:
        prompt: With {question}, and with {options} or without.

    Returns:
        The prompt.

    Raises:
        InputError: It does not name the question.
    """
    # Without its question, every item would be asked the same.
    if FIELDS[0] not in prompt:
        raise InputError(
            f"prompt = {prompt!r:.200}: expected a text with {FIELDS[0]}, and {FIELDS[1]} where it has any"
        )
    return prompt


def write_prompt(question: Question, prompt: str, style: OptionStyle) -> str:
    """Write the prompt of a question.

    Args:
        question: The question.
        prompt: Text with :data:`FIELDS`.
        style: How options are listed.

    Returns:
        The prompt, which the answer follows.
    """
    # As the public scripts list them: in a sentence, or a line each.
    if style == "words":
        options = "; ".join(question.options)
    else:
        options = "\n".join(
            f"{letter}) {option}" for letter, option in zip(ascii_uppercase, question.options, strict=False)
        )
    # In one pass: a question that holds "{options}" stays as it is.
    texts = dict(zip(FIELDS, (question.text, options), strict=True))
    return re.sub("|".join(map(re.escape, FIELDS)), lambda match: texts[match[0]], prompt)


def list_replies(options: Sequence[str], style: OptionStyle) -> list[str]:
    """List the replies that the prompt asks for, one an option: what is ranked by likelihood.

    Args:
        options: Of the question.
        style: How an answer names an option.
    """
    return list(options) if style == "words" else list(ascii_uppercase[: len(options)])
