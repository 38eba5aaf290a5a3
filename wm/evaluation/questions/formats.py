"""Read questions from the files of benchmarks, entry by entry. What is no question comes out with its reason.

Formats, looked up in public copies of them (November 2026):

* ``spatialmqa``: SpatialMQA (Liu et al. 2025, arXiv 2505.19015), repository ziyan-xiaoyu/SpatialMQA,
  ``Dataset/dataset/test.jsonl``: lines ``{"image": "000000024001.jpg", "question": …, "options": ["left of", …],
  "answer": "left of"}``, images of COCO 2017. The released lines have no id: the line's number is it.
* ``embspatial``: EmbSpatial-Bench (Du et al. 2024, arXiv 2406.05756), Hugging Face Phineas476/EmbSpatial-Bench,
  ``embspatial_bench.json`` of 254 MB: one array of ``{"question_id", "question", "answer_options", "answer": number
  from 0, "relation", "data_source", "image": base64 of a JPEG}``. Its repository mengfeidu/EmbSpatial-Bench holds a
  README only; fields and the meaning of ``answer`` are those that lmms-eval reads (its ``tasks/embspatial/utils.py``).
* ``folder``: ours, ``questions.jsonl``: lines ``{"id", "image": path below the folder, "question", "options", "answer":
  text or number from 0, "group", "source"}``; id, group and source may be left out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from wm.errors import InputError
from wm.evaluation.questions.items import (
    Benchmark,
    ImagePlace,
    Question,
    Unusable,
    UnusableError,
    read_answer,
    read_label,
    read_options,
    read_text,
)
from wm.evaluation.questions.json_entries import Span, list_lines, list_objects, read_span

FILES: dict[Benchmark, str] = {
    "spatialmqa": "test.jsonl",
    "embspatial": "embspatial_bench.json",
    "folder": "questions.jsonl",
}
"""Name of the questions' file below the benchmark's folder."""
IMAGE_FOLDERS = ("COCO2017/test2017", "COCO2017", "test2017", "images")
"""Where SpatialMQA's README and scripts put the images of COCO, below its folder."""
NUM_RELEASED: dict[Benchmark, int] = {"spatialmqa": 1076, "embspatial": 3640}
"""Questions of the published test sets."""
TITLES: dict[Benchmark, str] = {"spatialmqa": "SpatialMQA", "embspatial": "EmbodiedSpatial-Bench"}
"""Rows of the paper's Table 2."""

Entry: TypeAlias = Question | Unusable


def find_file(benchmark: Benchmark, data: str | Path, file: str = "") -> Path:
    """Find the file of the questions.

    Args:
        benchmark: Its format.
        data: Folder of the benchmark.
        file: Its name below the folder; empty: the released one.

    Returns:
        The file.

    Raises:
        InputError: It is not there.
    """
    # Each problem has another remedy, which its message names.
    name = file or FILES[benchmark]
    path = Path(data) / name
    if not Path(data).is_dir():
        raise InputError(f"data = {str(data)!r:.300}: no such folder; expected one with {name}")
    if not path.is_file():
        names = sorted(entry.name for entry in Path(data).iterdir() if entry.suffix in (".json", ".jsonl"))
        listing = f"; JSON files there: {', '.join(names[:5])}" if names else ""
        raise InputError(f"no {name} in {data}{listing}; file=NAME names another")
    return path


def find_images(benchmark: Benchmark, data: str | Path, images: str = "") -> Path:
    """Find the folder that images are relative to.

    Args:
        benchmark: Its format.
        data: Folder of the benchmark.
        images: As it was given; empty: below ``data``.

    Returns:
        The folder.

    Raises:
        InputError: It is not there.
    """
    if images and not Path(images).is_dir():
        raise InputError(f"images = {images!r:.300}: no such folder")
    if images or benchmark != "spatialmqa":
        return Path(images or data)
    # Where the authors' README puts them; else beside the questions.
    return next((Path(data) / name for name in IMAGE_FOLDERS if (Path(data) / name).is_dir()), Path(data))


def list_entries(benchmark: Benchmark, path: Path) -> Iterator[Entry]:
    """Read the entries of a file one by one; images are not opened.

    Args:
        benchmark: Its format.
        path: The file.

    Yields:
        A question, or why the entry is none.

    Raises:
        InputError: The file cannot be read.
    """
    spans = enumerate(list_objects(path), start=1) if benchmark == "embspatial" else list_lines(path)
    build: Callable[[object, str, Path, Span], Question] = _BUILDERS[benchmark]
    seen_ids: set[str] = set()
    for number, span in spans:
        uri = f"{path.name}:{number}"
        try:
            question = build(read_span(path, span), uri, path, span)
            # Of two, neither is known to be the right one; the first is kept, as readers of the release keep it.
            if question.question_id in seen_ids:
                raise UnusableError("duplicate_id", f"id {question.question_id!r:.80} was there before")
        except UnusableError as error:
            yield Unusable(uri, error.reason, str(error))
            continue
        seen_ids.add(question.question_id)
        yield question


def _build_spatialmqa(entry: object, uri: str, path: Path, span: Span) -> Question:
    text, image = read_text(entry, "question"), read_text(entry, "image")
    assert isinstance(entry, dict)  # read_text has refused others
    options = read_options(entry, "options")
    answer = read_answer(entry.get("answer"), options)
    # A number would be a choice of another format.
    if not isinstance(entry.get("answer"), str):
        raise UnusableError("answer_not_an_option", f"answer = {entry.get('answer')!r:.80}: expected an option's text")
    # Relation: the right option is it.
    return Question(_read_id(entry, "id", uri), text, options, answer, options[answer], "", ImagePlace(image))


def _build_embspatial(entry: object, uri: str, path: Path, span: Span) -> Question:
    text = read_text(entry, "question")
    assert isinstance(entry, dict)
    options = read_options(entry, "answer_options")
    answer = entry.get("answer")
    if not isinstance(answer, int):
        raise UnusableError("answer_not_an_option", f"answer = {answer!r:.80}: expected the option's number, from 0")
    if not isinstance(entry.get("image"), str) or not entry["image"]:
        raise UnusableError("missing_image", "no field 'image' with base64 text")
    return Question(
        _read_id(entry, "question_id", uri),
        text,
        options,
        read_answer(answer, options),
        read_label(entry, "relation"),
        read_label(entry, "data_source"),
        ImagePlace(path.name, span.start, span.length),
    )


def _build_folder(entry: object, uri: str, path: Path, span: Span) -> Question:
    text, image = read_text(entry, "question"), read_text(entry, "image")
    assert isinstance(entry, dict)
    options = read_options(entry, "options")
    # A text or a number: whoever writes a file by hand may take either.
    answer = read_answer(entry.get("answer"), options)
    group, source = read_label(entry, "group"), read_label(entry, "source")
    return Question(_read_id(entry, "id", uri), text, options, answer, group, source, ImagePlace(image))


_BUILDERS: dict[Benchmark, Callable[[object, str, Path, Span], Question]] = {
    "spatialmqa": _build_spatialmqa,
    "embspatial": _build_embspatial,
    "folder": _build_folder,
}


def _read_id(entry: dict[str, object], key: str, default: str) -> str:
    """Return the entry's id as text; the entry's place in its file where it has none."""
    value = entry.get(key, default)
    # Texts and numbers that look alike are one id.
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip() or len(str(value)) > 200:
        raise UnusableError("wrong_type", f"{key} = {value!r:.80}: expected a short text or a number")
    return str(value).strip()
