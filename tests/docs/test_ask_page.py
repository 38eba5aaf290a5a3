"""The commands of the page on questions, on tiny models and files in the released formats."""

import json
from pathlib import Path

import pytest

from tests.helpers.doc_pages import PAGES, run_command, wm_commands
from tests.helpers.models_vlms import write_llava
from tests.helpers.question_files import (
    embspatial_entry,
    mqa_entry,
    write_embspatial,
    write_folder,
    write_spatialmqa,
)

TINY = ["limit=1", "max_new_tokens=1"]


def test_the_commands_run(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (PAGES / "ask.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith('{"id"'))
    write_llava(tmp_path / "vlm")
    values = {
        "MODEL": str(tiny_base),
        # A full model stands for an adapter, whose base is then left out.
        "FDM": str(tiny_base),
        "VLM": str(tmp_path / "vlm"),
        "SPATIALMQA": str(write_spatialmqa(tmp_path / "mqa", [mqa_entry(number) for number in range(4)])),
        "EMBSPATIAL": str(write_embspatial(tmp_path / "emb", [embspatial_entry(number) for number in range(4)])),
        "OWN": str(write_folder(tmp_path / "own", [json.loads(line)])),
    }
    monkeypatch.chdir(tmp_path)
    for name, *words in wm_commands(text):
        if name == "paper" or any(word.startswith("paper/") for word in words):
            continue  # the recipes' paths are placeholders
        kept = [word for word in words if not word.startswith("models.fdm.base=")]
        # The prompt of the benchmarks is longer than a tiny model's positions.
        short = ["prompt={question}"] if name == "ask" and "nano/ask" not in words else []
        assert run_command([name, *kept, *short, *(TINY if name == "ask" else [])], values) == 0, words
    for out, count in (("ask", 1), ("mqa", 1), ("emb", 1), ("own", 1), ("vlm", 1)):
        record = json.loads((tmp_path / "runs" / out / "run.json").read_text())
        assert record["counts"]["questions"] == count and record["counts"]["not_asked"] == 0, out
    tables = json.loads((tmp_path / "runs/ask/tables.json").read_text())
    assert tables["toy_models"] == ["base", "fdm"]
