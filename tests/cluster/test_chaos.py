"""The plan of a chaos run, what it reports, and a run of it."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from cluster.chaos.outcomes import digest_files, digest_rows, list_differences
from cluster.chaos.phases import PhaseReport
from cluster.chaos.progress import look_at_annotation, look_at_training
from cluster.chaos.recipe import ChaosRecipe
from cluster.chaos.report import build_record, write_report
from cluster.chaos.schedule import Disturber, PlannedKill, plan_kills
from cluster.chaos.script import main
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, reject_row
from wm.tables import write_table

ROOT = Path(__file__).resolve().parents[2]


def recipe_of(**values):
    return ChaosRecipe.parse({"out": "o", **values}, "test")


def test_a_seed_plans_the_same_kills_and_meets_every_kind():
    recipe = recipe_of(minutes=3, seed=5, min_gap_s=2, max_gap_s=6)
    kills = plan_kills(recipe, "annotation")
    assert kills == plan_kills(recipe, "annotation") != plan_kills(recipe_of(minutes=3, seed=6), "annotation")
    gaps = [after.at_s - before.at_s for before, after in itertools.pairwise(kills)]
    assert all(2 <= gap <= 6.001 for gap in [kills[0].at_s, *gaps]) and kills[-1].at_s < 60
    counts = Counter(kill.kind for kill in kills)
    assert set(counts) == {"worker", "driver", "node", "job"} and max(counts.values()) - min(counts.values()) <= 1
    # Leaving a phase out changes no other, but for its length.
    alone = plan_kills(recipe_of(minutes=1, seed=5, min_gap_s=2, max_gap_s=6, phases=["annotation"]), "annotation")
    assert alone == kills
    assert {kill.kind for kill in plan_kills(recipe, "serving")} == {"worker", "driver", "node"}


def disturb(plan, victims, monkeypatch):
    """Carry a plan out, with the victims of each kind in turn, until those of ``worker`` are used up."""
    monkeypatch.setattr("cluster.chaos.schedule._RETRY_S", 0.02)
    steps, is_over = itertools.count(3.0), threading.Event()

    def strike(kind, draw):
        victim = victims[kind].pop(0) if victims[kind] else None
        if not victims["worker"]:
            is_over.set()
        return victim

    with Disturber(plan, strike, 60.0, lambda: {"step": next(steps)}) as disturber:
        assert is_over.wait(30)
    return disturber


def test_a_kill_that_finds_nothing_is_tried_again(monkeypatch):
    plan = [PlannedKill(0.01, "worker", 0.5)]
    disturber = disturb(plan, {"worker": [None, "ray::one"]}, monkeypatch)
    # How far the work had come just before it was found.
    (kill,) = disturber.kills
    assert (kill.kind, kill.victim, kill.progress) == ("worker", "ray::one", {"step": 4.0})
    assert disturber.missed == [] and disturber.errors == []


def test_a_kill_that_finds_nothing_does_not_delay_the_next(monkeypatch):
    plan = [PlannedKill(0.01, "driver", 0.5), PlannedKill(0.1, "worker", 0.5)]
    disturber = disturb(plan, {"driver": [], "worker": ["ray::one"]}, monkeypatch)
    assert [kill.victim for kill in disturber.kills] == ["ray::one"] and disturber.missed == plan[:1]


def test_results_are_compared_by_content_not_by_file(tmp_path):
    rows = [
        reject_row(uri=f"v{number}", stage="annotate", outcome="failed", reason="empty", detail="", dataset="d")
        for number in range(4)
    ]
    for name, parts in (("one", [rows]), ("two", [rows[2:], rows[:2]]), ("three", [rows[:3]])):
        for number, part in enumerate(parts):
            write_table(part, tmp_path / name / "rejects" / f"{number}.parquet", REJECT_SCHEMA)
        write_table([], tmp_path / name / "triplets" / "0.parquet", TRIPLET_SCHEMA)
    one, two, three = (digest_rows(tmp_path / name) for name in ("one", "two", "three"))
    assert list_differences(two, one) == [] and one["rejects"].startswith("4 rows, sha256 ")
    (difference,) = list_differences(three, one)
    assert difference.startswith("rejects: 3 rows, ") and ", undisturbed 4 rows, " in difference
    (tmp_path / "a.safetensors").write_bytes(b"1")
    sha256 = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"  # of "1", by sha256sum
    assert digest_files(tmp_path) == {"a.safetensors": sha256}
    assert list_differences({}, digest_files(tmp_path)) == [f"a.safetensors: absent, undisturbed {sha256}"]


def test_progress_is_read_from_what_was_written(tmp_path):
    assert look_at_annotation(["shards/00000.json", "shards/a/b.json", "run.json", "shards/00001.json"]) == {
        "shards": 2
    }
    complete = "checkpoints/step-{:08d}-1a2b/checkpoint.json"
    unfinished = [
        "checkpoints/.step-00000030-1a2b/checkpoint.json",
        "checkpoints/step-00000040-1a2b/rank-0.safetensors",
    ]
    names = [complete.format(20), complete.format(10), *unfinished]
    assert look_at_training(names, [tmp_path / "none"]) == {"checkpoint": 20}
    # The first worker was on one node, then on another; the last line is being written.
    for name, text, age_s in (("one", '{"step": 99}\n', 60), ("two", '{"step": 25}\n{"step": 26}\n{"ste', 2)):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    progress = look_at_training(names, [tmp_path / "one", tmp_path / "two"])
    assert (progress["step"], progress["checkpoint"]) == (26, 20) and 2 <= progress["step_age_s"] < 60
    (tmp_path / "two").write_text("")
    assert look_at_training([], [tmp_path / "one", tmp_path / "two"]) == {}


def test_kills_after_a_checkpoint_are_counted(tmp_path):
    kills = [
        {"at_s": 9.5, "kind": "job", "victim": "j"},
        {"at_s": 20.0, "kind": "worker", "victim": "w", "checkpoint": 20, "step": 27, "step_age_s": 0.4},
        {"at_s": 31.0, "kind": "node", "victim": "n", "checkpoint": 20, "step": 27, "step_age_s": 11.4},
    ]
    attempts = [
        {"seconds": 10.0, "status": "failed", "resumed_from": None},
        {"seconds": 30.0, "status": "failed", "resumed_from": 20},
        {"seconds": 30.0, "status": "succeeded", "resumed_from": 20},
    ]
    phase = PhaseReport("training", kills=kills, rounds=[{"name": "training-1", "attempts": attempts}])
    record = build_record(recipe_of(phases=["training"]), [phase], [])
    counts = record["counts"]["training"]
    assert counts["kills"] == 3 and counts["kills after a checkpoint"] == 2
    assert counts["of them while steps were done"] == 1
    assert counts["submissions that resumed from a checkpoint"] == 2
    text = "\n".join(write_report(tmp_path, record, [phase]))
    assert "3 submissions, resumed from steps 20, 20" in text
    assert "worker  w (step 27, 0.4 s before, last checkpoint 20)" in text


def test_the_report_says_what_was_killed_and_what_failed(tmp_path):
    phases = [
        PhaseReport(
            "annotation",
            seconds=61.5,
            undisturbed_s=20,
            kills=[{"at_s": 9.5, "kind": "node", "victim": "node 2"}],
            missed=1,
            rounds=[{"name": "annotation-1", "attempts": [{"seconds": 30.0, "status": "failed"}]}],
        ),
        PhaseReport(
            "serving",
            failures={
                "requests": 200,
                "failed": 3,
                "reasons": {"HTTP 503": 2, "ConnectionError": 1},
                "named": [],
                "starts_of_the_command": 2,
                "seconds_to_recover": 4.5,
            },
        ),
    ]
    recipe = recipe_of(phases=["annotation", "serving"])
    record = build_record(recipe, phases, ["minutes=1"])
    assert record["passed"] and record["ratios"] == {"failed_requests_share": 0.015}
    lines = write_report(tmp_path, record, phases)
    assert json.loads((tmp_path / "chaos.json").read_text())["phases"][0]["kills"][0]["victim"] == "node 2"
    assert (tmp_path / "chaos.txt").read_text().splitlines() == lines
    text = "\n".join(lines)
    assert "annotation: 1 kills in 61.5 s (1 x node); 1 missed" in text
    assert "200 requests, 3 failed; the command was started 2 times" in text and "    2 x HTTP 503" in text
    assert "      9.5 s  node    node 2" in text
    phases[0].differences = ["annotation-1: triplets: absent"]
    record = build_record(recipe, phases, [])
    assert not record["passed"] and "DIFFERS: annotation-1" in "\n".join(write_report(tmp_path, record, phases))
    # A phase that got stuck has no report.
    assert not build_record(recipe, phases[1:], [])["passed"]


def test_a_dry_run_prints_the_plan(tmp_path, capsys):
    assert main(["--dry-run", f"out={tmp_path / 'out'}", "minutes=1", "seed=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"chaos: 3 nodes, seed 3, would write {tmp_path / 'out'}"
    assert [line for line in lines if line.startswith(("annotation: 20 s, ", "training: 20 s, ", "serving: 20 s, "))]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nodes=1", "nodes"),
        ("min_gap_s=30", "min_gap_s = 30 is more than max_gap_s = 25"),
        ('kinds=["job"]', "nothing of it is killed while serving runs; there: worker, driver, node"),
        ("phases=[]", "expected different items"),
    ],
)
def test_bad_settings_are_refused(setting, message, tmp_path, capsys):
    assert main([f"out={tmp_path / 'out'}", setting]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


PHASES = {
    "bucket": ["minutes=3", "bucket=true", 'phases=["annotation", "training", "serving"]'],
    "folders": ["minutes=1", 'phases=["training"]'],
}


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("place", PHASES)
def test_minutes_of_chaos_change_nothing(place, tmp_path):
    settings = ["nodes=3", "seed=1", "min_gap_s=10", "max_gap_s=25", "videos=64", "steps=200", *PHASES[place]]
    command = [sys.executable, "-m", "cluster.chaos", f"out={tmp_path / 'out'}", *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    record = json.loads((tmp_path / "out" / "chaos.json").read_text())
    assert record["passed"] and [phase["phase"] for phase in record["phases"]] == record["settings"]["phases"]
    for phase in record["phases"]:
        assert phase["kills"] and phase["differences"] == []
