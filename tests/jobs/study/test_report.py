"""``wm study report``, ``export`` and ``import`` on a made study: votes in every form, and the figures of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.paper import PaperRecipe
from jobs.paper import run as paper
from jobs.study.export import StudyExportRecipe
from jobs.study.export import run as export
from jobs.study.import_votes import StudyImportRecipe
from jobs.study.import_votes import run as import_votes
from jobs.study.report import StudyReportRecipe, _digest
from jobs.study.report import run as report
from tests.helpers.study_votes import SYSTEMS, make_study, vote_all, write_made_study
from wm.errors import InputError, OtherRunError
from wm.evaluation.judge.score_files import SCORES_SCHEMA
from wm.evaluation.votes.figures import read_study_figures
from wm.evaluation.votes.tables import read_votes
from wm.runs import read_run, write_json
from wm.study.reading import StoredVotes
from wm.study.store import Participant, VoteStore
from wm.tables import write_table

STUDY = make_study(per_subset=2, num_checks=1)
VOTES = vote_all(STUDY, 4, (-1.0, 0.0, 0.0, 1.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study with four participants who voted on everything, and one who joined alone."""
    shown = [{"system": name, "run": 0, "sampling_seed": 3, "num_candidates": 2} for name in SYSTEMS]
    folder = write_made_study(tmp_path_factory.mktemp("study") / "study", STUDY, systems=shown)
    with VoteStore(folder / "votes.sqlite") as store:
        store.add_votes(VOTES)
        store.add_participant(STUDY.study_id)
    return folder


def report_on(folder, out, **keys):
    return report(StudyReportRecipe.parse({"study": str(folder), "out": str(out)} | keys, "test"))


def write_judge(folder: Path) -> Path:
    """Scores of the very images that are shown, and better ones of others, which nobody saw."""
    rows = [
        {
            "triplet_id": f"t{number}", "subset": "", "system": name, "run": 0, "sampling_seed": 3, "num_candidates": k,
            "repeat": 0, "editing_success": score, "minimal_editing": 9.0, "final": score, "failure": None, "key": "k",
        }
        for number in range(10)
        for place, name in enumerate(SYSTEMS)
        for k, score in ((2, float(place)), (1, 9.0 - place))
    ]  # fmt: skip
    folder.mkdir()
    write_table(rows, folder / "scores.parquet", SCORES_SCHEMA)
    write_json(folder / "run.json", {"stage": "judge", "recipe": {"model": "gpt-4o"}})
    return folder


def test_the_report_has_every_file_and_reads_back(folder, tmp_path, capsys):
    judge = write_judge(tmp_path / "judge")
    record = report_on(folder, tmp_path / "out", judge=str(judge))
    figures = read_study_figures(tmp_path / "out")
    own = [vote for vote in VOTES if not vote.is_check]
    assert record["stage"] == "study" and record["counts"]["votes"] == figures["num_votes"] == 40
    assert record["counts"]["votes_on_checks"] == 4 and record["kind"] == "people"
    mean = sum(vote.score("C-FDM") for vote in own) / 40
    assert figures["table"]["All"]["C-FDM"]["mean"] == pytest.approx(mean)
    # The judge likes C-FDM best in the images that people saw.
    assert figures["judge"]["missing"] == {} and figures["judge"]["wins"]["wins"]["C-FDM"]["GoT"] == 1
    # Without codes, by which others could vote.
    votes = read_votes(tmp_path / "out" / "votes.parquet")
    assert [replace(vote, participant="") for vote in votes] == [replace(vote, participant="") for vote in own]
    assert {vote.participant for vote in votes} == {"P1", "P2", "P3", "P4"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3 and "Which is &lt;best&gt;?" in page and "code0" not in page
    assert "http" not in page and "<script" not in page and "simulated votes" not in page
    text = capsys.readouterr().out
    assert "5 participants joined of 3 planned." in text and "Incomplete: P5 0 of 10; their votes count." in text
    assert "Attention checks: 4 passed, 0 failed." in text
    for name in (
        "table.csv",
        "table.md",
        *(f"{chart}.{end}" for chart in ("votes", "wins", "positions") for end in ("svg", "png")),
    ):
        assert (tmp_path / "out" / name).stat().st_size > 0, name
    # The same again is the same run; with further votes it is another one.
    assert report_on(folder, tmp_path / "out", judge=str(judge)) == record
    with pytest.raises(OtherRunError, match="seed"):
        report_on(folder, tmp_path / "out", judge=str(judge), seed=1)
    paper(
        PaperRecipe.parse({"items": "table 5", "results": [str(tmp_path / "out")], "out": str(tmp_path / "p")}, "test")
    )
    assert f"| **{mean:.2f}**" in (tmp_path / "p" / "table-5.md").read_text()


def test_who_joins_without_a_vote_makes_another_report():
    joined = [Participant(STUDY.study_id, "code9", 4, "2026-11-28T20:00:00+00:00")]
    # The report counts who joined and who has withdrawn: with others the old one is not the present one.
    digests = {_digest(StoredVotes(VOTES, people, number)) for people, number in (([], 0), (joined, 0), ([], 1))}
    assert len(digests) == 3


def test_simulated_votes_are_marked_everywhere(folder, tmp_path, capsys):
    store = tmp_path / "votes.sqlite"
    keys = {"study": str(folder), "out": str(tmp_path / "out"), "store": str(store)}
    with VoteStore(store) as votes:
        votes.add_votes([replace(vote, origin="simulated") for vote in VOTES])
    # Nothing is written, but all of it is computed and printed.
    assert report(StudyReportRecipe.parse(keys | {"incomplete": "leave_out"}, "test"), dry_run=True) == {}
    text = capsys.readouterr().out
    assert text.startswith("Which is <best>? (simulated votes)\n\nSimulated votes: no person was asked.")
    with VoteStore(store) as votes:
        votes.add_votes([replace(vote, participant="person") for vote in VOTES[:5]])
    with pytest.raises(InputError, match="which no figure mixes"):
        report(StudyReportRecipe.parse(keys, "test"), dry_run=True)
    report(StudyReportRecipe.parse(keys | {"kind": "people"}, "test"), dry_run=True)
    assert "\n5 votes of 1 participant on" in capsys.readouterr().out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("form", "ending"), [("csv", "csv"), ("parquet", "parquet"), ("label_studio", "json")])
