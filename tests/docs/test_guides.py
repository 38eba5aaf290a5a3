"""The guides' commands, in the order of their pages, on tiny inputs: what one writes is what the next one reads."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import openai
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from tests.helpers.doc_pages import PAGES, check_command, run_command, run_python, shell_commands, wm_commands
from tests.helpers.guide_data import write_guide_data
from tests.helpers.serve_local import HALF_A_CORE, local_app
from wm.dynamics import Search
from wm.packaged import resolve_packaged
from wm.ports import find_free_port

CHAIN = ["train", "annotate", "predict", "evaluate", "study", "serve", "checkpoints"]
"""Pages whose commands are run, in one folder: what an earlier page made is complete for a later one."""

SECTIONS = {"study": "Simulate"}
"""Page of which one section is run: its other commands wait for people."""

TINY = {
    "tabletop": ["train=4", "tune=0", "test=2", "videos=2", "resources.num_workers=0"],
    "ingest": ["resources.num_workers=0"],
    "annotate": [
        "max_new_tokens=6",
        "resources.num_decoders=1",
        "filters.action=score",  # what it reads from videos of another world is no phrase
    ],
    "train": [
        "max_steps=2",
        "epochs=0",
        "global_batch_size=2",
        "micro_batch_size=1",
        "optim.warmup_steps=0",
        "precision=fp32",
        "lora.r=2",
        "resources.num_workers=0",
        "resources.use_gpu=false",
    ],
    "evaluate": ["search.num_candidates=[1, 2]", "search.min_gains_nats=[0.5]", "limit=2"],
    "study make": ["per_subset=2"],
}
"""Settings that make a command tiny, by its name; they come last, so that they count."""

CHECKED_ONLY = {"data/ucf101", "data/strict", "data/greedy"}
"""Outputs of annotations that ask a question of one that ran already; an actor that starts takes seconds."""


@pytest.fixture(scope="module")
def values(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_guide_data(tiny_base, tmp_path_factory.mktemp("guide_data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> Path:
    """Where all commands run; the paper's recipes name tables that one ingestion stands for here."""
    folder = tmp_path_factory.mktemp("guides")
    tables = folder / "data" / "triplets"
    tables.mkdir(parents=True)
    names = ("magicbrush", "something", "kubric", "epic-kitchens")
    for name in names:
        (tables / name).symlink_to("action-genome")
    return folder


def port() -> str:
    """A port that nobody listens on."""
    return f"port={find_free_port()}"


def run(words: list[str], values: dict[str, str]) -> None:
    name, *arguments = words
    out = next((word.removeprefix("out=") for word in arguments if word.startswith("out=")), "")
    is_checked_only = out in CHECKED_ONLY or any(word.startswith("retry=") for word in arguments)
    more = [port()] if name == "serve" else TINY.get(" ".join(words[:2]) if name == "study" else name, [])
    options = ["--dry-run"] if is_checked_only and "--dry-run" not in arguments else []
    assert run_command([name, *arguments, *more, *options], values) == 0, words


