"""Liquid, Emu3 and Janus through the protocol: against transformers' own modules on tiny random folders."""

import shutil

import numpy as np
import pytest
import torch
from models_families import liquid_tokenizer, tiny_codec, write_emu3, write_janus, write_liquid
from models_release import random_whole, write_release
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import Emu3ForConditionalGeneration, GemmaForCausalLM, JanusForConditionalGeneration

from wm.dynamics import Sampling, propose_actions, sample_observations, score_actions, score_observations, verify
from wm.errors import InputError
from wm.models import flatten, load_codec, load_model, pack, save_model
from wm.sampling import sample_images
from wm.sampling.speculative import speculate_images
from wm.training.loss import completion_loss

SOURCE, TARGET = [3, 0, 15, 7], [3, 1, 15, 9]
ACTION = "move the red cup"


@pytest.fixture(scope="module")
def liquid_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("liquid") / "model"
    write_liquid(folder)
    return folder


@pytest.fixture(scope="module")
def liquid(liquid_folder):
    return load_model(liquid_folder, dtype=torch.float64)


def greedy_by_hand(vlm, prefix, logits_of):
    """Codes that plain greedy decoding without a cache gives; ``logits_of(ids)``: logits over image codes."""
    ids, codes = list(prefix), []
    for position in range(vlm.tokens_per_image):
        if position and vlm.row_tokens and position % vlm.row_tokens == 0:
            ids.append(vlm.row_end_id)
        codes.append(int(logits_of(ids).argmax()))
        ids.append(int(vlm.image_rows[codes[-1]]))
    return codes


# Liquid


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
    with pytest.raises(InputError, match="the tokenizer has no token eoi '<eoi>'"):
        load_model(folder)


