"""The command: files of every table and figure, one page, resuming, and one line for bad input."""

import csv
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jobs import paper
from jobs.annotate.recipe import AnnotateRecipe
from jobs.ask.recipe import AskRecipe
from jobs.collect.recipe import CollectRecipe
from jobs.edit.recipe import EditRecipe
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.judge.recipe import JudgeRecipe
from jobs.paper.recipe import ITEMS, PaperRecipe
from jobs.predict.recipe import PredictRecipe
from jobs.score.recipe import ScoreRecipe
from jobs.select.recipe import SelectRecipe
from jobs.study.make import StudyMakeRecipe
from jobs.study.report import StudyReportRecipe
from jobs.study.serve import StudyServeRecipe
from tests.helpers.paper_results import judged, write_judging, write_results
from wm.config import Recipe
from wm.errors import InputError
from wm.evaluation.paper import drawing
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures import FigureKind
from wm.evaluation.paper.sources import Sources
from wm.evaluation.paper.tables import TABLES
from wm.training import TrainRecipe

TABLE_ITEMS = [f"table {number}" for number in TABLES]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_results(tmp_path_factory.mktemp("results"))


RECIPES: dict[str, type[Recipe]] = {
    "annotate": AnnotateRecipe, "collect": CollectRecipe, "edit": EditRecipe, "evaluate": EvaluateRecipe,
    "judge": JudgeRecipe, "predict": PredictRecipe, "score": ScoreRecipe, "select": SelectRecipe, "train": TrainRecipe,
    "ask": AskRecipe, "study make": StudyMakeRecipe, "study serve": StudyServeRecipe, "study report": StudyReportRecipe,
}  # fmt: skip


def recipe(results: dict[str, Path], out: Path, **more: Any) -> PaperRecipe:
    values = {"results": [str(results["judge"]), str(results["score"])], "items": ["tables"]} | more
    return PaperRecipe(out=str(out), **values)


