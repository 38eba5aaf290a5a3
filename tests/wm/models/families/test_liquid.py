"""Liquid against transformers' Gemma and Chameleon's VQGAN, and what its errors say."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GemmaForCausalLM

from tests.helpers.code_calls import verify
from tests.helpers.models_families import (
    ACTION,
    SOURCE,
    TARGET,
    greedy_by_hand,
    liquid_tokenizer,
    tiny_codec,
    write_liquid,
)
from tests.helpers.models_release import random_model, write_release
from wm.dynamics import Sampling, propose_actions, sample_observations, score_actions, score_observations
from wm.errors import InputError
from wm.models import flatten, load_codec, load_model, pack, save_model


@pytest.fixture(scope="module")
def liquid_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("liquid") / "model"
    write_liquid(folder)
    return folder


@pytest.fixture(scope="module")
def liquid(liquid_folder):
    return load_model(liquid_folder, dtype=torch.float64)


@pytest.mark.parametrize("task", ["idm", "fdm"])
def test_liquid_logits_are_those_of_gemma(liquid_folder, liquid, task):
    theirs = GemmaForCausalLM.from_pretrained(liquid_folder, dtype=torch.float64)
    ids_BT, _, _ = pack([liquid.layout(task, source=SOURCE, action=ACTION, target=TARGET)], liquid.pad_id)
    with torch.no_grad():
        expected = theirs(input_ids=ids_BT).logits
        hidden = liquid.body(ids_BT)
        assert torch.equal(liquid.head(hidden), expected)
        # Another slice of the matrix is another matrix product, of other rounding.
        torch.testing.assert_close(liquid.head(hidden, liquid.image_rows), expected[..., liquid.image_rows])
        torch.testing.assert_close(liquid.head(hidden, liquid.text_rows), expected[..., liquid.text_rows])
    assert expected.std() > 0.5


def test_liquid_ids(liquid):
    tokenizer = liquid_tokenizer()
    names = tokenizer.convert_ids_to_tokens([liquid.bos_id, liquid.boi_id, liquid.eoi_id, liquid.eos_id])
    assert names == ["<bos>", "<boi>", "<eoi>", "<eos>"]
    assert liquid.image_rows.tolist() == [len(tokenizer) + code for code in range(16)]
    spoken = tokenizer.convert_ids_to_tokens(liquid.text_rows.tolist())
    assert spoken[0] == "<eos>" and not any("<" in name for name in spoken[1:])
    assert flatten(liquid.layout("fdm", source=SOURCE, action="put"))[-1] == liquid.boi_id
    with pytest.raises(InputError, match="reserved token '<boi>'"):
        liquid.layout("fdm", source=SOURCE, action="put <boi>")


def test_liquid_names_its_own_tokens(liquid_folder, tmp_path):
    """A tokenizer's configuration may call the image tokens something else."""
    folder = tmp_path / "model"
    shutil.copytree(liquid_folder, folder)
    tokenizer = liquid_tokenizer(boi_token="<unused0>")
    tokenizer.save_pretrained(folder)
    vlm = load_model(folder)
    assert vlm.tokenizer.convert_ids_to_tokens(vlm.boi_id) == "<unused0>"
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<eoi>", "<end>"))
    with pytest.raises(InputError, match="the vocabulary has no token eoi '<eoi>'"):
        load_model(folder)


def test_liquid_dynamics(liquid_folder, liquid):
    theirs = GemmaForCausalLM.from_pretrained(liquid_folder, dtype=torch.float64)

    def logits(ids):
        with torch.no_grad():
            return theirs(input_ids=torch.tensor([ids])).logits[0, -1]

    source_BN = np.array([SOURCE, TARGET])
    actions = [ACTION, "put"]
    codes = sample_observations(liquid, source_BN, actions, num_candidates=1, sampling=Sampling(greedy=True))
    for row, action in enumerate(actions):
        prefix = flatten(liquid.layout("fdm", source=source_BN[row], action=action))
        assert codes[row, 0].tolist() == greedy_by_hand(liquid, prefix, lambda ids: logits(ids)[liquid.image_rows])
    samples = sample_observations(liquid, source_BN, actions, num_candidates=3, seed=5)
    ranking = verify(liquid, SOURCE, ACTION, samples[0])
    scores = score_actions(liquid, [SOURCE] * 3, samples[0], [ACTION] * 3)
    best = max(scores, key=lambda score: score.logprob)
    assert ranking[0].score.logprob == pytest.approx(best.logprob, abs=1e-6)
    prefix = flatten(liquid.layout("idm", source=SOURCE, target=samples[0, 0]))
    completion = [*liquid.tokenize_action(ACTION), liquid.eos_id]
    expected = sum(
        float(torch.log_softmax(logits([*prefix, *completion[:step]]), -1)[token])
        for step, token in enumerate(completion)
    )
    assert scores[0].logprob == pytest.approx(expected, abs=1e-5)
    proposal = propose_actions(liquid, [SOURCE], [TARGET], max_new_tokens=3)[0]
    assert proposal.logprob < 0
    assert score_observations(liquid, [SOURCE], [ACTION], [TARGET])[0] < 0


def test_liquid_codec_is_chameleons(liquid_folder):
    codec, expected = load_codec(liquid_folder), tiny_codec()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert codec.codec_id == expected.codec_id
    assert torch.equal(codec.encode(pixels), expected.encode(pixels))
    codes = codec.encode(pixels)
    assert np.array_equal(codec.decode(codes), expected.decode(codes))


