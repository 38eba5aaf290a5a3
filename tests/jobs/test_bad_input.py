"""Every job as a clumsy user meets it: one line that names the thing, status 2, nothing on the disk."""

import errno
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.training_data import random_rows, write_triplets
from wm.cli import progress_bar

JOBS = (
    "tabletop",
    "pretrain",
    "ingest",
    "train",
    "annotate",
    "select",
    "evaluate",
    "export",
    "report",
    "predict",
    "bootstrap",
    "convert",
)
Call = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a job's command line in this process; returns its one line of complaint."""

    def call(job: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [job, *argv])
        assert importlib.import_module(f"jobs.{job}").main() == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: "), told.err
        return told.err

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder: an empty folder, one with a text only, and a file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 6), tmp_path_factory.mktemp("triplets") / "triplets")


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("job", JOBS)
def test_recipes_are_strict(job: str, refused: Call, here: Path) -> None:
    before = contents(here)
    assert "no such recipe file: nope.toml" in refused(job, "nope.toml")
    assert "unknown key 'colour'" in refused(job, "out=o", "colour=red")
    assert "out is missing" in refused(job)
    (here / "bad.toml").write_text("out = = 3")
    assert "bad.toml is not valid TOML" in refused(job, "bad.toml")
    (here / "bad.toml").unlink()
    assert contents(here) == before


def test_a_bar_in_a_log_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(20_000, "step", "train", done=5) as bar:
        for _ in range(19_995):
            bar.update()
    drawn = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line]
    assert len(drawn) <= 3 and drawn[0].startswith("train:") and "5/20000" in drawn[0] and "20000/20000" in drawn[-1]


TRAIN = ("task=idm", "base=empty", "triplets=empty", "out=o", "max_steps=2")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["max_steps=ten"], "max_steps = 'ten': input should be a valid integer"),
        (["lora.colour=1"], "unknown key 'lora.colour'"),
        (["epochs=1"], "error: the command line: give max_steps or epochs, one of them (max_steps = 2, epochs = 1.0)"),
        (
            ["global_batch_size=3"],
            "error: the command line: global_batch_size = 3 is no multiple of resources.num_workers = 2",
        ),
        (["lora.targets=("], "lora.targets = '(': no regular expression: missing )"),
        ([f"seed={2**63}"], "seed = 9223372036854775808: input should be less than 9223372036854775808"),
        (["out="], "the command line: out is empty"),
        (["base="], "the command line: base is empty"),
        (["triplets="], "the command line: triplets.0: path is empty"),
    ],
)
def test_a_wrong_value_is_named_in_its_own_words(argv: list[str], told: str, refused: Call, here: Path) -> None:
    assert told in refused("train", *TRAIN, *argv)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_places_that_can_hold_no_output(flags: list[str], refused: Call, here: Path, tiny_base: Path) -> None:
    (here / "rows.json").write_text(json.dumps([{"instruction": "a", "input": "b", "output": "c"}]))
    given = [f"root={here}", "file=rows.json", *flags]
    assert "out = 'file': file is a file; expected a folder" in refused("ingest", *given, "out=file")
    assert "out = 'file/sub': file is a file; expected a folder" in refused("ingest", *given, "out=file/sub")
    assert "File name too long" in refused("ingest", *given, "out=" + "x" * 300)