class Page(HTMLParser):
    """Counts the tags of a page, and fails where one is left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.counts: dict[str, int] = {}
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "img", "br"):
            self.tags.append(tag)
        assert not any(value and value.startswith(("http:", "https:")) for _, value in attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_table_is_there_in_three_forms_and_on_the_page(
    results: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = recipe(results, tmp_path / "out")
    assert paper.run(settings, dry_run=True) == {} and not (tmp_path / "out").exists()
    planned = capsys.readouterr().out
    assert "Table 2        16 of 16 cells" in planned and "wm train paper/c-fdm-no-synthetic &&" in planned
    record = paper.run(settings)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {f"table-{number}.{ending}" for number in TABLES for ending in ("md", "tex", "csv")}
    assert files == expected | {"paper.html", "run.json"}
    counts = record["counts"]
    assert (
        counts["tables"] == 9
        and counts["figures"] == 0
        and counts["filled_cells"]
        == sum(
            row["mean"] != ""
            for number in TABLES
            for row in csv.DictReader((tmp_path / "out" / f"table-{number}.csv").open())
        )
    )
    page = Page((tmp_path / "out" / "paper.html").read_text())
    assert page.tags == [] and page.counts["section"] == 10
    text = " ".join(page.texts)
    assert "(n 1 of 2)" in text and "wm train paper/c-fdm-no-synthetic" in text
    # A second run has nothing to do, and gives the same record.
    assert paper.run(settings) == record and "nothing to do" in capsys.readouterr().out


def test_a_killed_run_resumes_and_another_recipe_is_refused(results: dict[str, Path], tmp_path: Path) -> None:
    settings = recipe(results, tmp_path / "out", items=["table 2"])
    paper.run(settings)
    text = (tmp_path / "out" / "table-2.csv").read_text()
    # As a kill before the last step leaves it.
    (tmp_path / "out" / "run.json").rename(tmp_path / "out" / "run.unfinished.json")
    (tmp_path / "out" / "table-2.csv").unlink()
    paper.run(settings)
    assert (tmp_path / "out" / "table-2.csv").read_text() == text
    with pytest.raises(InputError, match="holds another run"):
        paper.run(recipe(results, tmp_path / "out", items=["table 2"], version="v1"))


def test_toy_results_are_marked_and_stand_alone(results: dict[str, Path], tmp_path: Path) -> None:
    folder = write_judging(tmp_path / "nano", results["bench"], judged("C-FT", [1] * 5), "nano:oracle")
    paper.run(PaperRecipe(results=[str(folder)], out=str(tmp_path / "out"), items=["tables"]))
    html = (tmp_path / "out" / "paper.html").read_text()
    assert "toy world" in html and 'class="printed"' not in html and "4.04" not in html
    assert "(toy world)" in (tmp_path / "out" / "table-2.md").read_text()
    rows = list(csv.DictReader((tmp_path / "out" / "table-2.csv").open()))
    assert {row["table"] for row in rows} == {"table-2 (toy world)"} and {row["published"] for row in rows} == {""}


def test_without_results_the_published_numbers_are_shown(tmp_path: Path) -> None:
    record = paper.run(PaperRecipe(out=str(tmp_path / "out"), items=["tables"]))
    assert record["counts"]["filled_cells"] == 0
    rows = list(csv.DictReader((tmp_path / "out" / "table-2.csv").open()))
    assert [row["published"] for row in rows if row["row"] == "Avg."] == [
        "1.43", "3.14", "3.41", "0.17", "3.26", "3.67", "0.84", "4.04", "4.32",
    ]  # fmt: skip


def test_figures_are_drawn_or_absent_with_their_reason(
    results: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    def build(values: list[float]) -> Figure:
        figure = Figure(figsize=(2, 1))
        axes = figure.subplots()
        axes.plot(values)
        axes.set_clip_on(True)
        return figure

    def read(sources: Sources) -> list[float]:
        return [float(len(sources.rows)), 1.0]

    kinds = {
        "4": FigureKind("Drawn", "What it shows.", read, build, lambda values: f"value\n{values[0]}\n"),
        "9": FigureKind("Absent", "Nothing.", lambda _: Absent("no selection", "wm select"), build),
    }
    monkeypatch.setattr(drawing, "FIGURES", kinds)
    monkeypatch.setattr(PaperRecipe, "chosen", lambda _: ["figure 4", "figure 9"])
    record = paper.run(recipe(results, tmp_path / "out"))
    assert record["counts"] | {"figures": 1, "absent_figures": 1, "tables": 0} == record["counts"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"figure-4.svg", "figure-4.png", "figure-4.csv", "paper.html", "run.json"}
    html = (tmp_path / "out" / "paper.html").read_text()
    assert "data:image/svg+xml;base64," in html and "no selection" in html and "wm select" in html
    # The same data give the same bytes.
    again = paper.run(recipe(results, tmp_path / "again"))
    for name in ("figure-4.svg", "figure-4.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert again["counts"] == record["counts"]
    # What the paper's numbers contradict is said below its figures, but not beside another bench.
    assert "exclude each other" not in html and drawing.draw_figure("4", Sources(()))[0].notes[0].endswith("otherwise.")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"items": ["table 9"]}, "'table 9' is no table or figure; expected all, tables, figures, table 1"),
        ({"items": []}, "items"),
        ({"results": ["a", "a"]}, "expected different folders"),
        ({"names": {"GPT": "x"}}, "'GPT' is no system of the paper; expected 'PixInst'"),
        ({"names": {"Copy": "x"}}, "'Copy' is no system of the paper"),
        ({"names": {"SE": "x", "GoT": "x"}}, "two systems have one label"),
        ({"results": ["a"], "out": "a"}, "out = 'a' is inside 'a', which is read"),
        ({"results": ["a"], "out": "a/paper"}, "out = 'a/paper' is inside 'a', which is read"),
        ({"triplets": "b", "out": "./b"}, "inside 'b'"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        PaperRecipe.parse({"out": "x"} | keys, "the command line")
    assert "\n" not in str(error.value)


def test_one_item_needs_no_list_and_order_is_the_page_s() -> None:
    assert PaperRecipe.load(None, ["items=table 2", "out=x"]).chosen() == ["table 2"]
    assert PaperRecipe.load(None, ['items=["table v3-7", "table 1", "table 1"]', "out=x"]).chosen() == [
        "table 1", "table v3-7",
    ]  # fmt: skip
    assert PaperRecipe(out="x").chosen() == ITEMS and PaperRecipe(out="x", items=["tables"]).chosen() == TABLE_ITEMS
    names = PaperRecipe.load(None, ["names.C-FT=mine", "out=x"]).names
    assert names == {"C-FT": "mine"}


def test_commands_that_fill_cells_name_recipes_of_the_package(tmp_path: Path) -> None:
    paper.run(PaperRecipe(out=str(tmp_path / "out")))
    page = (tmp_path / "out" / "paper.html").read_text()
    commands = [part for text in re.findall(r"<code>(.*?)</code>", page) for part in unescape(text).split(" && ")]
    assert len(commands) > 20
    # Each is a command with a recipe of the package and keys that it knows.
    for command in commands:
        wm, stage, *keys = shlex.split(command)
        stage = f"study {keys.pop(0)}" if stage == "study" else stage
        name = keys.pop(0) if keys and "=" not in keys[0] else None
        assert wm == "wm" and RECIPES[stage].load(name, keys), command
