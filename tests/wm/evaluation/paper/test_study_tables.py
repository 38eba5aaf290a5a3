"""Table 5 and V3's table 6 from the report of a study made by hand."""

import csv
import io
from pathlib import Path

import pytest

from tests.helpers.paper_results import IDS, judged, write_judging
from tests.helpers.study_votes import SYSTEMS, make_study, report_study, vote_all, vote_on, write_made_study
from tests.wm.evaluation.paper.test_tables import cell
from wm.errors import InputError
from wm.evaluation.paper.formats import to_csv, to_latex, to_markdown
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.page import render_page
from wm.evaluation.paper.sources import read_sources
from wm.evaluation.paper.tables import TABLES
from wm.evaluation.paper.tables.common import Layout
from wm.evaluation.votes.judged import JudgeScores

STUDY = make_study(per_subset=2)
VOTES = vote_all(STUDY, 6, (-1.0, 0.0, 0.0, 1.0))


def layout_of(*folders: Path, **options) -> Layout:
    return Layout(Measured(read_sources([str(folder) for folder in folders], **options)))


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    judge = JudgeScores(
        "gpt-4o", {name: {f"t{n}": float(n * k % 7) for n in range(10)} for k, name in enumerate(SYSTEMS)}
    )
    return report_study(tmp_path_factory.mktemp("study") / "people", STUDY, VOTES, judge=judge)


def test_table_5_has_the_paper_s_layout_with_marks(people):
    table = TABLES["5"](layout_of(people))
    assert [row.title for row in table.rows] == ["MB", "AG", "ST", "WU", "KU", "All"]
    assert [column.name for column in table.columns] == ["GoT", "SE", "C-FT", "C-FDM"]
    for subset, row in zip(("magicbrush", "ag"), table.rows, strict=False):
        for system, entry in zip(SYSTEMS, row.cells, strict=True):
            scores = [vote.score(system) for vote in VOTES if vote.subset == subset]
            assert entry.mean == pytest.approx(sum(scores) / 12) and (entry.n, entry.expected) == (12, 12)
    for row in table.rows:
        assert sum(entry.mean for entry in row.cells) == pytest.approx(0, abs=1e-12)
    lowest = cell(table, "All", "GoT")
    assert lowest.text().endswith("†") and lowest.published_text() == "-0.09†" and lowest.ci_low < lowest.mean
    assert cell(table, "All", "C-FDM").is_best and "†" not in cell(table, "All", "C-FDM").text()
    assert table.source == "ACL, Table 5" and table.absent is None
    assert "60 votes of 6 participants on 10 items." in table.notes
    assert "interval over items and people" in to_markdown(table) and r"$^{\dagger}$" in to_latex(table)
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["mark"] for row in rows if (row["row"], row["column"]) == ("All", "GoT")] == ["†"]


def test_simulated_votes_are_marked_and_stand_alone(tmp_path):
    votes = vote_all(STUDY, 3, (-1.0, 0.0, 0.0, 1.0), origin="simulated")
    layout = layout_of(report_study(tmp_path / "simulated", STUDY, votes))
    table, wins = TABLES["5"](layout), TABLES["v3-6"](layout)
    assert table.source == "" and all(entry.published is None for row in table.rows for entry in row.cells)
    for text in (to_markdown(table), to_latex(table), to_csv(table), to_csv(wins)):
        assert "simulated votes" in text
    assert table.notes[0] == "Simulated votes: no person was asked."
    # The judge's half is no vote: its published numbers stay.
    assert cell(wins, "C-FT", "GoT", "Human (simulated)").published is None
    assert cell(wins, "C-FT", "GoT", "GPT-4o").published == 0.25
    page = render_page([table, TABLES["2"](layout)], [], title="t", about=[], is_toy=False)
    assert page.count('<span class="toy-mark">simulated votes</span>') == 1


