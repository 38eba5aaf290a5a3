"""make install, with a Python that is none: what it says when something is missing, and what it makes again."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE = r"""#!/bin/sh
# Stands for Python 3.11: notes what it is asked, and fails where the test says so.
echo "$@" >> "$LOG"
case "$*" in
    "-c import sys"*) [ "$FAIL" != version ] || { echo "error: Python 3.11 is needed, this is 3.9" >&2; exit 1; } ;;
    "-c import ensurepip"*) [ "$FAIL" != venv ] || exit 1 ;;
    "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$0" .venv/bin/uv ;;
    *" download "*) [ "$FAIL" != network ] || { echo "ERROR: no answer"; exit 1; } ;;
    "pip install "*) [ "$FAIL" != torch ] || { echo "no route"; exit 1; } ;;
    *" install "*) [ "$FAIL" != pip ] || exit 1; [ "$FAIL" != kill ] || kill -9 $PPID ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "check out"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "python3.11"
    python.write_text(FAKE)
    python.chmod(0o755)
    return folder


def make(checkout: Path, fail: str = "", python: str | None = None, *settings: str) -> tuple[int, str, list[str]]:
    """Status, what was printed, and what Python was asked, a word a request."""
    log = checkout.parent / "log"
    log.write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTHON"))}
    ended = subprocess.run(
        ["make", "install", f"PYTHON={python or checkout.parent / 'python3.11'}", *settings],
        cwd=checkout,
        env=environment | {"LOG": str(log), "FAIL": fail},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    kinds = {"-c ": "check", "-m venv ": "venv", "-m pip --disable-pip-version-check ": "", "pip install ": "uv"}
    asked = []
    for line in log.read_text().splitlines():
        start, kind = next((start, kind) for start, kind in kinds.items() if line.startswith(start))
        asked.append(kind or line.removeprefix(start).split()[0])
    return ended.returncode, ended.stdout + ended.stderr, asked


def test_an_install_is_done_once_and_again_where_it_is_needed(checkout: Path) -> None:
    code, text, asked = make(checkout)
    assert code == 0 and asked[-5:] == ["venv", "download", "install", "uv", "install"] and "anew" not in text
    assert make(checkout)[2] == []
    # Newer requirements are installed into what is there.
    os.utime(checkout / "pyproject.toml", (2**32, 2**32))
    (checkout / ".venv" / "own").touch()
    assert make(checkout)[2][-1] == "install" and (checkout / ".venv" / "own").exists()
    os.utime(checkout / "pyproject.toml", (0, 0))
    # Scripts of a checkout that was moved lead to the old place.
    moved = checkout.with_name("moved")
    checkout.rename(moved)
    code, text, asked = make(moved)
    assert code == 0 and ".venv is made anew: the checkout was moved" in text and asked[-1] == "install"
    assert not (moved / ".venv" / "own").exists() and make(moved)[2] == []


def test_an_install_that_was_killed_is_made_anew(checkout: Path) -> None:
    assert make(checkout, "kill")[0] != 0
    (checkout / ".venv" / "half").touch()
    code, text, asked = make(checkout)
    assert code == 0 and ".venv is made anew: the last install did not finish" in text and asked[-1] == "install"
    assert not (checkout / ".venv" / "half").exists() and make(checkout)[2] == []


@pytest.mark.parametrize(
    ("fail", "message", "last"),
    [
        ("version", "error: Python 3.11 is needed", "check"),
        ("venv", "has no venv or no pip; install them (Debian, Ubuntu: apt install python3.11-venv)", "check"),
        ("network", "error: pip does not reach its package index; check the network, https_proxy", "download"),
        ("pip", "error: the install did not finish, pip's reason is above", "install"),
    ],
)
def test_what_is_missing_is_said_in_one_line(checkout: Path, fail: str, message: str, last: str) -> None:
    code, text, asked = make(checkout, fail)
    assert code != 0 and asked[-1] == last
    assert [message in line for line in text.splitlines() if line.startswith("error: ")] == [True]
    # It is done the next time, and nothing half-made is taken for whole.
    code, text, asked = make(checkout)
    assert code == 0 and asked[-1] == "install" and "anew" not in text


def test_torch_is_the_cpu_build_where_its_index_can_be_reached(checkout: Path) -> None:
    assert make(checkout)[0] == 0
    requests = (checkout.parent / "log").read_text().splitlines()
    (torch,) = [line for line in requests if line.startswith("pip install ")]
    assert "--torch-backend=cpu --no-deps torch==2." in torch
    shutil.rmtree(checkout / ".venv")
    code, text, asked = make(checkout, "torch")
    assert code == 0 and asked[-2:] == ["uv", "install"]
    assert "no route" in text and "pip takes torch from its usual one" in text
    shutil.rmtree(checkout / ".venv")
    assert "uv" not in make(checkout, "", None, "TORCH_BACKEND=")[2]


def test_the_demos_models_are_served_once_they_are_there(checkout: Path) -> None:
    def command() -> str:
        words = ["make", "--dry-run", "serve", f"PYTHON={checkout.parent / 'python3.11'}"]
        # The tests may run in a make of their own, which would tell this one of its folder.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    assert command() == ".venv/bin/python -m serve_apps fdm=nano:fdm idm=nano:idm"
    (checkout / "runs/demo/fdm").mkdir(parents=True)
    (checkout / "runs/demo/fdm/run.json").touch()
    assert command() == ".venv/bin/python -m serve_apps fdm=runs/demo/fdm/model idm=runs/demo/idm/model"


def test_a_missing_python_is_named(checkout: Path) -> None:
    code, text, asked = make(checkout, python="/nowhere/python3.11")
    assert code != 0 and asked == []
    assert "error: no Python 3.11 at PYTHON = '/nowhere/python3.11'; say make install PYTHON=" in text
