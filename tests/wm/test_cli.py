"""The command line that all jobs share: help, exit codes, one line an error."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field

from wm.cli import PROGRESS_INTERVAL, main, progress_bar
from wm.config import Recipe
from wm.errors import InputError, MissingPathError
from wm.paths import INPUT, InputPath, OptionalModelPath, OutputPath
from wm.run_files import digest_of
from wm.tables import table_files


class Part(Recipe):
    path: str
    """Where it is."""


class Table(Recipe):
    rank: int = 16
    """Rank of the
    update."""


class Job(Recipe):
    out: str
    """Output folder (100 % of it)."""
    steps: int = 5
    """How many."""
    lora: Table = Table()
    """Adapters."""
    rate: float | None = None
    """How fast."""
    seeds: list[int] = [0]
    """Of what."""
    kind: Literal["mean", "sum"] = "mean"
    """Of the sum."""
    parts: list[Part] = Field(default_factory=list)
    """What to read."""
    models: dict[str, Part] = Field(default_factory=dict)
    """What to load."""


class Input(Recipe):
    idm: OptionalModelPath = None
    """One of several."""


class Inputs(Recipe):
    out: OutputPath = ""
    """Not read."""
    idm: OptionalModelPath = None
    """A model."""
    results: Annotated[list[InputPath], INPUT] = []
    """Of others."""
    models: dict[str, Input] = Field(default_factory=dict)
    """More models."""


class Calls:
    """A job's run function that notes its calls, or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls: list[tuple[Job, bool]] = []

    def __call__(self, recipe: Job, *, dry_run: bool = False) -> dict[str, Any]:
        self.calls.append((recipe, dry_run))
        if self.error is not None:
            raise self.error
        return {}

    def main(self, *argv: str) -> int:
        return main(Job, self, name="job", description="Does a thing.", argv=argv)


