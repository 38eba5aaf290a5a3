"""The commands of the Kubernetes jobs, as the submitter's shell makes them, against the recipes that they are for."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate.commands import recipe_class
from jobs.bootstrap.recipe import STAGE_RECIPES
from tests.helpers.kubernetes import OVERLAYS, copy_filled, render_all
from wm.cli import load_recipe
from wm.files.mirror import to_uri

ROOT = Path(__file__).resolve().parents[2]
STORES = ["/mnt/wm", "s3://bucket/wm"]
ORDER = ["ingest", "ingest-test", "train-idm", "annotate", "select", "train-fdm", "evaluate", "score"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_all(copy_filled(tmp_path_factory.mktemp("stages") / "kubernetes"))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))


def jobs(nodes):
    return {name: node["spec"] for (kind, name), node in nodes.items() if kind == "RayJob"}


def split(entrypoint, store):
    """Let bash split a command into words, as KubeRay 1.7's submitter does: it puts it into a script as it is."""
    environment = {"WM_STORE": store} if store else {}
    return subprocess.run(
        ["bash", "-ce", f"printf '%s\\0' {entrypoint}"], env=environment, capture_output=True, timeout=20, check=False
    )


def load(entrypoint, store):
    """Load the recipe of a command; return its output as it was given, and its words."""
    program, flag, module, *settings = split(entrypoint, store).stdout.decode().removesuffix("\0").split("\0")
    assert (program, flag) == ("python", "-m")
    recipe = load_recipe(recipe_class(module.removeprefix("jobs.")), settings)
    return recipe, to_uri(recipe.out), settings


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_has_keys_that_its_recipe_knows(rendered, overlay, store):
    found = jobs(rendered[overlay, "claim"])
    assert [f"wm-{stage}" for stage in ORDER] == [name for name in found if name.removeprefix("wm-") in ORDER]
    assert "wm-bootstrap" in found
    outputs = [load(spec["entrypoint"], store)[1] for spec in found.values()]
    assert all(out.startswith(f"{store}/") for out in outputs)
    assert len(set(outputs)) == len(outputs), "two jobs with one output"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_stages_read_what_earlier_ones_write(rendered, overlay):
    """Whatever is below the store is an earlier stage's output, or what the file's head says that a user brings."""
    brought = {"cpu": [], "gpu": ["data/", "videos/", "models/"]}[overlay]
    store = STORES[0]
    written = []
    for name, spec in jobs(rendered[overlay, "claim"]).items():
        _, out, settings = load(spec["entrypoint"], store)
        words = shlex.split(" ".join(settings).translate(str.maketrans("[]{},'=", "       ")))
        paths = {word.removeprefix(f"{store}/") for word in words if word.startswith(f"{store}/")}
        out = out.removeprefix(f"{store}/")
        for path in paths - {out}:
            known = [*brought, *(f"{folder}/" for folder in written)]
            # The report's folder holds several stages.
            assert any(f"{path}/".startswith(folder) or folder.startswith(f"{path}/") for folder in known), (name, path)
        written.append(out)


def test_a_job_without_a_store_ends_at_once(rendered):
    entrypoint = jobs(rendered["cpu", "bucket"])["wm-annotate"]["entrypoint"]
    ended = split(entrypoint, None)
    assert ended.returncode != 0 and b"WM_STORE" in ended.stderr and b"annotated" not in ended.stdout


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_bootstraps_tables_hold_keys_of_their_stages(rendered, overlay):
    recipe, *_ = load(jobs(rendered[overlay, "claim"])["wm-bootstrap"]["entrypoint"], STORES[0])
    for stage, kind in STAGE_RECIPES.items():
        assert set(getattr(recipe, stage)) <= set(kind.model_fields), stage


def test_commands_that_run_models_themselves_get_a_gpu(rendered):
    """On heads without CPUs and GPUs: Ray puts the command on a worker that has what it asks for."""
    for spec in jobs(rendered["gpu", "claim"]).values():
        in_process = "device=cuda" in spec["entrypoint"]
        assert spec.get("entrypointNumGpus", 0) == int(in_process)
        assert spec["entrypointNumCpus"] >= 1


SMALL = {
    "tabletop": "train=120 tune=0 test=20 videos=16",
    "train-idm": "max_steps=20 optim.warmup_steps=2 resources.num_workers=0",
    # After so few steps no model ends its text.
    "annotate": "filters.action=score filters.unchanged=score "
    + " ".join(f"resources.{size}_{kind}=1" for size in ("num", "max") for kind in ("decoders", "annotators")),
    "select": "k=20",
    "train-fdm": "max_steps=20 optim.warmup_steps=2 resources.num_workers=0",
    "evaluate": "limit=8 resources.num_workers=0 search.num_candidates=[1,2]",
    "imagine": "limit=4",
    "bootstrap": "--dry-run",
}
"""What is added to a command so that two cores do with minutes."""


@pytest.mark.soak
def test_the_nano_stages_run_one_after_another(rendered, tmp_path):
    """Each as its job has it, with a folder as store."""
    store = tmp_path / "store"
    environment = {**os.environ, "WM_STORE": str(store), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for name, spec in jobs(rendered["cpu", "claim"]).items():
        script = f"{spec['entrypoint']} {SMALL.get(name.removeprefix('wm-'), '')}"
        ended = subprocess.run(
            ["bash", "-ce", script],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )
        assert ended.returncode == 0, f"{name}: {ended.stderr[-3000:]}"
        print(f"{name}: {ended.stdout.strip()[-150:]}")
    assert (store / "report" / "report.html").is_file() and (store / "run" / "fdm" / "model").is_dir()
