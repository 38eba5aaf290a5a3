"""Model folders: what is saved is loaded, by us and by Hugging Face; what does not fit is refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, ChameleonForConditionalGeneration

from tests.helpers.models_folders import IDS, copy_of, logits, rewrite
from tests.helpers.models_reference import lively, reference_logits
from wm.errors import InputError
from wm.models import (
    base_id_of,
    load_codec,
    load_model,
    pack,
    read_manifest,
    save_model,
)
from wm.models.identity import fingerprint_of
from wm.models.weights import list_tensors
from wm.nano.preset import write_random_base


def test_full_model_round_trip_is_exact(tiny_base, tmp_path):
    vlm = lively(load_model(tiny_base))
    manifest = save_model(vlm, tmp_path / "full", task="fdm", recipe_digest="abc")
    again = load_model(tmp_path / "full")
    assert torch.equal(logits(again), logits(vlm))
    assert manifest == read_manifest(tmp_path / "full")
    assert (manifest.kind, manifest.task, manifest.recipe_digest) == ("full", "fdm", "abc")
    assert manifest.base_id == vlm.base_id != again.base_id
    assert manifest.codec_id == again.codec_id == vlm.codec_id
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    first, second = load_codec(tiny_base), load_codec(tmp_path / "full")
    codes = first.encode(pixels)
    assert torch.equal(codes, second.encode(pixels))
    assert np.array_equal(first.decode(codes), second.decode(codes))


def test_hugging_face_classes_load_our_folder(tiny_base):
    vlm = load_model(tiny_base)
    theirs = ChameleonForConditionalGeneration.from_pretrained(tiny_base).eval()
    with torch.no_grad():
        hidden = theirs.model(input_ids=IDS).last_hidden_state
    assert torch.equal(hidden, vlm.body(IDS).detach())
    assert torch.equal(
        theirs.model.vqmodel.quantize.embedding.weight, load_codec(tiny_base).vqgan.quantize.embedding.weight
    )
    assert AutoConfig.from_pretrained(tiny_base).vocabulary_map == vlm.tokenizer.get_vocab()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    assert tokenizer("Move the cup", add_special_tokens=False)["input_ids"] == vlm.tokenize_action("move the cup")


def test_a_release_without_manifest_is_a_base(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    (folder / "wm_model.json").unlink()
    vlm = load_model(folder)
    assert (vlm.base_id, vlm.action_slot_tokens) == (base_id_of(tiny_base), 0)


def test_the_slot_is_part_of_the_folder(tiny_base, tmp_path):
    vlm = load_model(tiny_base)
    vlm.action_slot_tokens = 5
    save_model(vlm, tmp_path / "slotted", kind="full")
    prompt = {"source": [0, 1, 2, 3], "action": "put"}
    again = load_model(tmp_path / "slotted")
    ids_BT, _, _ = pack([again.layout("fdm", **prompt)], again.pad_id)
    assert ids_BT[0, 7:].tolist() == [*again.tokenize_action("put"), *[again.pad_id] * 4, again.boi_id]


def test_without_decoder_it_encodes_and_says_why_it_cannot_draw(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)

    def drop(tensors):
        for name in [name for name in tensors if ".decoder." in name]:
            del tensors[name]

    rewrite(folder, drop)
    codec = load_codec(folder)
    complete = load_codec(tiny_base)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert codec.codec_id == complete.codec_id
    assert torch.equal(codec.encode(pixels), complete.encode(pixels))
    with pytest.raises(InputError, match=rf"{folder} holds no model.vqmodel.decoder"):
        codec.decode(complete.encode(pixels))
    vlm = load_model(folder)
    save_model(vlm, tmp_path / "again", kind="full")
    assert not load_codec(tmp_path / "again").has_decoder


def test_missing_misshapen_and_extra_tensors_are_listed(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)

    def spoil(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.norm.weight"] = torch.zeros(7)
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(48, 32)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # older versions wrote it

    rewrite(folder, spoil)
    (folder / "wm_model.json").unlink()
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert str(error.value) == (
        f"{folder}: tensors do not fit the configuration; "
        "1 missing: model.layers.1.mlp.up_proj.weight (expected (48, 32)); "
        "1 misshapen: model.norm.weight (7,) not (32,); "
        "1 extra: model.layers.2.mlp.up_proj.weight (48, 32)"
    )
    rewrite(folder, lambda tensors: tensors.pop("model.vqmodel.quant_conv.bias"))
    with pytest.raises(InputError, match=r"1 missing: model.vqmodel.quant_conv.bias \(expected \(8,\)\)"):
        load_codec(folder)


def test_damaged_and_absent_files_are_named(tiny_base, tmp_path):
    with pytest.raises(InputError, match=r"no such model folder: .*nowhere"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config.json in .*empty"):
        load_model(tmp_path / "empty")
    folder = copy_of(tiny_base, tmp_path)
    complete = (folder / "model.safetensors").read_bytes()
    for data, message in (
        (complete[: len(complete) // 2], "truncated"),
        (b"", "model.safetensors is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        (b"x" * 99, "no complete"),
    ):
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(InputError, match=message):
            load_codec(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no config.json in .*empty"):
        load_model(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no weights in .*copy: expected one of model.safetensors"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"pytorch_model.bin is no file of torch.save"):
        load_model(folder)
    torch.save({"model.norm.weight": np.random.default_rng(0)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin holds Python objects besides tensors"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is no readable JSON"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"model_type is 'llama'; supported: chameleon, .*, which have image codes"):
        load_model(folder)


def test_shards_are_the_same_model(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[part::2]}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names[part::2], file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert base_id_of(folder) == base_id_of(tiny_base)
    assert load_codec(folder).codec_id == load_codec(tiny_base).codec_id
    assert torch.equal(logits(load_model(folder)), logits(load_model(tiny_base)))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"files that are not there: model-00002-of-00002"):
        load_model(folder)


def test_indices_that_promise_too_much(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    names = list(list_tensors(folder))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    for weight_map, message in (
        (dict.fromkeys(names, f"../{folder.name}/part.safetensors"), r"index.json names '../copy/part.safetensors'"),
        (["part.safetensors"], r"expected a weight_map from tensor names to file names"),
        ({}, r"files that are not there: none at all"),
        (dict.fromkeys(names, 3), r"expected a weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=message):
            load_model(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    assert torch.equal(logits(load_model(folder)), logits(load_model(tiny_base)))


@pytest.mark.parametrize("shards", [1, 2])
def test_bin_files_are_the_same_model(tiny_base, tmp_path, shards):
    folder = copy_of(tiny_base, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"pytorch_model-{part + 1:05d}-of-{shards:05d}.bin" for part in range(shards)]
    if shards == 1:
        files = ["pytorch_model.bin"]
    else:
        weight_map = {name: files[position % shards] for position, name in enumerate(names)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for part, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[part::shards]}, folder / file)
    ours, complete = load_model(folder), load_model(tiny_base)
    assert torch.equal(logits(ours), logits(complete))
    assert base_id_of(folder) == base_id_of(tiny_base) == ours.base_id
    assert (ours.codec_id, load_codec(folder).decoder_id) == (complete.codec_id, load_codec(tiny_base).decoder_id)
    data = (folder / files[-1]).read_bytes()
    (folder / files[-1]).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"{files[-1]} cannot be read \(\d+ bytes; half downloaded\?\)"):
        load_model(folder)
    (folder / files[-1]).unlink()
    with pytest.raises(InputError, match="names files that are not there" if shards > 1 else "no weights in"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 50}, r"1 misshapen: model.embed_tokens.weight \(\d\d, 32\) not \(50, 32\)"),
        ({"hidden_size": "wide"}, r"config.json is no ChameleonConfig"),
        ({"swin_norm": 3}, r"config.json is no ChameleonConfig"),
        ({"vq_config": {"num_embeddings": "many"}}, r"vq_config is no configuration of a VQGAN"),
        ({"vq_config": {}}, r"\d+ missing: model.vqmodel.decoder"),
    ],
)
def test_configurations_that_do_not_fit(tiny_base, tmp_path, changes, message):
    folder = copy_of(tiny_base, tmp_path)
    (folder / "wm_model.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_refused(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    words = json.loads((folder / "config.json").read_text())["vocabulary_map"]
    swapped = words | {"cup": words["block"], "block": words["cup"]}
    for change, message in (
        (swapped, r"tokenizer and vocabulary_map number 2 tokens differently \('block': \d+ and \d+\)"),
        (words | {"cup": 99}, r"the vocabulary numbers 'cup' 99, but the model has \d+ rows"),
    ):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocabulary_map": change}))
        (folder / "wm_model.json").unlink(missing_ok=True)
        with pytest.raises(InputError, match=message):
            load_model(folder)


def test_tied_weights_that_differ_are_refused(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    (folder / "wm_model.json").unlink()
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding.clone()}))
    assert torch.equal(logits(load_model(folder)), logits(load_model(tiny_base)))
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": embedding + 1}))
    with pytest.raises(InputError, match=r"config.json ties lm_head.weight to the embeddings, but the file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [("tokenizer.json", text) for text in ('{"version"', "3", '{"model": null}', '{"added_tokens": 3}', "[]")]
    + [("tokenizer_config.json", text) for text in ('{"bos', "3", "[]")],
)
def test_damaged_tokenizers_are_told(tiny_base, tmp_path, file, text):
    folder = copy_of(tiny_base, tmp_path)
    (folder / file).write_text(text)
    damaged = r"the tokenizer \(tokenizer.json, …\) cannot be read"
    if file == "tokenizer_config.json":
        damaged = r"tokenizer_config.json(: expected a JSON object| is no readable JSON)"
    with pytest.raises(InputError, match=damaged):
        load_model(folder)


def swin(folder, tmp_path):
    """The folder's model with the norms after attention and feed-forward, as in the 34B release."""
    out = copy_of(folder, tmp_path, "swin")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"swin_norm": True, "model_parallel_size": 2}))
    (out / "wm_model.json").unlink()
    return out