def test_help_lists_every_key_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Calls().main("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "usage: wm job" in text and "Does a thing." in text
    keys = text.split("seeds='[0, 1]'\n\n")[1]
    assert (
        keys
        == """\
  out: text, required
      Output folder (100 % of it).
  steps: integer = 5
      How many.
  [lora] Adapters.
    lora.rank: integer = 16
        Rank of the update.
  rate: number, optional
      How fast.
  seeds: list of integers = [0]
      Of what.
  kind: mean | sum = "mean"
      Of the sum.
  parts: list of tables = []
      What to read.
    parts[].path: text, required
        Where it is.
  models: table = {}
      What to load.
    models.NAME.path: text, required
        Where it is.
"""
    )
    assert "sampling.top_p=0.9" in text, "how a table's key is given"


def test_recipe_file_overrides_and_dry_run_reach_the_job(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('out = "a"\nsteps = 7\n')
    job = Calls()
    assert job.main(str(path), "lora.rank=2") == 0
    assert job.main("out=b", "--dry-run") == 0
    assert job.main("--dry-run", str(path), "out=c") == 0
    assert [(recipe.out, recipe.steps, recipe.lora.rank, dry) for recipe, dry in job.calls] == [
        ("a", 7, 2, False),
        ("b", 5, 16, True),
        ("c", 7, 16, True),
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["out=x", "stepz=1"], "unknown key 'stepz'"),
        (["out=x", "steps=a"], "steps = 'a'"),
        ([], "out is missing"),
        (["nowhere.toml"], "no such recipe file: nowhere.toml"),
        (["out=x", "steps", "=", "3"], "'steps' '=': write key=value without blanks around the sign"),
        (["out=x", "steps=", "3"], "'steps=' '3': write key=value without blanks"),
        (["out=x", "--steps=3"], "no such option: --steps=3; keys are given without dashes, as key=value"),
        (["out=x", "lora=3"], "lora = 3: lora is a table; give its keys, such as lora.rank=VALUE"),
        (["out=x", "steps.more=3"], "override 'steps.more=3': 'steps' is a value, not a table"),
        (
            ["out=x", "seeds=[0"],
            "seeds = '[0': input should be a valid list; on a command line it is quoted",
        ),
        (["a.toml", "b.toml"], "one recipe file at most, got a.toml, b.toml"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = Calls()
    assert job.main(*argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and said in shown.err and shown.err.count("\n") == 1
    assert shown.out == "" and job.calls == []


@pytest.mark.parametrize("name", ["lr=2e-4/recipe.toml", "./a=b/c=d/r=1.toml", "steps=9.toml", "x=y", "ä=ö/r.toml"])
def test_a_path_that_exists_is_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('out = "a"\nsteps = 7\n')
    for argv in ((name,), (str(path),), ("lora.rank=2", name), (name, "lora.rank=2")):
        job = Calls()
        assert job.main(*argv) == 0
        assert [(recipe.out, recipe.steps, recipe.lora.rank) for recipe, _ in job.calls] == [
            ("a", 7, 2 if len(argv) > 1 else 16)
        ]


def test_a_folder_of_an_overrides_name_hides_it_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps=3").mkdir()
    job = Calls()
    assert job.main("out=x", "steps=3") == 0 and job.calls[0][0].steps == 3
    long = f"out={'x' * 5000}"  # no path can be so long
    assert job.main(long) == 0 and job.calls[1][0].out == "x" * 5000


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["out=x", "steps=3/recipe.toml"],
            "steps = '3/recipe.toml': input should be a valid integer; if 'steps=3/recipe.toml' is meant as a recipe "
            "file: no such file",
        ),
        (
            ["lr=2e-4/recipe.toml"],
            "unknown key 'lr'; the keys are out, steps, lora, rate, seeds, kind, parts, models; if 'lr=2e-4/recipe.t",
        ),
        (["runs/lr=1/r.toml"], "'runs/lr=1/r.toml': as a recipe file, no such file; as key=value, 'runs/lr' is no key"),
        (["./out=x"], "'./out=x': as a recipe file, no such file; as key=value, './out' is no key"),
        (["kept/seed=1"], "'kept/seed=1': as a recipe file, a folder; as key=value, 'kept/seed' is no key"),
        (["out=5"], "'out=5' is the key out with a value, and there is a file of that name here; write ./out=5 for"),
        (["./out=5", "a=b.toml"], "one recipe file at most, got ./out=5, a=b.toml"),
    ],
)
def test_both_readings_of_an_equals_sign_are_named(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept" / "seed=1").mkdir(parents=True)
    (tmp_path / "out=5").touch()
    (tmp_path / "a=b.toml").touch()
    assert Calls().main(*argv) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


def wrapped(cause: Exception) -> Exception:
    """As Ray raises what happened in a worker: of another class, the cause beside it, a traceback as its text."""
    error = type("RayTaskError(X)", (RuntimeError,), {"cause": cause})("remote traceback\nline 2\n")
    outer = RuntimeError("dataset failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize("wrap", [lambda error: error, wrapped])
def test_errors_of_the_job(wrap: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert Calls(wrap(InputError("a.mp4 is bad"))).main("out=x") == 2
    assert capsys.readouterr().err == "error: a.mp4 is bad\n"
    assert Calls(wrap(OSError(28, "No space left on device", "/disk/x"))).main("out=x") == 1
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "error: [Errno 28] No space left on device: '/disk/x'",
        "what is finished is kept, the same command resumes",
    ]
    full = type("SafetensorError", (Exception,), {})("I/O error: No space left on device (os error 28)")
    assert Calls(wrap(full)).main("out=x") == 1
    assert capsys.readouterr().err.startswith("error: I/O error: No space left on device")
    for short in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        assert Calls(wrap(short)).main("out=x") == 1
        assert capsys.readouterr().err == f"error: out of memory: {str(short).splitlines()[0]}\n"
    with pytest.raises((KeyError, RuntimeError)):
        Calls(wrap(KeyError("a bug"))).main("out=x")
    with pytest.raises((FileNotFoundError, RuntimeError)):
        Calls(wrap(FileNotFoundError(2, "a bug"))).main("out=x")


def test_input_errors_that_explain_a_disk_error_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("recipe.toml may not be read")
    error.__cause__ = PermissionError(13, "Permission denied")
    assert Calls(error).main("out=x") == 2
    assert capsys.readouterr().err == "error: recipe.toml may not be read\n"


def test_an_interruption_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert Calls(KeyboardInterrupt()).main("out=x") == 130
    assert capsys.readouterr().err == "interrupted; what is finished is kept, the same command resumes\n"


def test_progress_in_a_log_is_a_line_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROGRESS_INTERVAL, raising=False)
    with progress_bar(4, "row", "copy", done=1) as bar:
        bar.set_postfix_str("2 left", refresh=False)
        bar.update(3)
    first, last = capsys.readouterr().err.split("\n")[:-1]
    assert first == "copy:  25% 1/4 [00:00<?, ?row/s]"
    assert last.startswith("copy: 100% 4/4 [00:00<00:00, ") and last.endswith("row/s, 2 left]")
    # What shows another process's output in one place draws the bar anew.
    monkeypatch.setenv(PROGRESS_INTERVAL, "0.5")
    with progress_bar(4, "row", "copy") as bar:
        bar.update(4)
    assert capsys.readouterr().err.startswith("\rcopy:   0%|")


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["idm=gone"], "idm: no such file or folder: gone"),
        (["idm=gone/"], "idm: no such file or folder: gone"),
        (['results=["wm", "gone"]', "out=gone"], "results.1: no such file or folder: gone"),
        (["models.a.idm=gone", "results=[]"], "models.a.idm: no such file or folder: gone"),
        # What is read below an input is that input's; what no key names is left as it is.
        (["idm=wm", "models.a.idm=wm/gone"], "models.a.idm: no such file or folder: wm/gone"),
        (["idm=wm"], "idm: no such folder of Parquet files: wm/triplets"),
        (["out=wm"], "no such folder of Parquet files: wm/triplets"),
        (["out=wm", "idm=."], "no such folder of Parquet files: wm/triplets"),
        (["out=wm", "idm=wm"], "idm: no such folder of Parquet files: wm/triplets"),
    ],
)
def test_a_path_where_nothing_is_has_its_key(
    argv: list[str], error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wm").mkdir()

    def read(recipe: Inputs, *, dry_run: bool = False) -> None:
        for path in (recipe.idm, *recipe.results, *(model.idm for model in recipe.models.values())):
            digest_of(path or ".")
        table_files("wm/triplets")

    assert main(Inputs, read, name="job", description="Does a thing.", argv=argv) == 2
    assert capsys.readouterr().err == f"error: {error}\n"


def test_what_is_missing_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(MissingPathError(Path("a"), "model folder", "; b")))
    assert (str(error), error.path) == ("no such model folder: a; b", "a")


TERMINATED_JOB = """
import os, signal, sys
from wm.cli import PROGRESS_INTERVAL, main, progress_bar
from wm.config import Recipe
def run(recipe, *, dry_run=False):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("kept")
sys.exit(main(Recipe, run, name="job", description="Does a thing.", argv=[]))
"""


def test_a_job_that_is_stopped_says_so_at_once_and_ends_in_order() -> None:
    done = subprocess.run([sys.executable, "-c", TERMINATED_JOB], capture_output=True, text=True, check=False)
    message = "stopping (SIGTERM); what is finished is kept, the same command resumes\n"
    assert (done.returncode, done.stdout, done.stderr) == (143, "kept\n", message)
