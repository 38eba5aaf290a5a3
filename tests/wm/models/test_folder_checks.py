"""Model folders of others: no code of theirs is run or asked for, and odd sizes and files end in one line each."""

import ast
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations import hub_kernels

from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from tests.helpers.models_folders import copy_of, logits, rewrite, with_adapter
from tests.helpers.models_vlms import WRITERS
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError
from wm.models import base_id_of, load_codec, load_model, save_model, weights
from wm.models import folder_checks as checks
from wm.models.skeleton import load_skeleton

FAMILIES = {"liquid": write_liquid, "emu3": write_emu3, "janus": write_janus}
SETTINGS = "config.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, tiny_base):
    """A folder of each family, and of a model that reads pixels; read only."""
    root = tmp_path_factory.mktemp("pristine")
    for family, write in (FAMILIES | {"llava": WRITERS["llava"]}).items():
        write(root / family)
    plain = copy_of(tiny_base, root, "chameleon")
    (plain / "wm_model.json").unlink()
    return root


@pytest.fixture
def untrusted(monkeypatch, tmp_path):
    """Fails if anything asks on stdin or fetches a kernel; gives the code of a folder that leaves a trace."""

    def refuse(*_, **__):
        raise AssertionError("asked on stdin, or went for a kernel")

    monkeypatch.setattr("builtins.input", refuse)
    for name in ("load_and_register_attn_kernel", "get_kernel"):
        if hasattr(hub_kernels, name):
            monkeypatch.setattr(hub_kernels, name, refuse)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", refuse)
    trace = tmp_path / "trace"
    yield f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Evil: pass\n"
    assert not trace.exists()


def change(file, path, value):
    """Set one value of a JSON file; the file is made if it is not there."""
    values = json.loads(file.read_text()) if file.is_file() else {}
    inside = values
    for key in path[:-1]:
        inside = inside.setdefault(key, {})
    inside[path[-1]] = value
    file.write_text(json.dumps(values))


def refusal(load, folder):
    """The one line that a folder is refused with."""
    with pytest.raises(InputError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


MAP = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoModelForImageTextToText": "evil.Evil"}
CODE = [
    ("config.json", ("auto_map",), MAP),
    ("config.json", ("auto_map",), {"AutoConfig": "owner/name--evil.Evil"}),
    ("config.json", ("custom_pipelines",), {"x": {"impl": "evil.Evil"}}),
    ("generation_config.json", ("custom_generate",), "evil"),
    ("tokenizer_config.json", ("auto_map",), MAP),
    ("tokenizer_config.json", ("auto_map",), ["evil.Evil", "evil.Evil"]),
    ("preprocessor_config.json", ("auto_map",), {"AutoImageProcessor": "evil.Evil", "AutoProcessor": "evil.Evil"}),
    ("processor_config.json", ("auto_map",), {"AutoProcessor": "evil.Evil"}),
    ("processor_config.json", ("image_processor", "auto_map"), {"AutoImageProcessor": "evil.Evil"}),
    ("video_preprocessor_config.json", ("auto_map",), {"AutoVideoProcessor": "evil.Evil"}),
    ("processor_config.json", ("audio_tokenizer",), {"audio_tokenizer_name_or_path": "owner/name"}),
    ("config.json", ("_attn_implementation",), "owner/kernel:run"),
    ("config.json", ("attn_implementation",), {"text_config": "owner/kernel@main"}),
    ("config.json", ("_attn_implementation_internal",), "kernels-community/flash-attn"),
    ("config.json", ("experts_implementation",), "sonicmoe"),
    ("config.json", ("kernel_config",), {"x": "owner/kernel:Layer"}),
    ("config.json", ("quantization_config",), {"quant_method": "finegrained_fp8"}),
    ("config.json", ("transformers_weights",), "../elsewhere.safetensors"),
]


@pytest.mark.parametrize("naming", CODE, ids=lambda naming: f"{naming[0]}-{'.'.join(naming[1])}")
def test_a_folder_that_needs_code_is_refused_by_name(pristine, tmp_path, untrusted, naming):
    file, path, value = naming
    for name, load in (("chameleon", load_model), ("chameleon", load_codec), ("llava", load_vlm_scorer)):
        folder = copy_of(pristine / name, tmp_path, f"{name}-{load.__name__}")
        (folder / "evil.py").write_text(untrusted)
        change(folder / file, path, value)
        message = refusal(load, folder)
        assert message.startswith(f"{folder / file}: {'.'.join(path)}")


@pytest.mark.parametrize("part", ["text_config", "vision_config", "vq_config"])
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "auto_map", "quantization_config"])
def test_parts_of_a_configuration_are_looked_into(pristine, tmp_path, untrusted, part, key):
    folder = copy_of(pristine / "janus", tmp_path)
    change(folder / SETTINGS, (part, key), "owner/kernel" if "attn" in key else {"quant_method": "awq"})
    for load in (load_model, load_codec, load_skeleton, load_vlm_scorer):
        assert f"{folder / SETTINGS}: {part}.{key}" in refusal(load, folder)


