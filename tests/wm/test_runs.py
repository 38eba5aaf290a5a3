"""Output folders: whose they are, when they are whole, what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wm import runs
from wm.config import Recipe
from wm.errors import InputError, OtherRunError
from wm.runs import Run, digest_of, read_run, write_json


class Small(Recipe):
    out: str
    steps: int = 1


def run_of(out: Path, *, stage: str = "train", steps: int = 1, inputs: dict[str, str] | None = None) -> Run:
    return Run(out, stage, Small(out=str(out), steps=steps), inputs)


def test_a_run_from_start_to_finish(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    run = run_of(out, inputs={"data": "1"})
    assert not run.is_complete()
    run.start()
    assert not run.is_complete() and read_run(out) is None
    assert read_run(out, "run.unfinished.json") is not None
    with run.timed("work"):
        pass
    with pytest.raises(RuntimeError), run.timed("work"):
        raise RuntimeError
    record = run.finish({"rows": 3}, note="x")
    assert record == read_run(out) == json.loads((out / "run.json").read_text())
    assert record["counts"] == {"rows": 3} and record["note"] == "x" and record["timings_s"]["work"] >= 0
    assert record["stage"] == "train" and record["recipe"] == {"out": str(out), "steps": 1}
    assert record["inputs"] == {"data": "1"} and record["recipe_digest"] == Small(out=str(out)).digest()
    assert [file.name for file in out.iterdir()] == ["run.json"]
    assert run_of(out, inputs={"data": "1"}).is_complete()


def test_a_killed_run_may_go_on_and_no_other_may(tmp_path: Path) -> None:
    run_of(tmp_path).start()
    (tmp_path / "half").write_text("x")
    again = run_of(tmp_path)
    assert not again.is_complete()
    again.start()
    with pytest.raises(OtherRunError, match="recipe steps = 1 there, 2 here"):
        run_of(tmp_path, steps=2).is_complete()
    again.finish({})
    assert run_of(tmp_path).is_complete()
    assert not (tmp_path / "run.unfinished.json").exists()


_WRITER = """
import sys
from pathlib import Path
from tests.wm.test_runs import run_of
run = run_of(Path(sys.argv[1]))
run.start()
Path(sys.argv[1], "half").write_text("x")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_a_killed_one_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            run = run_of(tmp_path)
            assert not run.is_complete()
            with pytest.raises(InputError, match=rf"is being written by train on host .*, process {writer.pid}, since"):
                run.start()
        finally:
            writer.kill()
    run.start()
    assert (tmp_path / "half").read_text() == "x"
    run.finish({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "run.json"]


def test_a_run_that_was_completed_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    late = run_of(tmp_path)
    assert not late.is_complete()
    run = run_of(tmp_path)
    run.start()
    run.finish({"rows": 3})
    with pytest.raises(InputError, match="was completed meanwhile; run the command again to see its result"):
        late.start()
    assert (read_run(tmp_path) or {})["counts"] == {"rows": 3}
    assert not (tmp_path / ".lock").exists()


def test_a_kill_between_the_two_last_steps_is_complete(tmp_path: Path) -> None:
    run_of(tmp_path).start()
    kept = (tmp_path / "run.unfinished.json").read_bytes()
    run_of(tmp_path).finish({})
    (tmp_path / "run.unfinished.json").write_bytes(kept)
    assert run_of(tmp_path).is_complete()


@pytest.mark.parametrize("whole", [True, False])
def test_another_run_is_refused_by_name(tmp_path: Path, whole: bool) -> None:
    run = run_of(tmp_path, inputs={"data": "1"})
    run.start()
    if whole:
        run.finish({})
    for other, said in (
        (run_of(tmp_path, stage="select", inputs={"data": "1"}), "of stage 'train', not 'select'"),
        (run_of(tmp_path, steps=2, inputs={"data": "1"}), "recipe steps = 1 there, 2 here"),
        (run_of(tmp_path, inputs={"data": "2"}), "inputs data = '1' there, '2' here"),
        (run_of(tmp_path), "inputs data = '1' there, None here"),
    ):
        with pytest.raises(OtherRunError, match=said) as caught:
            other.is_complete()
        assert str(tmp_path) in str(caught.value) and "choose another out" in str(caught.value)


def test_the_key_inside_of_a_table_that_differs_is_named(tmp_path: Path) -> None:
    class Inner(Recipe):
        kept: int = 0
        """Kept."""
        later: str = "on"
        """Came with a later version."""

    class Outer(Recipe):
        out: str
        """Folder."""
        filters: Inner = Inner()
        """A table."""

    Run(tmp_path, "x", Outer(out="o")).start()
    for inner, message in (
        (Inner(kept=3), "kept = 0 there, 3 here"),
        (Inner(later="off"), "later = 'on' there, 'off' here"),
    ):
        with pytest.raises(OtherRunError, match=f"recipe filters.{message}"):
            Run(tmp_path, "x", Outer(out="o", filters=inner)).is_complete()
    path = tmp_path / "run.unfinished.json"
    record = json.loads(path.read_text())
    del record["recipe"]["filters"]["later"]
    path.write_text(json.dumps(record))
    with pytest.raises(OtherRunError, match=r"recipe filters\.later = not set there, 'on' here"):
        Run(tmp_path, "x", Outer(out="o")).is_complete()


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    folder, file = tmp_path / "photos", tmp_path / "file"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"x")
    file.write_text("x")
    assert not run_of(folder).is_complete()
    with pytest.raises(InputError, match=r"photos is not empty \(holiday.jpg\) and is no run of wm") as caught:
        run_of(folder).start()
    assert not isinstance(caught.value, OtherRunError)
    assert [path.name for path in folder.iterdir()] == ["holiday.jpg"]
    with pytest.raises(InputError, match="is a file; expected a folder") as caught:
        run_of(file).is_complete()
    assert not isinstance(caught.value, OtherRunError)