@pytest.mark.parametrize("page", CHAIN)
def test_the_commands_of_a_guide_run(
    page: str, folder: Path, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    text = (PAGES / f"{page}.md").read_text()
    if page in SECTIONS:
        text = text.partition(f"\n## {SECTIONS[page]}\n")[2].partition("\n## ")[0]
    if page == "annotate":
        values = values | {"IDM": "nano:idm"}  # a random codec gives most images the same codes
    for words in wm_commands(text):
        run(words, values)
    CHECKS[page](folder)


def check_train(folder: Path) -> None:
    for name in ("toy-idm", "toy-fdm", "runs/c-idm", "runs/c-idm-one", "runs/c-idm-watched"):
        assert json.loads((folder / name / "run.json").read_text())["counts"]["steps"] == 2
    assert not (folder / "runs" / "mine").exists()  # a dry run


def check_annotate(folder: Path) -> None:
    chosen = json.loads((folder / "data/selected/run.json").read_text())["counts"]
    assert chosen["chosen"] > 0
    for name in ("annotated-page/index.html", "data/view/index.html", "data/look/index.html"):
        assert (folder / name).is_file()
    # Triplets of every form: tar files, a list beside images, episodes.
    assert list((folder / "data/shards").glob("*.tar")) and (folder / "data/aurora/train.json").is_file()
    assert (folder / "data/lerobot/meta/info.json").is_file()
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run_python((PAGES / "annotate.md").read_text(), names)
    rejects = names["rejects"]
    assert isinstance(rejects, pd.DataFrame) and "broken.mp4" in output.getvalue()


def check_predict(folder: Path) -> None:
    for name, count in (("prediction", 2), ("cup", 2), ("cup-beam", 2), ("cup-cheap", 1), ("cup-shared", 1)):
        assert len(json.loads((folder / name / "prediction.json").read_text())["images"]) == count
        assert (folder / name / "storyboard.png").is_file()
    assert list((folder / "predictions/predictions").glob("*.parquet"))


def check_evaluate(folder: Path) -> None:
    tables = json.loads((folder / "run/evaluate/tables.json").read_text())
    assert "forward" in json.dumps(tables) and (folder / "run/report/report.html").is_file()
    assert (folder / "runs/gate/model").exists()


def check_study(folder: Path) -> None:
    table = json.loads((folder / "run/study-report/table.json").read_text())
    counts = json.loads((folder / "run/votes/run.json").read_text())["counts"]
    assert counts == {"participants": 14, "votes": 28, "checks": 0}
    assert "simulated" in json.dumps(table) and (folder / "run/study-report/report.html").is_file()


CHECKS = {
    "train": check_train,
    "annotate": check_annotate,
    "predict": check_predict,
    "evaluate": check_evaluate,
    "study": check_study,
    # Their commands start and write nothing; the clients of a server have a test of their own.
    "serve": lambda folder: None,
    "checkpoints": lambda folder: None,
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """OpenAI's client, which asks the app in this process in place of a server."""
    recipe = ServeRecipe(fdm="nano:fdm", idm="nano:idm", **HALF_A_CORE)
    with TestClient(local_app(recipe)) as http:
        build = openai.OpenAI

        def build_client(base_url: str, api_key: str) -> openai.OpenAI:
            assert base_url == "http://127.0.0.1:8000/v1"
            return build(base_url="http://testserver/v1", api_key=api_key, http_client=http, max_retries=0)

        monkeypatch.setattr(openai, "OpenAI", build_client)
        yield


def test_the_clients_of_the_serving_guide(client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Path(resolve_packaged("nano:images/red-circle-blue-square.png"))
    (tmp_path / "table.png").write_bytes(image.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        run_python((PAGES / "serve.md").read_text(), names)
    verification, action = output.getvalue().splitlines()
    assert "'rank': 0" in verification and Search().num_candidates == 8
    assert "red circle" in action


CONSOLE = [
    (page.stem, words)
    for page in sorted(PAGES.glob("*.md"))
    if page.stem in {*CHAIN, "cluster", "results", "security"}
    for words in wm_commands(re.sub(r"^( *)\$ ", r"\1", page.read_text().replace("```console", "```sh"), flags=re.M))
    if "…" not in words and words not in wm_commands(page.read_text())
]


@pytest.mark.parametrize(("page", "words"), CONSOLE, ids=lambda value: value if isinstance(value, str) else "-")
def test_a_command_that_no_test_runs_is_what_its_recipe_takes(page: str, words: list[str]) -> None:
    check_command(words)


def test_the_guides_show_what_cannot_run_here_as_console() -> None:
    others = {
        words[0] for page in CHAIN for words in shell_commands((PAGES / f"{page}.md").read_text()) if words[0] != "wm"
    }
    assert others == set()


def messages_of(text: str) -> list[str]:
    """The error messages in the first column of a page's table "When something is wrong"."""
    _, _, table = text.partition("## When something is wrong")
    return re.findall(r"^\| `([^`]+ [^`]+)`", table, re.MULTILINE)


def phrases_of(message: str) -> list[str]:
    """Every three words of a message that follow one another, without values, quotes and dots between them."""
    return re.findall(r"(?<![\w'])(?=([A-Za-z]+ [A-Za-z']+ [A-Za-z']+))", message)


def test_messages_that_the_guides_explain_are_still_said() -> None:
    root = PAGES.parents[1]
    files = [file for folder in ("wm", "jobs", "serve_apps") for file in (root / folder).rglob("*.py")]
    # Texts that go over several lines are one.
    sources = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    messages = [text for page in (*CHAIN, "cluster") for text in messages_of((PAGES / f"{page}.md").read_text())]
    assert len(messages) > 25
    unknown = [text for text in messages if not any(phrase in sources for phrase in phrases_of(text))]
    assert unknown == ["device = 'cuda': Torch not compiled with CUDA enabled"]  # said by torch
