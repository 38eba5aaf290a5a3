"""Lumina-mGPT 2.0 against transformers' Chameleon, MoVQGAN against diffusers', and what the errors say."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import ChameleonForConditionalGeneration

from tests.helpers.code_calls import verify
from tests.helpers.models_families import ACTION, GRID, OTHER, greedy_by_hand
from tests.helpers.models_folders import copy_of, rewrite
from tests.helpers.models_lumina import diffusers_movq, movq_tensors, write_lumina
from wm.dynamics import Sampling, propose_actions, sample_observations
from wm.dynamics.loading import kind_of
from wm.errors import InputError
from wm.models import change_map, flatten, load_codec, load_model, pack, save_model
from wm.models.skeleton import load_skeleton
from wm.sampling import sample_images
from wm.sampling.speculative import speculate_images
from wm.training.adapters import Lora, prepare
from wm.training.loss import completion_loss


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The folder, and transformers' model whose weights are in it."""
    folder = tmp_path_factory.mktemp("lumina") / "model"
    return folder, write_lumina(folder).double()


@pytest.fixture(scope="module")
def folder(release):
    return release[0]


@pytest.fixture(scope="module")
def theirs(release):
    """Logits of a sequence by transformers' model, of which ``forward`` alone masks the image codes."""

    @torch.no_grad()
    def logits(ids):
        return release[1].lm_head(release[1].model(input_ids=torch.as_tensor(ids)[None]).last_hidden_state)[0]

    return logits


@pytest.fixture(scope="module")
def lumina(folder):
    return load_model(folder, dtype=torch.float64)


@pytest.mark.parametrize("task", ["idm", "fdm"])
def test_lumina_logits_are_those_of_transformers(folder, lumina, theirs, task):
    ids_BT, _, _ = pack([lumina.layout(task, source=GRID, action=ACTION, target=OTHER)], lumina.pad_id)
    with torch.no_grad():
        actual = lumina.head(lumina.body(ids_BT))[0]
    assert torch.equal(actual, theirs(ids_BT[0]))
    assert actual.std() > 0.5
    assert lumina.family == "lumina"
    assert kind_of(folder) == "codes"
    # The file has the norms as the authors' class saves them, one row for all heads.
    assert load_file(folder / "model.safetensors")["model.layers.0.self_attn.q_norm.weight"].shape == (1, 8)


def test_lumina_images_stand_as_the_authors_write_them(lumina):
    """``FlexARItemProcessor.process_image``: start, height, width, rows with an end each, end."""
    name = lumina.tokenizer.convert_tokens_to_ids
    # 32 px are one cell of 32 px, and 4 codes of 8 px.
    start = [name("<racm3:break>"), name("<reserved08801>"), name("<reserved08801>")]
    rows = [[name(f"<MOVQGAN{code:05d}>") for code in GRID[at : at + 4]] for at in range(0, 16, 4)]
    image = [*start, *(token for row in rows for token in (*row, name("<reserved08799>"))), name("<eoss>")]
    words, begin = lumina.tokenize_action(ACTION), name("<|im_end|>")
    assert flatten(lumina.layout("fdm", source=GRID, action=ACTION)) == [begin, *image, *words, *start]
    both = flatten(lumina.layout("idm", source=GRID, target=GRID, action=ACTION))
    assert both == [begin, *image, *image, *words, name("<reserved08706>")]
    learned = [s for s in lumina.layout("fdm", source=GRID, action=ACTION, target=GRID) if s.is_completion]
    assert [list(segment.ids) for segment in learned] == rows
    spoken = lumina.tokenizer.convert_ids_to_tokens(lumina.text_rows.tolist())
    assert [token for token in spoken if token.startswith("<")] == ["<reserved08706>"]
    with pytest.raises(InputError, match=r"action '<reserved08799>' holds the reserved token '<reserved08799>'"):
        lumina.layout("fdm", source=GRID, action="<reserved08799>")


