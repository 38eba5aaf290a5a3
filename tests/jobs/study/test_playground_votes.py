"""Choices of a playground, without a study's folder: the report's table on a dry run, and the export as CSV."""

import csv

import pytest

from jobs.study.export import StudyExportRecipe
from jobs.study.export import run as export
from jobs.study.report import StudyReportRecipe
from jobs.study.report import run as report
from wm.errors import InputError
from wm.study.playground import Comparison, Comparisons
from wm.study.store import VoteStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("playground") / "votes.sqlite"
    with VoteStore(path) as opened:
        comparisons = Comparisons(opened)
        code = comparisons.join(None)
        for choice in ("left", "left", "no_difference", "right"):
            shown = comparisons.add(Comparison(code, ("fdm", "baseline"), {}, "move it", "0" * 64, 1, 8))
            comparisons.choose(shown.item_id, choice)
    return path


def test_the_report_counts_them(store, tmp_path, capsys):
    assert report(StudyReportRecipe(store=str(store), out=str(tmp_path / "out")), dry_run=True) == {}
    said = capsys.readouterr().out.replace("−", "-")
    assert "4 votes of 1 participant" in said and "on 4 items" in said and "Incomplete" not in said
    rows = [line.split() for line in said.splitlines()]
    assert ["mean", "vote", "baseline", "fdm"] in rows and ["playground", "-0.25", "0.25"] in rows


def test_the_export_has_a_line_each(store, tmp_path):
    out = tmp_path / "votes.csv"
    assert export(StudyExportRecipe(store=str(store), format="csv", out=str(out))) == 4
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["best"], row["worst"]) for row in rows] == [("fdm", "baseline")] * 2 + [("", ""), ("baseline", "fdm")]
    assert {(row["study_id"], row["origin"], row["systems"]) for row in rows} == {
        ("playground", "playground", '["fdm", "baseline"]')
    }


@pytest.mark.parametrize(
    ("recipe", "values", "says"),
    [
        (StudyReportRecipe, {"out": "x"}, "study is missing"),
        (StudyReportRecipe, {"out": "x", "store": "votes.sqlite", "judge": "judged"}, "judge without study"),
        (StudyExportRecipe, {"out": "x", "format": "csv"}, "study is missing"),
        (StudyExportRecipe, {"out": "x", "format": "label_studio", "store": "v"}, "a playground keeps no images"),
    ],
)
def test_what_a_playground_has_not_is_said(recipe, values, says):
    with pytest.raises(InputError, match=says):
        recipe.parse(values, "test")