def test_what_this_machine_has_not_is_told_at_once(
    refused: Call, here: Path, tiny_base: Path, triplets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    train = ("task=idm", f"base={tiny_base}", f"triplets={triplets}", "out=o", "max_steps=2")
    told = refused("train", *train, "resources.num_workers=99", "global_batch_size=99")
    assert "num_workers = 99 asks for 99 CPUs at once; a session on this machine has" in told
    (here / "a.mp4").write_bytes(b"")
    annotate = (f"idm={tiny_base}", "videos=a.mp4", "out=o")
    assert "num_annotators = 1 asks for 99.5 CPUs" in refused("annotate", *annotate, "resources.cpus_per_decoder=99.0")
    if not torch.cuda.is_available():
        assert "use_gpu = true asks for 2 GPUs; torch finds 0" in refused("train", *train, "resources.use_gpu=true")
        assert "asks for 1 GPUs; torch finds 0" in refused("annotate", *annotate, "resources.gpus_per_annotator=1.0")
        assert "device = 'cuda'" in refused(
            "evaluate", f"triplets={triplets}", f"base={tiny_base}", "out=o", "resources.device=cuda"
        )
    assert not (here / "o").exists()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_refused_start_leaves_no_folder_in_the_way(
    flags: list[str], refused: Call, here: Path, tiny_base: Path, triplets: Path
) -> None:
    damaged = here / "damaged"
    shutil.copytree(tiny_base, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (here / "a.mp4").write_bytes(b"")
    (here / "rows.json").write_text(json.dumps([{"instruction": "a", "input": "b", "output": "c"}]))
    given = {
        "annotate": ["videos=a.mp4", f"idm={damaged}"],
        "train": ["task=idm", f"base={damaged}", f"triplets={triplets}", "max_steps=2"],
        "evaluate": [f"triplets={triplets}", f"base={damaged}"],
        "ingest": ["root=.", "file=rows.json", f"codec={damaged}"],
        "bootstrap": ["idm.max_steps=2", "fdm.max_steps=2", "select.k=2", f"base_model={damaged}"],
    }
    for job, argv in given.items():
        assert f"{weights} is no complete safetensors file" in refused(job, *argv, "out=o", *flags), job
    assert "no Parquet file below empty" in refused("evaluate", "triplets=empty", f"base={tiny_base}", "out=o", *flags)
    assert "no Parquet file below empty" in refused("select", "triplets=empty", "k=2", "out=o", *flags)
    assert "has no action_logprob" in refused("select", f"triplets={triplets}", "k=2", "out=o", *flags)
    assert "empty holds no finished stage" in refused("report", "run=empty", "out=o", *flags)
    assert not (here / "o").exists()


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_bootstrap_checks_the_input_before_its_first_stage(flags: list[str], refused: Call, here: Path) -> None:
    given = ("idm.max_steps=2", "fdm.max_steps=2", "select.k=2", *flags)
    assert "videos = 'texts' holds no video" in refused("bootstrap", *given, "out=o", "data.videos=texts")
    assert "no such folder: root = nowhere" in refused("bootstrap", *given, "out=o", "data.supervised_root=nowhere")
    workers = ("idm.resources.num_workers=99", "idm.global_batch_size=99")
    assert "num_workers = 99" in refused("bootstrap", *given, "out=o", *workers)
    assert "unknown key 'colour'" in refused("bootstrap", *given, "out=o", "idm.colour=1")
    assert "file is a file; expected a folder" in refused("bootstrap", *given, "out=file")
    (here / "texts" / "run.json").write_text('{"stage": "ingest"}')
    assert "texts holds another run (of stage 'ingest')" in refused("bootstrap", *given, "out=texts")
    assert not (here / "o").exists()


def test_a_full_disk_is_one_line_and_the_same_command_resumes(
    here: Path, tiny_base: Path, triplets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["task=idm", f"base={tiny_base}", f"triplets={triplets}", "out=o", "max_steps=4"]
    argv += ["checkpoint.every_steps=2", "resources.num_workers=0", "global_batch_size=2", "lora.enabled=false"]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "o/model")

    train = importlib.import_module("jobs.train")
    with monkeypatch.context() as patch:
        patch.setattr("wm.training.trained_models.save_model", full)
        assert train.main(argv) == 1
    told = capsys.readouterr().err
    assert "error: [Errno 28] No space left on device: 'o/model'\n" in told
    assert "what is finished is kept, the same command resumes\n" in told
    assert list((here / "o" / "checkpoints").iterdir())
    assert train.main(argv) == 0
    assert json.loads((here / "o" / "run.json").read_text())["summary"]["resumed_at_step"] > 0
