"""The contract of a run whose folder is in a bucket, in every store: mark last, one writer, resumed on another node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.buckets import Bucket
from wm.config import Recipe
from wm.errors import InputError, OtherRunError
from wm.files import lease
from wm.files.mirror import publish
from wm.paths import OutputPath
from wm.runs import Run, read_run

_WRITER = """
import sys, os
from pathlib import Path
from tests.wm.test_runs_in_buckets import StageRecipe
from wm.files.mirror import publish
from wm.runs import Run
run = Run(StageRecipe(out=sys.argv[1]).out, "stage", StageRecipe(out=sys.argv[1]))
run.start()
(run.out / "shard-0").write_bytes(b"zero")
publish(run.out / "shard-0")
(run.out / "shard-1").write_bytes(b"half of one")
print("ready", flush=True)
sys.stdin.read()
"""


class StageRecipe(Recipe):
    """Of a stage that is none."""

    out: OutputPath
    """Where it writes."""
    value: int = 0
    """What it writes."""


def stage(bucket: Bucket, value: int = 0) -> Run:
    recipe = StageRecipe(out=bucket.uri("run"), value=value)
    return Run(recipe.out, "stage", recipe)


def on_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("WM_CACHE", str(tmp_path / name))


def test_the_mark_comes_last_and_says_the_uri(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = stage(bucket)
    assert not run.is_complete()
    run.start()
    for number in range(3):
        (run.out / "tables").mkdir(exist_ok=True)
        (run.out / "tables" / f"{number}").write_bytes(bytes([number]))
    publish(run.out / "tables" / "0")
    bucket.proxy.requests.clear()
    run.finish({"rows": 3})
    keys = [f"run/{name}" for name in ("run.json", "tables/0", "tables/1", "tables/2")]
    assert bucket.list_keys() == keys
    # Everything else is there before it, what was published before is not sent again.
    written = [path for method, path in bucket.proxy.requests if method in ("PUT", "POST") and "tables" in path]
    assert written and not any("tables%2F0" in path or "tables/0" in path for path in written)
    order = [path for method, path in bucket.proxy.requests if method in ("PUT", "POST") and "run" in path]
    marks = [number for number, path in enumerate(order) if "run.json" in path]
    assert max(number for number, path in enumerate(order) if "tables" in path) < min(marks)
    assert json.loads(bucket.read("run/run.json"))["recipe"]["out"] == bucket.uri("run")
    # Another node sees that it is complete, and by whom it may not be overwritten.
    on_node(monkeypatch, tmp_path, "second")
    assert stage(bucket).is_complete() and (read_run(stage(bucket).out) or {})["counts"] == {"rows": 3}
    with pytest.raises(OtherRunError, match="value = 0 there, 1 here"):
        stage(bucket, value=1).is_complete()


def test_a_mark_that_cannot_be_written_leaves_a_run_to_resume(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("wm.files.transfer.PATIENCE_S", 0.1)
    run = stage(bucket)
    run.start()
    (run.out / "a").write_bytes(b"a")
    for method in ("PUT", "POST"):
        bucket.proxy.spoil("status", method=method, part="run.json", status=403)
    with pytest.raises(InputError, match=r"run\.json.*(refuses|may not)"):
        run.finish({})
    bucket.proxy.heal()
    # On another node, which waits for nobody: the writer has said that it is gone.
    run._let_go()
    on_node(monkeypatch, tmp_path, "second")
    again = stage(bucket)
    assert not again.is_complete()
    again.start()
    assert (again.out / "a").read_bytes() == b"a"
    again.finish({})
    assert stage(bucket).is_complete()


def test_a_second_writer_is_refused_and_a_killed_one_replaced(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1. Another process writes, as another node would.
    environment = os.environ | bucket.variables | {"WM_CACHE": str(tmp_path / "first")}
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, bucket.uri("run")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        on_node(monkeypatch, tmp_path, "second")
        run = stage(bucket)
        assert not run.is_complete()
        with pytest.raises(InputError, match=rf"run.* is being written by stage on host .*, process {writer.pid}"):
            run.start()
        assert "run/shard-0" in bucket.list_keys()
    finally:
        writer.kill()
        writer.wait()
    # 2. It was killed: what it published is there, what it was about to is not.
    run = stage(bucket)
    assert not run.is_complete()
    run.start()
    names = sorted(path.name for path in run.out.iterdir() if not path.name.startswith("."))
    assert names == ["run.unfinished.json", "shard-0"] and (run.out / "shard-0").read_bytes() == b"zero"
    (run.out / "shard-1").write_bytes(b"one")
    run.finish({})
    assert bucket.read("run/shard-1") == b"one"


def test_a_writer_without_a_sign_of_life_is_replaced_and_told(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two machines, whose processes cannot be looked at: only beats say who lives."""
    for name, value in (("BEAT_S", 0.1), ("EXPIRY_S", 0.6), ("POLL_S", 0.05)):
        monkeypatch.setattr(lease, name, value)
    first = stage(bucket)
    monkeypatch.setattr(lease, "_machine", lambda: "first machine")
    first.start()
    # It stands still, as a suspended process does.
    assert isinstance(first._right, lease.Lease)
    first._right._ended.set()
    on_node(monkeypatch, tmp_path, "second")
    monkeypatch.setattr(lease, "_machine", lambda: "second machine")
    monkeypatch.setattr(lease, "_held", {})
    second = stage(bucket)
    second.start()
    (second.out / "a").write_bytes(b"second")
    second.finish({})
    assert stage(bucket).is_complete() and bucket.read("run/a") == b"second"
