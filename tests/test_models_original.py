"""Meta's original release of the language model: the same numbers as its own transformer and as transformers'."""

import json
import shutil

import pytest
import torch
from models_release import (
    NUM_CODES,
    Sizes,
    original_logits,
    part_of,
    random_vqgan,
    random_whole,
    tokenizer_json,
    transformers_names,
    vocabulary,
    write_release,
)
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from wm.errors import InputError
from wm.models import base_id_of, is_model_folder, load_model, read_manifest, save_model
from wm.models.chameleon import image_rows_of
from wm.models.original import find_release, mlp_size, read_config
from wm.models.original_save import params_of
from wm.models.original_weights import half_split, interleaved

IDS = [0, 21, 4, 5, 6, 19, 20, 24, 25, 9]
PLAIN = Sizes()
GROUPED = Sizes(heads=8, kv_heads=4, dim=64, mlp=96, swin=True, theta=50_000.0)


def logits(vlm, ids=IDS):
    with torch.no_grad():
        return vlm.head(vlm.body(torch.tensor([ids])))[0]


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


def spoil_params(folder, **changes):
    path = folder / "models/7b/params.json"
    values = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            values["model"].pop(name)
        else:
            values["model"][name] = value
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release") / "original", random_whole(parts=2))


@pytest.fixture
def release(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "copy")


def test_all_unfitting_tensors_of_all_parts_are_one_error(release):
    file = release / "models/7b/consolidated.01.pth"
    part = torch.load(file, weights_only=True)
    del part["layers.1.attention.k_normalization.bias"]
    part["norm.weight"] = torch.zeros(7)
    part["layers.2.ffn_norm.weight"] = torch.zeros(32)
    torch.save(part, file)
    first = release / "models/7b/consolidated.00.pth"
    part = torch.load(first, weights_only=True)
    torch.save({name: value for name, value in part.items() if "attention.w" not in name}, first)
    with pytest.raises(InputError) as error:
        load_model(release)
    message = str(error.value)
    assert "\n" not in message
    for words in (
        "7b: tensors do not fit the configuration; 9 missing: consolidated.00.pth: layers.0.attention.wk.weight "
        "(expected (16, 32))",
        "consolidated.01.pth: layers.1.attention.k_normalization.bias (expected (8,))",
        "1 misshapen: consolidated.01.pth: norm.weight (7,) not (32,)",
        "1 extra: consolidated.01.pth: layers.2.ffn_norm.weight (32,)",
    ):
        assert words in message, message


def test_only_ten_of_each_kind_are_named(release):
    for rank in (0, 1):
        file = release / f"models/7b/consolidated.{rank:02d}.pth"
        part = torch.load(file, weights_only=True)
        torch.save({name: value for name, value in part.items() if "layers" not in name}, file)
    with pytest.raises(InputError, match=r"52 missing: (consolidated[^(]+\(expected \([^)]+\)\), ){10}…$"):
        load_model(release)


def test_missing_and_surplus_files_are_named(release):
    folder = release / "models/7b"
    (folder / "consolidated.01.pth").rename(folder / "aside")
    with pytest.raises(InputError, match=r"7b: consolidated.01.pth not there; params.json promises 2"):
        load_model(release)
    (folder / "aside").rename(folder / "consolidated.01.pth")
    shutil.copy(folder / "consolidated.01.pth", folder / "consolidated.02.pth")
    with pytest.raises(InputError, match=r"holds 3 files consolidated.NN.pth, but .* model_parallel_size is 2"):
        load_model(release)
    (folder / "consolidated.02.pth").unlink()
    for name in ("text_tokenizer.json", "vqgan.yaml", "vqgan.ckpt"):
        (release / "tokenizer" / name).rename(folder / "aside")
        with pytest.raises(InputError, match=rf"no {name} in .*tokenizer"):
            load_model(release)
        (folder / "aside").rename(release / "tokenizer" / name)
    (folder / "params.json").unlink()
    with pytest.raises(InputError, match=r"no params.json in .*7b"):
        load_model(release)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=r"no params.json and consolidated\*.pth in .*copy; expected models/7b"):
        load_model(release)


