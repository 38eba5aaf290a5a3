"""Questions from files in the released formats, and why other entries are none."""

import base64
import json

import pytest

from tests.helpers.question_files import (
    RELATIONS,
    embspatial_entry,
    encode,
    mqa_entry,
    write_embspatial,
    write_folder,
    write_spatialmqa,
)
from wm.errors import InputError
from wm.evaluation.questions import images, json_entries
from wm.evaluation.questions.formats import find_file, list_entries
from wm.evaluation.questions.images import load_image
from wm.evaluation.questions.items import Question, UnusableError, read_text
from wm.evaluation.questions.reading import load_questions, read_questions, write_questions
from wm.images import decode_image

LINE = {"image": "images/0.png", "question": "where", "options": ["left", "right"], "answer": "left"}


def test_spatialmqa_as_released(tmp_path):
    data = write_spatialmqa(tmp_path / "mqa", [mqa_entry(number) for number in range(4)])
    found = read_questions("spatialmqa", data)
    assert [question.question_id for question in found.questions] == [f"test.jsonl:{n}" for n in (1, 2, 3, 4)]
    first, second = found.questions[:2]
    assert first.options == RELATIONS[2:] and second.options == RELATIONS
    assert (first.reference, first.group, second.reference) == ("in front of", "in front of", "below")
    assert (load_image(data / "COCO2017", second.image) == decode_image(encode(1, "JPEG"), "")).all()
    assert found.rejects == [] and found.num_entries == 4
    # `mv test2017 COCO2017` into a clone that has this folder already.
    (data / "COCO2017").rename(data / "test2017")
    (data / "COCO2017").mkdir()
    (data / "test2017").rename(data / "COCO2017/test2017")
    assert read_questions("spatialmqa", data) == found


@pytest.mark.parametrize("indent", [None, 2])
def test_embspatial_as_released(tmp_path, indent):
    entries = [embspatial_entry(number) for number in range(5)]
    entries[3]["image"] = "data:image/jpeg;base64," + str(entries[3]["image"])
    data = write_embspatial(tmp_path / "emb", entries, indent)
    found = read_questions("embspatial", data)
    assert [(q.question_id, q.answer, q.group, q.source) for q in found.questions] == [
        ("mp3d_0", 0, "close", "mp3d"), ("mp3d_1", 1, "far", "scannet"), ("mp3d_2", 2, "above", "mp3d"),
        ("mp3d_3", 3, "close", "scannet"), ("mp3d_4", 0, "far", "mp3d"),
    ]  # fmt: skip
    assert found.questions[1].text == 'How are the door and the "heater" placed?'
    for number, question in enumerate(found.questions):
        assert (load_image(data, question.image) == decode_image(encode(number, "JPEG"), "")).all()


