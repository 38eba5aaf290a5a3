"""Votes that come from outside: each row of a file is a vote or a reject, and nothing that was exported changes."""

import csv
import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, replace

import pytest

from tests.helpers.study_votes import make_study, vote_all, vote_on
from wm.errors import InputError
from wm.evaluation.votes.tables import VOTE_SCHEMA, write_votes
from wm.study.imports import check_rows
from wm.study.label_studio import build_annotated_tasks, build_config, build_tasks, iterate_answers
from wm.study.order import order_systems
from wm.study.vote_files import iterate_csv, iterate_parquet, to_csv
from wm.tables import write_table

STUDY = make_study(num_checks=1)
VOTES = vote_all(STUDY, 3, (0, 0, 0, 1))


def read_csv(text, tmp_path, stored=()):
    (tmp_path / "votes.csv").write_text(text, encoding="utf-8")
    return check_rows(STUDY, iterate_csv(STUDY, tmp_path / "votes.csv"), stored)


def read_tasks(tasks, stored=()):
    """Through JSON, as a file would bring them."""
    return check_rows(STUDY, iterate_answers(STUDY, json.loads(json.dumps(tasks)), "x.json"), stored)


def reasons(imported):
    return [(row.place, row.reason) for row in imported.rejects]


def annotated(number, best, worst, **changes):
    """A blind task of the first item with one annotation, as Label Studio exports it."""
    [task, *_] = build_tasks(STUDY, number=number)
    result = [
        {"id": "x", "from_name": name, "to_name": "source_image", "type": "choices", "value": {"choices": [choice]}}
        for name, choice in (("best", best), ("worst", worst))
        if choice
    ]
    facts = {"was_cancelled": False, "lead_time": 12.5, "created_at": "2026-11-28T20:00:00Z", "completed_by": 7}
    return task | {"id": 1, "annotations": [{"result": result, **facts} | changes], "predictions": []}


def test_exported_votes_come_back_as_they_were(tmp_path):
    expected = [replace(vote, origin="imported") for vote in VOTES]
    assert read_csv(to_csv(VOTES), tmp_path).votes == expected
    write_votes(VOTES, tmp_path / "votes.parquet")
    assert check_rows(STUDY, iterate_parquet(STUDY, tmp_path / "votes.parquet"), []).votes == expected
    # Label Studio's tasks are by item and order: the same votes in another order.
    tasks = build_annotated_tasks(STUDY, VOTES)
    assert sorted(read_tasks(tasks).votes, key=repr) == sorted(expected, key=repr)
    assert sum(len(task["annotations"]) for task in tasks) == len(VOTES)


def test_simulated_votes_stay_simulated(tmp_path):
    simulated = [replace(vote, origin="simulated") for vote in VOTES]
    assert {vote.origin for vote in read_csv(to_csv(simulated), tmp_path).votes} == {"simulated"}
    assert {vote.origin for vote in read_tasks(build_annotated_tasks(STUDY, simulated)).votes} == {"simulated"}


def test_the_same_file_twice_changes_nothing(tmp_path):
    again = read_csv(to_csv(VOTES), tmp_path, VOTES)
    assert (again.votes, again.num_before, again.rejects) == ([], len(VOTES), [])
    other = replace(VOTES[0], best=VOTES[0].worst, worst=VOTES[0].best)
    changed = read_csv(to_csv(VOTES), tmp_path, [other])
    assert reasons(changed) == [("line 2", "other choice stored")] and changed.num_rows == len(VOTES)


def test_every_line_is_a_vote_or_a_named_reject(tmp_path):
    vote = VOTES[0]
    lines = list(csv.reader(to_csv([vote]).splitlines()))
    head, good = lines
    bad = {
        "foreign task": {"study_id": "other"},
        "unknown item": {"item_id": "item99"},
        "best is worst": {"worst": vote.best},
        "missing choice": {"best": "", "worst": ""},
        "unknown choice": {"best": "Copy"},
        "no participant": {"participant": ""},
        "no time": {"seconds": "soon"},
        "other systems": {"systems": '["GoT", "SE"]'},
    }
    rows = [good, *([dict(zip(head, good, strict=True)) | change for change in bad.values()])]
    table = [row if isinstance(row, list) else list(row.values()) for row in rows]
    table += [good, [*good, "more"], good[:3], dict(zip(head, good, strict=True)) | {"seconds": "nan"}]
    table[-1] = list(table[-1].values())
    text = "\n".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [head, *table])
    imported = read_csv(text, tmp_path)
    assert len(imported.votes) == 1 and imported.num_rows == len(table)
    places = [f"line {number}" for number in range(3, 3 + len(table) - 1)]
    names = [*bad, "duplicate", "other number of columns", "other number of columns", "no time"]
    assert reasons(imported) == list(zip(places, names, strict=True))
    assert imported.rejects[8].detail == "same participant and item as line 2"
    assert imported.count_reasons()["no time"] == 2
    with pytest.raises(InputError, match="lacks the column 'participant'; columns found: study_id"):
        read_csv("study_id\n1\n", tmp_path)
    with pytest.raises(InputError, match="its first line is no CSV: unexpected end of data"):
        read_csv('"study_id,participant\n', tmp_path)