def test_a_liquid_folders_codec_is_looked_into(pristine, tmp_path, untrusted):
    folder = copy_of(pristine / "liquid", tmp_path)
    change(folder / "vqgan" / SETTINGS, ("vq_config", "_attn_implementation"), "owner/kernel")
    assert "vq_config._attn_implementation = 'owner/kernel' names a kernel" in refusal(load_model, folder)


def test_code_for_sampling_is_refused(pristine, tmp_path, untrusted):
    for name, load in (("chameleon", load_model), ("llava", load_vlm_scorer)):
        folder = copy_of(pristine / name, tmp_path, name)
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(untrusted)
        assert "custom_generate holds code for sampling" in refusal(load, folder)


def test_unnamed_code_and_plain_choices_are_passed_over(pristine, tmp_path, untrusted):
    folder = copy_of(pristine / "janus", tmp_path)
    (folder / "modeling_evil.py").write_text(untrusted)
    for part in ("text_config", "vision_config"):
        change(folder / SETTINGS, (part, "_attn_implementation"), "flash_attention_2")
    change(folder / SETTINGS, ("_attn_implementation",), "flash_attention_3")
    change(folder / SETTINGS, ("auto_map",), {})
    model = load_model(folder).inner
    assert {model.config._attn_implementation, model.config.text_config._attn_implementation} <= {"sdpa", "eager"}
    llava = copy_of(pristine / "llava", tmp_path, "llava")
    change(llava / SETTINGS, ("_attn_implementation",), "flash_attention_2")
    assert load_vlm_scorer(llava).model.config._attn_implementation in ("sdpa", "eager")


