"""Writing the original layout: read back to the last bit, by us and by the transformer written out."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch
import yaml

from tests.helpers.models_release import PlainVqgan, Sizes, Whole, original_logits, random_whole, write_release
from wm.errors import InputError
from wm.models import load_codec, load_model, save_model
from wm.models.original_save import save_original
from wm.nano.preset import TINY, TINY_WORDS, write_random_base

IDS = [0, 21, 4, 5, 6, 19, 20, 24, 25, 9]


def logits(vlm):
    with torch.no_grad():
        return vlm.head(vlm.body(torch.tensor([IDS])))[0]


def rebuilt(folder, sizes, parts):
    """The written files as one model, for the reference."""
    files = [
        torch.load(folder / f"models/7b/consolidated{'' if parts == 1 else f'.{rank:02d}'}.pth", weights_only=True)
        for rank in range(parts)
    ]
    tensors = {}
    for name in files[0]:
        pieces = [file[name] for file in files]
        if "normalization" in name:
            tensors[name] = torch.stack(pieces)
        elif name.endswith(("wo.weight", "w2.weight", "tok_embeddings.weight")):
            tensors[name] = torch.cat(pieces, 1)
        else:
            tensors[name] = pieces[0] if "norm" in name else torch.cat(pieces)
    return Whole(sizes, parts, tensors)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_what_was_read_is_written_again(tmp_path, parts):
    sizes = Sizes(heads=8, kv_heads=4, dim=64, mlp=96, swin=True, theta=50_000.0)
    whole = random_whole(sizes, parts)
    vlm = load_model(write_release(tmp_path / "first", whole))
    save_original(vlm, tmp_path / "second", parts=parts)
    again = load_model(tmp_path / "second")
    assert torch.equal(logits(again), logits(vlm))
    assert (again.base_id, again.codec_id) == (vlm.base_id, vlm.codec_id)
    assert load_codec(tmp_path / "second").decoder_id == load_codec(tmp_path / "first").decoder_id
    copy = rebuilt(tmp_path / "second", sizes, parts)
    assert copy.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(copy.tensors[name], tensor) for name, tensor in whole.tensors.items())
    words = [
        json.loads((tmp_path / name / "tokenizer/text_tokenizer.json").read_text()) for name in ("first", "second")
    ]
    assert words[0]["model"]["vocab"] == words[1]["model"]["vocab"]
    assert {token["content"] for token in words[1]["added_tokens"]} >= {"<reserved08707>", "<racm3:break>"}


def test_checksums_are_those_of_the_files(tmp_path):
    save_original(load_model(write_release(tmp_path / "first", random_whole())), tmp_path / "second")
    for folder in ("models/7b", "tokenizer"):
        lines = (tmp_path / "second" / folder / "checklist.chk").read_text().split()
        sums = dict(zip(lines[1::2], lines[::2], strict=True))
        names = {file.name for file in (tmp_path / "second" / folder).iterdir()} - {"checklist.chk"}
        assert sums.keys() == names
        for name in names:
            data = (tmp_path / "second" / folder / name).read_bytes()
            assert sums[name] == hashlib.md5(data).hexdigest()


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A base of ours with tied embeddings, 40 words and the released codec's kind of norm."""
    preset = dataclasses.replace(TINY, local_codes=False, codec_attention=True)
    folder = tmp_path_factory.mktemp("nano") / "base"
    return write_random_base(folder, preset=preset, words=TINY_WORDS[:16])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_base_of_ours_in_the_original_layout(nano, tmp_path, parts):
    save_original(nano, tmp_path / "out", parts=parts)
    vlm = load_model(tmp_path / "out")
    assert torch.equal(logits(vlm), logits(nano))
    sizes = Sizes(dim=32, heads=2, kv_heads=2, mlp=48)
    expected = original_logits(rebuilt(tmp_path / "out", sizes, parts), IDS)
    torch.testing.assert_close(logits(nano).double(), expected, atol=1e-5, rtol=1e-5)
    assert vlm.codec_id == nano.codec_id
    assert vlm.tokenize_action("Put the cup") == nano.tokenize_action("put the cup")
    assert vlm.tokenizer.get_vocab() == nano.tokenizer.get_vocab()


def test_the_codecs_pixel_scale_is_kept(tmp_path):
    original = write_release(tmp_path / "first", random_whole())
    copy = tmp_path / "copy"
    save_model(load_model(original), copy, kind="base")
    values = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(values | {"rescale_factor": 0.0078}))
    (copy / "wm_model.json").unlink()
    save_original(load_model(copy), tmp_path / "second")
    assert load_codec(tmp_path / "second").codec_id == load_codec(copy).codec_id != load_codec(original).codec_id


def test_the_written_codec_is_the_references(nano, tmp_path):
    save_original(nano, tmp_path / "out")
    state = torch.load(tmp_path / "out/tokenizer/vqgan.ckpt", weights_only=True)["state_dict"]
    codec = load_codec(tmp_path / "out")
    assert torch.equal(codec.vqgan.quantize.embedding.weight, state["quantize.embedding.weight"])
    ddconfig = yaml.safe_load((tmp_path / "out/tokenizer/vqgan.yaml").read_text())["model"]["params"]["ddconfig"]
    assert (ddconfig["ch"], ddconfig["ch_mult"], ddconfig["z_channels"]) == (32, [1, 1, 1, 1], 64)
    release = write_release(tmp_path / "release", random_whole())
    save_original(load_model(release), tmp_path / "again")
    state = torch.load(tmp_path / "again/tokenizer/vqgan.ckpt", weights_only=True)["state_dict"]
    pixels = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    plain = PlainVqgan(state)
    assert torch.equal(load_codec(release).encode(pixels), plain.codes(plain.features(pixels)))


def test_what_the_layout_cannot_hold(nano, tiny_base, tmp_path):
    from peft import LoraConfig, get_peft_model

    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"parts is 3, expected a divisor of num_key_value_heads 2"):
        save_original(nano, out, parts=3)
    with pytest.raises(InputError, match=r"parts is 0, expected a divisor"):
        save_original(nano, out, parts=0)
    with pytest.raises(InputError, match=r"knows group norm only"):
        save_original(load_model(tiny_base), out)
    with pytest.raises(InputError, match=r"was made with image codec"):
        save_original(nano, out, codec=load_codec(tiny_base))
    vlm = load_model(nano.folder)
    norm = vlm.inner.model.layers[1].self_attn.k_norm.bias
    norm.data[1] += 1
    with pytest.raises(InputError, match=r"layers.1.self_attn.k_norm.bias differs between heads"):
        save_original(vlm, out)
    save_original(vlm, out, parts=2)
    assert torch.equal(logits(load_model(out)), logits(vlm))
    vlm.module = get_peft_model(vlm.module, LoraConfig(r=2, target_modules=r".*\.layers\.\d+\..*(q|v)_proj"))
    with pytest.raises(InputError, match=r"holds no adapter; merge it first"):
        save_original(vlm, tmp_path / "adapted")
    blind = load_model(nano.folder)
    codec = load_codec(nano.folder)
    codec.has_decoder = False
    with pytest.raises(InputError, match=r"the codec has no decoder, which vqgan.ckpt holds"):
        save_original(blind, out, codec=codec)
    blind.folder = None
    with pytest.raises(InputError, match=r"give the codec"):
        save_original(blind, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