def test_win_rates_of_people_are_those_of_items(people):
    layout = layout_of(people)
    table = TABLES["v3-6"](layout)
    means = {
        (item.item_id, system): sum(vote.score(system) for vote in VOTES if vote.item_id == item.item_id)
        for item in STUDY.items
        for system in SYSTEMS
    }
    wins = sum(means[item.item_id, "SE"] > means[item.item_id, "GoT"] for item in STUDY.items) / 10
    ours = cell(table, "SmartEdit", "GoT", "Human")
    assert (ours.mean, ours.n, ours.expected, ours.published) == (wins, 10, 10, 0.611)
    [note] = [note for note in table.notes if note.startswith("Votes and gpt-4o")]
    assert "n 240) over single votes" in note and "n 40) over mean votes of items" in note
    assert any("0.28, the same best system on 57 %" in note for note in table.notes)


def test_other_names_systems_and_gaps(tmp_path):
    study = make_study(systems=("mine", "SmartEdit-7B", "C-FT"), per_subset=2)
    votes = [vote for vote in vote_all(study, 2, (0.0, 0.0, 0.0)) if vote.subset != "kubric"]
    layout = layout_of(report_study(tmp_path / "report", study, votes), names={"SE": "SmartEdit-7B"})
    table = TABLES["5"](layout)
    # Published columns first, those of one's own behind.
    assert [column.name for column in table.columns] == ["GoT", "SE", "C-FT", "C-FDM", "mine"]
    assert cell(table, "MB", "SE").mean is not None and cell(table, "MB", "SE").published == 0.29
    missing = cell(table, "MB", "GoT").absent
    assert missing.reason == "GoT is not in the study" and missing.command.startswith("wm study make predictions=")
    assert cell(table, "KU", "mine").absent.command == "wm study serve study=STUDY"
    assert cell(table, "All", "mine").absent.reason == "no vote on a subset"
    assert any("differs from C-FT by" in note for note in table.notes)


def test_another_bench_has_no_published_votes(tmp_path):
    study = make_study()
    items = [item for item in study.items if item.subset in ("ag", "kubric")]
    votes = [
        vote_on(study, item, number, "GoT", "SE", subset=f"my {item.subset}") for item in items for number in (0, 1)
    ]
    from dataclasses import replace

    own = replace(study, items=tuple(replace(item, subset=f"my {item.subset}") for item in items))
    layout = layout_of(report_study(tmp_path / "own", own, votes))
    table = TABLES["5"](layout)
    assert table.source == "" and [row.title for row in table.rows] == ["my ag", "my kubric", "All"]
    assert cell(table, "my ag", "GoT").mean == 1 and cell(table, "my ag", "GoT").published is None
    # Nor in the half of the same table that is no vote.
    wins = TABLES["v3-6"](layout)
    assert wins.source == "" and all(entry.published is None for row in wins.rows for entry in row.cells)


def test_without_a_study_the_command_is_named(layout):
    table = TABLES["5"](layout)
    command = table.absent.command
    assert command.count("wm study ") == 3 and f"triplets={layout.sources.triplets}" in command
    assert """systems='["GoT", "SE", "C-FT", "C-FDM"]'""" in command
    assert cell(TABLES["v3-6"](layout), "SmartEdit", "C-FT", "Human").absent.command == command


def test_a_study_without_a_report_asks_for_one(tmp_path):
    made = write_made_study(tmp_path / "made", STUDY)
    absent = TABLES["5"](layout_of(made)).absent
    assert absent.command == f"wm study report study={made} reference=C-FDM out=VOTED"


def test_two_studies_and_other_benches_are_refused(people, results, tmp_path):
    other = report_study(tmp_path / "other", STUDY, VOTES)
    with pytest.raises(InputError, match="are both reports of a study: give one of them"):
        layout_of(people, other)
    with pytest.raises(InputError, match="people is of another bench: 10 of its triplets"):
        layout_of(people, results["judge"])
    # Of the same triplets they go together.
    study = make_study()
    votes = [
        vote_on(study, item, 0, "GoT", "SE", triplet_id=triplet_id)
        for item, triplet_id in zip(study.items, IDS, strict=True)
    ]
    judging = write_judging(tmp_path / "judge", results["bench"], judged("C-FT", [1] * 5))
    assert layout_of(report_study(tmp_path / "same", study, votes), judging).sources.study["num_votes"] == 5
    (other / "table.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"table\.json is damaged: it lacks 'agreement'"):
        layout_of(other)