def test_every_reader_of_folders_says_that_no_code_is_trusted():
    root = Path(checks.__file__).parents[2]
    calls = [
        (file, node)
        for package in ("wm", "jobs", "serve_apps")
        for file in sorted((root / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
        and file.name != "adapters.py"  # PEFT's have no such argument, and import nothing
        and (file.name, node.func.attr) != ("pipelines.py", "from_config")  # numbers of a scheduler of diffusers' own
    ]
    assert len(calls) >= 8
    for file, node in calls:
        trust = [keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"]
        assert trust and isinstance(trust[0], ast.Constant) and trust[0].value is False, f"{file}:{node.lineno}"


@pytest.fixture
def adapter(tiny_base, tmp_path):
    vlm = with_adapter(load_model(tiny_base))
    save_model(vlm, tmp_path / "adapter", task="idm")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("auto_map", MAP, "auto_map = .* names code of the folder's own"),
        ("auto_mapping", {"base_model_class": "Evil", "parent_library": "evil"}, "auto_mapping = 'evil' names code"),
        ("megatron_core", "evil.core", "megatron_core = 'evil.core' asks for Megatron's layers"),
        ("megatron_config", {"x": 1}, "asks for Megatron's layers"),
        ("peft_type", "XLORA", "is XLORA, which loads other adapters by name"),
        ("peft_type", "PROMPT_TUNING", "is PROMPT_TUNING: expected one of weights"),
        ("peft_type", "EVIL", "peft_type is 'EVIL', which PEFT does not know"),
        ("peft_type", None, "peft_type is None, which PEFT does not know"),
        ("peft_type", ["LORA"], r"peft_type is \['LORA'\], which PEFT does not know"),
        ("r", 10**9, "rank 1000000000 fits no tensor of the adapter"),
        ("r", "2", "rank '2' fits no tensor"),
        ("r", -1, "rank -1 fits no tensor"),
        ("rank_pattern", {"q_proj": 10**8}, "rank 100000000 fits no tensor"),
        ("r", 3, "does not fit its base"),
        ("target_modules", "(", "adapter .* does not fit its base"),
        ("target_modules", 7, "does not fit its base|is no configuration of LORA"),
        ("lora_alpha", "much", "does not fit its base"),
        ("layers_to_transform", 10**12, "layers_to_transform is 1000000000000"),
    ],
)
def test_odd_adapters_are_refused_in_one_line(adapter, untrusted, key, value, message):
    change(adapter / "adapter_config.json", (key,), value)
    with pytest.raises(InputError, match=message):
        load_model(adapter)


@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3", "janus"])
def test_sizes_that_cannot_be_are_refused_before_building(pristine, tmp_path, monkeypatch, family):
    folder = copy_of(pristine / family, tmp_path)
    table_path = ("text_config",) if family in ("emu3", "janus") else ()
    original = (folder / SETTINGS).read_text()

    def build(*_, **__):
        raise AssertionError("a model was built")

    monkeypatch.setattr(torch.nn.Linear, "__init__", build)
    for key, value, expected in (
        ("num_hidden_layers", 10**6, "expected 0 to 1,024"),
        ("num_hidden_layers", -1, "expected 0 to 1,024"),
        ("vocab_size", 10**12, "expected 0 to 4,194,304"),
        ("hidden_size", 10**12, "expected a whole number of at most"),
        ("hidden_size", 0, "expected a positive whole number"),
        ("num_attention_heads", 0, "expected a positive whole number"),
        ("rms_norm_eps", float("inf"), "expected a finite number"),
        ("rms_norm_eps", float("nan"), "it holds NaN"),
        ("made_up", [0] * 70_000, "has 70,000 entries"),
    ):
        change(folder / SETTINGS, (*table_path, key), value)
        for load in (load_model, load_skeleton):
            message = refusal(load, folder)
            assert expected in message and SETTINGS in message, key
        (folder / SETTINGS).write_text(original)


ODD = [
    *((key, value) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads") for value in ("8", 3, 1.5)),
    *(("num_hidden_layers", value) for value in (0, 1, 1000, None, [2], "2")),
    *(("vocab_size", value) for value in (1, 2_000_000, None)),
    *(("rope_parameters", value) for value in ({}, {"rope_type": "evil"}, {"rope_theta": "x"}, [], 7)),
    ("intermediate_size", 2**31),
    ("head_dim", 0),
    ("max_position_embeddings", "long"),
    ("pad_token_id", 10**9),
    ("hidden_act", "evil"),
    ("tie_word_embeddings", "yes"),
    ("torch_dtype", "evil"),
    ("attention_bias", {}),
]


@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3", "janus"])
def test_odd_values_end_in_a_model_or_in_one_line(pristine, tmp_path, family):
    folder = copy_of(pristine / family, tmp_path)
    table_path = ("text_config",) if family in ("emu3", "janus") else ()
    original, refused = (folder / SETTINGS).read_text(), 0
    for key, value in ODD:
        change(folder / SETTINGS, (*table_path, key), value)
        try:
            load_model(folder)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        (folder / SETTINGS).write_text(original)
    assert refused > len(ODD) // 2


VQ_ODD = [
    *(("channel_multiplier", value) for value in ([], [0], [1] * 40, "1", [1, 10**6], None)),
    *(("num_res_blocks", value) for value in (-1, 10**6, "1", None)),
    *(("base_channels", value) for value in (0, 33, 10**9, None)),
    *((key, value) for key in ("num_embeddings", "codebook_size") for value in (0, -1, 10**7, "16")),
    *((key, value) for key in ("resolution", "embed_dim", "latent_channels") for value in (0, -8, 10**6, 2.5)),
]


@pytest.mark.parametrize("family", ["chameleon", "emu3", "janus"])
def test_odd_codecs_end_in_a_codec_or_in_one_line(pristine, tmp_path, family):
    folder = copy_of(pristine / family, tmp_path)
    original, refused = (folder / SETTINGS).read_text(), 0
    for key, value in VQ_ODD:
        change(folder / SETTINGS, ("vq_config", key), value)
        try:
            load_codec(folder)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        (folder / SETTINGS).write_text(original)
    assert refused > len(VQ_ODD) // 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("rescale_factor", "x"), ("image_mean", {}), ("image_mean", []), ("image_std", [0, 0, 0]), ("image_std", ["1"])],
)
def test_odd_scales_of_pixels_are_refused(pristine, tmp_path, key, value):
    folder = copy_of(pristine / "chameleon", tmp_path)
    change(folder / "preprocessor_config.json", (key,), value)
    assert "preprocessor_config.json: " in refusal(load_codec, folder)


@pytest.mark.parametrize("value", ["64", 0, -64, 63, 10**12, None, [64]])
def test_odd_sizes_of_emu3s_images_are_refused(pristine, tmp_path, value):
    folder = copy_of(pristine / "emu3", tmp_path)
    change(folder / "preprocessor_config.json", ("min_pixels",), value)
    assert "min_pixels is " in refusal(load_codec, folder)


DAMAGE = {
    "empty": b"",
    "a list": b"[1]",
    "a number": b"7",
    "no UTF-8": b'{"model_type": "\xff\xfe"}',
    "NaN": b'{"model_type": "chameleon", "x": NaN}',
    "nested": b'{"x": ' * 100_000 + b"1" + b"}" * 100_000,
    "nested a little": b'{"x": ' * 300 + b"1" + b"}" * 300,
    "a long number": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
    "a type that is none": b'{"model_type": ["chameleon"]}',
    "null": b'{"model_type": null}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_configurations_are_told_in_one_line(pristine, tmp_path, damage):
    for name, load in (("chameleon", load_model), ("chameleon", load_codec), ("llava", load_vlm_scorer)):
        folder = copy_of(pristine / name, tmp_path, f"{name}-{load.__name__}")
        (folder / SETTINGS).write_bytes(DAMAGE[damage])
        assert str(folder) in refusal(load, folder)


def test_files_that_are_none_are_told(pristine, tmp_path, monkeypatch):
    folder = copy_of(pristine / "chameleon", tmp_path)
    settings = folder / SETTINGS
    settings.unlink()
    os.mkfifo(settings)  # reading it would wait for ever
    assert "config.json is no file" in refusal(load_model, folder)
    settings.unlink()
    settings.mkdir()
    assert "config.json is no file" in refusal(load_model, folder)
    settings.rmdir()
    settings.symlink_to(settings)
    assert "no config.json" in refusal(load_model, folder)
    assert "cannot be read" in refusal(load_model, Path("x" * 5000))
    assert "is a file, expected a model folder" in refusal(load_model, pristine / "chameleon" / SETTINGS)
    monkeypatch.setattr(checks, "MAX_JSON_BYTES", 100)
    assert "expected a JSON file of at most 100" in refusal(load_model, pristine / "chameleon")


def write_header(file, header, data=b"", length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "4 bytes in the file, which is not what"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "which is not what"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, "expected whole numbers"),
        ({"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}, "expected whole numbers"),
        ({"dtype": "F32", "shape": [1.0, 2], "data_offsets": [0, 8]}, "expected whole numbers"),
        ({"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}, "has the type 'X9'"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "has the type"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "which is not what|no readable"),
        ({"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}, "no readable safetensors file"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "no readable safetensors file"),
        ({"dtype": "F32", "data_offsets": [0, 8]}, "no readable safetensors file"),
        ([], "no readable safetensors file"),
        ({"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}, "is truncated"),
    ],
)
def test_odd_headers_of_weights_are_refused(pristine, tmp_path, entry, message):
    folder = copy_of(pristine / "chameleon", tmp_path)
    write_header(folder / "model.safetensors", {"model.vqmodel.x": entry}, bytes(8))
    for load in (load_model, load_codec, base_id_of):
        with pytest.raises(InputError, match=message):
            load(folder)


def test_headers_that_are_none_are_refused(pristine, tmp_path, monkeypatch):
    folder = copy_of(pristine / "chameleon", tmp_path)
    file = folder / "model.safetensors"
    for header in (b"[]", b"{ ", b"\xff\xff", b'{"x":' * 50_000 + b"1" + b"}" * 50_000):
        write_header(file, header)
        assert "model.safetensors is no readable safetensors file" in refusal(load_model, folder)
    write_header(file, b"{}", length=2**40)
    assert "is no complete safetensors file" in refusal(load_model, folder)
    monkeypatch.setattr(weights, "MAX_HEADER_BYTES", 10)
    write_header(file, b" " * 20)
    assert "its header has 20 bytes, expected at most 10" in refusal(load_model, folder)


@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3", "janus"])
def test_weights_of_another_type_amount_or_name_are_refused(pristine, tmp_path, family):
    folder = copy_of(pristine / family, tmp_path)
    original = load_file(folder / "model.safetensors")
    norm = next(name for name in original if name.endswith("input_layernorm.weight"))
    for odd, message in (
        (
            {norm: original[norm].to(torch.int64)},
            r"1 tensors are not stored as numbers of .*layers.0.input_layernorm.weight \(I64\)",
        ),
        ({norm: original[norm][:-1].clone()}, "1 misshapen"),
        ({"model.evil.weight": torch.zeros(3)}, "1 extra: model.evil.weight"),
    ):
        rewrite(folder, lambda tensors, odd=odd: tensors.update(odd))
        with pytest.raises(InputError, match=message):
            load_model(folder)
        save_file(original, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder)


def test_janus_eyes_that_are_too_large_are_not_built(pristine, tmp_path):
    """They are left on disk, so that their tensors are not compared; their size is."""
    folder = copy_of(pristine / "janus", tmp_path)
    change(folder / SETTINGS, ("vision_config", "hidden_size"), 2**18)
    message = refusal(load_model, folder)
    assert "numbers, but the weights hold" in message


def test_families_read_pickled_tensors_without_running_them(pristine, tmp_path):
    for family in FAMILIES:
        folder = copy_of(pristine / family, tmp_path, family)
        expected = logits_of(load_model(folder))
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        assert torch.equal(logits_of(load_model(folder)), expected)
        torch.save({"lm_head.weight": Path("evil")}, folder / "pytorch_model.bin")
        assert "Python objects besides tensors" in refusal(load_model, folder)


def logits_of(vlm):
    ids = torch.tensor([[vlm.bos_id, vlm.boi_id, int(vlm.image_rows[3]), vlm.eoi_id]])
    with torch.no_grad():
        return vlm.head(vlm.body(ids), vlm.image_rows)


def test_random_numbers_are_where_they_were_after_loading(pristine):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(pristine / "janus")
    assert torch.equal(torch.rand(3), expected)
    assert logits(load_model(pristine / "chameleon")).isfinite().all()
