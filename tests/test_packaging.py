"""What pyproject.toml promises: extras that bring what the code imports, one version, typed packages."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import wm

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

LIBRARY = ["wm/models", "wm/sampling", "wm/dynamics", "wm/*.py"]
"""What predicts and verifies in one process: it needs no extra."""

OPTIONAL = {"triton", "mlflow", "wandb"}
"""Used where they are installed; no extra brings them."""

APART = {"krippendorff", "numba"}
"""Brought by extras of their own and not by ``all``: one for its licence, the GPL's, one for its 208 MB."""

THROUGH_OTHERS = {
    "starlette": "fastapi-offline",
    "fastapi": "fastapi-offline",
    "urllib3": "requests",
    "botocore": "boto3",
    "pydantic_core": "pydantic",
}
"""Imported module and the distribution among the dependencies that always brings it."""


def imported_modules(*patterns: str) -> set[str]:
    """Top-level names of the third-party modules that files import, in functions too."""
    names: set[str] = set()
    for pattern in patterns:
        paths = [ROOT / pattern] if (ROOT / pattern).is_dir() else ROOT.glob(pattern)
        for path in paths:
            for file in path.rglob("*.py") if path.is_dir() else [path]:
                for node in ast.walk(ast.parse(file.read_text())):
                    if isinstance(node, ast.Import):
                        names |= {alias.name.split(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                        names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"wm", "jobs", "serve_apps"} - OPTIONAL


def distributions(requirements: list[str]) -> set[str]:
    """Names of the distributions that requirements ask for, our own extras resolved."""
    names: set[str] = set()
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            names |= distributions([line for extra in requirement.extras for line in EXTRAS[extra]])
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def missing_from(modules: set[str], names: set[str]) -> set[str]:
    """Modules that no distribution of ``names`` provides."""
    provided_by = metadata.packages_distributions()
    providers = {
        module: {THROUGH_OTHERS.get(module, "")} | {canonicalize_name(name) for name in provided_by.get(module, [])}
        for module in modules
    }
    return {module for module, candidates in providers.items() if not candidates & names}


def test_the_library_needs_no_extra():
    assert missing_from(imported_modules(*LIBRARY), distributions(PROJECT["dependencies"])) == set()
    assert "ray" not in distributions(PROJECT["dependencies"])


def test_all_extras_bring_what_the_code_imports():
    names = distributions([*PROJECT["dependencies"], *EXTRAS["all"]])
    assert missing_from(imported_modules("wm", "jobs", "serve_apps"), names) == APART
    assert not APART & names and distributions(EXTRAS["dev"]) >= APART


@pytest.mark.parametrize("extra", ["annotate", "baselines", "train", "serve", "eval"])
def test_dev_and_all_hold_every_extra(extra):
    assert distributions(EXTRAS[extra]) <= distributions(EXTRAS["all"]) <= distributions(EXTRAS["dev"])


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if line and not line.startswith("#")}
    assert distributions([*PROJECT["dependencies"], *EXTRAS["dev"]]) - pinned == set()


def test_no_dependency_but_torch_brings_cuda():
    """torch from PyTorch's index for CPUs has no CUDA packages; nothing else that is pinned has any."""
    pinned = (ROOT / "constraints.txt").read_text().lower()
    assert not re.search(r"^(nvidia|cuda|triton|cupy|pynvml)", pinned, re.MULTILINE)
    # Exact, so that pip finds 2.13.0+cpu to be the newest of the two builds of that version.
    assert re.search(r"^torch==\d+\.\d+\.\d+$", pinned, re.MULTILINE)


def test_the_version_stands_in_one_place():
    assert metadata.version("wm") == wm.__version__
    assert "version" not in PROJECT


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "wm" / "py.typed").is_file()