def test_swin_norm_is_the_references(tiny_base, tmp_path):
    vlm = lively(load_model(swin(tiny_base, tmp_path)))
    ids = IDS[0].tolist()
    expected = reference_logits(vlm, ids)
    torch.testing.assert_close(logits(vlm)[0].double(), expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(expected, reference_logits(lively(load_model(tiny_base)), ids), atol=1e-2)
    save_model(vlm, tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved")), logits(vlm))


def test_fingerprint_changes_with_a_weight_and_not_a_version(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    before = base_id_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}))
    assert base_id_of(folder) == before
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    assert base_id_of(folder) != before
    with pytest.raises(InputError, match=rf"names base {before}, but the weights are {base_id_of(folder)}"):
        load_model(folder)


def test_large_tensors_are_sampled_to_their_last_byte(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    tensor = torch.zeros(600_000)
    ids = set()
    for position in (None, 0, 599_999):
        changed = tensor.clone()
        if position is not None:
            changed[position] = 1
        save_file({"w": changed}, tmp_path / "model.safetensors")
        ids.add(fingerprint_of(json.loads((tmp_path / "config.json").read_text()), list_tensors(tmp_path)))
    assert len(ids) == 3
    assert list_tensors(tmp_path)["w"].shape == (600_000,)


def test_a_base_under_a_retrained_codec_is_refused(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    rewrite(folder, lambda tensors: tensors["model.vqmodel.quantize.embedding.weight"].add_(1))
    with pytest.raises(InputError, match=r"was made with image codec vq-.*, but the codec here is vq-"):
        load_model(folder)


def test_manifest_is_strict(tiny_base, tmp_path):
    folder = copy_of(tiny_base, tmp_path)
    manifest = json.loads((folder / "wm_model.json").read_text())
    (folder / "wm_model.json").write_text(json.dumps(manifest | {"colour": "red"}))
    with pytest.raises(InputError, match=r"wm_model.json: unknown key 'colour'"):
        load_model(folder)


def test_a_failed_save_leaves_what_was_there(tiny_base, tmp_path, monkeypatch):
    vlm = load_model(tiny_base)
    save_model(vlm, tmp_path / "model", task="idm")

    def full_disk(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vlm.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(vlm, tmp_path / "model", task="fdm")
    assert read_manifest(tmp_path / "model").task == "idm"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    monkeypatch.undo()
    save_model(vlm, tmp_path / "model", task="fdm")
    assert read_manifest(tmp_path / "model").task == "fdm"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_saved(tiny_base, tmp_path):
    vlm = load_model(tiny_base)
    with pytest.raises(InputError, match="kind='adapter', but the model has no adapter"):
        save_model(vlm, tmp_path / "x", kind="adapter")
    write_random_base(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"was made with image codec"):
        save_model(vlm, tmp_path / "x", codec=load_codec(tmp_path / "other"))
    assert not (tmp_path / "x").exists()


def test_the_same_seed_gives_the_same_base(tiny_base, tmp_path):
    assert write_random_base(tmp_path / "same", seed=0).base_id == base_id_of(tiny_base)


def test_run_folder_is_taken_for_its_model_folder(tmp_path: Path, tiny_base: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_base, run / "model")
    (run / "run.json").write_text("{}")
    assert load_model(run).base_id == load_model(tiny_base).base_id == base_id_of(run)
    assert load_codec(run).codec_id == load_codec(tiny_base).codec_id
    assert read_manifest(run) == read_manifest(tiny_base) is not None
