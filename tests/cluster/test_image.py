"""The image's recipe and what is sent to its builder, read as text: nothing is built."""

import re
import tomllib
from pathlib import Path

from cluster.working_dir import main as describe_working_dir
from cluster.working_dir import pack
from wm import __version__

ROOT = Path(__file__).resolve().parents[2]


def instructions():
    """The Dockerfile's instructions, with their lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "cluster" / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_image_has_a_numeric_user_a_check_and_both_torches():
    found = dict(instructions())
    assert re.fullmatch(r"1000:1000", found["USER"])
    assert [rest for word, rest in instructions() if word == "ARG"] == [
        "PYTHON_IMAGE=python:3.11-slim-bookworm",
        "TORCH_BACKEND=cpu",
    ]
    assert found["FROM"] == "${PYTHON_IMAGE}"
    assert any('--torch-backend="$TORCH_BACKEND"' in rest for word, rest in instructions() if word == "RUN")
    assert found["HEALTHCHECK"].count("wget") == 2
    packages = next(rest for word, rest in instructions() if "apt-get" in rest)
    assert {"wget", "rsync", "openssh-client"} <= set(packages.split())
    assert not re.search(r"libgl|libglib", packages)


def test_the_image_says_what_it_is():
    """For lists of software: a version that is this package's, and packages of constraints.txt alone."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', dict(instructions())["LABEL"]))
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["version"] == __version__ and labels["title"] == metadata["name"]
    assert labels["licenses"] == metadata["license"]
    installs = re.findall(
        r"(?<!uv )pip install ([^&]*)", " && ".join(rest for word, rest in instructions() if word == "RUN")
    )
    assert len(installs) == 3
    # A server's spans can leave the container.
    assert any("'.[all,traces]'" in words for words in installs)
    assert all("-c constraints.txt" in words or "--no-deps" in words for words in installs)


def test_the_builder_is_sent_what_is_copied_and_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sources = {path for word, rest in instructions() if word == "COPY" for path in rest.split()[:-1]}
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == sources - {"wm/__init__.py"}
    assert "**/__pycache__" in lines


def test_a_submitted_job_takes_the_code_alone(tmp_path, capsys):
    """Of a copy without the large files: Ray's own rules are applied to the folder's ``.rayignore``."""
    names = [".git/HEAD", "docs/x.md", "tests/test_x.py", "wm/cli.py", "jobs/recipes/a.toml", "runs/x/big", "my.toml"]
    names.append("cluster/kubernetes/settings/auth_token")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    sent = pack(tmp_path).file_bytes
    assert set(sent) == {".rayignore", ".gitignore", "wm/cli.py", "jobs/recipes/a.toml", "my.toml"}
    assert sent["my.toml"] == 1000
    assert describe_working_dir([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"5 files, 0\.0 MB packed \(Ray takes \d+\.\d MB\)", lines[0])
    assert lines[1].startswith("largest: ")
