"""Define a question about an image, and check what a file says of one. Knows no file format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import pyarrow as pa

from wm.errors import InputError

MAX_TEXT_CHARS = 4000
"""Of a question. Those of both benchmarks have fewer than 300; a prompt has room for a few thousand tokens."""
MAX_OPTION_CHARS = 400
MAX_OPTIONS = 26
"""As many as there are letters to name them by."""

Benchmark: TypeAlias = Literal["spatialmqa", "embspatial", "folder"]
"""Format of the questions' files."""

QUESTION_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.int32()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("image_file", pa.string()),
        ("image_offset", pa.int64()),
        ("image_length", pa.int64()),
    ]
)
"""One row = one question that is asked. ``answer`` counts ``options`` from 0; ``image_file`` is relative to the folder
of the images. ``image_offset`` and ``image_length`` are the bytes of the entry that holds the image, -1 where the file
is the image."""


@dataclass(frozen=True)
class ImagePlace:
    """Where the bytes of an image are.

    Attributes:
        file: Relative to the folder of the images.
        offset: First byte of the entry of a JSON file that holds the image as base64 text; -1: the file is the image.
        length: Bytes of that entry; -1: the file is the image.
    """

    file: str
    offset: int = -1
    length: int = -1


@dataclass(frozen=True)
class Question:
    """A question about an image with options, one of which is right.

    Attributes:
        question_id: Unique in its file.
        text: The question.
        options: Two or more different texts.
        answer: Number of the right option, from 0.
        group: Kind of question by which accuracies are broken down, such as the relation; may be empty.
        source: Where the image is from, such as ``scannet``; may be empty.
        image: Where the image is.
    """

    question_id: str
    text: str
    options: tuple[str, ...]
    answer: int
    group: str
    source: str
    image: ImagePlace

    @property
    def reference(self) -> str:
        """Return the text of the right option."""
        return self.options[self.answer]


@dataclass(frozen=True)
class Unusable:
    """An entry that is no question.

    Attributes:
        uri: Names the entry, such as ``test.jsonl:17``.
        reason: A short stable name to count by.
        detail: The reason in words.
    """

    uri: str
    reason: str
    detail: str


class UnusableError(InputError):
    """An entry is no question; ``reason`` is a short stable name to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        """Build the error.

        Args:
            reason: A short stable name to count by.
            detail: The reason in words.
        """
        super().__init__(detail)
        self.reason = reason


def read_text(entry: object, key: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return a text of an entry without outer white space.

    Args:
        entry: A JSON value.
        key: The text's.
        max_chars: Length at most.

    Returns:
        The text.

    Raises:
        UnusableError: The entry is no object, or has no such text.
    """
    if not isinstance(entry, dict):
        raise UnusableError("not_an_object", f"expected a JSON object, got {type(entry).__name__}")
    if key not in entry:
        raise UnusableError("missing_field", f"no field {key!r}; fields found: {_join(entry)}")
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        raise UnusableError("wrong_type", f"{key} = {value!r:.80}: expected a text")
    if len(value) > max_chars:
        raise UnusableError("text_too_long", f"{key} has {len(value):,} characters; at most {max_chars:,} are read")
    return value.strip()


def read_options(entry: dict[str, object], key: str) -> tuple[str, ...]:
    """Return the options of an entry.

    Args:
        entry: A JSON object.
        key: Of the list.

    Returns:
        Two or more different texts.

    Raises:
        UnusableError: They are no such list.
    """
    values = entry.get(key)
    if key not in entry:
        raise UnusableError("missing_field", f"no field {key!r}; fields found: {_join(entry)}")
    if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
        raise UnusableError("bad_options", f"{key} = {values!r:.80}: expected a list of texts")
    options = tuple(value.strip() for value in values)
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise UnusableError("bad_options", f"{key} has {len(options)} entries; expected 2 to {MAX_OPTIONS}")
    longest = max(map(len, options))
    if longest > MAX_OPTION_CHARS:
        raise UnusableError("text_too_long", f"an option has {longest:,} characters; at most {MAX_OPTION_CHARS}")
    # Two equal options would both be right, and one of them counted as wrong.
    if len({option.casefold() for option in options}) != len(options):
        raise UnusableError("bad_options", f"{key} = {list(options)!r:.200}: two of them are equal")
    return options


def read_answer(value: object, options: Sequence[str]) -> int:
    """Return the number of the right option.

    Args:
        value: The option's text, or its number from 0.
        options: Of the question.

    Returns:
        Its number, from 0.

    Raises:
        UnusableError: It is no option.
    """
    # True is a number to Python.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    if isinstance(value, str) and value.strip() in options:
        return options.index(value.strip())
    raise UnusableError("answer_not_an_option", f"answer = {value!r:.80} is none of {list(options)!r:.200}")


def read_label(entry: dict[str, object], key: str) -> str:
    """Return a short text that an entry may lack; empty where it does."""
    value = entry.get(key, "")
    if not isinstance(value, str) or len(value) > MAX_OPTION_CHARS:
        raise UnusableError("wrong_type", f"{key} = {value!r:.80}: expected a short text")
    return value.strip()


def _join(entry: dict[str, object]) -> str:
    # Of a hostile entry's thousands of fields a few are enough.
    return ", ".join(f"{key!s:.40}" for key in list(entry)[:10]) or "none"
