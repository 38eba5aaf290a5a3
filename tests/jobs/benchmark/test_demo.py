"""The measurement of the demo: what its processes use, and the record; the demo itself is tested where it belongs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark import demo
from jobs.benchmark import job as benchmark

TIMES = {
    "recipe_digest": "0123",
    "max_stages": 2,
    "wall_s": 9.0,
    "stages": {"world": 4.0, "report": 6.0},
    "timeline": [{"name": "world", "begin_s": 0.0, "end_s": 4.0, "beside": []}],
}
# A child with 64 MiB of its own, which works for .3 s of CPU; both wait until they were looked at.
CHILD = "import time, sys\nblock = b'x' * 2**26\nwhile time.process_time() < 0.3: pass\nsys.stdin.read()"
PARENT = f"""
import subprocess, sys
from pathlib import Path
with subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE) as child:
    while not Path(sys.argv[1]).exists():
        pass
    child.stdin.close()
"""


def test_memory_and_cpu_of_all_processes_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[demo.TreeUsage] = []
    look = demo.TreeUsage.look

    def watch(usage: demo.TreeUsage, root: int) -> None:
        look(usage, root)
        looks.append(usage)
        if usage.peak_bytes > 2**26 and sum(usage.cpu_s.values()) > 0.3 and len(usage.cpu_s) == 2:
            (tmp_path / "seen").touch()

    monkeypatch.setattr(demo.TreeUsage, "look", watch)
    monkeypatch.setattr(demo, "_POLL_S", 0.05)
    usage, wall_s = demo._run_demo(["-c", PARENT, str(tmp_path / "seen")], 60.0)
    assert (tmp_path / "seen").exists() and usage is looks[-1] and wall_s > 0
    assert 2**26 < usage.peak_bytes < 2**28


def test_the_record_has_every_stage_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[str] = []

    def run_demo(arguments: list[str], limit_s: float) -> tuple[demo.TreeUsage, float]:
        words.extend(arguments)
        folder = Path(arguments[-1].removeprefix("out="))
        folder.mkdir()
        (folder / "stages.json").write_text(json.dumps(TIMES))
        return demo.TreeUsage(3 * 2**30, {1: 5.0, 2: 7.5}), 10.0

    monkeypatch.setattr(demo, "_run_demo", run_demo)
    out = tmp_path / "demo.json"
    assert benchmark.main(["demo", f"out={out}", "quick=true", 'overrides=["seeds=[1]"]']) == 0
    assert words[:3] == ["-m", "jobs.bootstrap", "nano/demo"]
    assert words[3:-1] == [*demo._TINY, "seeds=[1]"]
    record: dict[str, Any] = json.loads(out.read_text())
    assert record["stages"] == TIMES["stages"] and record["timeline"] == TIMES["timeline"]
    assert (record["wall_s"], record["cpu_s"], record["peak_memory_bytes"]) == (10.0, 12.5, 3 * 2**30)
    assert (
        record["recipe_digest"] == "0123" and record["machine"]["cpu"] and record["ratios"] == {"stages by wall": 1.0}
    )
    assert "3.00 GiB at most" in capsys.readouterr().out


def test_a_run_that_fails_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo.json"
    assert benchmark.main(["demo", f"out={out}", "--dry-run"]) == 0
    broken = tmp_path / "broken.toml"
    broken.write_text("nonsense = 1\n")
    monkeypatch.setattr(demo, "_run_demo", lambda words, limit_s: demo._check_end(2, [sys.executable, *words]))
    assert benchmark.main(["demo", f"out={out}", f"demo={broken}"]) == 2
    assert "ended with status 2; its reason is above" in capsys.readouterr().err and not out.exists()
