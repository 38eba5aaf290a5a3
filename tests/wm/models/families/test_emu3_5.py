"""Emu3.5 against transformers' Qwen3, its image tokenizer against a loop, and what the errors say."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3ForCausalLM

from tests.helpers.code_calls import verify
from tests.helpers.models_emu3_5 import ibq_tensors, write_emu3_5
from tests.helpers.models_families import ACTION, GRID, OTHER, greedy_by_hand
from tests.helpers.models_folders import copy_of
from wm.dynamics import Sampling, propose_actions, sample_observations
from wm.dynamics.loading import kind_of
from wm.errors import InputError
from wm.models import flatten, load_codec, load_model, pack, save_model
from wm.models.skeleton import load_skeleton
from wm.sampling import sample_images
from wm.sampling.runners import build_model_runner
from wm.sampling.transformers_runner import TransformersRunner
from wm.training.adapters import Lora, prepare
from wm.training.loss import completion_loss


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emu3_5") / "model"
    return folder, write_emu3_5(folder).double()


@pytest.fixture(scope="module")
def folder(release):
    return release[0]


@pytest.fixture(scope="module")
def theirs(release):
    @torch.no_grad()
    def logits(ids):
        return release[1](input_ids=torch.as_tensor(ids)[None]).logits[0]

    return logits


@pytest.fixture(scope="module")
def emu(folder):
    return load_model(folder, dtype=torch.float64)


@pytest.mark.parametrize("task", ["idm", "fdm"])
def test_emu3_5_logits_are_those_of_qwen3(folder, emu, theirs, task):
    ids_BT, _, _ = pack([emu.layout(task, source=GRID, action=ACTION, target=OTHER)], emu.pad_id)
    with torch.no_grad():
        actual = emu.head(emu.body(ids_BT))[0]
    assert torch.equal(actual, theirs(ids_BT[0]))
    assert actual.std() > 0.5
    assert emu.family == "emu3_5"
    assert kind_of(folder) == "codes"
    assert type(build_model_runner(emu)) is TransformersRunner


def emu3_5_by_hand(tensors, config, ids):
    """Logits as the authors' ``modeling_emu3.py`` computes them, layer by layer."""
    width, heads, groups = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.outer(torch.arange(len(ids), dtype=torch.float64), config["rope_theta"] ** -exponents)

    def norm(hidden, name):
        return hidden / (hidden.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * tensors[name]

    def turn(hidden_HTD):
        cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
        left, right = hidden_HTD.chunk(2, -1)
        return hidden_HTD * cos + torch.cat([-right, left], -1) * sin

    def split(hidden, count):
        return hidden.view(len(ids), count, width)

    hidden = tensors["model.embed_tokens.weight"][ids]
    mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64).triu(1)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        inputs = norm(hidden, f"{layer}input_layernorm.weight")
        query, key, value = (inputs @ tensors[f"{layer}self_attn.{name}_proj.weight"].T for name in "qkv")
        # Each head is normalised by itself, before it is rotated.
        query = turn(norm(split(query, heads), f"{layer}self_attn.q_norm.weight").transpose(0, 1))
        key = turn(norm(split(key, groups), f"{layer}self_attn.k_norm.weight").transpose(0, 1))
        key, value = (
            part.repeat_interleave(heads // groups, 0) for part in (key, split(value, groups).transpose(0, 1))
        )
        weights = (query @ key.transpose(1, 2) / width**0.5 + mask).softmax(-1)
        attended = (weights @ value).transpose(0, 1).reshape(len(ids), -1)
        hidden = hidden + attended @ tensors[f"{layer}self_attn.o_proj.weight"].T
        inputs = norm(hidden, f"{layer}post_attention_layernorm.weight")
        gate, up = (inputs @ tensors[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ tensors[f"{layer}mlp.down_proj.weight"].T
    return norm(hidden, "model.norm.weight") @ tensors["lm_head.weight"].T


def test_emu3_5_is_what_the_authors_compute(folder, theirs, emu):
    tensors = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    ids = flatten(emu.layout("idm", source=GRID, action=ACTION, target=OTHER))
    by_hand = emu3_5_by_hand(tensors, json.loads((folder / "config.json").read_text()), ids)
    # transformers rotates by angles of float32.
    torch.testing.assert_close(theirs(ids), by_hand, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(emu.head(emu.body(torch.tensor([ids])))[0], by_hand, atol=1e-4, rtol=1e-4)


def test_emu3_5_images_stand_as_the_authors_write_them(emu):
    """``format_image_string``: start, height*width, codes with a row end between the rows, end."""
    rows = ["".join(f"<|visual token {code:06d}|>" for code in GRID[at : at + 4]) for at in range(0, 16, 4)]
    start = "<|image start|>4*4<|image token|>"
    image = start + "<|extra_200|>".join(rows) + "<|image end|>"
    for text, layout in [
        (f"<|extra_203|>{image}{ACTION}{start}", emu.layout("fdm", source=GRID, action=ACTION)),
        (
            f"<|extra_203|>{image}{image}{ACTION}<|extra_204|>",
            emu.layout("idm", source=GRID, target=GRID, action=ACTION),
        ),
    ]:
        assert flatten(layout) == emu.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert emu.tokenizer.decode(flatten(layout)) == text
    # 256 bytes and the words' merges, then 208 special tokens: as many as the release has.
    assert emu.special.pad == emu.image_rows[0] - 211
    spoken = emu.tokenizer.convert_ids_to_tokens(emu.text_rows.tolist())
    assert [token for token in spoken if token.startswith("<|")] == ["<|extra_204|>"]


def test_emu3_5_dynamics(emu, theirs, caplog):
    sources, actions = [GRID, OTHER], [ACTION, "put the cup"]
    codes = sample_observations(emu, sources, actions, num_candidates=1, sampling=Sampling(greedy=True))
    prefixes = [flatten(emu.layout("fdm", source=s, action=a)) for s, a in zip(sources, actions, strict=True)]
    for row, prefix in enumerate(prefixes):
        assert codes[row, 0].tolist() == greedy_by_hand(emu, prefix, lambda ids: theirs(ids)[-1, emu.image_rows])
    with caplog.at_level(logging.INFO):
        samples = sample_images(emu, prefixes, num_candidates=3, seed=4)
    assert torch.equal(samples[1:], sample_images(emu, prefixes[1:], num_candidates=3, seed=4, batch_size=1))
    ranking = verify(emu, GRID, ACTION, samples[0])
    prefix = flatten(emu.layout("idm", source=GRID, target=ranking[0].codes))
    answer = [*emu.tokenize_action(ACTION), emu.eos_id]
    logprobs = torch.log_softmax(theirs([*prefix, *answer]), -1)
    total = sum(float(logprobs[len(prefix) + step - 1, token]) for step, token in enumerate(answer))
    assert ranking[0].score.logprob == pytest.approx(total, abs=1e-5)
    assert propose_actions(emu, [GRID], [OTHER], max_new_tokens=3)[0].logprob < 0


def test_emu3_5_guidance_keeps_digits_of_the_text(emu, theirs, monkeypatch):
    """An image's size is written in digits, which a text may hold as well."""
    prefix = flatten(emu.layout("fdm", source=GRID, action="move 4*4"))
    opening = prefix[-5:]
    words = emu.tokenize_action("move 4*4")
    without_text = [*prefix[: len(prefix) - len(words) - len(opening)], *opening]
    assert emu.unconditional_prefixes(prefix) == (without_text, [emu.bos_id, *opening])

    # Where actions have slots, source and target keep their distance.
    with monkeypatch.context() as patch:
        patch.setattr(emu, "action_slot_tokens", 16)
        slotted = flatten(emu.layout("fdm", source=GRID, action="move 4*4"))
        image, _ = emu.unconditional_prefixes(slotted)
        assert image == [*without_text[:-5], *[emu.pad_id] * 16, *opening]
        assert len(image) == len(slotted)

    def guided(ids):
        grown = ids[len(prefix) :]
        starts = (prefix, without_text, [emu.bos_id, *opening])
        full, image, none = (theirs([*start, *grown])[-1] for start in starts)
        return (none + 2.0 * (image - none) + 3.0 * (full - image))[emu.image_rows]

    sampling = Sampling(greedy=True, guidance_scale=3.0, image_guidance_scale=2.0)
    codes = sample_images(emu, [prefix], num_candidates=1, sampling=sampling)[0, 0].tolist()
    assert codes == greedy_by_hand(emu, prefix, guided)


def test_ibq_chooses_by_inner_product(folder):
    codec, tensors = load_codec(folder), ibq_tensors()
    assert (codec.side_px, codec.tokens_per_image, codec.num_codes) == (64, 16, 16)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    codes_BN, features_BND = codec.encode_with_features(pixels)
    codebook = tensors["quantize.embedding.weight"]
    for codes, features in zip(codes_BN, features_BND, strict=True):
        products = [[float(feature @ code) for code in codebook] for feature in features]
        assert codes.tolist() == [row.index(max(row)) for row in products]
    # Not the nearest, which another quantiser would choose.
    assert not torch.equal(torch.cdist(features_BND, codebook).argmin(-1), codes_BN)
    with torch.no_grad():
        vectors = codebook[codes_BN].transpose(1, 2).reshape(2, 8, 4, 4)
        weight, bias = tensors["post_quant_conv.weight"], tensors["post_quant_conv.bias"]
        expected = codec.vqgan.decoder(torch.nn.functional.conv2d(vectors, weight, bias)).clamp(-1, 1)
    images = ((expected + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(codec.decode(codes_BN) - images).max() < 0.51


def test_emu3_5_saved_again_is_a_qwen3(folder, tmp_path):
    vlm = load_model(folder)
    save_model(vlm, tmp_path / "again", kind="full", task="fdm")
    again = load_model(tmp_path / "again")
    ids_BT = torch.tensor([flatten(vlm.layout("fdm", source=GRID, action=ACTION))])
    with torch.no_grad():
        logits = vlm.head(vlm.body(ids_BT))
        assert torch.equal(again.head(again.body(ids_BT)), logits)
        loaded = Qwen3ForCausalLM.from_pretrained(tmp_path / "again")
        assert torch.equal(loaded(input_ids=ids_BT).logits, logits)
    words = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert words(ACTION)["input_ids"] == vlm.tokenize_action(ACTION)
    assert load_codec(tmp_path / "again").decoder_id == load_codec(folder).decoder_id
    assert load_skeleton(folder).frame == vlm.frame == again.frame


def test_emu3_5_learns_with_an_adapter(folder, tmp_path):
    vlm = load_model(folder)
    prepare(vlm, Lora(r=2), seed=1)
    ids_BT, is_completion_BT, _ = pack([vlm.layout("fdm", source=GRID, action=ACTION, target=OTHER)], vlm.pad_id)
    optimizer = torch.optim.SGD([p for p in vlm.module.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = completion_loss(vlm, ids_BT, is_completion_BT, torch.ones(ids_BT.shape), 16)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    vlm.module.eval()
    save_model(vlm, tmp_path / "adapter", task="fdm")
    again = load_model(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again.head(again.body(ids_BT)), vlm.head(vlm.body(ids_BT)))


def test_emu3_5_bad_folders(folder, tmp_path):
    def broken(name, match, change):
        copy = copy_of(folder, tmp_path, name)
        change(copy)
        with pytest.raises(InputError, match=match) as error:
            load_model(copy)
        assert "\n" not in str(error.value)

    def set_config(copy, **values):
        file = copy / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def fewer_codes(copy):
        file = copy / "emu3_vision_tokens.txt"
        file.write_text(file.read_text().replace("<|visual token 000015|>\n", ""))

    def more_codes(copy):
        with (copy / "emu3_vision_tokens.txt").open("a") as stream:
            stream.write("<|visual token 000016|>\n")

    def add_code(copy):
        code = {"auto_map": {"AutoTokenizer": ["tokenization_emu3.Emu3Tokenizer", None]}}
        (copy / "tokenizer_config.json").write_text(json.dumps(code))

    broken(
        "ibq",
        r"no folder ibq .*`hf download BAAI/Emu3\.5-VisionTokenizer --local-dir",
        lambda c: shutil.rmtree(c / "ibq"),
    )
    broken("codes", r"no token for 1 image codes, 15 among them", fewer_codes)
    broken("more", r"the tokenizer has [\d,]+ ids, the model", more_codes)
    broken("code", r"tokenizer_config\.json: auto_map = .* names code of the folder's own", add_code)
    broken(
        "rows",
        r"describes no Qwen3ForCausalLM: Padding_idx must be within",
        lambda copy: set_config(copy, vocab_size=300),
    )
    broken("heads", r"tensors do not fit the configuration", lambda copy: set_config(copy, head_dim=16))
    broken("words", r"no tokenizer\.json in", lambda copy: (copy / "emu3.tiktoken").unlink())
    broken("vision", r"no emu3_vision_tokens\.txt in", lambda copy: (copy / "emu3_vision_tokens.txt").unlink())
    # A plain Qwen3 has no image codes.
    broken("qwen3", r"no folder ibq", lambda c: (set_config(c, model_type="qwen3"), shutil.rmtree(c / "ibq")))
