"""Rows of spatial questions in table 2, from folders of ``wm ask`` made by hand."""

import pytest

from tests.helpers.paper_results import write_stage
from wm.errors import InputError
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.sources import read_sources
from wm.evaluation.paper.tables.common import Layout
from wm.evaluation.paper.tables.judged import build_judge_table
from wm.evaluation.questions.figures import wilson_share
from wm.runs import write_json


def model_row(label, right, count, *, run=0):
    share = wilson_share(right, count)
    return {
        "name": f"{label}{run}",
        "label": label,
        "run": run,
        "num_questions": count,
        "num_failed": 0,
        "accuracy": share,
    }


def write_answers(folder, benchmark, rows, toy_models=(), file=""):
    write_stage(folder, "ask", {"benchmark": benchmark, "prompt": "", "file": file})
    title = {"spatialmqa": "SpatialMQA", "embspatial": "EmbodiedSpatial-Bench"}[benchmark]
    tables = {"rows": rows, "toy_models": list(toy_models), "title": title, "style": "words", "reading": "published"}
    write_json(folder / "tables.json", tables)
    return str(folder)


def build(*folders):
    return build_judge_table(Layout(Measured(read_sources(folders))))


def cell(table, row, column):
    names = [entry.name for entry in table.columns]
    return next(entry for entry in table.rows if entry.title == row).cells[names.index(column)]


def test_answers_stand_beside_the_published_numbers(tmp_path):
    rows = [
        model_row("C-FT", 300, 1076), model_row("C-FDM", 269, 1076), model_row("C-FDM", 290, 1076, run=1),
        model_row("L-ZS", 10, 40), model_row("L-FT", 900, 3774), model_row("Qwen2-VL", 538, 1076),
    ]  # fmt: skip
    table = build(write_answers(tmp_path / "a", "spatialmqa", rows))
    ft = cell(table, "SpatialMQA", "C-FT")
    assert (ft.text(), ft.published_text()) == ("27.9", "25.8")
    assert ft.ci_low == pytest.approx(100 * wilson_share(300, 1076)["ci_low"]) and not ft.is_partial
    fdm = cell(table, "SpatialMQA", "C-FDM")
    assert fdm.mean == pytest.approx(100 * (269 + 290) / 2 / 1076) and fdm.spread_text() == "± 1.4 (2 training seeds)"
    assert cell(table, "SpatialMQA", "L-ZS").spread_text() == "(n 40 of 1,076)"
    # Those of the training split are more than the published ones.
    train = cell(table, "SpatialMQA", "L-FT")
    assert train.text() == "23.8" and train.published is None
    # A model that the paper did not ask has a column of its own, blank in the judge's rows.
    assert cell(table, "SpatialMQA", "Qwen2-VL").text() == "50.0" and cell(table, "AG", "Qwen2-VL").is_blank
    assert cell(table, "SpatialMQA", "GoT").is_blank
    missing = cell(table, "SpatialMQA", "C-ZS")
    assert (missing.absent.command, missing.published_text()) == ("wm ask paper/ask-spatialmqa", "26.1")
    other = cell(table, "EmbodiedSpatial-Bench", "L-FDM")
    assert other.absent.command == "wm train paper/l-fdm && wm ask paper/ask-embspatial"
    assert any("SpatialMQA: accuracy in per cent of greedy answers" in note for note in table.notes)


def test_two_folders_of_a_label_must_agree(tmp_path):
    first = write_answers(tmp_path / "a", "spatialmqa", [model_row("C-FT", 300, 1076)])
    again = write_answers(tmp_path / "b", "spatialmqa", [model_row("C-FT", 300, 1076)], file="dev.jsonl")
    emb = write_answers(tmp_path / "c", "embspatial", [model_row("C-FT", 910, 3640)])
    table = build(first, again, emb)
    assert (
        cell(table, "SpatialMQA", "C-FT").text() == "27.9"
        and cell(table, "EmbodiedSpatial-Bench", "C-FT").text() == "25.0"
    )
    assert any("greedy answers to the questions of dev.jsonl, options by" in note for note in table.notes)
    other = write_answers(tmp_path / "d", "spatialmqa", [model_row("C-FT", 301, 1076)])
    with pytest.raises(InputError, match=r"both hold a system named 'C-FT', with other figures .* under another label"):
        build(first, other)


def test_toy_models_have_no_published_number_beside(tmp_path):
    table = build(write_answers(tmp_path / "a", "spatialmqa", [model_row("C-FT", 300, 1076)], ["C-FT0"]))
    assert cell(table, "SpatialMQA", "C-FT").text() == "27.9" and cell(table, "SpatialMQA", "C-FT").published is None
    assert "EmbodiedSpatial-Bench" not in [row.title for row in table.rows]