def test_entries_across_the_ends_of_blocks(tmp_path, monkeypatch):
    r"""Quotes, backslashes and brackets of texts, wherever a block ends."""
    entries = [{"a": 'x"y\\', "b": ["]", "{", "\\\\"], "c": {"d": "é}"}}, {}, {"e": '\\"'}]
    path = tmp_path / "list.json"
    path.write_text("\ufeff \n" + json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    for size in (4, 5, 7, 8, 64):
        monkeypatch.setattr(json_entries, "_BLOCK_BYTES", size)
        spans = list(json_entries.list_objects(path))
        assert [json_entries.read_span(path, span) for span in spans] == entries, size
    text = '{"a": 1}\n\n  \r\n{"b": "xxxxxxxxxxxx"}\r\n{"c": 3}'
    path.write_bytes(text.encode())
    lines = [(number, json_entries.read_span(path, span)) for number, span in json_entries.list_lines(path)]
    assert lines == [(1, {"a": 1}), (4, {"b": "xxxxxxxxxxxx"}), (5, {"c": 3})]


BAD_LINES = [
    ("{broken", "not_json", "no JSON"),
    ("[" * 5000, "not_json", "no JSON"),
    ("[1]", "not_an_object", "got list"),
    # Half of a surrogate pair, in a text and in a field's name, which would be a reject's words.
    ({**LINE, "question": "where \ud800"}, "not_json", "no JSON: 'utf-8' codec"),
    ({"\udfff": 1}, "not_json", "no JSON: 'utf-8' codec"),
    ({**LINE, "question": 7}, "wrong_type", "question = 7"),
    ({key: LINE[key] for key in ("image", "question", "answer")}, "missing_field", "no field 'options'"),
    ({**LINE, "options": ["left"]}, "bad_options", "1 entries"),
    ({**LINE, "options": ["left", "Left"]}, "bad_options", "two of them are equal"),
    ({**LINE, "options": "left"}, "bad_options", "expected a list"),
    ({**LINE, "answer": "up"}, "answer_not_an_option", "'up' is none of"),
    ({**LINE, "answer": 2}, "answer_not_an_option", "2 is none of"),
    ({**LINE, "answer": True}, "answer_not_an_option", "True is none of"),
    ({**LINE, "id": "a"}, "duplicate_id", "'a' was there before"),
    ({**LINE, "id": []}, "wrong_type", "id = []"),
    ({**LINE, "group": 3}, "wrong_type", "group = 3"),
    ({**LINE, "image": "../secret.png"}, "path_outside", "leads out of"),
    ({**LINE, "image": "/etc/passwd"}, "path_outside", "leads out of"),
    ({**LINE, "image": "images/link.png"}, "path_outside", "leads out of"),
    ({**LINE, "image": "images/9.png"}, "missing_image", "no image"),
    ({**LINE, "image": "images/\x00.png"}, "missing_image", "cannot read"),
    ({**LINE, "image": "images"}, "missing_image", "no image"),
    ({**LINE, "image": "images/text.png"}, "not_an_image", "no readable image"),
    ({**LINE, "image": "images/large.png"}, "too_large", "at most"),
    ("x" * 5000, "too_large", "5,000 bytes"),
]


def test_what_is_no_question_is_counted_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(json_entries, "MAX_ENTRY_BYTES", 4000)
    monkeypatch.setattr(images, "MAX_ENTRY_BYTES", 4000)
    bad = [line for line, _, _ in BAD_LINES]
    data = write_folder(tmp_path / "own", [{**LINE, "id": "a"}, *bad, {**LINE, "answer": 1, "group": "x"}])
    (data / "questions.jsonl").write_text((data / "questions.jsonl").read_text().replace("[" * 5000, "[" * 3000))
    (data / "images/text.png").write_text("text")
    (data / "images/large.png").write_bytes(encode(0) + b" " * 4000)
    (tmp_path / "secret.png").write_bytes(encode(0))
    (data / "images/link.png").symlink_to(tmp_path / "secret.png")
    found = read_questions("folder", data)
    assert [(question.question_id, question.reference) for question in found.questions] == [
        ("a", "left"), (f"questions.jsonl:{len(bad) + 2}", "right"),
    ]  # fmt: skip
    by_uri = {row["uri"]: row for row in found.rejects}
    assert len(found.rejects) == len(bad) == found.num_entries - 2
    for number, (_, reason, words) in enumerate(BAD_LINES, start=2):
        row = by_uri[f"questions.jsonl:{number}"]
        assert (row["reason"], row["stage"]) == (reason, "ask") and words in row["detail"], number
    with pytest.raises(UnusableError, match="question has 5,000 characters; at most 4,000"):
        read_text({"question": "x" * 5000}, "question")


def test_bad_entries_of_embspatial(tmp_path, monkeypatch):
    huge = base64.b64encode(b"x" * 9000).decode()
    entries = [
        embspatial_entry(0),
        embspatial_entry(1, image=huge),
        embspatial_entry(2, image="%%%"),
        embspatial_entry(3, image=base64.b64encode(b"text").decode()),
        embspatial_entry(4, image=5),
        embspatial_entry(5, answer=4),
        embspatial_entry(6, answer="the cup"),
        embspatial_entry(0, answer=1),
    ]
    monkeypatch.setattr(json_entries, "MAX_ENTRY_BYTES", 8000)
    found = read_questions("embspatial", write_embspatial(tmp_path, entries))
    assert [question.question_id for question in found.questions] == ["mp3d_0"]
    assert sorted(row["reason"] for row in found.rejects) == [
        "answer_not_an_option", "answer_not_an_option", "duplicate_id", "missing_image", "not_an_image",
        "not_an_image", "too_large",
    ]  # fmt: skip


def test_files_that_are_none_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_file("spatialmqa", tmp_path / "no")
    (tmp_path / "dev.jsonl").write_text("")
    with pytest.raises(InputError, match=r"no test\.jsonl in .*JSON files there: dev\.jsonl; file=NAME"):
        find_file("spatialmqa", tmp_path)
    assert find_file("spatialmqa", tmp_path, "dev.jsonl").name == "dev.jsonl"
    path = tmp_path / "embspatial_bench.json"
    for text, words in (
        ('{"a": 1}', "expected a JSON array"),
        ("", "expected a JSON array"),
        ("[[1]]", "entry 1 is an array"),
        ('[{"a": 1}, {"b"', "ends inside entry 2"),
        ('[{"a": 1}', "ends inside entry 2"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            list(list_entries("embspatial", path))


def test_the_limit_is_spread_and_questions_survive_their_file(tmp_path):
    data = write_spatialmqa(tmp_path / "mqa", [mqa_entry(number) for number in range(8)])
    decoded = []
    found = read_questions("spatialmqa", data, limit=4, on_image=lambda *counts: decoded.append(counts))
    assert [question.image.file[-5] for question in found.questions] == ["0", "2", "4", "6"]
    assert found.num_left_out == 4 and decoded == [(1, 4), (2, 4), (3, 4), (4, 4)]
    write_questions(found.questions, tmp_path / "q/part.parquet")
    assert load_questions(tmp_path / "q") == found.questions
    assert all(isinstance(entry, Question) for entry in list_entries("spatialmqa", data / "test.jsonl"))
    with pytest.raises(UnusableError, match="no image"):
        load_image(tmp_path, found.questions[0].image)
