"""``jobs.convert`` of an original release: the same numbers, whole or not at all, and adapters that go on fitting."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from jobs import convert as job
from jobs.convert import ConvertRecipe, run
from tests.helpers.models_release import logits, random_model, random_vqgan, transformers_names, write_release
from wm.errors import InputError
from wm.models import base_id_of, is_model_folder, load_codec, load_model, read_manifest, save_model
from wm.models.identity import fingerprint_of
from wm.models.release import convert as release_convert
from wm.models.release.convert import plan_conversion
from wm.models.skeleton import load_skeleton
from wm.models.weights import describe_tensor

ROOT = Path(__file__).parents[2]
SMALL_FILES = 12_000
"""Bytes of a weight file, so that the tiny release becomes several."""


@pytest.fixture(scope="module")
def source():
    return random_model(parts=2, dtype=torch.bfloat16)


@pytest.fixture
def release(source, tmp_path):
    return write_release(tmp_path / "anole", source)


def recipe_of(release, out):
    return ConvertRecipe(release=str(release), out=str(out))


def stored_tensors(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def earlier_base_id(release, source):
    """The id that earlier versions gave the release itself, of its configuration in memory and its tensors."""
    config = json.loads(plan_conversion(release).vlm.inner.config.to_json_string())
    tensors = {name: describe_tensor(release, tensor) for name, tensor in transformers_names(source).items()}
    return "chameleon-" + fingerprint_of(config, tensors)


def test_converted_tensors_are_the_releases_to_the_bit(release, source, tmp_path, monkeypatch):
    monkeypatch.setattr(release_convert, "MAX_FILE_BYTES", SMALL_FILES)
    record = run(recipe_of(release, tmp_path / "out"))
    expected = transformers_names(source)
    expected |= {f"model.vqmodel.{name}": tensor for name, tensor in random_vqgan().items()}
    tensors = stored_tensors(tmp_path / "out/model")
    assert tensors.keys() == expected.keys()
    assert {name for name in expected if not torch.equal(tensors[name], expected[name])} == set()
    assert {tensor.dtype for name, tensor in tensors.items() if "vqmodel" not in name} == {torch.bfloat16}
    index = json.loads((tmp_path / "out/model/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out/model").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert record["counts"] == {
        "tensors": len(expected),
        "files": len(files),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in expected.values()),
    }
    assert len(files) > 3
    assert json.loads((tmp_path / "out/run.json").read_text())["manifest"]["base_id"] == base_id_of(tmp_path / "out")


def test_converted_folder_has_the_ids_of_the_release(release, source, tmp_path):
    run(recipe_of(release, tmp_path / "out"))
    vlm = load_model(tmp_path / "out", dtype=torch.bfloat16)
    manifest = read_manifest(tmp_path / "out")
    assert earlier_base_id(release, source) == vlm.base_id == manifest.base_id == base_id_of(tmp_path / "out")
    codec = load_codec(release / "tokenizer")
    assert (manifest.codec_id, manifest.decoder_id) == (codec.codec_id, codec.decoder_id)
    assert json.loads((tmp_path / "out/model/config.json").read_text())["dtype"] == "bfloat16"


def test_complete_and_dry_runs_write_nothing(release, tmp_path, capsys):
    assert run(recipe_of(release, tmp_path / "out"), dry_run=True) == {}
    assert "would write" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    record = run(recipe_of(release, tmp_path / "out"))
    assert run(recipe_of(release, tmp_path / "out")) == record
    assert "already complete" in capsys.readouterr().out


def test_killed_conversion_is_no_model_and_resumes(release, tmp_path, monkeypatch):
    monkeypatch.setattr(release_convert, "MAX_FILE_BYTES", SMALL_FILES)
    run(recipe_of(release, tmp_path / "uninterrupted"))
    out = tmp_path / "out"
    script = (
        "import os, signal, sys; from wm.models.release import convert; from jobs.convert import ConvertRecipe, run\n"
        f"convert.MAX_FILE_BYTES = {SMALL_FILES}; save, calls = convert.save_file, []\n"
        "def save_and_die(tensors, path, **more):\n"
        "    calls.append(path); save(tensors, path, **more)\n"
        "    len(calls) == 3 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "convert.save_file = save_and_die; run(ConvertRecipe(release=sys.argv[1], out=sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", script, str(release), str(out)]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert result.returncode == -signal.SIGKILL
    # Two files are complete, the third has no name yet.
    first = {path.name: path.stat().st_mtime_ns for path in (out / "model.partial").glob("*.safetensors")}
    assert len(first) == 2 and not is_model_folder(out) and not is_model_folder(out / "model.partial")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(out / "model.partial")
    run(recipe_of(release, out))
    again = {name: (out / "model" / name).stat().st_mtime_ns for name in first}
    assert again == first
    names = sorted(path.name for path in (tmp_path / "uninterrupted/model").iterdir())
    assert sorted(path.name for path in (out / "model").iterdir()) == names
    for name in names:
        assert (out / "model" / name).read_bytes() == (tmp_path / "uninterrupted/model" / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["model", "run.json"]


def test_kill_between_model_and_record_is_repaired(release, tmp_path, monkeypatch):
    def die(self, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job.Run, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            run(recipe_of(release, tmp_path / "out"))
    run(recipe_of(release, tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model", "run.json"]
    assert load_model(tmp_path / "out").base_id == read_manifest(tmp_path / "out").base_id


def test_conversion_that_does_not_fit_the_disk_is_refused(release, tmp_path, monkeypatch):
    monkeypatch.setattr(release_convert.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with pytest.raises(InputError, match=r"model.partial needs 0.1 GB, but 0.0 GB are free"):
        run(recipe_of(release, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_release_that_cannot_be_read_leaves_nothing(release, tmp_path):
    file = release / "models/7b/consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="half downloaded"):
        run(recipe_of(release, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"no params\.json and consolidated"):
        run(recipe_of(release / "tokenizer", tmp_path / "out"))
    with pytest.raises(InputError, match="no such folder"):
        run(recipe_of(tmp_path / "nothing", tmp_path / "out"))


def test_converted_folder_is_not_converted_again(release, tmp_path):
    run(recipe_of(release, tmp_path / "out"))
    with pytest.raises(InputError, match="is in the Hugging Face layout already: use it as it is"):
        run(recipe_of(tmp_path / "out/model", tmp_path / "again"))


def test_release_that_is_not_converted_is_refused(release, tmp_path):
    for path in (release, release / "models/7b"):
        command = rf"run `wm convert release={path} out={path}-hf` once and give {path}-hf$"
        for load in (load_model, load_codec, load_skeleton, base_id_of):
            with pytest.raises(InputError, match=command) as error:
                load(path)
            assert "\n" not in str(error.value)
        assert not is_model_folder(path)
    with pytest.raises(InputError, match="holds a tokenizer or an image codec alone"):
        load_model(release / "tokenizer")


def test_adapter_of_a_release_loads_on_the_converted_folder(release, source, tmp_path):
    run(recipe_of(release, tmp_path / "converted"))
    vlm = load_model(tmp_path / "converted")
    targets = r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
    vlm.module = get_peft_model(vlm.module, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    save_model(vlm, tmp_path / "adapter", task="fdm")
    expected = logits(vlm)
    # As an earlier version wrote it, which trained on the release itself.
    file = tmp_path / "adapter/wm_model.json"
    manifest = json.loads(file.read_text())
    manifest |= {"base_id": earlier_base_id(release, source), "base_path": "../anole"}
    file.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"was trained on the original release .*release={release} .* as base=, or"):
        load_model(tmp_path / "adapter")
    assert torch.equal(logits(load_model(tmp_path / "adapter", base=tmp_path / "converted")), expected)
    # The release may also be replaced by what was made of it.
    shutil.rmtree(release)
    (tmp_path / "converted").rename(release)
    assert torch.equal(logits(load_model(tmp_path / "adapter")), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to convert: give release=DIR, or adapter=DIR base=DIR task=idm"),
        ({"release": "a", "adapter": "b"}, "release and adapter exclude each other"),
        ({"release": "a", "base": "b"}, "release and base exclude each other"),
        ({"release": "a", "task": "idm"}, "release and task exclude each other"),
        ({"adapter": "a", "task": "idm"}, "base is missing; give it in the file or as base=VALUE"),
        ({"adapter": "a", "base": "b"}, "task is missing"),
        ({"base": "b", "task": "idm"}, "adapter is missing"),
    ],
)
def test_forms_of_the_command_exclude_each_other(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        ConvertRecipe.parse({**settings, "out": str(tmp_path)}, "the command line")


def test_help_explains_both_forms(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert", "--help"])
    with pytest.raises(SystemExit):
        job.main()
    text = capsys.readouterr().out
    assert "release=DIR out=DIR" in text and "adapter=DIR base=DIR task=idm|fdm out=DIR" in text
