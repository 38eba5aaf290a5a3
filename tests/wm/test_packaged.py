"""Names of what is installed with the package: ``nano:base`` and packaged recipes."""

import shutil
from pathlib import Path

import pytest

from wm.config import Recipe, read_toml
from wm.errors import InputError
from wm.models import load_codec, load_model
from wm.packaged import RECIPES, SHIPPED, find_recipe, recipe_names, resolve_packaged, shipped_names, to_packaged_name
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.runs import digest_of


class Job(Recipe):
    """A recipe with input paths of each kind."""

    model: InputPath
    base: OptionalInputPath = None
    out: OutputPath = ""


def test_names_and_their_paths():
    assert {"nano:base", "nano:fdm", "nano:idm", "nano:images"} <= set(shipped_names())
    for name in shipped_names():
        path = resolve_packaged(name)
        assert Path(path).exists() and to_packaged_name(path) == name
    assert resolve_packaged("nano:images/") == str(SHIPPED / "images")
    for other in ("", "runs/nano:base", "./nano:base", "s3://bucket/key"):
        assert resolve_packaged(other) == to_packaged_name(other) == other
    assert resolve_packaged(None) is None and to_packaged_name(None) is None


@pytest.mark.parametrize(
    "name", ["nano:bsae", "nano:", "nano:../shipped/base", "nano:base/run.json", "nano:images/x.png"]
)
def test_a_wrong_name_is_refused_with_the_right_ones(name):
    with pytest.raises(InputError, match="expected nano:base, nano:fdm, nano:idm, nano:images, nano:images/") as caught:
        resolve_packaged(name)
    assert name != "nano:bsae" or str(caught.value).endswith("; did you mean nano:base?")
    with pytest.raises(InputError, match="nothing is shipped as"):
        load_codec(name)
    with pytest.raises(InputError, match=r"a\.toml: model = .*nothing is shipped as"):
        Job.parse({"model": name}, "a.toml")


def test_recipes_read_the_path_and_record_the_name():
    job = Job.load(None, ["model=nano:base", "base=nano:idm"])
    assert job.model == str(SHIPPED / "base") and job.base == str(SHIPPED / "idm")
    assert job.model_dump(mode="json") == {"model": "nano:base", "base": "nano:idm", "out": ""}
    # As a worker reads it again, and as a run resumes where the package is in another folder.
    assert Job.parse(job.model_dump(mode="json"), "worker") == job == job.with_absolute_paths()
    assert job.digest() == Job.load(None, ["model=nano:base", "base=nano:idm"]).digest()
    assert Job(model="x").model_dump(mode="json")["base"] is None


def test_loaders_take_names():
    assert load_model("nano:base").codec_id == load_codec("nano:base").codec_id


def test_a_shipped_input_is_the_same_wherever_it_is_installed(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "shipped", copy_function=shutil.copyfile)  # other file times
    for name in shipped_names():
        copy = tmp_path / "shipped" / name.removeprefix("nano:")
        assert digest_of(copy) == digest_of(resolve_packaged(name))
    assert len({digest_of(path) for path in (SHIPPED / "images").glob("*.png")}) == 6


def test_packaged_recipes_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"nano/demo", "nano/predict", "paper/c-idm"} <= set(recipe_names())
    for name in recipe_names():
        assert find_recipe(Path(name)) == find_recipe(Path(f"{name}.toml")) == RECIPES / f"{name}.toml"
    assert read_toml(Path("nano/predict"))["fdm"] == "nano:fdm"
    # A file of one's own comes first.
    Path("nano").mkdir()
    Path("nano/demo").write_text("")
    assert find_recipe(Path("nano/demo")) == Path("nano/demo")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nano/dmeo", "did you mean nano/demo?"),
        ("jobs/recipes/paper/c-idm.toml", "did you mean paper/c-idm?"),
        ("zzz", "those installed with the package are bases/qwen3-vl-idm, data/aurora-ag, "),
    ],
)
def test_an_unknown_recipe_names_the_nearest(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such recipe file: ") as caught:
        find_recipe(Path(name))
    assert hint in str(caught.value)