def test_lumina_dynamics(lumina, theirs):
    sources, actions = [GRID, OTHER], [ACTION, "put"]
    codes = sample_observations(lumina, sources, actions, num_candidates=1, sampling=Sampling(greedy=True))
    prefixes = [flatten(lumina.layout("fdm", source=s, action=a)) for s, a in zip(sources, actions, strict=True)]
    for row, prefix in enumerate(prefixes):
        by_hand = greedy_by_hand(lumina, prefix, lambda ids: theirs(ids)[-1, lumina.image_rows])
        assert codes[row, 0].tolist() == by_hand
    samples = sample_images(lumina, prefixes, num_candidates=3, seed=4)
    assert torch.equal(samples[1:], sample_images(lumina, prefixes[1:], num_candidates=3, seed=4, batch_size=1))
    fast = speculate_images(lumina, prefixes, torch.tensor(sources), num_candidates=3, num_draft_tokens=3, seed=4)
    assert torch.equal(fast.codes, samples)
    ranking = verify(lumina, GRID, ACTION, samples[0])
    prefix = flatten(lumina.layout("idm", source=GRID, target=ranking[0].codes))
    answer = [*lumina.tokenize_action(ACTION), lumina.eos_id]
    logprobs = torch.log_softmax(theirs([*prefix, *answer]), -1)
    total = sum(float(logprobs[len(prefix) + step - 1, token]) for step, token in enumerate(answer))
    assert ranking[0].score.logprob == pytest.approx(total, abs=1e-5)
    assert propose_actions(lumina, [GRID], [OTHER], max_new_tokens=3)[0].logprob < 0


def test_lumina_guidance_compares_with_the_image_alone(lumina, theirs):
    """The authors' unconditional context begins at the image's first token; theirs is one scale for both of ours."""
    prefix = flatten(lumina.layout("fdm", source=GRID, action=ACTION))
    opening = prefix[-3:]
    without_text = [token for token in prefix if token not in lumina.tokenize_action(ACTION)]

    def guided(ids):
        grown = ids[len(prefix) :]
        full, image, none = (theirs([*start, *grown])[-1] for start in (prefix, without_text, opening))
        return (none + 2.0 * (image - none) + 3.0 * (full - image))[lumina.image_rows]

    sampling = Sampling(greedy=True, guidance_scale=3.0, image_guidance_scale=2.0)
    codes = sample_images(lumina, [prefix], num_candidates=1, sampling=sampling)[0, 0].tolist()
    assert codes == greedy_by_hand(lumina, prefix, guided)
    assert codes != sample_images(lumina, [prefix], num_candidates=1, sampling=Sampling(greedy=True))[0, 0].tolist()


