"""The whole loop, very small: it runs from nothing, goes on where something changed, and does nothing twice."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.__main__ import main as wm
from jobs.bootstrap import BootstrapRecipe, plan, run
from jobs.bootstrap.job import _sole_run
from jobs.bootstrap.report import list_next_commands
from jobs.predict.triplet_storyboard import STORYBOARD
from wm.errors import InputError, OtherRunError
from wm.files.writer_lock import WriterLock
from wm.images import decode_image
from wm.ports import find_free_port
from wm.records import REJECT_SCHEMA
from wm.runs import Run, read_run
from wm.tables import read_table
from wm.training import TrainRecipe

STAGES = {"base", "world", "clips", "triplets", "test", "idm", "annotated", "selected"}
LATER = {"fdm-ft", "fdm", "fdm-unweighted", "preview", "evaluate", "judge", "score", "paper", "report"}
TRAINING = {
    **{"max_steps": 2, "global_batch_size": 8},
    **{"resources": {"num_workers": 0}, "lora": {"enabled": False}},
}


def recipe(out: Path, **changes: Any) -> BootstrapRecipe:
    small = {
        "tabletop": {"train": 24, "test": 8, "tune": 0, "videos": 6, "resources": {"num_workers": 0}},
        "pretrain": {
            **{"num_images": 64, "encoder_steps": 3, "decoder_steps": 3, "num_threads": 1},
            **{"num_documents": 64, "max_steps": 3, "batch_size": 8},
        },
        "ingest": {"resources": {"num_workers": 0}},
        "idm": TRAINING,
        "annotate": {
            # After two steps no model ends its text, and a codec gives all images the same codes.
            "filters": {"action": "score", "unchanged": "score"},
            "keyframes": {"motion": "farneback", "min_interval_frames": 8},
            "resources": {"num_decoders": 1},
            "max_new_tokens": 6,
        },
        "select": {"k": 10, "min_changed_codes": 0},
        "fdm": TRAINING,
        "evaluate": {
            "judge": "oracle",
            "seeds": [0],
            "search": {"num_candidates": [1, 2]},
            "limit": 4,
            "max_new_tokens": 6,
            "examples": 2,
        },
    }
    return BootstrapRecipe.parse({"out": str(out), "max_stages": 1, **small, **changes}, "test")


def stage_recipe(settings: BootstrapRecipe, name: str) -> TrainRecipe:
    found = next(stage.recipe for stage in plan(settings) if stage.name == name)
    assert isinstance(found, TrainRecipe)
    return found


def check_next_commands(settings: BootstrapRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Run each of the three as it is printed; the server only checks what it would serve."""
    commands = {words[0]: words[1:] for _, words in list_next_commands(settings)}
    assert list(commands) == ["serve", "view", "look"]
    port = find_free_port()
    assert wm(["serve", *commands["serve"], f"port={port}", "--dry-run"]) == 0
    assert wm(["view", *commands["view"]]) == 0
    view = Path(settings.out) / "view"
    assert (view / "index.html").is_file()
    shutil.rmtree(view)
    videos = f"{settings.out}/clips/videos"
    assert wm(["look", *[videos if word == "VIDEOS" else word for word in commands["look"]], "--dry-run"]) == 0
    assert "error" not in capsys.readouterr().err


