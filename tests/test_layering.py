"""The import arrows of the design, read from the source with ``ast``: who may import whom."""

from pathlib import Path

import pytest

from tests.helpers.imports import imports

ROOT = Path(__file__).resolve().parents[1]

BASE = {
    "wm",
    "buckets",
    "cards",
    "cli",
    "collector",
    "config",
    "errors",
    "files",
    "images",
    "judging",
    "logs",
    "names",
    "interrupts",
    "torch_flow",
    "packaged",
    "ports",
    "paths",
    "preflight",
    "private_session",
    "recipe_errors",
    "recipe_fields",
    "recipe_help",
    "records",
    "run_files",
    "runs",
    "tables",
    "templates",
    "words",
}
"""Modules directly in ``wm``, and ``wm/files``: every room may import them, they import no room (only each other)."""

ROOMS: dict[str, set[str]] = {
    "video": set(),
    "models": set(),
    "sampling": {"models"},
    "dynamics": {"models", "sampling"},
    "training": {"models"},
    "datasets": set(),
    "evaluation": {"models", "sampling", "dynamics"},
    "viewer": set(),
    "study": {"evaluation"},
    "nano": {"models", "training"},
}
"""Rooms of ``wm`` and the other rooms each may import."""

LONE = {
    "records": {"errors"},
    "tables": {"errors", "files", "records"},
    "config": {"errors", "files", "packaged", "paths", "recipe_errors", "recipe_fields"},
    "recipe_errors": {"recipe_fields"},
    "recipe_fields": set(),
    "errors": set(),
    "files": {"errors"},
    "images": {"errors"},
    "logs": {"errors"},
    "packaged": {"errors"},
}
"""Base modules that may import fewer than all of the base."""

SHARED_JOBS = {"shared"}
"""Packages of ``jobs`` that every command may import; they import no command."""

CHAINS: dict[str, set[str]] = {
    "benchmark": {"annotate"},
    "look": {"annotate"},
    "ship": {"evaluate", "ingest", "pretrain", "tabletop", "train"},
}
"""Commands that may import others, which they measure, preview or chain. ``bootstrap`` may import all."""


def may_import(source: list[str], target: list[str]) -> bool:
    """Whether a file (dotted parts, such as wm, video, motion) may import a module, both below the root."""
    top, other = source[0], target[0]
    if other == "wm" and top != "wm":
        return True
    if top == "wm":
        return other == "wm" and _within_wm(source[1], target[1] if len(target) > 1 else "wm")
    if top == "jobs" and other == "jobs":
        mine, theirs = source[1], target[1] if len(target) > 1 else "__init__"
        return theirs in {mine, "__init__", *SHARED_JOBS, *CHAINS.get(mine, set())} or mine == "bootstrap"
    return top == other


def _within_wm(mine: str, theirs: str) -> bool:
    if theirs in {mine, "wm"}:
        return True
    if mine in ROOMS:
        return theirs in BASE or theirs in ROOMS[mine]
    return theirs in LONE.get(mine, BASE)


def broken_arrows(root: Path) -> list[str]:
    """``file imports module`` for every import the design does not allow, below ``root``."""
    tops = ("wm", "jobs", "serve_apps", "cluster")
    broken = []
    for file in sorted(file for top in tops for file in (root / top).rglob("*.py")):
        parts = list(file.relative_to(root).with_suffix("").parts)
        homes = BASE | {"__init__"} if len(parts) == 2 else {*ROOMS, "files"}
        if parts[0] == "wm" and parts[1] not in homes:
            broken.append(f"{file.relative_to(root)} is in no room")
        for name in sorted(imports(file, root)):
            target = name.split(".")
            forbidden = target[0] in tops and not may_import(parts, target)
            if forbidden or (target[0] == "ray" and parts[0] == "wm"):
                broken.append(f"{file.relative_to(root)} imports {name}")
    return broken


def test_imports_follow_the_design():
    assert broken_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("wm/video/motion.py", "import ray", True),
        ("wm/video/motion.py", "from jobs import train", True),
        ("wm/dynamics/idm.py", "def f():\n    from serve_apps import http", True),
        ("wm/video/motion.py", "from wm.models import codec", True),
        ("wm/video/motion.py", "from ..models import codec", True),
        ("wm/nano/world/scenes.py", "from wm.dynamics import verify", True),
        ("wm/records.py", "from wm.config import Recipe", True),
        ("wm/stray.py", "import json", True),
        ("wm/newroom/a.py", "import json", True),
        ("jobs/train/job.py", "from jobs.ingest import run", True),
        ("jobs/train/job.py", "from .. import ingest", True),
        ("jobs/shared/roles.py", "from jobs.train import job", True),
        ("jobs/train/job.py", "from serve_apps import http", True),
        ("serve_apps/http.py", "from jobs.shared.ray_session import connect", True),
        ("wm/nano/world/scenes.py", "from wm.models import codec", False),
        ("wm/nano/world/scenes.py", "from .actions import Action", False),
        ("wm/records.py", "from wm.errors import InputError", False),
        ("wm/runs.py", "from wm import __version__", False),
        ("wm/evaluation/probe.py", "from wm.dynamics import verify", False),
        ("jobs/train/job.py", "from jobs.shared.ray_session import connect", False),
        ("jobs/bootstrap.py", "from jobs import train, ingest", False),
        ("serve_apps/http.py", "import ray\nfrom serve_apps.openai import ApiError", False),
    ],
)
def test_the_test_sees_broken_arrows(tmp_path, file, line, broken):
    for module in (
        "wm/__init__",
        "jobs/ingest",
        "jobs/train/job",
        "jobs/shared/ray_session",
        "serve_apps/http",
        "wm/models/codec",
    ):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{module}.py").write_text("")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line + "\n")
    complaints = broken_arrows(tmp_path)
    assert bool(complaints) == broken, complaints
    assert all(file in complaint for complaint in complaints)
