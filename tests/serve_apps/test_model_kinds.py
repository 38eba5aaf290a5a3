"""Which models go together, and which keys have an effect: said by name before any weights are read."""

import json
import sys

import pytest

from serve_apps.__main__ import main as serve_main
from serve_apps.model_kinds import read_kinds
from serve_apps.recipe import ServeRecipe
from serve_apps.world_model import resolve_paths
from tests.helpers.models_editors import PIPELINE
from wm.models.manifest import ADAPTER_CONFIG, MANIFEST, read_manifest

IDM, FDM = "idm=PIXELS", "fdm=EDITOR"


@pytest.fixture
def dry_run(folders_by_kind, capsys, monkeypatch):
    """Run ``wm serve … --dry-run`` with CODES, PIXELS and EDITOR for the folders; return status and what is printed."""
    # No weights are read: whoever tried would fail.
    monkeypatch.setattr("safetensors.torch.load_file", None)

    def run(*arguments):
        names = {name.upper(): str(folder) for name, folder in folders_by_kind.items()}
        words = [argument.split("=", 1) for argument in arguments]
        status = serve_main([*(f"{key}={names.get(value, value)}" for key, value in words), "--dry-run"])
        printed = capsys.readouterr()
        return status, (printed.err or printed.out)

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fdm=CODES", "idm=EDITOR"], "is an image editor: it makes images and says no action; expected an IDM"),
        (["fdm=PIXELS", "idm=CODES"], "reads images and makes none; expected an FDM"),
        (["fdm=CODES", IDM, "base_sharing=shared"], "reads pixels; one base needs two with codes"),
        ([FDM, "idm=CODES", "adapters=CODES"], "adapters: fdm = "),
        ([FDM, IDM, "num_draft_tokens=4"], "num_draft_tokens = 4: fdm = "),
        ([FDM, IDM, "guidance_scale=2"], "say editor.settings.guidance_scale"),
        ([FDM, IDM, "temperature=0.5"], "temperature = 0.5: fdm = "),
        ([FDM], "idm is left out, and the one of the package knows the toy world alone"),
        ([FDM, IDM, "baseline=CODES"], "only two forward models with image codes are compared"),
        (["fdm=CODES", "idm=CODES", "editor.resolution=64"], "is no pipeline of diffusers; leave it out"),
        (["fdm=CODES", "idm=CODES", "pixels.prompt=why"], "has an image codec; leave it out"),
        ([FDM, IDM, "base=CODES"], "but no model is an adapter of one with image codes; of idm give pixels.base"),
        (["fdm=CODES", "idm=CODES", "base=CODES"], "no model is an adapter of one with image codes; leave it out"),
        (["fdm=CODES", IDM, "pixels.base=CODES"], "is no adapter; leave it out"),
        ([FDM, IDM, "editor.pipeline=QwenImageEditPipeline"], "names the pipeline"),
        ([FDM, IDM, "editor.scheduler=Euler"], "scheduler = 'Euler': diffusers "),
        ([FDM, IDM, "editor.settings.steps=3"], "editor.settings.steps: " + PIPELINE + " takes no such argument"),
        ([FDM, IDM, "editor.resolution=4096"], "editor.resolution = 4096"),
    ],
)
def test_what_does_not_go_together_is_named(dry_run, arguments, says):
    status, printed = dry_run(*arguments)
    assert (status, printed.count("\n")) == (2, 1) and says in printed, printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["fdm=CODES", IDM],
        [FDM, IDM],
        [FDM, "idm=CODES", "base_sharing=merged"],
        ["fdm=CODES", IDM, "pixels.prompt=why"],
    ],
)
def test_pairs_without_a_common_codec_say_so(dry_run, arguments):
    status, printed = dry_run(*arguments)
    assert status == 0 and "candidates go to the verifier as pixels" in printed


def test_a_model_of_the_other_task_is_named(dry_run, tmp_path, folders_by_kind):
    for file in folders_by_kind["codes"].iterdir():
        if file.name != MANIFEST:
            (tmp_path / file.name).symlink_to(file)
    manifest = read_manifest(folders_by_kind["codes"])
    manifest.model_copy(update={"kind": "full", "task": "fdm"}).write(tmp_path)
    status, printed = dry_run("fdm=CODES", f"idm={tmp_path}")
    assert status == 2 and "was trained as fdm; expected an IDM" in printed


def test_a_base_is_of_an_adapter(dry_run, tmp_path, folders_by_kind):
    manifest = read_manifest(folders_by_kind["codes"])
    manifest.model_copy(update={"kind": "adapter", "task": "idm"}).write(tmp_path)
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    status, printed = dry_run("fdm=CODES", f"idm={tmp_path}", "base=CODES")
    assert (status, printed.partition(" ")[0]) == (0, "would"), printed


def test_the_codec_of_a_full_model_is_its_own(folders_by_kind, tmp_path):
    """Also where it has no manifest and a base is given for the other one."""
    for file in folders_by_kind["codes"].iterdir():
        if file.name != MANIFEST:
            (tmp_path / file.name).symlink_to(file)
    codec_id = read_manifest(folders_by_kind["codes"]).codec_id
    served = read_kinds(ServeRecipe(fdm=str(tmp_path), idm=str(folders_by_kind["codes"]), base="nano:base"))
    assert served.codecs == {"fdm": codec_id, "idm": codec_id}


def test_diffusers_that_is_not_there_is_named_with_its_extra(dry_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    status, printed = dry_run(FDM, IDM)
    assert status == 2 and "image editors need diffusers: pip install 'wm[baselines]'" in printed


def test_kinds_are_read_from_folders(folders_by_kind):
    recipe = ServeRecipe(fdm=str(folders_by_kind["editor"]), idm=str(folders_by_kind["codes"]))
    served = read_kinds(recipe)
    codec = json.loads((folders_by_kind["codes"] / "wm_model.json").read_text())["codec_id"]
    assert served.kinds == {"fdm": "editor", "idm": "codes"} and served.codecs == {"fdm": "", "idm": codec}
    assert not served.exchanges_codes


def test_workers_find_the_base_of_an_adapter(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = resolve_paths(ServeRecipe.model_validate({"fdm": "a", "idm": "b", "pixels": {"base": "c"}}))
    assert [recipe.fdm, recipe.idm, recipe.pixels.base] == [str(tmp_path / name) for name in "abc"]


def test_tables_as_serve_run_passes_them():
    recipe = ServeRecipe.model_validate(
        {"fdm": "a", "idm": "b", "editor": "{resolution = 64, settings = {num_inference_steps = 2}}"}
    )
    assert (recipe.editor.resolution, recipe.editor.settings) == (64, {"num_inference_steps": 2})
    with pytest.raises(ValueError, match="expected a table such as"):
        ServeRecipe.model_validate({"fdm": "a", "idm": "b", "pixels": "why"})
