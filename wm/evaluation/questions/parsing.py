r"""Read which option an answer names, and whether it is right, in two ways.

``published``: what the benchmark's public script does, to the letter.

* ``words`` (SpatialMQA's authors, ``Code/experiment/spatial_test_llava.py``): right if the answer in lower case holds
  the reference, or is held by it; an empty answer is ``--``. So "on" is right for "on/above", and so are "o" and an
  answer that names every option.
* ``letters`` (lmms-eval, ``lmms_eval/tasks/embspatial/utils.py``): the letter that the answer begins with, after
  brackets and blanks, in either case. So "the door" is read as T.

``one_option``: stricter. The answer must name exactly one option: by its complete words, wherever they are, or, where
the answer is nothing else, by a part of an option with a slash ("on" of "on/above") or by its letter. An answer that
names two is not parsed.
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Literal, NamedTuple, TypeAlias

from wm.evaluation.questions.wording import OptionStyle

Reading: TypeAlias = Literal["published", "one_option"]
"""How answers are read."""
READINGS: tuple[Reading, ...] = ("published", "one_option")

_EMPTY = "--"
_LEADING_LETTER = re.compile(r"[(\s]*([A-Za-z])[).\s]*")
_LETTER = re.compile(r"\(?([a-z])(?:[).:]|$)(.*)", re.DOTALL)


class Parsed(NamedTuple):
    """What an answer was read as: whether it names an option at all, and whether it is right."""

    is_parsed: bool
    is_right: bool


def parse_answer(text: str, options: Sequence[str], answer: int, *, style: OptionStyle, reading: Reading) -> Parsed:
    """Read an answer.

    Args:
        text: What the model has written.
        options: Of the question.
        answer: Number of the right option.
        style: How the prompt asked for an option.
        reading: Whose reading.

    Returns:
        Whether it names an option, and whether it is right; one that is not parsed is never right.
    """
    if reading == "one_option":
        number = _find_one(text, options)
        return Parsed(number is not None, number == answer)
    if style == "letters":
        match = _LEADING_LETTER.match(text.strip())
        letter = match[1].upper() if match else ""
        return Parsed(letter in ascii_uppercase[: len(options)] and letter != "", letter == ascii_uppercase[answer])
    # The authors compare with references in lower case; those of other sets are put into it.
    answer_text = text.strip().lower() or _EMPTY
    fits = [answer_text in option.lower() or option.lower() in answer_text for option in options]
    return Parsed(any(fits), fits[answer])


def _find_one(text: str, options: Sequence[str]) -> int | None:
    """Return the number of the one option that an answer names; None if it names none, or several."""
    answer_text = _normalise(text)
    # 1. Nothing but an option, a part of one, or a letter.
    equal = [number for number, option in enumerate(options) if answer_text in (_normalise(option), *_parts(option))]
    if len(equal) == 1:
        return equal[0]
    match = _LETTER.fullmatch(text.strip().lower())
    if match is not None and (number := ord(match[1]) - ord("a")) < len(options):
        # "A) the door": the words behind the letter must not be another option's.
        rest = _find_named(_normalise(match[2]), options)
        return number if rest <= {number} else None
    # 2. Somewhere among other words.
    numbers = _find_named(answer_text, options)
    return next(iter(numbers)) if len(numbers) == 1 else None


def _find_named(answer_text: str, options: Sequence[str]) -> set[int]:
    """Find the options whose complete words an answer holds."""
    numbers = set()
    rest = f" {answer_text} "
    # The longest first, and taken out: "coffee table" does not name "table".
    for number in sorted(range(len(options)), key=lambda number: -len(options[number])):
        words = f" {_normalise(options[number])} "
        if words in rest:
            numbers.add(number)
            rest = rest.replace(words, " | ")
    return numbers


def _parts(option: str) -> list[str]:
    # "on/above" is two names of one relation.
    return [_normalise(part) for part in option.split("/")] if "/" in option else []


def _normalise(text: str) -> str:
    """Return words in lower case with single blanks, without punctuation at their ends."""
    # Models write "Left of." and "**left of**" for the same.
    words = (word.strip(".,;:!?\"'`()[]*") for word in text.casefold().split())
    return " ".join(word for word in words if word)
