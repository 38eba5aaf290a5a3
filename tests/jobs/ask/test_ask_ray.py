"""Shards asked by Ray tasks, and a process that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import ask
from jobs.ask import AskRecipe
from tests.helpers.question_files import mqa_entry, write_spatialmqa
from wm.evaluation.questions.asking import ANSWER_SCHEMA
from wm.tables import read_table

ROOT = Path(__file__).resolve().parents[3]


def settings(data: Path, out: Path, base: Path, **more: object) -> list[str]:
    values = {"benchmark": "spatialmqa", "data": data, "out": out, "prompt": "{question}", "max_new_tokens": 4} | more
    models = [f"models.{name}.{key}={value}" for name in "ab" for key, value in (("path", base), ("label", name))]
    return [*(f"{key}={value}" for key, value in values.items()), "shard_questions=2", *models]


def answers(out: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = read_table(out / "answers", ANSWER_SCHEMA).to_pylist()
    return rows


@pytest.mark.soak
def test_ray_tasks_give_the_same_answers(tiny_base: Path, tmp_path: Path) -> None:
    data = write_spatialmqa(tmp_path / "mqa", [mqa_entry(number) for number in range(8)])
    for out, more in (("here", {}), ("ray", {"resources.num_workers": 2})):
        ask.run(AskRecipe.load(None, settings(data, tmp_path / out, tiny_base, **more)))
    ours, theirs = answers(tmp_path / "here"), answers(tmp_path / "ray")
    numbers = ("answer_logprob", "option_logprobs")
    for own, other in zip(ours, theirs, strict=True):
        # Workers have one thread each, which sums in another order.
        assert {key: own[key] for key in own if key not in numbers} == {
            key: other[key] for key in own if key not in numbers
        }
        assert own["option_logprobs"] == pytest.approx(other["option_logprobs"], abs=1e-4)


@pytest.mark.soak
def test_a_killed_process_loses_no_finished_shard(tiny_base: Path, tmp_path: Path) -> None:
    data = write_spatialmqa(tmp_path / "mqa", [mqa_entry(number % 8) for number in range(60)])
    command = [sys.executable, "-m", "jobs.ask", *settings(data, tmp_path / "out", tiny_base)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills, kept = 0, {}
    while True:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        finished = len(kept)
        # Killed as soon as it has finished some more shards, wherever it is then.
        while process.poll() is None and len(list((tmp_path / "out").glob("answers/*.parquet"))) < finished + 9:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("answers/*.parquet")}
        # What was there before has not been asked again.
        assert all(files[name] == content for name, content in kept.items())
        kept = files
    assert process.returncode == 0 and kills >= 3
    ask.run(AskRecipe.load(None, settings(data, tmp_path / "whole", tiny_base)))
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")
    tables = [json.loads((tmp_path / name / "tables.json").read_text()) for name in ("out", "whole")]
    assert tables[0] == tables[1] and tables[0]["num_questions"] == 60