def test_a_hidden_file_alone_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".nfs0001").write_text("")
    run_of(tmp_path).start()
    assert (tmp_path / "run.unfinished.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        run_of(tmp_path).is_complete()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(runs.os, name, _full_disk)
            write_json(path, {"a": 2})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def _full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_digest_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("1")
    (tmp_path / "in" / "deep" / "b.txt").write_text("22")
    first = digest_of(tmp_path / "in")
    (tmp_path / "in" / "deep" / ".lock").write_text("of a killed writer")
    assert first == digest_of(str(tmp_path / "in"))
    seen = {first, digest_of(tmp_path / "in" / "a.txt")}
    facts = (tmp_path / "in" / "deep" / "b.txt").stat()
    os.utime(tmp_path / "in" / "deep" / "b.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))
    seen.add(digest_of(tmp_path / "in"))
    (tmp_path / "in" / "c.txt").write_text("")
    seen.add(digest_of(tmp_path / "in"))
    (tmp_path / "in" / "c.txt").unlink()
    (tmp_path / "in" / "a.txt").write_text("333")
    seen.add(digest_of(tmp_path / "in"))
    assert len(seen) == 5
    with pytest.raises(InputError, match=r"no such file or folder: .*nowhere"):
        digest_of(tmp_path / "nowhere")


def test_digest_of_a_stages_output_follows_its_record(tmp_path: Path) -> None:
    run = run_of(tmp_path / "stage")
    run.start()
    run.finish({})
    (tmp_path / "stage" / "triplets").mkdir()
    (tmp_path / "stage" / "model").mkdir()
    triplets, model = digest_of(tmp_path / "stage" / "triplets"), digest_of(tmp_path / "stage" / "model")
    assert triplets != model
    (tmp_path / "stage" / "triplets" / "notes.txt").write_text("of no importance")
    assert digest_of(tmp_path / "stage" / "triplets") == triplets
    record = json.loads((tmp_path / "stage" / "run.json").read_text())
    write_json(tmp_path / "stage" / "run.json", record | {"wall_s": 99})
    assert digest_of(tmp_path / "stage" / "triplets") == triplets
    write_json(tmp_path / "stage" / "run.json", record | {"finished_at": "later"})
    assert digest_of(tmp_path / "stage" / "triplets") != triplets
