"""AURORA's layout: rows and images, and every way they can be wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm.datasets.layouts.base import ImagePair, Problem
from wm.datasets.layouts.labelled import list_labelled, load_images
from wm.errors import InputError
from wm.images import encode_png

RED, BLUE = (np.full((4, 6, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def row(**changes: Any) -> dict[str, Any]:
    plain = {"instruction": "paint it blue", "input": "data/a/left.png", "output": "data/a/right.png", "task": "paint"}
    return {name: value for name, value in (plain | changes).items() if value != "ABSENT"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root" / "data" / "a"
    folder.mkdir(parents=True)
    (folder / "left.png").write_bytes(encode_png(RED))
    (folder / "right.png").write_bytes(encode_png(BLUE))
    (folder / "text.png").write_text("no image")
    (tmp_path / "outside.png").write_bytes(encode_png(RED))
    return tmp_path / "root"


def listed(root: Path, rows: Any) -> list[ImagePair | Problem]:
    (root / "data" / "a" / "train.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return list_labelled(root, "data/a/train.json", "aurora")


def test_rows_and_their_images(root: Path) -> None:
    (item,) = listed(root, [row()])
    assert item == ImagePair("data/a/train.json#0", "paint", "data/a/left.png", "data/a/right.png", "paint it blue")
    pair = load_images(root, item)
    assert not isinstance(pair, Problem)
    np.testing.assert_array_equal(pair[0], RED)
    np.testing.assert_array_equal(pair[1], BLUE)


def test_words_tasks_and_further_fields(root: Path) -> None:
    rows = [
        row(instruction=["  first  ", "second"], task="ABSENT", extra=[1]),
        row(instruction="Färbe es"),
        row(task=""),
        row(task=7),
    ]
    items = listed(root, rows)
    assert [item.action for item in items if isinstance(item, ImagePair)] == [
        "first",
        "Färbe es",
        *["paint it blue"] * 2,
    ]
    assert [item.task for item in items] == ["a", "paint", "a", "a"]


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"output": "ABSENT"}, "missing_field", "no 'output'; found instruction, input, task"),
        ({"input": None}, "missing_field", "no 'input'"),
        ({"instruction": "ABSENT"}, "missing_field", "no 'instruction'"),
        ({"instruction": []}, "missing_field", "no 'instruction'"),
        ({"instruction": [3]}, "bad_field", "instruction = 3; expected non-empty text"),
        ({"instruction": " \n"}, "bad_field", r"instruction = ' \n'"),
        ({"output": ["a.png"]}, "bad_field", "output = ['a.png']"),
        ({"input": 5}, "bad_field", "input = 5"),
    ],
)
def test_a_bad_row_is_a_problem_and_the_others_stay(root: Path, changes: Any, reason: str, said: str) -> None:
    good, bad = listed(root, [row(), row(**changes)])
    assert isinstance(good, ImagePair) and isinstance(bad, Problem)
    assert (bad.uri, bad.task, bad.reason) == ("data/a/train.json#1", "paint", reason)
    assert said in bad.detail and bad.uri in bad.detail


@pytest.mark.parametrize("other", [3, "text", None, [1, 2]])
def test_what_is_no_row(root: Path, other: Any) -> None:
    _, bad = listed(root, [row(), other])
    assert isinstance(bad, Problem) and bad.reason == "not_a_row" and "expected an object" in bad.detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "holds list of length 0; expected a non-empty list of rows"),
        ('{"a": 1}', "holds dict"),
        ('[{"input": "x"}]', "no usable row; the first: data/a/train.json#0: no 'instruction'"),
    ],
)
def test_a_file_without_a_usable_row(root: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"train\.json") as caught:
        listed(root, text)
    assert said in str(caught.value)


def test_missing_root_and_file(root: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder: root = .*nowhere"):
        list_labelled(root / "nowhere", "x.json")
    with pytest.raises(InputError, match=r"no such file: .*x\.json"):
        list_labelled(root, "x.json")
    (root / "latin.json").write_bytes(b'["\xe4"]')
    with pytest.raises(InputError, match=r"latin\.json is not valid JSON"):
        list_labelled(root, "latin.json", "aurora")


@pytest.mark.parametrize(
    ("output", "reason", "said"),
    [
        ("data/a/gone.png", "missing_file", "no such image file: data/a/gone.png"),
        ("data/a", "missing_file", "no such image file: data/a"),
        ("data/a/text.png", "not_an_image", "data/a/text.png is no readable image"),
        ("../outside.png", "path_outside_root", "../outside.png leads out of"),
        ("/etc/hostname", "path_outside_root", "/etc/hostname leads out of"),
        ("data/a/link.png", "path_outside_root", "data/a/link.png leads out of"),
        ("data/a/loop.png", "unreadable_file|missing_file", "data/a/loop.png"),
        ("data/\0.png", "unreadable_file", "cannot read"),
        ("x" * 5000, "unreadable_file", "cannot read 'xxx"),
    ],
)
def test_an_image_that_cannot_be_had_is_named(root: Path, output: str, reason: str, said: str) -> None:
    (root / "data" / "a" / "link.png").symlink_to("../../../outside.png")
    (root / "data" / "a" / "loop.png").symlink_to("loop.png")
    problem = load_images(root, ImagePair("f#3", "paint", "data/a/left.png", output, "x"))
    assert isinstance(problem, Problem)
    assert problem.reason in reason.split("|") and said in problem.detail and len(problem.detail) < 6000
    assert (problem.uri, problem.task) == ("f#3", "paint")


def test_aurora_bench_itself(shared_data: Path) -> None:
    root = shared_data / "aurora-bench"
    items = list_labelled(root, "test.json")
    assert len(items) == 250 and all(isinstance(item, ImagePair) for item in items)
    assert {item.task for item in items} == {"magicbrush", "ag", "something", "whatsup", "kubric"}
    missing = [
        item.target
        for item in items
        if isinstance(item, ImagePair) and not all((root / name).is_file() for name in (item.source, item.target))
    ]
    problems = [load_images(root, item) for item in items if isinstance(item, ImagePair) and item.target in missing]
    assert len(problems) == 2
    for problem, name in zip(problems, missing, strict=True):
        assert isinstance(problem, Problem)
        assert problem.reason == "missing_file" and name in problem.detail
