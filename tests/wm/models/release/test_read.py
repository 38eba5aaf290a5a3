"""Meta's original release of the language model: the same numbers as its own transformer and as transformers'."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from tests.helpers.models_release import (
    IDS,
    NUM_CODES,
    Sizes,
    logits,
    original_logits,
    part_of,
    random_vqgan,
    random_whole,
    transformers_names,
    vocabulary,
    write_release,
)
from wm.errors import InputError
from wm.models import base_id_of, is_model_folder, load_model, read_manifest, save_model
from wm.models.families.chameleon import image_rows_of
from wm.models.original_save import params_of
from wm.models.release.read import find_release, mlp_size, read_config
from wm.models.release.weights import half_split, interleaved

PLAIN = Sizes()


GROUPED = Sizes(heads=8, kv_heads=4, dim=64, mlp=96, swin=True, theta=50_000.0)


def as_transformers_folder(original, whole, folder):
    """The same weights in a folder written by hand in the Hugging Face layout."""
    config = load_model(original).inner.config
    folder.mkdir()
    tensors = transformers_names(whole) | {f"model.vqmodel.{name}": value for name, value in random_vqgan().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    load_model(original).tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sizes", [PLAIN, GROUPED], ids=["7B-like", "34B-like"])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_logits_are_those_of_the_original_transformer(tmp_path, sizes, parts, fused):
    whole = random_whole(sizes, parts)
    write_release(tmp_path, whole, fused=fused)
    vlm = load_model(tmp_path, dtype=torch.float64)
    expected = original_logits(whole, IDS)
    assert expected.std() > 0.5
    # transformers computes norms and angles in float32, whatever the type of the weights
    torch.testing.assert_close(logits(vlm), expected, atol=2e-5, rtol=2e-5)
    config = vlm.inner.config
    assert (config.swin_norm, config.model_parallel_size) == (sizes.swin, parts)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 16_384 if sizes.swin else 4096)


@pytest.mark.parametrize("sizes", [PLAIN, GROUPED], ids=["7B-like", "34B-like"])
@pytest.mark.parametrize("parts", [1, 2])
def test_both_layouts_and_transformers_agree_to_the_last_bit(tmp_path, sizes, parts):
    whole = random_whole(sizes, parts)
    original = write_release(tmp_path / "original", whole)
    folder = as_transformers_folder(original, whole, tmp_path / "hf")
    ours, theirs = load_model(original), load_model(folder)
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.codec_id != theirs.codec_id  # transformers' pixel scale is another
    module = ChameleonForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        full = module(input_ids=torch.tensor([IDS])).logits[0]
    text = ours.text_rows
    assert torch.equal(full[:, text], logits(ours)[:, text])
    assert (full[:, ours.image_rows] < -1e30).all()  # what makes its own forward useless for drawing


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_anoles_training_code_saves(tmp_path, file):
    """transformers' names, but pairs in the original's order and one norm for all heads of queries and keys."""
    sizes = Sizes(heads=8, kv_heads=4, dim=64, mlp=96)
    whole = random_whole(sizes)
    original = write_release(tmp_path / "original", whole)
    folder = as_transformers_folder(original, whole, tmp_path / "hf")
    expected = logits(load_model(folder))
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        layer, _, rest = name.removeprefix("model.").partition(".self_attn.")
        if rest.startswith(("q_", "k_")):
            side, kind = rest[0], rest[2:].partition(".")[2]
            if "proj" in rest:
                tensors[name] = whole.tensors[f"{layer}.attention.w{side}.weight"]
            else:
                tensors[name] = whole.tensors[f"{layer}.attention.{side}_normalization.{kind}"][0].clone()
    (folder / "model.safetensors").unlink()
    save = save_file if file == "model.safetensors" else torch.save
    save(tensors, folder / file)
    vlm = load_model(folder)
    assert torch.equal(logits(vlm), expected)
    torch.testing.assert_close(expected.double(), original_logits(whole, IDS), atol=2e-5, rtol=2e-5)
    save_model(vlm, tmp_path / "saved", kind="base")
    assert torch.equal(logits(load_model(tmp_path / "saved")), expected)
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(60, 64)
    tensors["model.layers.1.self_attn.k_norm.bias"] = torch.zeros(9)
    save(tensors, folder / file)
    with pytest.raises(InputError, match=r"2 misshapen: .*k_norm.bias \(9,\) not \(4, 8\), .*q_proj.weight \(60, 64\)"):
        load_model(folder)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_every_place_is_found(tmp_path, flat, single):
    whole = random_whole()
    root = write_release(tmp_path / "anole", whole, flat=flat, single=single)
    expected = logits(load_model(root))
    if not flat:
        for path in ("models", "models/7b"):
            vlm = load_model(root / path)
            assert torch.equal(logits(vlm), expected)
            assert base_id_of(root / path) == base_id_of(root) == vlm.base_id
        # Anole's release has a config.json of its own beside params.json
        (root / "models/7b/config.json").write_text('{"model_type": "something else"}')
        assert torch.equal(logits(load_model(root / "models/7b")), expected)
        assert is_model_folder(root) and is_model_folder(root / "models/7b") and not is_model_folder(root / "tokenizer")
        write_release(root, whole, size="30b")
        with pytest.raises(InputError, match=r"holds 2 models; give one of .*30b, .*7b"):
            load_model(root)


def test_the_buffer_that_anoles_converter_leaves_empty(tmp_path):
    whole = random_whole()
    write_release(tmp_path, whole)
    expected = logits(load_model(tmp_path))
    file = tmp_path / "models/7b/consolidated.pth"
    torch.save(part_of(whole, 0) | {"rope.freqs": None}, file)
    assert torch.equal(logits(load_model(tmp_path)), expected)
    torch.save({"model": part_of(whole, 0)}, file)
    assert torch.equal(logits(load_model(tmp_path)), expected)
    torch.save(part_of(whole, 0), file, _use_new_zipfile_serialization=False)
    assert torch.equal(logits(load_model(tmp_path)), expected)


def test_norms_that_drifted_apart_between_parts_are_averaged(tmp_path):
    whole = random_whole(parts=2)
    write_release(tmp_path, whole)
    file = tmp_path / "models/7b/consolidated.01.pth"
    second = part_of(whole, 1)
    second["norm.weight"] += 0.5
    torch.save(second, file)
    whole.tensors["norm.weight"] = whole.tensors["norm.weight"] + 0.25
    torch.testing.assert_close(load_model(tmp_path).inner.model.norm.weight.data, whole.tensors["norm.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_hugging_face_copy_has_the_same_identity(tmp_path, dtype):
    original = write_release(tmp_path / "original", random_whole(parts=2, dtype=dtype))
    vlm = load_model(original, dtype=dtype)
    assert next(vlm.inner.parameters()).dtype == dtype
    manifest = save_model(vlm, tmp_path / "copy", kind="base")
    again = load_model(tmp_path / "copy", dtype=dtype)
    assert manifest.base_id == vlm.base_id == base_id_of(original) == again.base_id
    assert manifest.codec_id == vlm.codec_id == again.codec_id
    assert torch.equal(logits(again), logits(vlm))
    assert read_manifest(tmp_path / "copy").decoder_id.startswith("vqd-")


def test_an_adapter_moves_between_the_layouts(tmp_path):
    from peft import LoraConfig, get_peft_model

    original = write_release(tmp_path / "original", random_whole())
    save_model(load_model(original), tmp_path / "copy", kind="base")
    vlm = load_model(original)
    targets = r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
    vlm.module = get_peft_model(vlm.module, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
    save_model(vlm, tmp_path / "adapter", task="fdm")
    expected = logits(vlm)
    assert torch.equal(logits(load_model(tmp_path / "adapter")), expected)
    assert torch.equal(logits(load_model(tmp_path / "adapter", base=tmp_path / "copy")), expected)
    assert torch.equal(logits(load_model(tmp_path / "adapter", base=original / "models/7b")), expected)


def test_loading_leaves_the_random_generator_alone(tmp_path):
    write_release(tmp_path, random_whole())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_model(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_image_tokens_are_mapped_by_name_as_in_transformers(tmp_path):
    write_release(tmp_path, random_whole())
    vlm = load_model(tmp_path)
    words = vocabulary()
    words["<image>"] = words.pop("<reserved08707>")
    assert vlm.inner.config.vocabulary_map == words == vlm.tokenizer.get_vocab()
    assert vlm.inner.config.image_token_id == words["<image>"]
    mapping = ChameleonImageVocabularyMapping(words)
    assert torch.equal(vlm.image_rows, mapping.convert_img2bpe(torch.arange(NUM_CODES)).long())
    shuffled = dict(zip(words, torch.randperm(len(words)).tolist(), strict=True))
    mapping = ChameleonImageVocabularyMapping(shuffled)
    assert torch.equal(image_rows_of(shuffled, NUM_CODES), mapping.convert_img2bpe(torch.arange(NUM_CODES)).long())
    assert (vlm.boi_id, vlm.eoi_id, vlm.bos_id, vlm.pad_id, vlm.eos_id) == (21, 20, 0, 1, 2)
    assert vlm.tokenize_action("Put the red cup") == [words[word] for word in ("put", "the", "red", "cup")]


def test_half_split_and_back():
    weight = torch.arange(16 * 3).reshape(16, 3)
    assert torch.equal(interleaved(half_split(weight, 2), 2), weight)
    assert half_split(weight, 2)[:, 0].div(3, rounding_mode="floor").tolist() == [
        *(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
    ]


@pytest.mark.parametrize(
    ("sizes", "params"),
    [
        ("7B", {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.0}),
        ("34B", {"dim": 8192, "n_layers": 48, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 4096}),
    ],
)
def test_the_released_sizes(tmp_path, sizes, params):
    folder = tmp_path / "models/x"
    folder.mkdir(parents=True)
    parts = 1 if sizes == "7B" else 4
    values = {"vocab_size": 65_536, "qk_normalization": True, "swin_norm": sizes == "34B", "norm_eps": 1e-5}
    if sizes == "34B":
        values["ffn_dim_multiplier"] = 1.0
    (folder / "params.json").write_text(json.dumps({"model_parallel_size": 8, "model": values | params}))
    (folder / "consolidate_params.json").write_text(json.dumps({"model_parallel_size": parts}))
    for rank in range(parts):
        (folder / f"consolidated.{rank:02d}.pth").write_bytes(b"x")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/text_tokenizer.json").write_text("{}")
    config = read_config(find_release(tmp_path), {"<s>": 0}, ChameleonVQVAEConfig())
    expected = {"7B": (4096, 11008, 32, 32, False, 1), "34B": (8192, 24576, 64, 8, True, 4)}[sizes]
    assert expected == (
        *(config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads),
        *(config.swin_norm, config.model_parallel_size),
    )
    back = params_of(config, parts)["model"]
    assert mlp_size(back["dim"], back["ffn_dim_multiplier"], back["multiple_of"]) == config.intermediate_size