def marks(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/run.json")}


@pytest.mark.slow
def test_the_loop_runs_goes_on_and_stands_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    records = run(recipe(out, max_stages=2))
    assert set(records) == STAGES | LATER == {path.name for path in out.iterdir() if path.is_dir()}
    assert all(record == read_run(out / name) for name, record in records.items())
    assert records["triplets"]["counts"]["triplets"] == 24 and records["test"]["counts"]["triplets"] == 8
    assert records["annotated"]["counts"]["videos"] == 6
    annotated = read_table(out / "annotated" / "triplets", columns=["video_uri", "origin"])
    assert records["selected"]["counts"]["chosen"] == min(10, annotated.num_rows)
    codecs = [read_table(out / name / "triplets", columns=["codec"]) for name in ("triplets", "test", "annotated")]
    assert len({codec for table in codecs for codec in table.column("codec").to_pylist()}) == 1
    left = read_table(out / "annotated" / "rejects", REJECT_SCHEMA, ["uri"])
    assert len(set(annotated["video_uri"].to_pylist()) | set(left["uri"].to_pylist())) == 6
    tables = json.loads((out / "evaluate" / "tables.json").read_text())
    assert tables["judge"] == "oracle"
    html = (out / "report" / "report.html").read_text()
    assert "C-FDM" in html and "superseded" not in html
    # The judge sees what the oracle saw: at the largest K both choose once among all candidates.
    judged = {row["system"]: row["figures"] for row in records["judge"]["figures"] if row["num_candidates"] == 2}
    chosen = {row["label"]: row["metrics"] for row in tables["fdm"] if (row["choice"], row["k"]) == ("idm", 2)}
    assert set(judged) == set(chosen) == {"C-ZS", "C-FT", "C-FDM", "C-FDM, no weights"}
    for name in ("final", "editing_success", "minimal_editing"):
        assert {label: figures[name]["all items"]["mean"] for label, figures in judged.items()} == pytest.approx(
            {label: metrics[name]["mean"] for label, metrics in chosen.items()}
        )
    assert '<iframe class="page" title="paper"' in html and "toy world" in html
    assert decode_image((out / "preview" / STORYBOARD).read_bytes(), STORYBOARD).shape[2] == 3
    first = marks(out)

    # What was said, and the times.
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert any(line.startswith("preview") and f"storyboard: {out / 'preview' / STORYBOARD}" in line for line in lines)
    times = json.loads((out / "stages.json").read_text())
    assert set(times["stages"]) == STAGES | LATER and times["max_stages"] == 2
    began = {entry["name"]: entry["begin_s"] for entry in times["timeline"]}
    ended = {entry["name"]: entry["end_s"] for entry in times["timeline"]}
    assert ended["preview"] <= began["evaluate"] and ended["selected"] <= began["fdm"]

    # Models that were trained beside others are those of one process that does nothing else.
    for name in ("idm", "fdm"):
        alone = stage_recipe(recipe(out), name).model_copy(update={"out": str(tmp_path / "alone" / name)})
        train.run(alone)
        files = [Path(folder) / name / "model" / "model.safetensors" for folder in (out, tmp_path / "alone")]
        assert files[0].read_bytes() == files[1].read_bytes(), name

    capsys.readouterr()
    check_next_commands(recipe(out), capsys)

    assert run(recipe(out)) == records
    assert marks(out) == first and not (out / "superseded").exists()
    capsys.readouterr()
    assert run(recipe(out, fdm=TRAINING | {"optim": {"lr": 1e-3}}), dry_run=True) == {}
    states = {line.split()[1]: line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()[1:]}
    assert {name for name, state in states.items() if "another recipe" in state} == LATER - {
        "preview",
        "evaluate",
        "judge",
        "score",
        "paper",
        "report",
    }

    changed = run(recipe(out, fdm=TRAINING | {"optim": {"lr": 1e-3}}))
    second = marks(out)
    assert {name for name in first if first[name] == second[name]} == STAGES
    assert {path.name for path in (out / "superseded").iterdir()} == {f"{name}-1" for name in LATER}
    for name in LATER:
        assert read_run(out / "superseded" / f"{name}-1") == records[name]
    assert changed["fdm"]["recipe"]["optim"]["lr"] == 1e-3
    html = (out / "report" / "report.html").read_text()
    assert "superseded" not in html and changed["report"]["counts"]["stages"] == len(STAGES | LATER) - 1

    run(recipe(out, report={"title": "Another title"}, fdm=TRAINING | {"optim": {"lr": 1e-3}}))
    third = marks(out)
    assert {name for name in second if second[name] != third[name]} == {"report"}
    assert (out / "superseded" / "report-2" / "report.html").read_text() == html
    assert "Another title" in (out / "report" / "report.html").read_text()


def test_another_run_in_a_stages_folder_is_moved_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on stages that take no time: their functions only claim the folder, as every job does."""
    out = tmp_path / "run"
    done: list[str] = []

    def claim(job: Any) -> dict[str, Any]:
        stage = Run(job.out, type(job).__name__, job)
        if not stage.is_complete():
            stage.start()
            done.append(Path(job.out).name)
            return stage.finish({})
        return read_run(job.out) or {}

    for name in (
        "annotate",
        "evaluate",
        "ingest",
        "predict",
        "pretrain",
        "report",
        "select",
        "tabletop",
        "train",
        "judge",
        "score",
        "paper",
    ):
        monkeypatch.setattr(f"jobs.{name}.run", claim)
    names = [stage.name for stage in plan(recipe(out, seeds=[0, 3]))]
    assert {"idm-seed3", "annotated-seed3", "fdm-unweighted-seed3"} < set(names)
    run(recipe(out, seeds=[0, 3]))
    assert done == names
    done.clear()
    run(recipe(out, seeds=[0, 3]))
    assert done == []
    run(recipe(out, seeds=[0, 3], select={"k": 5}))
    assert done == ["selected", "selected-seed3"]
    run(recipe(out, seeds=[0, 3], select={"k": 6}))
    kept = {path.name: (read_run(path) or {})["recipe"]["k"] for path in (out / "superseded").iterdir()}
    assert kept == {"selected-1": 10, "selected-seed3-1": 10, "selected-2": 5, "selected-seed3-2": 5}

    monkeypatch.setattr("jobs.select.run", _always_another)
    with pytest.raises(OtherRunError):
        run(recipe(out, seeds=[0, 3]))


def _always_another(_: Any) -> None:
    raise OtherRunError("holds another run")


def test_a_stage_that_outlives_a_broken_run_keeps_others_out(tmp_path: Path) -> None:
    """As after a second Ctrl-C, which ends the wait for the stages."""
    stages: list[int] = []
    with pytest.raises(KeyboardInterrupt), _sole_run(tmp_path) as lock:
        stages.append(os.dup(lock))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="is being written by bootstrap"):
        WriterLock(tmp_path, "bootstrap").acquire()
    os.close(stages[0])
    with _sole_run(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
