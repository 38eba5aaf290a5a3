"""The built package away from the checkout: source archive, wheel, an empty environment, ``wm predict`` in it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("wm", "jobs", "serve_apps")

WITHOUT_EXTRAS = """
from importlib.machinery import PathFinder
absent = "av decord deepspeed fastapi openai pandas ray rouge_score sacrebleu tensorboardX".split()
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name in absent else find(name, *more)
"""
"""What is missing where the package is installed without an extra."""

SERVED = """
import sys
from importlib.resources import files
import jobs, wm, serve_apps.recipe, serve_apps.routes.playground
from wm.packaged import RECIPES, SHIPPED
homes = {str(folder) for module in (jobs, wm, serve_apps) for folder in module.__path__}
assert all(home.startswith(sys.prefix) for home in (*homes, str(RECIPES), str(SHIPPED))), homes
pages = [files("serve_apps") / "playground" / "index.html", files("wm.viewer") / "web" / "index.html"]
assert all("<html" in page.read_text() for page in pages)
"""


def run(*command: object, cwd: Path) -> str:
    """Output of a command that knows nothing of the checkout and of the network."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env=environment | {"PIP_NO_INDEX": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def package_files(root: Path) -> set[str]:
    """Every file of the packages that is no bytecode, relative to the root."""
    files = {path for name in PACKAGES for path in (root / name).rglob("*") if path.is_file()}
    return {str(path.relative_to(root)) for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source archive of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source, archives = folder / "source", folder / "archives"
    # A copy: building writes into the folder that it builds.
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    archives.mkdir()
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, archives, cwd=source)
    (archive,) = archives.iterdir()
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder, archive, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    # Records of this project's own machine are no part of the package.
    assert packed == {name for name in package_files(ROOT) if not name.startswith("jobs/measured/")}


def test_an_empty_environment_predicts_with_the_shipped_models(wheel, tmp_path):
    home, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    venv.create(home, symlinks=True)
    elsewhere.mkdir()
    python = home / "bin" / "python"
    # The dependencies of this environment, but not its packages of ours: files of .pth there are not read.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-compile", wheel, cwd=elsewhere)
    assert "predict" in run(home / "bin" / "wm", "--help", cwd=elsewhere)
    (site / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    printed = run(home / "bin" / "wm", "predict", "nano/predict", cwd=elsewhere)
    (site / "sitecustomize.py").unlink()
    out = elsewhere / "runs" / "predict"
    assert f"8 candidates: {Path('runs/predict/storyboard.png')}" in printed
    record = json.loads((out / "prediction.json").read_text())
    assert all((out / name).stat().st_size > 100 for name in ["source.png", "storyboard.png", *record["images"]])
    assert len(record["images"]) == 2 and all(-1.0 < entry["mean_logprob"] < 0 for entry in record["sequences"])
    assert json.loads((out / "run.json").read_text())["recipe"]["fdm"] == "nano:fdm"
    run(python, "-c", SERVED, cwd=elsewhere)
