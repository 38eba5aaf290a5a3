"""Folders of layouts that are not read: which layout it is, which one is read, and what to download or run."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from jobs.annotate.models import check_models
from jobs.annotate.recipe import AnnotateRecipe
from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from tests.helpers.models_folders import copy_of
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError
from wm.models import hub_hint, load_codec, load_model
from wm.models.skeleton import load_skeleton

EMU3 = {
    "architectures": ["Emu3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_emu3.Emu3Config",
        "AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM",
    },
    "model_type": "Emu3",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "vocab_size": 184622,
}
EMU3_VQ = {
    "architectures": ["Emu3VisionVQModel"],
    "auto_map": {"AutoConfig": "configuration_emu3visionvq.Emu3VisionVQConfig"},
    "model_type": "Emu3VisionVQ",
    "codebook_size": 32768,
}
JANUS = {
    "model_type": "multi_modality",
    "architectures": ["MultiModalityCausalLM"],
    "language_config": {"model_type": "llama", "num_hidden_layers": 30, "vocab_size": 102400},
    "vision_config": {"cls": "CLIPVisionTower"},
    "gen_vision_config": {"cls": "VQ-16"},
    "gen_head_config": {"cls": "vision_head"},
}
LUMINA = {"architectures": ["ChameleonXLLMXForConditionalGeneration"], "model_type": "chameleon", "vocab_size": 65536}
DEEPSEEK_VL = {key: value for key, value in JANUS.items() if not key.startswith("gen_")}
CODED = {"model_type": "internvl_chat", "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}}
RELEASES = {
    "Emu3": (
        EMU3,
        r"authors' own layout of Emu3 .*`hf download BAAI/Emu3-Gen-hf --local-dir MODEL`, or convert it with ",
    ),
    "Emu3-VisionTokenizer": (EMU3_VQ, r"Emu3's VQ model alone .*`hf download BAAI/Emu3-Gen-hf --local-dir MODEL`"),
    "Janus": (JANUS, r"authors' own layout of Janus .*`hf download deepseek-community/Janus-Pro-7B --local-dir MODEL`"),
    "Lumina": (
        LUMINA,
        r"is the first Lumina-mGPT .*Lumina-mGPT 2\.0, `hf download Alpha-VLLM/Lumina-mGPT-2\.0 --local-dir MODEL`",
    ),
    "DeepSeek-VL": (DEEPSEEK_VL, "model_type is 'multi_modality'; supported: chameleon, gemma, emu3, janus"),
    "InternVL": (CODED, "model_type is 'internvl_chat'; supported: chameleon, gemma, emu3, janus"),
}


def write_config(folder, values):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "modeling_emu3.py").write_text("raise SystemExit")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    return folder


@pytest.mark.parametrize("name", RELEASES)
def test_the_authors_own_layouts_are_told(tmp_path, name):
    values, message = RELEASES[name]
    folder = write_config(tmp_path / name, values)
    for load in (load_model, load_codec, load_skeleton):
        with pytest.raises(InputError, match=message) as error:
            load(folder)
        assert "\n" not in str(error.value)


def test_a_judge_of_the_authors_own_layout_is_told_too(tmp_path):
    with pytest.raises(InputError, match=r"hf download deepseek-community/Janus-Pro-7B"):
        load_vlm_scorer(write_config(tmp_path / "janus", JANUS))
    with pytest.raises(InputError, match=r"config.json: auto_map = .* names code of the folder's own"):
        load_vlm_scorer(write_config(tmp_path / "internvl", CODED))
    with pytest.raises(
        InputError, match=r"no such model folder: Qwen/Qwen2.5-VL-7B-Instruct; .*`hf download Qwen/Qwen2.5"
    ):
        load_vlm_scorer("Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize(
    ("folder_name", "command"),
    [
        ("leloy/Anole-7b-v0.1-hf", "hf download leloy/Anole-7b-v0.1-hf --local-dir Anole-7b-v0.1-hf"),
        ("deepseek-ai/Janus-Pro-7B", "hf download deepseek-community/Janus-Pro-7B --local-dir Janus-Pro-7B"),
        ("deepseek-ai/Janus-Pro-1B", "hf download deepseek-community/Janus-Pro-1B --local-dir Janus-Pro-1B"),
        ("BAAI/Emu3-Gen", "hf download BAAI/Emu3-Gen-hf --local-dir Emu3-Gen"),
        ("Junfeng5/Liquid_V1_7B", "hf download Junfeng5/Liquid_V1_7B --local-dir Liquid_V1_7B"),
    ],
)
def test_a_name_of_the_hub_is_told_what_to_run(tmp_path, monkeypatch, folder_name, command):
    monkeypatch.chdir(tmp_path)
    for load in (load_model, load_codec, load_skeleton):
        with pytest.raises(InputError, match=rf"no such model folder: {folder_name}; .*run `{command}`"):
            load(folder_name)
    (tmp_path / "mine").mkdir()
    for path in ("nowhere", "/nowhere/model", "runs/demo/fdm/model", "../x", "a b/c", "runs/idm", "models/anole-idm",
                 "models/mine", "mine/Anole-7b", "data/liquid-7b"):  # fmt: skip
        assert hub_hint(path) == ""
    # A placeholder of the recipes is no name of the hub: what it stands for is.
    for path, name in (("models/anole-7b", "leloy/Anole-7b-v0.1-hf"), ("models/liquid-7b", "Junfeng5/Liquid_V1_7B")):
        assert hub_hint(path) == f"; download it: `hf download {name} --local-dir {path}`"


def test_jobs_tell_it_as_well(tiny_base, tmp_path):
    recipe = {"videos": str(tmp_path), "out": str(tmp_path / "out")}
    with pytest.raises(
        InputError, match=r"idm = 'deepseek-ai/Janus-Pro-7B': no such model folder; .*deepseek-community"
    ):
        check_models(AnnotateRecipe(idm="deepseek-ai/Janus-Pro-7B", **recipe))
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "anole-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"holds anole-q4.gguf: GGUF files of llama.cpp are not read"):
        check_models(AnnotateRecipe(idm=str(tmp_path / "gguf"), **recipe))


def test_folders_of_other_programs_are_told(tiny_base, tmp_path):
    for name, file, message in (
        ("diffusers", "model_index.json", "is a pipeline of diffusers.*what is read: chameleon"),
        ("gguf", "model.gguf", "holds model.gguf: GGUF files of llama.cpp are not read"),
        ("bare", "model.safetensors", "holds model.safetensors but no config.json; download the complete model folder"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        with pytest.raises(InputError, match=message):
            load_model(tmp_path / name)
    cached = tmp_path / "models--leloy--Anole-7b-v0.1-hf"
    shutil.copytree(tiny_base, cached / "snapshots" / "0123abcd")
    with pytest.raises(
        InputError, match=rf"repository of the Hugging Face cache; give its snapshot: {cached}/snap.*abcd"
    ):
        load_model(cached)
    load_codec(cached / "snapshots" / "0123abcd")
    with pytest.raises(InputError, match=r"adapter .* has no wm_model.json"):
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
        load_model(tmp_path / "adapter")


def test_liquid_without_its_vqgan_is_told_where_to_get_it(tmp_path):
    write_liquid(tmp_path / "liquid")
    (tmp_path / "liquid" / "vqgan").rename(tmp_path / "away")
    command = "`hf download Junfeng5/Liquid_demo chameleon/vqgan.ckpt .*move FOLDER/chameleon to MODEL/vqgan`"
    with pytest.raises(InputError, match=rf"liquid has no folder vqgan .*the release leaves it out: {command}"):
        load_model(tmp_path / "liquid")
    (tmp_path / "liquid" / "chameleon").mkdir()
    (tmp_path / "liquid" / "chameleon" / "vqgan.ckpt").touch()
    with pytest.raises(InputError, match=r"move chameleon/vqgan.ckpt and its vqgan.yaml into .*liquid/vqgan"):
        load_model(tmp_path / "liquid")


@pytest.mark.parametrize("family", ["chameleon", "emu3", "janus"])
def test_weights_without_a_codec_are_told(tiny_base, tmp_path, family):
    folder = tmp_path / family
    if family == "chameleon":
        copy_of(tiny_base, tmp_path, family)
        (folder / "wm_model.json").unlink()
    else:
        {"emu3": write_emu3, "janus": write_janus}[family](folder)
    tensors = {
        name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "vqmodel" not in name
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"the weights hold no image codec .*expected language model and codec .*hf down"
    ):
        load_model(folder)


def test_pointers_and_other_tokenizers_are_told(tiny_base, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = copy_of(tiny_base, tmp_path, name)
        (folder / name).write_bytes(pointer)
        with pytest.raises(InputError, match=rf"{name} is a git-lfs pointer, .*`git lfs pull`"):
            load_model(folder)
    folder = copy_of(tiny_base, tmp_path, "sentencepiece")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(
        InputError, match=r"no tokenizer.json in .*it has tokenizer.model, of which transformers makes one"
    ):
        load_model(folder)