def test_nulls_of_another_program_s_parquet_are_rejects(tmp_path):
    rows = [asdict(vote) | {"systems": systems} for vote, systems in zip(VOTES, (None, ["GoT", None]), strict=False)]
    write_table([*rows, asdict(VOTES[2]) | {"stored_at": None}], tmp_path / "votes.parquet", VOTE_SCHEMA)
    imported = check_rows(STUDY, iterate_parquet(STUDY, tmp_path / "votes.parquet"), [])
    assert reasons(imported) == [("row 1", "other systems"), ("row 2", "other systems")]
    assert [vote.stored_at for vote in imported.votes] == [""]


def test_blind_tasks_name_no_system_and_come_back(tmp_path):
    tasks = build_tasks(STUDY, number=2, images="https://host/")
    text = json.dumps(tasks)
    # Nothing but opaque names, and the number by which the study knows its own orders.
    assert not any(f'"{name}"' in text for name in (*STUDY.systems, "systems"))
    item = STUDY.items[0]
    order = order_systems(STUDY, item, 2)
    assert tasks[0]["data"]["model_2"] == f"https://host/{item.candidates[order[1]]}"
    [vote] = read_tasks([annotated(2, "Model 2", "Model 4")]).votes
    assert (vote.best, vote.worst, vote.systems) == (order[1], order[3], tuple(order))
    assert (vote.seconds, vote.origin, vote.stored_at) == (12.5, "imported", "2026-11-28T20:00:00Z")
    # Who annotated is not told by the name, and is the same in every task.
    assert vote.participant.startswith("label-studio-") and len(vote.participant) == 25
    [other] = read_tasks([annotated(2, "Model 1", "Model 4", completed_by={"id": 7, "email": "a@b.example"})]).votes
    assert other.participant == vote.participant


def test_an_answer_to_a_check_is_known_to_be_right():
    check = STUDY.items[-1]
    votes = [vote_on(STUDY, check, 0, check.best, check.worst), vote_on(STUDY, check, 1, check.worst, check.best)]
    imported = read_tasks(build_annotated_tasks(STUDY, votes))
    assert sorted((vote.is_check, vote.passed_check) for vote in imported.votes) == [(True, False), (True, True)]
    # A check may name its best system alone, as on our own page.
    loose = replace(STUDY, items=(*STUDY.items[:-1], replace(check, worst="")))
    other = next(name for name in check.candidates if name not in (check.best, check.worst))
    vote = vote_on(STUDY, check, 0, check.best, other)
    [imported_vote] = check_rows(loose, iterate_answers(loose, build_annotated_tasks(loose, [vote]), "x"), []).votes
    assert imported_vote.passed_check


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"was_cancelled": True}, "skipped"),
        ({"result": []}, "missing choice"),
        ({"result": "?"}, "missing choice"),
        ({"lead_time": None}, "no time"),
        ({"lead_time": 10**400}, "no time"),
        ({"completed_by": None}, "no participant"),
        ({"result": [{"from_name": "best", "value": {"choices": ["Model 1", "Model 2"]}}]}, "several choices"),
        ({"result": [{"from_name": "best", "value": {"choices": ["Model 9"]}}]}, "unknown choice"),
    ],
)
def test_annotations_that_are_no_vote_are_named(changes, reason):
    assert reasons(read_tasks([annotated(0, "Model 1", "Model 2", **changes)])) == [("task 1, annotation 1", reason)]


def test_foreign_tasks_are_rejects_and_other_files_are_refused():
    equal = annotated(0, "Model 1", "Model 1")
    foreign = annotated(0, "Model 1", "Model 2")
    foreign["data"] |= {"study_id": "other"}
    orderless = annotated(0, "Model 1", "Model 2")
    orderless["data"] |= {"order": "0"}
    assert [reason for _, reason in reasons(read_tasks([equal, foreign, orderless]))] == [
        "best is worst", "foreign task", "unknown order",
    ]  # fmt: skip
    for values, message in (({"a": 1}, "expected the JSON of Label Studio"), ([{"id": 1}], "not as JSON-MIN")):
        with pytest.raises(InputError, match=message):
            read_tasks(values)


def test_the_page_has_the_choices_that_are_read():
    root = ET.fromstring(build_config(STUDY))
    groups = {node.get("name"): "; ".join(child.attrib["value"] for child in node) for node in root.iter("Choices")}
    assert groups == dict.fromkeys(("best", "worst"), "Model 1; Model 2; Model 3; Model 4")
    images = {node.get("value") for node in root.iter("Image")}
    assert images == {"$source", "$model_1", "$model_2", "$model_3", "$model_4"}
    # All that the page shows is in every task.
    assert all({name.removeprefix("$") for name in images} <= set(task["data"]) for task in build_tasks(STUDY))
