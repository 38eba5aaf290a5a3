"""Hostile folders: expressions that never end, bases that are adapters themselves, YAML that grows."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.helpers.models_folders import with_adapter
from wm.errors import InputError
from wm.models import base_of, load_codec, load_model, save_model
from wm.models.codec.taming import read_vqgan_config
from wm.models.layer_patterns import check_patterns
from wm.models.skeleton import load_skeleton

FILE = Path("adapter_config.json")
NAMES = ["model", "model.layers.0.self_attn.q_proj", "a" * 60 + "!"]


@pytest.mark.parametrize(
    "key", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"]
)
def test_an_expression_that_never_ends_is_refused(key):
    value = {"(a+)+b": 4} if key.startswith(("rank", "alpha")) else ["(a+)+b"] if key == "layers_pattern" else "(a+)+b"
    names = ["." + "a" * 60 + "!", "a" * 60 + "!", "x." + "a" * 60 + ".1."]
    with pytest.raises(InputError, match=r"_config.json: the regular expression '\(a\+\)\+b' .* more than 0.5 s"):
        check_patterns({key: value}, names, FILE, max_match_s=0.5)


def test_plain_names_need_no_process_and_usual_ones_pass(monkeypatch):
    check_patterns(
        {"target_modules": r".*\.layers\.\d+\..*(q|k|v|o)_proj", "rank_pattern": {"(": 1, "*": 2}}, NAMES, FILE
    )

    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    check_patterns({"target_modules": ["q_proj", "v_proj"], "layers_pattern": None}, NAMES, FILE)


@pytest.mark.parametrize("base_path", [".", "a\0b", "a" * 5000])
def test_a_base_that_is_an_adapter_or_no_path_is_refused(tiny_base, tmp_path, base_path):
    folder = tmp_path / "adapter"
    save_model(with_adapter(load_model(tiny_base)), folder, task="idm")
    manifest = json.loads((folder / "wm_model.json").read_text())
    (folder / "wm_model.json").write_text(json.dumps(manifest | {"base_path": base_path}))
    for load in (load_model, load_codec, load_skeleton, base_of):
        with pytest.raises(InputError) as error:
            load(folder)
        message = str(error.value)
        assert "is an adapter itself, expected a full model" in message or "give base=" in message
        assert "\n" not in message and len(message) < 600


def test_yaml_that_stands_for_gigabytes_is_refused(tmp_path):
    """Nine lists of nine names each: 9**9 entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    file = tmp_path / "vqgan.yaml"
    file.write_text("\n".join(lines) + "\nmodel: {params: {embed_dim: 8, n_embed: 8, ddconfig: {double_z: *a8}}}\n")
    with pytest.raises(InputError, match=r"vqgan.yaml: .*aliases are not read"):
        read_vqgan_config(file)
    file.write_text("x" * (1 << 20) + "x")
    with pytest.raises(InputError, match="1,048,577 bytes, expected a YAML file of at most 1,048,576"):
        read_vqgan_config(file)