def test_half_downloaded_and_foreign_files(release):
    file = release / "models/7b/consolidated.01.pth"
    whole = file.read_bytes()
    for data, message in (
        (whole[: len(whole) // 2], r"consolidated.01.pth cannot be read \(\d+ bytes; half downloaded\?\)"),
        (b"", "consolidated.01.pth is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer"),
        (b"<html>not found</html>", "consolidated.01.pth is no file of torch.save: it starts with b'<htm'"),
    ):
        file.write_bytes(data)
        with pytest.raises(InputError, match=message):
            load_model(release)
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="expected a dictionary of tensors, got list"):
        load_model(release)
    torch.save({"norm.weight": "words"}, file)
    with pytest.raises(InputError, match=r"expected tensors only, but 'norm.weight' is a str"):
        load_model(release)


def test_nothing_in_a_file_is_run(release, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    file = release / "models/7b/consolidated.01.pth"
    torch.save({"norm.weight": Trap()}, file)
    with pytest.raises(InputError, match=r"holds Python objects besides tensors, which are never loaded"):
        load_model(release)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "params.json: dim is None, expected a positive whole number"),
        ({"n_heads": 3}, "n_heads 3, .* do not divide evenly"),
        ({"n_layers": 3}, r"26 missing: consolidated.00.pth: layers.2"),
        ({"vocab_size": 44}, r"2 misshapen|4 misshapen"),
        ({"vocab_size": 30}, "vocab_size is 30, but .*text_tokenizer.json numbers its tokens up to 39"),
        ({"qk_normalization": False}, "qk_normalization is false"),
        ({"ffn_dim_multiplier": 1.0}, r"feed_forward.w1.weight \(24, 32\) not \(48, 32\)"),
        ({"norm_eps": "small"}, "norm_eps is 'small', expected a number"),
    ],
)
def test_params_that_do_not_fit(release, changes, message):
    spoil_params(release, **changes)
    with pytest.raises(InputError, match=message):
        load_model(release)


def test_another_familys_checkpoint(release):
    """Llama's has the same files, but no norms of queries and keys."""
    for rank in (0, 1):
        file = release / f"models/7b/consolidated.{rank:02d}.pth"
        part = torch.load(file, weights_only=True)
        torch.save({name: value for name, value in part.items() if "normalization" not in name}, file)
    with pytest.raises(InputError, match=r"16 missing: consolidated.00.pth: layers.0.attention.k_normalization.bias"):
        load_model(release)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("IMGIMGAZ", "IMGIMGKZ", "'IMGIMGKZ' names no code of a codebook of 16"),
        ("IMGIMGAZ", "IMGIMGBGZ", "'IMGIMGBGZ' names no code"),
        ("IMGIMGAZ", "IMGIMGABZ", "two tokens for image code 1"),
        ("IMGIMGAZ", "hello", "no token for 1 image codes, 0 among them"),
        ("<racm3:break>", "<racm4>", "no token '<racm3:break>'"),
    ],
)
def test_vocabularies_that_do_not_fit(release, old, new, message):
    values = tokenizer_json()
    words = values["model"]["vocab"]
    words[new] = words.pop(old)
    for token in values["added_tokens"]:
        if token["content"] == old:
            token["content"] = new
    (release / "tokenizer/text_tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        load_model(release)
    (release / "tokenizer/text_tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match=r"text_tokenizer.json is no tokenizer"):
        load_model(release)


def test_params_may_be_flat(release):
    expected = logits(load_model(release))
    path = release / "models/7b/params.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values.pop("model"), "model_parallel_size": 2, "vocab_size": -1}))
    assert torch.equal(logits(load_model(release)), expected)


@pytest.mark.parametrize(
    "name",
    [
        *("models/7b/params.json", "models/7b/consolidate_params.json", "models/7b/consolidated.00.pth"),
        *("tokenizer/text_tokenizer.json", "tokenizer/vqgan.yaml", "tokenizer/vqgan.ckpt"),
    ],
)
def test_any_damaged_file_is_named_in_one_line(release, name):
    file = release / name
    whole = file.read_bytes()
    middle = len(whole) // 2
    short = b"" if name.endswith("yaml") else whole[:-1]  # a YAML file does without its last line feed
    for data in (whole[:middle], short, b"[]", b"null", b"3", b"\xff\xfe", b"\0" * 50, whole[:9] + whole[99:]):
        file.write_bytes(data)
        with pytest.raises(InputError) as error:
            load_model(release)
        assert file.name in str(error.value) and "\n" not in str(error.value)
