"""Judgements survive a kill, are never asked twice, and have one writer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wm.errors import InputError
from wm.evaluation.judge.store import JudgementLine, JudgementStore


def line(key: str, success: float | None = 5.0, failure: str | None = None) -> JudgementLine:
    return {
        "key": key,
        "editing_success": success,
        "minimal_editing": None if success is None else 9.0,
        "reasoning": "größer — 紅",
        "failure": failure,
        "reply": "…",
        "finish_reason": "stop",
        "model": "judge",
        "input_tokens": 10,
        "output_tokens": 5,
        "answered_at": "2026-01-01T00:00:00Z",
    }


def test_lines_are_read_back_and_the_first_one_stays(tmp_path: Path) -> None:
    store = JudgementStore(tmp_path / "j")
    with store.writing():
        store.append(line("a", 5.0))
        store.append(line("b", None, "refusal"))
        store.append(line("a", 7.0))
        store.append(line("b", None, "out of range"))
    again = JudgementStore(tmp_path / "j")
    assert again.judged == {"a": line("a", 5.0)} == store.judged
    assert [failure["failure"] for failure in again.failures["b"]] == ["refusal", "out of range"]


def test_a_killed_writer_loses_at_most_its_last_line(tmp_path: Path) -> None:
    store = JudgementStore(tmp_path)
    with store.writing():
        store.append(line("a"))
        store.append(line("b"))
    (file,) = (tmp_path / "judgements").glob("*.jsonl")
    data = file.read_bytes()
    for cut in range(len(data) // 2 + 2, len(data)):
        file.write_bytes(data[:cut])
        torn = JudgementStore(tmp_path)
        # Without its line end alone the line is complete all the same.
        assert sorted(torn.judged) == (["a", "b"] if cut == len(data) - 1 else ["a"])
        assert torn.num_torn == (cut != len(data) - 1)
    # Its successor goes on in a file of its own.
    with torn.writing():
        torn.append(line("c"))
    assert {"a", "c"} <= set(JudgementStore(tmp_path).judged)


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "judgements").mkdir()
    file = tmp_path / "judgements" / "1.jsonl"
    file.write_text('{"key": 1\n{"key": "a", "editing_success": 1}\n')
    with pytest.raises(InputError, match=r"1\.jsonl, line 1 is damaged"):
        JudgementStore(tmp_path)


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom wm.evaluation.judge.store import JudgementStore\n"
        "store = JudgementStore(sys.argv[1])\n"
        "with store.writing():\n    print('ready', flush=True)\n    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        with (
            pytest.raises(InputError, match="another run is writing"),
            JudgementStore(tmp_path).writing(),
        ):
            pass
        first.kill()
    # The kernel takes a dead writer's lock back.
    with JudgementStore(tmp_path).writing():
        pass
    assert not list((tmp_path / "judgements").glob("*.jsonl"))[1:]


def test_a_writer_knows_what_another_one_wrote_before(tmp_path: Path) -> None:
    store = JudgementStore(tmp_path)
    with JudgementStore(tmp_path).writing() as _, pytest.raises(InputError), store.writing():
        pass
    other = JudgementStore(tmp_path)
    with other.writing():
        other.append(line("a"))
    assert not store.judged
    with store.writing():
        assert store.judged == {"a": line("a")}