def test_exported_votes_are_imported_once(folder, tmp_path, form, ending, capsys):
    out = tmp_path / f"votes.{ending}"
    keys = {"study": str(folder), "format": form, "out": str(out)}
    assert export(StudyExportRecipe.parse(keys, "test")) == len(VOTES)
    with pytest.raises(InputError, match="is there already"):
        export(StudyExportRecipe.parse(keys, "test"))
    keys = {"study": str(folder), "file": str(out), "store": str(tmp_path / "other.sqlite")}
    recipe = StudyImportRecipe.parse(keys | {"rejects": str(tmp_path / "rejects.jsonl")}, "test")
    assert len(import_votes(recipe, dry_run=True).votes) == len(VOTES) and not (tmp_path / "other.sqlite").exists()
    assert len(import_votes(recipe).votes) == len(VOTES)
    again = import_votes(recipe)
    assert (len(again.votes), again.num_before, again.rejects) == (0, len(VOTES), [])
    with VoteStore(tmp_path / "other.sqlite") as store:
        imported = store.list_votes(STUDY.study_id)
        # Who has withdrawn does not come back.
        store.withdraw(STUDY.study_id, "code1")
    assert sorted(map(repr, imported)) == sorted(repr(replace(vote, origin="imported")) for vote in VOTES)
    left = import_votes(recipe)
    assert left.count_reasons() == {"withdrawn": 11} and left.num_rows == len(VOTES)
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["withdrawn"] * 11
    assert "0 new votes, 33 were stored before, 11 rejects" in capsys.readouterr().out


def test_blind_tasks_have_their_page_beside_them(folder, tmp_path):
    keys = {"study": str(folder), "format": "label_studio_tasks", "out": str(tmp_path / "tasks.json"), "order": 1}
    assert export(StudyExportRecipe.parse(keys, "test"), dry_run=True) == 11 and not (tmp_path / "tasks.json").exists()
    assert export(StudyExportRecipe.parse(keys, "test")) == 11
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks[0]["data"]["source"] == "/data/local-files/?d=images/s0.png" and tasks[0]["data"]["order"] == 1
    assert (tmp_path / "tasks.json.xml").read_text().startswith("<View>")


def test_bad_input_is_one_line(folder, tmp_path):
    with pytest.raises(InputError, match=r"reference = 'FDM'; systems of the study: .*did you mean 'C-FDM'"):
        report_on(folder, tmp_path / "out", reference="FDM")
    with pytest.raises(InputError, match="no store of votes at"):
        report_on(folder, tmp_path / "out", store=str(tmp_path / "none.sqlite"))
    with pytest.raises(InputError, match="expected the output folder of a finished wm judge"):
        report_on(folder, tmp_path / "out", judge=str(folder))
    assert not (tmp_path / "out").exists() and read_run(tmp_path) is None
    for name, text, message in (
        ("a.txt", "", "ends in .json, .csv or .parquet"),
        ("a.json", "{", "not valid JSON"),
        ("b.csv", "study_id,participant,item_id,systems,best,worst,seconds\nx,a,b,c,d,e,f\n", "line 2: foreign task"),
        ("c.json", "[]", "no row is a vote of study study1: it has no answer"),
    ):
        (tmp_path / name).write_text(text)
        keys = {"study": str(folder), "file": str(tmp_path / name), "rejects": str(tmp_path / f"{name}.rejects")}
        with pytest.raises(InputError, match=message):
            import_votes(StudyImportRecipe.parse(keys, "test"))
    # A file without any vote is refused, and its rejects are kept all the same.
    assert json.loads((tmp_path / "b.csv.rejects").read_text())["reason"] == "foreign task"
