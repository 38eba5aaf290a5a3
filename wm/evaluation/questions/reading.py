"""Read a benchmark once: the questions that can be asked, and why others cannot. Images are checked, not kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wm.evaluation.heldout import spread_rows
from wm.evaluation.questions.formats import find_file, find_images, list_entries
from wm.evaluation.questions.images import load_image
from wm.evaluation.questions.items import (
    QUESTION_SCHEMA,
    Benchmark,
    ImagePlace,
    Question,
    Unusable,
    UnusableError,
)
from wm.records import RejectRow, reject_row
from wm.tables import read_table, write_table


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a benchmark.

    Attributes:
        questions: Those that are asked.
        rejects: Entries that cannot be, with their reasons.
        num_entries: Entries of the file.
        num_left_out: Usable ones that ``limit`` leaves out.
    """

    questions: list[Question]
    rejects: list[RejectRow]
    num_entries: int
    num_left_out: int


def read_questions(
    benchmark: Benchmark,
    data: str | Path,
    *,
    file: str = "",
    images: str = "",
    limit: int = 0,
    on_image: Callable[[int, int], object] | None = None,
) -> QuestionSet:
    """Read the questions of a benchmark and decode each image once.

    Args:
        benchmark: Its format.
        data: Its folder.
        file: Name of the questions' file below it; empty: the released one.
        images: Folder of the images; empty: below ``data``.
        limit: So many questions, spread evenly over the file; 0: all.
        on_image: Called after each image with how many are decoded, and of how many.

    Returns:
        Questions and rejects: entries = questions + rejects + those that the limit leaves out.

    Raises:
        InputError: The file cannot be read.
    """
    path, root = find_file(benchmark, data, file), find_images(benchmark, data, images)
    # Images inside of the file are relative to its folder.
    root = path.parent if benchmark == "embspatial" else root
    # Texts alone: all of a benchmark's are a few megabytes.
    entries = list(list_entries(benchmark, path))
    unusable = [entry for entry in entries if isinstance(entry, Unusable)]
    usable = [entry for entry in entries if isinstance(entry, Question)]
    # The limit first: a trial of 10 questions need not decode 3,640 images.
    sample = [usable[row] for row in spread_rows(len(usable), limit or None)]
    questions = []
    for number, question in enumerate(sample, start=1):
        try:
            load_image(root, question.image)
            questions.append(question)
        except UnusableError as error:
            unusable.append(Unusable(question.question_id, error.reason, str(error)))
        if on_image is not None:
            on_image(number, len(sample))
    # Counted and named: what is missing from a figure can be looked up.
    rejects = [
        reject_row(
            uri=entry.uri, stage="ask", outcome="failed", reason=entry.reason, detail=entry.detail, dataset=benchmark
        )
        for entry in unusable
    ]
    return QuestionSet(questions, rejects, len(entries), len(usable) - len(sample))


def write_questions(questions: Sequence[Question], path: Path) -> None:
    """Write questions as one Parquet file, so that no worker reads the benchmark's own again."""
    rows = (
        {
            "question_id": question.question_id,
            "question": question.text,
            "options": list(question.options),
            "answer": question.answer,
            "group": question.group,
            "source": question.source,
            "image_file": question.image.file,
            "image_offset": question.image.offset,
            "image_length": question.image.length,
        }
        for question in questions
    )
    write_table(rows, path, QUESTION_SCHEMA)


def load_questions(folder: Path) -> list[Question]:
    """Load what :func:`write_questions` has written.

    Args:
        folder: The folder of the file, or the file.
    """
    return [
        Question(
            row["question_id"],
            row["question"],
            tuple(row["options"]),
            row["answer"],
            row["group"],
            row["source"],
            ImagePlace(row["image_file"], row["image_offset"], row["image_length"]),
        )
        for row in read_table(folder, QUESTION_SCHEMA).to_pylist()
    ]
