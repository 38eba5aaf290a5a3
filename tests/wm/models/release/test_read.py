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
    convert,
    logits,
    original_logits,
    part_of,
    random_model,
    random_vqgan,
    transformers_names,
    vocabulary,
    write_release,
)
from wm.errors import InputError
from wm.models import load_model, save_model
from wm.models.families.chameleon import half_split, image_token_code
from wm.models.release.convert import plan_conversion
from wm.models.release.read import find_release, read_config
from wm.models.vocabulary import code_rows

PLAIN = Sizes()


GROUPED = Sizes(heads=8, kv_heads=4, dim=64, mlp=96, swin=True, theta=50_000.0)


def as_transformers_folder(original, source, folder):
    """The same weights in a folder written by hand in the Hugging Face layout."""
    model = plan_conversion(original).vlm
    folder.mkdir()
    tensors = transformers_names(source) | {f"model.vqmodel.{name}": value for name, value in random_vqgan().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.inner.config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sizes", [PLAIN, GROUPED], ids=["7B-like", "34B-like"])
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_logits_are_those_of_the_original_transformer(tmp_path, sizes, parts, fused):
    source = random_model(sizes, parts)
    release = write_release(tmp_path / "release", source, fused=fused)
    vlm = load_model(convert(release, tmp_path / "hf"), dtype=torch.float64)
    expected = original_logits(source, IDS)
    assert expected.std() > 0.5
    # transformers computes norms and angles in float32, whatever the type of the weights
    torch.testing.assert_close(logits(vlm), expected, atol=2e-5, rtol=2e-5)
    config = vlm.inner.config
    assert (config.swin_norm, config.model_parallel_size) == (sizes.swin, parts)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 16_384 if sizes.swin else 4096)


@pytest.mark.parametrize("sizes", [PLAIN, GROUPED], ids=["7B-like", "34B-like"])
@pytest.mark.parametrize("parts", [1, 2])
def test_converted_and_hand_written_folders_agree_to_the_bit(tmp_path, sizes, parts):
    source = random_model(sizes, parts)
    original = write_release(tmp_path / "original", source)
    folder = as_transformers_folder(original, source, tmp_path / "hf")
    ours, theirs = load_model(convert(original, tmp_path / "converted")), load_model(folder)
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.codec_id != theirs.codec_id  # transformers' pixel scale is another
    module = ChameleonForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        full = module(input_ids=torch.tensor([IDS])).logits[0]
    text = ours.text_rows
    assert torch.equal(full[:, text], logits(ours)[:, text])
    assert (full[:, ours.image_rows] < -1e30).all()  # what makes its own forward useless for drawing


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_folders_of_anoles_training_code_are_reordered(tmp_path, file):
    """transformers' names, but pairs in the original's order and one norm for all heads of queries and keys."""
    sizes = Sizes(heads=8, kv_heads=4, dim=64, mlp=96)
    source = random_model(sizes)
    original = write_release(tmp_path / "original", source)
    folder = as_transformers_folder(original, source, tmp_path / "hf")
    expected = logits(load_model(folder))
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        layer, _, rest = name.removeprefix("model.").partition(".self_attn.")
        if rest.startswith(("q_", "k_")):
            side, kind = rest[0], rest[2:].partition(".")[2]
            if "proj" in rest:
                tensors[name] = source.tensors[f"{layer}.attention.w{side}.weight"]
            else:
                tensors[name] = source.tensors[f"{layer}.attention.{side}_normalization.{kind}"][0].clone()
    (folder / "model.safetensors").unlink()
    save = save_file if file == "model.safetensors" else torch.save
    save(tensors, folder / file)
    vlm = load_model(folder)
    assert torch.equal(logits(vlm), expected)
    torch.testing.assert_close(expected.double(), original_logits(source, IDS), atol=2e-5, rtol=2e-5)
    save_model(vlm, tmp_path / "saved", kind="base")
    assert torch.equal(logits(load_model(tmp_path / "saved")), expected)
    tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(60, 64)
    tensors["model.layers.1.self_attn.k_norm.bias"] = torch.zeros(9)
    save(tensors, folder / file)
    with pytest.raises(InputError, match=r"2 misshapen: .*k_norm.bias \(9,\) not \(4, 8\), .*q_proj.weight \(60, 64\)"):
        load_model(folder)