def test_movqgan_is_that_of_diffusers(folder):
    codec, movq = load_codec(folder), diffusers_movq(movq_tensors())
    assert (codec.side_px, codec.tokens_per_image, codec.num_codes) == (32, 16, 16)
    assert codec.ignored == ("ema_encoder.num_updates", "loss.discriminator.weight")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    codes_BN, features_BND = codec.encode_with_features(pixels)
    # The authors' scale: x / 255 * 2 - 1.
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
    with torch.no_grad():
        latents = movq.encode(scaled).latents
        expected = movq.quantize(latents)[2][2].view(3, -1)
        decoded = movq.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(features_BND, latents.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    assert torch.equal(codes_BN, expected)
    assert len(codes_BN.unique()) >= 4
    images = ((decoded + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(codec.decode(codes_BN) - images).max() < 0.51  # rounded to whole numbers
    assert images.std() > 5
    assert (
        change_map(features_BND[:1], features_BND[:1]).max()
        == 0
        < change_map(features_BND[:1], features_BND[1:2]).min()
    )


def test_lumina_saved_again_is_the_same_model(folder, tmp_path):
    vlm = load_model(folder)
    save_model(vlm, tmp_path / "again", kind="full", task="fdm")
    again = load_model(tmp_path / "again")
    ids_BT = torch.tensor([flatten(vlm.layout("fdm", source=GRID, action=ACTION))])
    with torch.no_grad():
        hidden = vlm.body(ids_BT)
        assert torch.equal(again.body(ids_BT), hidden)
        loaded = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "again")
        assert torch.equal(loaded.model(input_ids=ids_BT).last_hidden_state, hidden)
    first, second = load_codec(folder), load_codec(tmp_path / "again")
    assert (first.codec_id, first.decoder_id) == (second.codec_id, second.decoder_id)
    assert load_skeleton(folder).frame == vlm.frame
    assert torch.equal(load_skeleton(folder).image_rows, vlm.image_rows)


def test_lumina_learns_with_an_adapter(folder, tmp_path):
    vlm = load_model(folder)
    counts = prepare(vlm, Lora(r=2), seed=1)
    assert 0 < counts.trained < counts.total
    ids_BT, is_completion_BT, _ = pack([vlm.layout("fdm", source=GRID, action=ACTION, target=OTHER)], vlm.pad_id)
    assert int(is_completion_BT.sum()) == 16
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


def test_lumina_bad_folders(folder, tmp_path):
    def broken(name, match, change, load=load_model):
        copy = copy_of(folder, tmp_path, name)
        change(copy)
        with pytest.raises(InputError, match=match) as error:
            load(copy)
        assert "\n" not in str(error.value)

    def set_size(copy, size):
        (copy / "preprocessor_config.json").write_text(json.dumps({"size": size}))

    def add_checkpoint(copy):
        (copy / "movqgan" / "b.ckpt").write_bytes(b"PK")

    def rename_token(copy):
        file = copy / "tokenizer.json"
        file.write_text(file.read_text().replace("<reserved08799>", "<reserved09799>"))

    def narrow(copy):
        file = copy / "movqgan" / "movqgan_270M.ckpt"
        tensors = torch.load(file)
        tensors["decoder.up.1.block.0.norm1.conv_y.weight"] = torch.zeros(32, 5, 1, 1)
        torch.save(tensors, file)

    def hostile(copy):
        torch.save({"encoder.x": print}, copy / "movqgan" / "movqgan_270M.ckpt")

    def drop_decoder_levels(copy):
        torch.save({"encoder.down.77.block.0.x": torch.zeros(1)}, copy / "movqgan" / "movqgan_270M.ckpt")

    def rmtree(copy):
        import shutil

        shutil.rmtree(copy / "movqgan")

    def drop_norm(copy):
        rewrite(copy, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.zeros(3, 8)}))

    command = (
        r"no folder movqgan with MoVQGAN.*`hf download ai-forever/MoVQGAN movqgan_270M.ckpt --local-dir \S+/movqgan`"
    )
    broken("missing", command, rmtree)
    broken("two", r"expected one file \*\.ckpt .*, got b\.ckpt, movqgan_270M\.ckpt", add_checkpoint)
    broken(
        "size",
        r"size is \{'height': 32, 'width': 64\}, expected equal",
        lambda c: set_size(c, {"height": 32, "width": 64}),
    )
    broken("odd", r"a multiple of 32 up to", lambda copy: set_size(copy, {"height": 40, "width": 40}))
    broken("large", r"no token cells '<reserved08804>'", lambda copy: set_size(copy, {"height": 128, "width": 128}))
    broken("token", r"the vocabulary has no token line_end '<reserved08799>'", rename_token)
    broken("narrow", r"1 misshapen: decoder\.up\.1\.block\.0\.norm1\.conv_y\.weight \(32, 5, 1, 1\)", narrow)
    broken("hostile", r"holds Python objects besides tensors, which are never loaded", hostile)
    broken("deep", r"is no VQ model: expected tensors encoder\.down\.N\.block\.N", drop_decoder_levels)
    broken("norm", r"1 misshapen: model\.layers\.0\.self_attn\.q_norm\.weight \(3, 8\) not \(4, 8\)", drop_norm)
    with pytest.raises(InputError, match="Lumina's MoVQGAN has its own decoder"):
        load_codec(folder, decoder=folder / "vqgan.ckpt")
