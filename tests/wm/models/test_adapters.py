"""Adapter folders: exact here and in PEFT; of another base or codec, half there or with tensors too many: refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from tests.helpers.models_folders import IDS, copy_of, logits, rewrite, with_adapter
from wm.errors import InputError
from wm.models import (
    base_id_of,
    load_codec,
    load_model,
    read_manifest,
    save_model,
)
from wm.nano.preset import write_random_base


@pytest.fixture
def adapter(tiny_base, tmp_path):
    vlm = with_adapter(load_model(tiny_base))
    save_model(vlm, tmp_path / "adapter", task="idm", recipe_digest="abc")
    return tmp_path / "adapter"


def test_adapter_round_trip_is_exact_here_and_in_peft(tiny_base, adapter):
    expected = logits(with_adapter(load_model(tiny_base)))
    vlm = load_model(adapter)  # the base is found by the manifest's relative path
    assert torch.equal(logits(vlm), expected)
    assert not torch.equal(expected, logits(load_model(tiny_base)))
    assert torch.equal(logits(load_model(adapter, base=tiny_base)), expected)
    merged = load_model(adapter, merge=True)
    assert type(merged.module) is ChameleonForConditionalGeneration
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    plain = PeftModel.from_pretrained(ChameleonForConditionalGeneration.from_pretrained(tiny_base), adapter)
    with torch.no_grad():
        hidden = plain.get_base_model().model(input_ids=IDS).last_hidden_state
        assert torch.equal(plain.get_base_model().lm_head(hidden), expected)
    manifest = read_manifest(adapter)
    assert (manifest.kind, manifest.task, manifest.base_id) == ("adapter", "idm", base_id_of(tiny_base))
    assert load_codec(adapter).codec_id == manifest.codec_id
    assert sorted(file.name for file in adapter.iterdir()) == [
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "wm_model.json")
    ]


def test_adapter_for_another_base_is_refused_with_both_names(adapter, tiny_base, tmp_path):
    other = write_random_base(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=rf"on base {base_id_of(tiny_base)}, but .*other is {other.base_id}"):
        load_model(adapter, base=tmp_path / "other")


def test_adapter_for_another_codec_is_refused_with_both_names(adapter, tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    (folder / "wm_model.json").unlink()
    rewrite(folder, lambda tensors: tensors["model.vqmodel.quant_conv.bias"].add_(1))
    assert base_id_of(folder) == base_id_of(tiny_base)
    old, new = load_codec(tiny_base).codec_id, load_codec(folder).codec_id
    with pytest.raises(InputError, match=rf"{adapter} was made with image codec {old}, but the codec here is {new}"):
        load_model(adapter, base=folder)


def test_incomplete_adapters_are_refused(adapter, tiny_base, tmp_path):
    moved = copy_of(adapter, tmp_path / "far" / "away", "adapter")
    with pytest.raises(InputError, match=r"its base chameleon-\w+ is not at .*; give base="):
        load_model(moved)
    load_model(moved, base=tiny_base)
    (moved / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model.safetensors in .*away/adapter"):
        load_model(moved, base=tiny_base)
    (moved / "wm_model.json").unlink()
    with pytest.raises(InputError, match=r"has no wm_model.json, which names the base"):
        load_model(moved, base=tiny_base)
    with pytest.raises(InputError, match="is no adapter"):
        load_model(tiny_base, base=tiny_base)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: b"", "is empty; download it again"),
        (lambda data: data[:-40], r"is truncated: \d+ bytes, its header promises more"),
        (lambda data: data[:300], "is no complete safetensors file"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
    ],
)
def test_half_downloaded_adapters_are_told(adapter, spoil, message):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=rf"adapter_model.safetensors.*{message}"):
        load_model(adapter)


def test_missing_and_extra_tensors_of_an_adapter_are_listed(adapter):
    """PEFT would start the missing ones at random, and say nothing of the others."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    missing = min(tensors)
    rest = {name: tensor for name, tensor in tensors.items() if name != missing}
    save_file(rest | {"base_model.model.model.layers.9.lora_A.weight": torch.zeros(2, 3)}, file)
    message = rf"1 missing: {missing} \(expected .*\); 1 extra: base_model.model.model.layers.9.lora_A.weight \(2, 3\)"
    with pytest.raises(InputError, match=message):
        load_model(adapter)
    save_file(tensors | {missing: torch.zeros(3, 3)}, file)
    with pytest.raises(InputError, match=r"does not fit its base: .*size mismatch for"):
        load_model(adapter)


def test_an_adapter_that_is_a_prompt_is_refused(tiny_base, tmp_path):
    """The engine runs layers, and would leave it out."""
    vlm = load_model(tiny_base)
    vlm.module = get_peft_model(vlm.module, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    save_model(vlm, tmp_path / "adapter")
    with pytest.raises(InputError, match="is PROMPT_TUNING: expected one of weights"):
        load_model(tmp_path / "adapter")


def test_complete_modules_beside_an_adapter_must_be_there(tiny_base, tmp_path):
    vlm = load_model(tiny_base)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    vlm.module = get_peft_model(vlm.module, config).eval()
    vlm.module.base_model.model.lm_head.modules_to_save["default"].weight.data.normal_()
    save_model(vlm, tmp_path / "adapter")
    assert torch.equal(logits(load_model(tmp_path / "adapter")), logits(vlm))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    rest = {name: tensor for name, tensor in load_file(file).items() if "lm_head" not in name}
    save_file(rest, file)
    with pytest.raises(InputError, match=r"missing: 'base_model.model.lm_head.weight'"):
        load_model(tmp_path / "adapter")


def test_adapter_brings_the_prompt_layout_it_was_trained_with(adapter, tiny_base):
    file = adapter / "wm_model.json"
    base_slots = load_model(tiny_base).action_slot_tokens
    file.write_text(json.dumps(json.loads(file.read_text()) | {"action_slot_tokens": base_slots + 3}))
    base = load_model(tiny_base)
    assert load_model(adapter).action_slot_tokens == load_model(adapter, over=base).action_slot_tokens == base_slots + 3
    assert base.action_slot_tokens == base_slots
