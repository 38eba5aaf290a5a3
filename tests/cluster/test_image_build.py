"""Build the image with each builder that is at hand, and look into it.

The base image must be there or come from a registry; ``WM_TEST_PYTHON_IMAGE`` names another, ``WM_TEST_TORCH_BACKEND``
another build of torch (empty: the usual index's).
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from wm import __version__

ROOT = Path(__file__).resolve().parents[2]
BASE = os.environ.get("WM_TEST_PYTHON_IMAGE", "python:3.11-slim-bookworm")
TORCH = os.environ.get("WM_TEST_TORCH_BACKEND", "cpu")

LOOK = """
import importlib.metadata, json, os, pathlib, subprocess, sys
import cv2, decord, av, ray, torch
import jobs, serve_apps, wm
from wm.packaged import SHIPPED

PROGRAMS = ("wget", "rsync", "ray")

def is_writable(folder):
    return os.access(folder, os.W_OK)

print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "home": os.path.expanduser("~"),
    "cuda": torch.version.cuda,
    "writable": [is_writable(folder) for folder in ("/opt/wm", "/opt/wm/wm", "/mnt/wm", "/home/ray")],
    "compiled": pathlib.Path(wm.__file__).parent.joinpath("__pycache__").is_dir(),
    "shipped": sorted(path.name for path in pathlib.Path(SHIPPED).iterdir() if path.is_dir()),
    "version": wm.__version__,
    "programs": [subprocess.run([name, "--version"], capture_output=True).returncode for name in PROGRAMS],
    "packages": {entry.name.lower(): entry.version for entry in importlib.metadata.distributions()},
}))
"""


def run(*words, seconds=300):
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


def builder(name):
    """Return the program that builds, or skip: it is absent, has no daemon, or cannot get the base image."""
    program = shutil.which("docker" if name == "buildkit" else name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    if name != "buildah" and run(program, "info").returncode:
        pytest.skip("the Docker daemon does not answer")
    inspect = ["inspect", "--type=image"] if name == "buildah" else ["image", "inspect"]
    if run(program, *inspect, BASE).returncode:
        pulled = run(program, "pull", BASE, seconds=600)
        if pulled.returncode:
            pytest.skip(f"{BASE} cannot be had: {pulled.stderr.strip().splitlines()[-1]}")
    return program


@pytest.mark.soak
@pytest.mark.parametrize("name", ["docker", "buildkit", "buildah"])
def test_the_image_builds_and_holds_what_it_must(name, monkeypatch):
    program, tag = builder(name), f"localhost/wm-test-{name}:{os.getpid()}"
    monkeypatch.setenv("DOCKER_BUILDKIT", str(int(name == "buildkit")))
    settings = ["--network=host", f"--build-arg=PYTHON_IMAGE={BASE}", f"--build-arg=TORCH_BACKEND={TORCH}"]
    # With buildah, chroot: it needs no runc; and Docker's form, the one that has a field for the check.
    words = ["bud", "--isolation=chroot", "--format=docker", "--pull-never"] if name == "buildah" else ["build"]
    ended = run(program, *words, *settings, "--file=cluster/Dockerfile", f"--tag={tag}", ".", seconds=3000)
    assert ended.returncode == 0, ended.stderr[-3000:]
    try:
        check(program, tag, name)
    finally:
        run(program, "rmi", tag)


def check(program, tag, name):
    """Look at the image's record, and run Python in it."""
    # 1. What it says of itself.
    if name == "buildah":
        record = json.loads(run(program, "inspect", "--type=image", tag).stdout)["Docker"]
        config, size = record["config"], run(program, "images", "--format={{.Size}}", tag).stdout.strip()
    else:
        (record,) = json.loads(run(program, "image", "inspect", tag).stdout)
        config, size = record["Config"], f"{record['Size'] / 1e9:.2f} GB"
    print(f"{name}: {size}")
    assert config["User"] == "1000:1000" and "wget" in config["Healthcheck"]["Test"][-1]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    # 2. What is in it.
    found = json.loads(look(program, tag, name).splitlines()[-1])
    assert found["user"] == [1000, 1000] and found["home"] == "/home/ray" and found["version"] == __version__
    assert found["writable"] == [False, False, True, True] and found["compiled"] is True
    if TORCH:
        assert (found["cuda"] is None) == (TORCH == "cpu")
    assert {"base", "fdm", "idm"} <= set(found["shipped"])
    assert found["programs"] == [0, 0, 0]
    # 3. Every package has the version of constraints.txt; what the base brings is not in it.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    for package, version in found["packages"].items():
        key = package.replace("_", "-")
        if key in pinned:
            assert version.partition("+")[0] == pinned[key], package
    assert {"torch", "ray", "transformers", "peft", "deepspeed"} <= set(found["packages"])


def look(program, tag, name):
    if name != "buildah":
        ended = run(program, "run", "--rm", "--network=none", tag, "python", "-c", LOOK)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout
    container = run(program, "from", "--pull-never", tag).stdout.strip()
    try:
        ended = run(program, "run", "--isolation=chroot", container, "--", "python", "-c", LOOK)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout
    finally:
        run(program, "rm", container)