@pytest.mark.parametrize("tied", [True, False])
def test_liquid_tied_and_untied_saved_and_loaded(tmp_path, tied):
    theirs = write_liquid(tmp_path / "model", tied=tied, seed=3)
    vlm = load_model(tmp_path / "model")
    same = vlm.inner.lm_head.weight is vlm.inner.model.embed_tokens.weight
    assert same == tied
    assert torch.equal(vlm.inner.lm_head.weight, theirs.lm_head.weight)
    manifest = save_model(vlm, tmp_path / "again", kind="full", task="fdm")
    assert (manifest.family, manifest.base_id, manifest.codec_id) == ("liquid", vlm.base_id, vlm.codec_id)
    again = load_model(tmp_path / "again")
    ids_BT = torch.tensor([flatten(vlm.layout("idm", source=SOURCE, target=TARGET))])
    with torch.no_grad():
        assert torch.equal(again.head(again.body(ids_BT)), vlm.head(vlm.body(ids_BT)))
    released = GemmaForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(released.lm_head.weight, theirs.lm_head.weight)
    assert load_codec(tmp_path / "again").codec_id == vlm.codec_id


def test_liquid_takes_an_adapter(liquid_folder, tmp_path):
    from wm.training.adapters import Lora, prepare

    vlm = load_model(liquid_folder)
    prepare(vlm, Lora(r=2), seed=1)
    with torch.no_grad():
        for name, parameter in vlm.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    vlm.module.eval()
    save_model(vlm, tmp_path / "adapter", task="fdm")
    loaded = load_model(tmp_path / "adapter", base=liquid_folder)
    merged = load_model(tmp_path / "adapter", base=liquid_folder, merge=True)
    ids_BT = torch.tensor([flatten(vlm.layout("fdm", source=SOURCE, action=ACTION))])
    with torch.no_grad():
        expected = vlm.head(vlm.body(ids_BT))
        plain = load_model(liquid_folder)
        assert not torch.allclose(plain.head(plain.body(ids_BT)), expected)
        assert torch.equal(loaded.head(loaded.body(ids_BT)), expected)
        torch.testing.assert_close(merged.head(merged.body(ids_BT)), expected, atol=1e-4, rtol=1e-4)


def test_liquid_bad_folders(tmp_path, tiny_base):
    write_liquid(tmp_path / "wide", num_codes=20)
    with pytest.raises(InputError, match=r"vocab_size is \d+, expected \d+ tokens of the tokenizer and 16 image codes"):
        load_model(tmp_path / "wide")
    write_liquid(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "blind")
    shutil.rmtree(tmp_path / "blind" / "vqgan")
    with pytest.raises(InputError, match="blind has no folder vqgan with Chameleon's VQGAN"):
        load_codec(tmp_path / "blind")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    incomplete = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up" not in name}
    save_file(incomplete, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing: model.layers.1.mlp.up_proj.weight"):
        load_model(tmp_path / "model")
    torn = weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1}
    save_file(torn, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"ties lm_head.weight to the embeddings, but the file holds other values"):
        load_model(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"gemma"', '"mamba"'))
    with pytest.raises(InputError, match="model_type is 'mamba'; supported: chameleon, gemma, emu3, janus"):
        load_model(tmp_path / "model")


def test_liquid_with_the_vqgan_as_it_is_released(liquid_folder, tmp_path):
    """``vqgan.ckpt`` and ``vqgan.yaml``, as the authors hand them out beside the model."""
    release = write_release(tmp_path / "release", random_model())
    folder = shutil.copytree(liquid_folder, tmp_path / "model")
    shutil.rmtree(folder / "vqgan")
    (folder / "vqgan").mkdir()
    for name in ("vqgan.ckpt", "vqgan.yaml"):
        shutil.copy(release / "tokenizer" / name, folder / "vqgan" / name)
    codec = load_codec(folder)
    assert codec.codec_id == load_codec(release / "tokenizer").codec_id == load_model(folder).codec_id
    assert codec.has_decoder
    save_model(load_model(folder), tmp_path / "again", kind="full", task="fdm")
    again = load_codec(tmp_path / "again")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert (again.codec_id, again.decoder_id) == (codec.codec_id, codec.decoder_id)
    assert np.array_equal(again.decode(again.encode(pixels)), codec.decode(codec.encode(pixels)))


def test_liquid_in_shards_is_the_same_model(liquid_folder, liquid, tmp_path):
    folder = shutil.copytree(liquid_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    GemmaForCausalLM.from_pretrained(liquid_folder).save_pretrained(folder, max_shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    vlm = load_model(folder, dtype=torch.float64)
    assert vlm.base_id == liquid.base_id
    ids_BT = torch.tensor([flatten(vlm.layout("fdm", source=SOURCE, action=ACTION))])
    with torch.no_grad():
        assert torch.equal(vlm.head(vlm.body(ids_BT)), liquid.head(liquid.body(ids_BT)))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{shards[1].name} .*truncated|{shards[1].name}.*complete"):
        load_model(folder)
    shards[1].unlink()
    with pytest.raises(InputError, match=f"not there: {shards[1].name}"):
        load_model(folder)


def test_an_adapter_of_another_codec_is_refused(liquid_folder, tmp_path):
    from wm.training.adapters import Lora, prepare

    vlm = load_model(liquid_folder)
    prepare(vlm, Lora(r=2), seed=1)
    vlm.codec_id = "vq-0123456789abcdef"
    save_model(vlm, tmp_path / "adapter", task="idm")
    with pytest.raises(InputError, match="made with image codec vq-0123456789abcdef, but the codec here is"):
        load_model(tmp_path / "adapter", base=liquid_folder)
