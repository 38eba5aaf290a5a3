"""The commands of the Kubernetes jobs, as the submitter's shell makes them, against the recipes that they are for."""

import shlex
import subprocess

import pytest

from docs.generate.commands import recipe_class
from jobs.bootstrap.recipe import STAGE_RECIPES
from tests.helpers.kubernetes import OVERLAYS, copy_filled, render_all
from wm.cli import load_recipe

STORE = "/mnt/wm"
ORDER = ["ingest", "ingest-test", "train-idm", "annotate", "select", "train-fdm", "evaluate", "score"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_all(copy_filled(tmp_path_factory.mktemp("stages") / "kubernetes"))


def jobs(nodes):
    return {name: node["spec"] for (kind, name), node in nodes.items() if kind == "RayJob"}


def split(entrypoints, store):
    """Let one bash split commands into words, as KubeRay 1.7's submitter does with each: it puts them into a script."""
    script = "\n".join(f"printf '%s\\0' {entrypoint}; printf '\\n\\0'" for entrypoint in entrypoints)
    environment = {"WM_STORE": store} if store else {}
    return subprocess.run(["bash", "-ce", script], env=environment, capture_output=True, timeout=20, check=False)


def load(entrypoint, store=STORE):
    """Load the recipe of a command; return it with the words."""
    (line,) = split([entrypoint], store).stdout.decode().split("\n")[:1]
    program, flag, module, *settings = line.rstrip("\0").split("\0")
    assert (program, flag) == ("python", "-m")
    return load_recipe(recipe_class(module.removeprefix("jobs.")), settings), settings


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_has_keys_that_its_recipe_knows(rendered, overlay):
    found = jobs(rendered[overlay, "claim"])
    assert [f"wm-{stage}" for stage in ORDER] == [name for name in found if name.removeprefix("wm-") in ORDER]
    assert "wm-bootstrap" in found
    outputs = []
    for spec in found.values():
        recipe, _ = load(spec["entrypoint"])
        assert recipe.out.startswith(f"{STORE}/")
        outputs.append(recipe.out)
    assert len(set(outputs)) == len(outputs), "two jobs with one output"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_stages_read_what_earlier_ones_write(rendered, overlay):
    """Whatever is below the store is an earlier stage's output, or what the file's head says that a user brings."""
    brought = {"cpu": [], "gpu": ["data/", "videos/", "models/"]}[overlay]
    written = []
    for name, spec in jobs(rendered[overlay, "claim"]).items():
        recipe, settings = load(spec["entrypoint"])
        words = shlex.split(" ".join(settings).translate(str.maketrans("[]{},'=", "       ")))
        paths = {word.removeprefix(f"{STORE}/") for word in words if word.startswith(f"{STORE}/")}
        inputs = paths - {recipe.out.removeprefix(f"{STORE}/")}
        for path in inputs:
            known = [*brought, *(f"{folder}/" for folder in written)]
            assert any(f"{path}/".startswith(folder) for folder in known), (name, path)
        written.append(recipe.out.removeprefix(f"{STORE}/"))


def test_a_job_without_a_store_ends_at_once(rendered):
    entrypoint = jobs(rendered["cpu", "bucket"])["wm-annotate"]["entrypoint"]
    ended = split([entrypoint], None)
    assert ended.returncode != 0 and b"WM_STORE" in ended.stderr and b"annotated" not in ended.stdout


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_bootstraps_tables_hold_keys_of_their_stages(rendered, overlay):
    recipe, _ = load(jobs(rendered[overlay, "claim"])["wm-bootstrap"]["entrypoint"])
    for stage, kind in STAGE_RECIPES.items():
        assert set(getattr(recipe, stage)) <= set(kind.model_fields), stage


def test_commands_that_run_models_themselves_get_a_gpu(rendered):
    """On heads without CPUs and GPUs: Ray puts the command on a worker that has what it asks for."""
    for spec in jobs(rendered["gpu", "claim"]).values():
        in_process = "device=cuda" in spec["entrypoint"]
        assert spec.get("entrypointNumGpus", 0) == int(in_process)
        assert spec["entrypointNumCpus"] >= 1