@pytest.mark.parametrize("single", [False, True])
def test_release_is_found_in_every_place(tmp_path, single):
    source = random_model()
    root = write_release(tmp_path / "anole", source, single=single)
    expected = logits(load_model(convert(root, tmp_path / "root")))
    # Anole's release has a config.json of its own beside params.json
    (root / "models/7b/config.json").write_text('{"model_type": "something else"}')
    for path in ("models", "models/7b"):
        assert torch.equal(logits(load_model(convert(root / path, tmp_path / path))), expected)
    flat = write_release(tmp_path / "flat", source, flat=True, single=single)
    assert torch.equal(logits(load_model(convert(flat, tmp_path / "from-flat"))), expected)
    write_release(root, source, size="30b")
    with pytest.raises(InputError, match=r"holds 2 models; give one of .*30b, .*7b"):
        plan_conversion(root)


def test_empty_rope_buffer_and_older_files_are_read(tmp_path):
    """Anole's converter leaves the buffer empty; other programs wrap the tensors or write torch's older format."""
    source = random_model()
    release = write_release(tmp_path / "release", source)
    expected = logits(load_model(convert(release, tmp_path / "plain")))
    file = release / "models/7b/consolidated.pth"
    torch.save(part_of(source, 0) | {"rope.freqs": None}, file)
    assert torch.equal(logits(load_model(convert(release, tmp_path / "empty"))), expected)
    torch.save({"model": part_of(source, 0)}, file)
    assert torch.equal(logits(load_model(convert(release, tmp_path / "wrapped"))), expected)
    torch.save(part_of(source, 0), file, _use_new_zipfile_serialization=False)
    assert torch.equal(logits(load_model(convert(release, tmp_path / "old"))), expected)


def test_norms_that_differ_between_parts_are_averaged(tmp_path):
    source = random_model(parts=2)
    release = write_release(tmp_path / "release", source)
    file = release / "models/7b/consolidated.01.pth"
    second = part_of(source, 1)
    second["norm.weight"] += 0.5
    torch.save(second, file)
    source.tensors["norm.weight"] = source.tensors["norm.weight"] + 0.25
    norm = load_model(convert(release, tmp_path / "hf")).inner.model.norm.weight.data
    torch.testing.assert_close(norm, source.tensors["norm.weight"])


def test_loading_leaves_the_random_generator_alone(tmp_path):
    release = write_release(tmp_path / "release", random_model())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_model(convert(release, tmp_path / "hf"))
    assert torch.equal(torch.rand(3), expected)


def test_image_tokens_are_mapped_by_name_as_in_transformers(tmp_path):
    vlm = load_model(convert(write_release(tmp_path / "release", random_model()), tmp_path / "hf"))
    words = vocabulary()
    words["<image>"] = words.pop("<reserved08707>")
    assert vlm.inner.config.vocabulary_map == words == vlm.tokenizer.get_vocab()
    assert vlm.inner.config.image_token_id == words["<image>"]
    mapping = ChameleonImageVocabularyMapping(words)
    assert torch.equal(vlm.image_rows, mapping.convert_img2bpe(torch.arange(NUM_CODES)).long())
    shuffled = dict(zip(words, torch.randperm(len(words)).tolist(), strict=True))
    mapping = ChameleonImageVocabularyMapping(shuffled)
    assert torch.equal(
        code_rows(shuffled, NUM_CODES, image_token_code, ""), mapping.convert_img2bpe(torch.arange(NUM_CODES)).long()
    )
    assert (vlm.boi_id, vlm.eoi_id, vlm.bos_id, vlm.pad_id, vlm.eos_id) == (21, 20, 0, 1, 2)
    assert vlm.tokenize_action("Put the red cup") == [words[word] for word in ("put", "the", "red", "cup")]


def test_half_split_puts_even_rows_of_a_head_first():
    weight = torch.arange(16 * 3).reshape(16, 3)
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