def test_liquid_dynamics(liquid_folder, liquid):
    theirs = GemmaForCausalLM.from_pretrained(liquid_folder, dtype=torch.float64)

    def logits(ids):
        with torch.no_grad():
            return theirs(input_ids=torch.tensor([ids])).logits[0, -1]

    source_BN = np.array([SOURCE, TARGET])
    actions = [ACTION, "put"]
    codes = sample_observations(liquid, source_BN, actions, num_samples=1, sampling=Sampling(greedy=True))
    for row, action in enumerate(actions):
        prefix = flatten(liquid.layout("fdm", source=source_BN[row], action=action))
        assert codes[row, 0].tolist() == greedy_by_hand(liquid, prefix, lambda ids: logits(ids)[liquid.image_rows])
    drawn = sample_observations(liquid, source_BN, actions, num_samples=3, seed=5)
    ranking = verify(liquid, SOURCE, ACTION, drawn[0])
    scores = score_actions(liquid, [SOURCE] * 3, drawn[0], [ACTION] * 3)
    best = max(scores, key=lambda score: score.logprob)
    assert ranking[0].score.logprob == pytest.approx(best.logprob, abs=1e-6)
    prefix = flatten(liquid.layout("idm", source=SOURCE, target=drawn[0, 0]))
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
    lost = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.up" not in name}
    save_file(lost, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
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
    release = write_release(tmp_path / "release", random_whole())
    folder = shutil.copytree(liquid_folder, tmp_path / "model")
    shutil.rmtree(folder / "vqgan")
    (folder / "vqgan").mkdir()
    for name in ("vqgan.ckpt", "vqgan.yaml"):
        shutil.copy(release / "tokenizer" / name, folder / "vqgan" / name)
    codec = load_codec(folder)
    assert codec.codec_id == load_codec(release).codec_id == load_model(folder).codec_id
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
    with pytest.raises(InputError, match=rf"{shards[1].name} .*truncated|{shards[1].name}.*whole"):
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


# Emu3

GRID = [9, 7, 1, 7, 4, 7, 15, 14, 10, 9, 4, 5, 1, 15, 4, 0]
OTHER = [9, 7, 1, 2, 4, 7, 15, 14, 3, 9, 4, 5, 1, 0, 4, 0]


@pytest.fixture(scope="module")
def emu3_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emu3") / "model"
    write_emu3(folder)
    return folder


@pytest.fixture(scope="module")
def emu3(emu3_folder):
    return load_model(emu3_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def emu3_theirs(emu3_folder):
    return Emu3ForConditionalGeneration.from_pretrained(emu3_folder, dtype=torch.float64).eval()


@pytest.mark.parametrize("task", ["idm", "fdm"])
def test_emu3_logits_are_those_of_transformers(emu3, emu3_theirs, task):
    ids_BT, _, _ = pack([emu3.layout(task, source=GRID, action=ACTION, target=OTHER)], emu3.pad_id)
    with torch.no_grad():
        expected = emu3_theirs(input_ids=ids_BT).logits
        hidden = emu3.body(ids_BT)
        assert torch.equal(emu3.head(hidden), expected)
        torch.testing.assert_close(emu3.head(hidden, emu3.image_rows), expected[..., emu3.image_rows])
    assert expected.std() > 0.5


def test_emu3_images_stand_as_transformers_writes_them(emu3, emu3_theirs):
    grid = torch.tensor(GRID).view(4, 4)
    codes = emu3_theirs.vocabulary_mapping.convert_img2bpe(grid).flatten().tolist()
    names = emu3.tokenizer.convert_tokens_to_ids
    start = [names("<|image start|>"), names("4*4"), names("<|image token|>")]
    image = [*start, *codes, names("<|extra_201|>"), names("<|image end|>")]
    words = emu3.tokenize_action(ACTION)
    assert flatten(emu3.layout("fdm", source=GRID, action=ACTION)) == [emu3.bos_id, *image, *words, *start]
    both = flatten(emu3.layout("idm", source=GRID, target=GRID, action=ACTION))
    assert both == [emu3.bos_id, *image, *image, *words, emu3.eos_id]
    segments = emu3.layout("fdm", source=GRID, action=ACTION, target=OTHER)
    learned = [token for segment in segments if segment.is_completion for token in segment.ids]
    assert learned == emu3.image_rows[torch.tensor(OTHER)].tolist()
    assert (
        flatten(segments)[-19:]
        == emu3_theirs.vocabulary_mapping.convert_img2bpe(torch.tensor(OTHER).view(4, 4)).flatten().tolist()[:-1]
    )
    spoken = emu3.tokenizer.convert_ids_to_tokens(emu3.text_rows.tolist())
    assert [name for name in spoken if name.startswith("<")] == ["<|extra_204|>"]


def test_emu3_dynamics(emu3, emu3_theirs):
    def logits(ids):
        with torch.no_grad():
            return emu3_theirs(input_ids=torch.tensor([ids])).logits[0]

    sources, actions = [GRID, OTHER], [ACTION, "put"]
    codes = sample_observations(emu3, sources, actions, num_samples=1, sampling=Sampling(greedy=True))
    prefixes = [flatten(emu3.layout("fdm", source=s, action=a)) for s, a in zip(sources, actions, strict=True)]
    for row, prefix in enumerate(prefixes):
        by_hand = greedy_by_hand(emu3, prefix, lambda ids: logits(ids)[-1, emu3.image_rows])
        assert codes[row, 0].tolist() == by_hand
    assert len(set(codes.flatten().tolist())) > 3
    drawn = sample_images(emu3, prefixes, num_samples=3, seed=4)
    alone = sample_images(emu3, prefixes[1:], num_samples=3, seed=4, batch_size=1)
    assert torch.equal(drawn[1:], alone)
    seen = []
    sample_images(emu3, prefixes[:1], num_samples=3, seed=4, on_progress=lambda done: seen.append(done.codes[0]))
    assert [codes.shape[1] for codes in seen] == [4, 8, 12, 16]
    assert all(torch.equal(codes, drawn[0, :, : codes.shape[1]]) for codes in seen)
    for block in (1, 3, 7):
        fast = speculate_images(emu3, prefixes, torch.tensor(sources), num_samples=3, block=block, seed=4)
        assert torch.equal(fast.codes, drawn)

    with pytest.raises(InputError, match="guidance is not supported for emu3"):
        sample_images(emu3, prefixes, num_samples=1, sampling=Sampling(guidance_text=3.0))
    score = score_observations(emu3, [GRID], [ACTION], [OTHER])[0]
    segments = emu3.layout("fdm", source=GRID, action=ACTION, target=OTHER)
    ids, expected = flatten(segments), 0.0
    after = logits(ids)[:, emu3.image_rows]
    place = sum(len(segment.ids) for segment in segments)
    wanted = iter(reversed(OTHER))
    for segment in reversed(segments):
        for _ in segment.ids:
            place -= 1
            if segment.is_completion:
                expected += float(torch.log_softmax(after[place - 1], -1)[next(wanted)])
    # transformers keeps rotary frequencies in float32 even in a float64 model, the sampling engine does not.
    assert score == pytest.approx(expected, abs=1e-5)

    ranking = verify(emu3, GRID, ACTION, drawn[0])
    prefix = flatten(emu3.layout("idm", source=GRID, target=ranking[0].codes))
    answer = [*emu3.tokenize_action(ACTION), emu3.eos_id]
    logprobs = torch.log_softmax(logits([*prefix, *answer]), -1)
    total = sum(float(logprobs[len(prefix) + step - 1, token]) for step, token in enumerate(answer))
    assert ranking[0].score.logprob == pytest.approx(total, abs=1e-5)
    assert propose_actions(emu3, [GRID], [OTHER], max_new_tokens=3)[0].logprob < 0


def test_emu3_learns_codes_and_not_row_ends(emu3_folder):
    """A step of training makes the target likelier, and only the codes count."""
    vlm = load_model(emu3_folder)
    ids_BT, is_completion_BT, is_image_BT = pack(
        [vlm.layout("fdm", source=GRID, action=ACTION, target=OTHER)], vlm.pad_id
    )
    assert int((is_completion_BT & is_image_BT).sum()) == int(is_completion_BT.sum()) == 16
    optimizer = torch.optim.SGD(vlm.module.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        loss = completion_loss(vlm, ids_BT, is_completion_BT, torch.ones(ids_BT.shape), 16)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]


def test_emu3_codec_is_transformers_vq_model(emu3_folder):
    codec = load_codec(emu3_folder)
    theirs = Emu3ForConditionalGeneration.from_pretrained(emu3_folder).model.vqmodel.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (codec.chunk, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        found = theirs.encode(codec.scale.apply(torch.from_numpy(pixels)), torch.full((codec.chunk, 2), 8))
        expected_BN = torch.stack(found.image_tokens).flatten(1)
        codes_BN, features_BND = codec.encode_with_features(pixels)
        assert torch.equal(codes_BN, expected_BN)
        assert len(codes_BN.unique()) > 4
        quantised = theirs.quant_conv(found.last_hidden_state.permute(0, 2, 1, 3, 4))
        assert torch.equal(features_BND, quantised[:, :, 0].flatten(2).transpose(1, 2))
        drawn = theirs.decode(codes_BN.view(-1, 4, 4)).clamp(-1, 1)
    expected = ((drawn + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(codec.decode(codes_BN), expected)
    assert expected.std() > 5


@pytest.mark.parametrize(
    ("write", "released"),
    [(write_emu3, Emu3ForConditionalGeneration), (write_janus, JanusForConditionalGeneration)],
    ids=["emu3", "janus"],
)
def test_saved_again_is_the_same_model(tmp_path, write, released):
    theirs = write(tmp_path / "model", seed=4)
    vlm = load_model(tmp_path / "model")
    save_model(vlm, tmp_path / "again", kind="full", task="fdm")
    again = load_model(tmp_path / "again")
    ids_BT = torch.tensor([flatten(vlm.layout("fdm", source=GRID, action=ACTION))])
    with torch.no_grad():
        assert torch.equal(again.head(again.body(ids_BT)), vlm.head(vlm.body(ids_BT)))
    loaded = released.from_pretrained(tmp_path / "again").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded[name], tensor), name
    first, second = load_codec(tmp_path / "model"), load_codec(tmp_path / "again")
    assert (
        (first.codec_id, first.decoder_id) == (second.codec_id, second.decoder_id) == (vlm.codec_id, first.decoder_id)
    )


def test_emu3_bad_folders(tmp_path):
    write_emu3(tmp_path / "few", codes=12)
    with pytest.raises(InputError, match=r"token '<\|visual token 0000\d\d\|>' names no code of a codebook of 12"):
        load_model(tmp_path / "few")
    folder = tmp_path / "model"
    write_emu3(folder)
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"the": ', '"the": 1'))
    with pytest.raises(InputError, match=r"vocabulary numbers 'the' 1\d\d, but the model has \d\d rows"):
        load_model(folder)
    config.write_text(text)
    with pytest.raises(InputError, match="Emu3's VQ model has its own decoder"):
        load_codec(folder, decoder=folder / "vqgan.ckpt")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"min_pixels": 64', '"min_pixels": 60'))
    with pytest.raises(InputError, match="min_pixels is 60, expected the square of a multiple of 2"):
        load_codec(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"no preprocessor_config\.json in"):
        load_codec(folder)
    with pytest.raises(InputError, match=r"source image: expected 16 codes, got shape \(4,\)"):
        write_emu3(tmp_path / "other")
        load_model(tmp_path / "other").layout("fdm", source=[1, 2, 3, 4], action="put")


# Janus


@pytest.fixture(scope="module")
def janus_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("janus") / "model"
    write_janus(folder)
    return folder


@pytest.fixture(scope="module")
def janus(janus_folder):
    return load_model(janus_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def janus_theirs(janus_folder):
    return JanusForConditionalGeneration.from_pretrained(janus_folder, dtype=torch.float64).eval()


def embed(theirs, segments):
    """transformers' embeddings of a layout: text by the vocabulary, codes by the generation embeddings."""
    size = theirs.config.text_config.vocab_size
    parts = []
    for segment in segments:
        ids = torch.tensor([segment.ids])
        is_image = segment.is_image
        parts.append(
            theirs.prepare_embeddings_for_image_generation(ids - size)
            if is_image
            else theirs.get_input_embeddings()(ids)
        )
    return torch.cat(parts, dim=1)


def test_janus_logits_are_those_of_both_heads(janus, janus_theirs):
    segments = janus.layout("fdm", source=GRID, action=ACTION, target=OTHER)
    ids_BT = torch.tensor([flatten(segments)])
    with torch.no_grad():
        inputs = embed(janus_theirs, segments)
        text = janus_theirs(inputs_embeds=inputs).logits
        theirs = janus_theirs.model.language_model(inputs_embeds=inputs).last_hidden_state
        images = janus_theirs.model.generation_head(theirs)
        hidden = janus.body(ids_BT)
        assert torch.equal(hidden, theirs)
        assert torch.equal(janus.head(hidden, janus.image_rows), images)
        assert torch.equal(janus.head(hidden, janus.image_rows.flip(0)), images.flip(-1))
        torch.testing.assert_close(janus.head(hidden, janus.text_rows), text[..., janus.text_rows])
        both = torch.cat([torch.log_softmax(text, -1), torch.log_softmax(images, -1)], -1)
        assert torch.equal(janus.head(hidden), both)
        assert both.shape[-1] == int(janus.image_rows[-1]) + 1
    assert images.std() > 0.1
    with pytest.raises(InputError, match="one head for text and one for image codes"):
        janus.head(hidden, torch.tensor([3, int(janus.image_rows[0])]))


def test_janus_loss_has_the_gradient_of_the_image_head_alone(janus_folder):
    janus = load_model(janus_folder, dtype=torch.float64)
    segments = janus.layout("fdm", source=GRID, action=ACTION, target=OTHER)
    ids_BT, is_completion_BT, _ = pack([segments], janus.pad_id)
    weights_BT = torch.rand(ids_BT.shape, dtype=torch.float64)
    loss = completion_loss(janus, ids_BT, is_completion_BT, weights_BT, 16)
    weight = janus.inner.model.language_model.layers[0].mlp.up_proj.weight
    found = torch.autograd.grad(loss, weight)[0]
    places = is_completion_BT[0].nonzero().flatten()
    logits_NV = janus.image_head(janus.body(ids_BT)[0, places - 1])
    losses_N = F.cross_entropy(logits_NV, torch.tensor(OTHER), reduction="none")
    alone = (losses_N * weights_BT[0, places]).sum() / 16
    torch.testing.assert_close(found, torch.autograd.grad(alone, weight)[0])
    constant = np.log(2) * float(weights_BT[0, places].sum()) / 16
    assert float(loss) == pytest.approx(float(alone) + constant)


def test_janus_draws_what_transformers_would(janus, janus_theirs):
    def logits(ids):
        size = janus.num_text
        tokens = torch.tensor([ids])
        is_code = (tokens >= size)[..., None]
        with torch.no_grad():
            text = janus_theirs.get_input_embeddings()(tokens.clamp(max=size - 1))
            codes = janus_theirs.prepare_embeddings_for_image_generation((tokens - size).clamp(min=0))
            inputs = torch.where(is_code, codes, text)
            hidden = janus_theirs.model.language_model(inputs_embeds=inputs).last_hidden_state
            return janus_theirs.model.generation_head(hidden)[0]

    prefix = flatten(janus.layout("fdm", source=GRID, action=ACTION))
    codes = sample_observations(janus, [GRID], [ACTION], num_samples=1, sampling=Sampling(greedy=True))[0, 0]
    assert codes.tolist() == greedy_by_hand(janus, prefix, lambda ids: logits(ids)[-1])
    drawn = sample_images(janus, [prefix], num_samples=3, seed=2)
    fast = speculate_images(janus, [prefix], torch.tensor([GRID]), num_samples=3, block=4, seed=2)
    assert torch.equal(fast.codes, drawn)
    score = score_observations(janus, [GRID], [ACTION], [OTHER])[0]
    ids = flatten(janus.layout("fdm", source=GRID, action=ACTION, target=OTHER))
    logprobs_NV = torch.log_softmax(logits(ids)[-17:-1], -1)
    assert score == pytest.approx(float(logprobs_NV.gather(1, torch.tensor(OTHER)[:, None]).sum()), abs=1e-5)


def test_janus_is_no_inverse_model(janus):
    with pytest.raises(InputError, match="janus cannot serve as an inverse model: it understands images by SigLIP"):
        propose_actions(janus, [GRID], [OTHER])
    with pytest.raises(InputError, match="cannot serve as an inverse model"):
        verify(janus, GRID, ACTION, [OTHER])


def test_janus_codec(janus_folder):
    """Decoding is transformers'; encoding is the authors', which compare by direction."""
    codec = load_codec(janus_folder)
    theirs = JanusForConditionalGeneration.from_pretrained(janus_folder).model.vqmodel.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (codec.chunk, 8, 8, 3), dtype=np.uint8)
    codes_BN, features_BND = codec.encode_with_features(pixels)
    with torch.no_grad():
        raw_BDHW = theirs.quant_conv(theirs.encoder(codec.scale.apply(torch.from_numpy(pixels))))
        codebook = theirs.quantize.embedding.weight
        cosine = F.cosine_similarity(raw_BDHW.flatten(2).transpose(1, 2)[:, :, None], codebook, dim=-1)
        assert torch.equal(codes_BN, cosine.argmax(-1))
        torch.testing.assert_close(features_BND.norm(dim=-1), torch.ones(codes_BN.shape))
        drawn = theirs.decode(codes_BN).clamp(-1, 1)
        # transformers' quantiser agrees where both are of length 1, as the authors make them.
        codebook.copy_(F.normalize(codebook, dim=-1))
        _, _, unit = theirs.quantize(F.normalize(raw_BDHW, dim=1))
        assert torch.equal(codes_BN.flatten(), unit)
    expected = ((drawn + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(codec.decode(codes_BN), expected)
    assert len(codes_BN.unique()) > 4


def test_one_family_does_not_load_anothers_adapter(liquid_folder, janus_folder, tmp_path):
    from wm.training.adapters import Lora, prepare

    vlm = load_model(janus_folder)
    counts = prepare(vlm, Lora(r=2), seed=1)
    assert 0 < counts.trained < counts.total
    save_model(vlm, tmp_path / "adapter", task="fdm")
    assert load_model(tmp_path / "adapter").base_id == vlm.base_id
    with pytest.raises(InputError, match=r"was trained on base janus-\w+, but .* is gemma-"):
        load_model(tmp_path / "adapter", base=liquid_folder)
