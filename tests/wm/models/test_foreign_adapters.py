"""Adapters that other programs trained: taken over with PEFT's own logits, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    GemmaForCausalLM,
    JanusForConditionalGeneration,
)

from jobs.convert import ConvertRecipe, run
from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from tests.helpers.models_folders import IDS
from wm.dynamics import load_role
from wm.errors import InputError
from wm.models import base_id_of, load_codec, load_model, read_manifest
from wm.nano.preset import write_random_base
from wm.runs import read_run

CLASSES = {
    "chameleon": ChameleonForConditionalGeneration,
    "liquid": GemmaForCausalLM,
    "emu3": Emu3ForConditionalGeneration,
    "janus": JanusForConditionalGeneration,
}
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IN_DECODER = {
    "chameleon": r"model\.layers\.\d+\..*_proj",
    "liquid": r"model\.layers\.\d+\..*_proj",
    "emu3": r"model\.text_model\.layers\.\d+\..*_proj",
    "janus": r"model\.language_model\.layers\.\d+\..*_proj",
}
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def bases(tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    for name, write in (("liquid", write_liquid), ("emu3", write_emu3), ("janus", write_janus)):
        write(root / name)
    return {name: root / name for name in CLASSES} | {"chameleon": tiny_base}


def train_elsewhere(base, family, out, config):
    """What plain PEFT writes after training: random factors in place of learned ones."""
    model = CLASSES[family].from_pretrained(base)
    torch.manual_seed(3)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "vqmodel" not in name:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    adapted.save_pretrained(out)
    return out


def peft_logits(base, family, adapter):
    """Of PEFT's own reading of the folder, by the top class's language model."""
    model = PeftModel.from_pretrained(CLASSES[family].from_pretrained(base), adapter).eval()
    inner = model.get_base_model()
    decoder = {"emu3": "model.text_model", "janus": "model.language_model"}.get(family, "model")
    with torch.no_grad():
        return inner.lm_head(inner.get_submodule(decoder)(input_ids=IDS).last_hidden_state)


def our_logits(folder, **settings):
    vlm = load_model(folder, **settings)
    with torch.no_grad():
        return vlm.inner.lm_head(vlm.decoder(input_ids=IDS).last_hidden_state)


def convert(adapter, base, out, **more):
    return run(ConvertRecipe(adapter=str(adapter), base=str(base), out=str(out), **({"task": "idm"} | more)))


CASES = {
    "plain": LoraConfig(r=2, target_modules=NAMES),
    "llama-factory": LoraConfig(r=2, target_modules=NAMES, task_type="CAUSAL_LM", lora_dropout=0.1),
    "dora": LoraConfig(r=2, target_modules=NAMES, use_dora=True),
    "rslora": LoraConfig(r=4, lora_alpha=3, target_modules=NAMES, use_rslora=True),
    "patterns": LoraConfig(
        r=2, target_modules=NAMES, rank_pattern={"q_proj": 3, r"layers.1.mlp.*": 1}, alpha_pattern={"k_proj": 7}
    ),
    "head": LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    "embeddings": LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]),
    "saved": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "one layer": LoraConfig(r=2, target_modules=NAMES, layers_to_transform=[1]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"]),
    "lokr": LoKrConfig(r=2, target_modules=["q_proj"]),
    "adalora": AdaLoraConfig(init_r=3, target_r=2, target_modules=["q_proj"], total_step=10),
    "vera": VeraConfig(r=4, target_modules=["q_proj"]),
    "pissa": LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_kind_gives_the_logits_of_peft(name, bases, tmp_path):
    base = bases["chameleon"]
    adapter = train_elsewhere(base, "chameleon", tmp_path / "adapter", CASES[name])
    record = convert(adapter, base, tmp_path / "out")
    expected = peft_logits(base, "chameleon", adapter)
    assert not torch.equal(expected, our_logits(base))
    assert torch.equal(our_logits(tmp_path / "out"), expected)
    merged = load_role(tmp_path / "out").model  # as jobs and servers load it
    with torch.no_grad():
        merged_logits = merged.inner.lm_head(merged.decoder(input_ids=IDS).last_hidden_state)
    torch.testing.assert_close(merged_logits, expected, atol=1e-4, rtol=1e-4)
    assert record["counts"] == {"tensors": len(load_file(adapter / ADAPTER)), "renamed": 0, "unused": 0}


@pytest.mark.parametrize("targets", ["names", "expression"])
@pytest.mark.parametrize("family", CLASSES)
def test_every_family_gives_the_logits_of_peft(family, targets, bases, tmp_path):
    """Layer names alone meet layers of Emu3's image tokenizer and of Janus' eyes too; those are left out."""
    base = bases[family]
    config = LoraConfig(r=2, target_modules=NAMES if targets == "names" else IN_DECODER[family])
    adapter = train_elsewhere(base, family, tmp_path / "adapter", config)
    record = convert(adapter, base, tmp_path / "out", task="fdm")
    assert torch.equal(our_logits(tmp_path / "out"), peft_logits(base, family, adapter))
    assert (record["counts"]["unused"] > 0) == (targets == "names" and family in ("emu3", "janus"))
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.family, manifest.kind, manifest.task) == (family, "adapter", "fdm")
    assert (manifest.base_id, manifest.codec_id) == (base_id_of(base), load_codec(base).codec_id)


def test_a_task_that_the_family_has_not_is_refused(bases, tmp_path):
    config = LoraConfig(r=2, target_modules=IN_DECODER["janus"])
    adapter = train_elsewhere(bases["janus"], "janus", tmp_path / "adapter", config)
    with pytest.raises(InputError, match="janus cannot serve as an inverse model"):
        convert(adapter, bases["janus"], tmp_path / "out", task="idm")
    assert not (tmp_path / "out").exists()


def rename_tensors(folder, change):
    save_file({change(name): tensor for name, tensor in load_file(folder / ADAPTER).items()}, folder / ADAPTER)


OLD_NAMES = {
    "emu3": ("model.text_model.layers", ["text_model.model.layers", "model.layers", "layers"]),
    "janus": ("model.language_model.layers", ["language_model.model.layers", "model.layers"]),
    "liquid": ("model.layers", ["model.model.layers"]),
}


@pytest.mark.parametrize("family", OLD_NAMES)
def test_names_of_other_classes_are_brought_to_todays(family, bases, tmp_path):
    """An older version of the class, or the authors' own, calls the layers otherwise; so do its patterns."""
    now, others = OLD_NAMES[family]
    patterns = {"rank_pattern": {f"{now}.0.mlp.up_proj": 1}, "alpha_pattern": {".*v_proj": 5}}
    config = LoraConfig(r=2, target_modules=IN_DECODER[family], **patterns)
    adapter = train_elsewhere(bases[family], family, tmp_path / "adapter", config)
    expected = peft_logits(bases[family], family, adapter)
    for number, other in enumerate(others):
        copy = Path(shutil.copytree(adapter, tmp_path / f"copy{number}"))
        rename_tensors(copy, lambda name, other=other: name.replace(now, other))
        values = json.loads((copy / "adapter_config.json").read_text())
        values["target_modules"] = "no such layer of today"
        values["rank_pattern"] = {f"{other}.0.mlp.up_proj": 1}
        (copy / "adapter_config.json").write_text(json.dumps(values))
        record = convert(copy, bases[family], tmp_path / f"out{number}", task="fdm")
        assert record["counts"]["renamed"] == record["counts"]["tensors"]
        assert torch.equal(our_logits(tmp_path / f"out{number}"), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".mine.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
    ],
)
def test_raw_state_dicts_are_read(change, bases, tmp_path):
    base = bases["chameleon"]
    adapter = train_elsewhere(base, "chameleon", tmp_path / "adapter", CASES["plain"])
    expected = peft_logits(base, "chameleon", adapter)
    rename_tensors(adapter, change)
    convert(adapter, base, tmp_path / "out")
    assert torch.equal(our_logits(tmp_path / "out"), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_of_the_factors_is_kept(dtype, bases, tmp_path):
    base = bases["chameleon"]
    adapter = train_elsewhere(base, "chameleon", tmp_path / "adapter", CASES["llama-factory"])
    save_file({name: tensor.to(dtype) for name, tensor in load_file(adapter / ADAPTER).items()}, adapter / ADAPTER)
    for name in (
        "args.json",
        "README.md",
        "training_args.bin",
        "additional_config.json",
    ):  # ms-swift's, LLaMA-Factory's
        (adapter / name).write_text("{}")
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": "/nowhere/base"}))
    convert(adapter, base, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model" / ADAPTER).values()} == {dtype}
    assert torch.equal(our_logits(tmp_path / "out"), peft_logits(base, "chameleon", adapter))
    assert sorted(path.name for path in (tmp_path / "out" / "model").iterdir()) == [
        *("adapter_config.json", ADAPTER, "wm_model.json")
    ]


@pytest.fixture
def adapter(bases, tmp_path):
    return train_elsewhere(bases["chameleon"], "chameleon", tmp_path / "adapter", CASES["plain"])


def test_the_refusal_of_such_a_folder_names_the_command(adapter, bases):
    with pytest.raises(InputError, match=r"has no wm_model.json.*wm convert adapter=.*adapter base=BASE"):
        load_model(adapter, base=bases["chameleon"])


def test_dry_run_and_a_second_run(adapter, bases, tmp_path, capsys):
    recipe = ConvertRecipe(adapter=str(adapter), base=str(bases["chameleon"]), task="idm", out=str(tmp_path / "out"))
    assert run(recipe, dry_run=True) == {} and not (tmp_path / "out").exists()
    assert "would write" in capsys.readouterr().out
    record = run(recipe)
    assert run(recipe) == record == read_run(tmp_path / "out")
    assert "already complete" in capsys.readouterr().out


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "XLORA"}, "peft_type = 'XLORA'; supported: LORA, IA3"),
        ({"peft_type": None}, "peft_type = None; supported"),
        ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS'; expected CAUSAL_LM or none"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens = .* is not supported"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication = .* is not supported"),
        ({"lora_bias": True}, "lora_bias = True, which cannot be added into layers without a bias, is not supported"),
        ({"target_parameters": ["a"]}, "target_parameters = .* is not supported"),
        ({"use_new_trick": True}, "use_new_trick = True is unknown to the installed PEFT"),
        ({"target_modules": ["c_attn"]}, "does not fit its base: .*c_attn"),
        ({"target_modules": ["q_proj"]}, "is no adapter of .* extra: "),
        ({"r": 5}, r"is no adapter of .*(5|size mismatch)"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, message, adapter, bases, tmp_path):
    edit(adapter, **changes)
    with pytest.raises(InputError, match=message) as caught:
        convert(adapter, bases["chameleon"], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_prompts_pickles_and_other_folders_are_refused(adapter, bases, tmp_path):
    base = bases["chameleon"]
    prompt = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2).to_dict()
    edit(adapter, peft_type="PREFIX_TUNING")
    assert prompt["peft_type"] == "PREFIX_TUNING"
    with pytest.raises(InputError, match="peft_type = 'PREFIX_TUNING'"):
        convert(adapter, base, tmp_path / "out")
    (adapter / ADAPTER).rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model.bin is pickled and never read: write it anew by safetensors"):
        convert(adapter, base, tmp_path / "out")
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    shutil.copy(adapter / "adapter_config.json", tmp_path / "run" / "checkpoint-20")
    with pytest.raises(InputError, match=r"has no adapter_config.json.*it has adapters in checkpoint-20"):
        convert(tmp_path / "run", base, tmp_path / "out")
    with pytest.raises(InputError, match=r"base = .* is an adapter itself"):
        convert(adapter, adapter, tmp_path / "out")
    with pytest.raises(InputError, match="adapter = 'nowhere': no such folder"):
        convert("nowhere", base, tmp_path / "out")


def test_an_adapter_of_another_base_is_named_with_both_numbers(adapter, bases, tmp_path):
    tensors = load_file(adapter / ADAPTER)
    name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.lora_A.weight"))
    width = tensors[name].shape[1]
    save_file(tensors | {name: torch.zeros(2, 2 * width)}, adapter / ADAPTER)
    with pytest.raises(InputError, match=rf"is no adapter of .*{2 * width}.*{width}"):
        convert(adapter, bases["chameleon"], tmp_path / "out")
    more = {name.replace("layers.1", "layers.7"): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors | more, adapter / ADAPTER)
    with pytest.raises(InputError, match=r"has tensors of 8 layers, but base .* has 2"):
        convert(adapter, bases["chameleon"], tmp_path / "out")
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1" not in name}, adapter / ADAPTER)
    with pytest.raises(InputError, match=r"it has tensors of 1 layers, the base has 2; .*missing"):
        convert(adapter, bases["chameleon"], tmp_path / "out")


def test_a_vocabulary_that_grew_is_refused(bases, tmp_path):
    adapter = train_elsewhere(bases["chameleon"], "chameleon", tmp_path / "adapter", CASES["saved"])
    shutil.copy(bases["chameleon"] / "tokenizer.json", adapter)
    convert(adapter, bases["chameleon"], tmp_path / "same")
    values = json.loads((adapter / "tokenizer.json").read_text())
    new = {**values["added_tokens"][0], "content": "<new>", "id": 9999}
    values["added_tokens"].append(new)
    (adapter / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"1 tokens have another id than in the base, '<new>' among them \(9999"):
        convert(adapter, bases["chameleon"], tmp_path / "out")
    (adapter / "tokenizer.json").unlink()
    tensors = load_file(adapter / ADAPTER)
    rows, width = tensors["base_model.model.lm_head.weight"].shape
    save_file(tensors | {"base_model.model.lm_head.weight": torch.zeros(rows + 8, width)}, adapter / ADAPTER)
    with pytest.raises(InputError, match=rf"is no adapter of .*{rows + 8}.*{rows}"):
        convert(adapter, bases["chameleon"], tmp_path / "out")


def test_an_adapter_that_changes_the_image_codec_is_refused(bases, tmp_path):
    adapter = train_elsewhere(bases["emu3"], "emu3", tmp_path / "adapter", LoraConfig(r=2, target_modules=NAMES))
    tensors = load_file(adapter / ADAPTER)
    name = next(name for name in tensors if "vqmodel" in name and "lora_B" in name)
    save_file(tensors | {name: torch.ones_like(tensors[name])}, adapter / ADAPTER)
    with pytest.raises(InputError, match=r"changes the image codec by .*vqmodel"):
        convert(adapter, bases["emu3"], tmp_path / "out")


def test_the_base_is_found_from_where_the_adapter_is(adapter, bases, tmp_path):
    """The manifest names it relative to the folder that was written, also where the base has another id."""
    convert(adapter, bases["chameleon"], tmp_path / "far" / "away")
    assert load_model(tmp_path / "far" / "away").base_id == base_id_of(bases["chameleon"])
    write_random_base(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="was trained on base"):
        load_model(tmp_path / "far" / "away", base=tmp_path / "other")
