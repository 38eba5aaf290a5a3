"""Emu3 against transformers' own modules, and what its errors say."""

import numpy as np
import pytest
import torch
from transformers import Emu3ForConditionalGeneration

from tests.helpers.code_calls import verify
from tests.helpers.models_families import ACTION, GRID, OTHER, greedy_by_hand, write_emu3
from wm.dynamics import Sampling, propose_actions, sample_observations, score_observations
from wm.errors import InputError
from wm.models import flatten, load_codec, load_model, pack
from wm.sampling import sample_images
from wm.sampling.speculative import speculate_images
from wm.training.loss import completion_loss


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
    codes = sample_observations(emu3, sources, actions, num_candidates=1, sampling=Sampling(greedy=True))
    prefixes = [flatten(emu3.layout("fdm", source=s, action=a)) for s, a in zip(sources, actions, strict=True)]
    for row, prefix in enumerate(prefixes):
        by_hand = greedy_by_hand(emu3, prefix, lambda ids: logits(ids)[-1, emu3.image_rows])
        assert codes[row, 0].tolist() == by_hand
    assert len(set(codes.flatten().tolist())) > 3
    samples = sample_images(emu3, prefixes, num_candidates=3, seed=4)
    alone = sample_images(emu3, prefixes[1:], num_candidates=3, seed=4, batch_size=1)
    assert torch.equal(samples[1:], alone)
    steps = []
    sample_images(emu3, prefixes[:1], num_candidates=3, seed=4, on_progress=lambda done: steps.append(done.codes[0]))
    assert [codes.shape[1] for codes in steps] == [4, 8, 12, 16]
    assert all(torch.equal(codes, samples[0, :, : codes.shape[1]]) for codes in steps)
    for block in (1, 3, 7):
        fast = speculate_images(emu3, prefixes, torch.tensor(sources), num_candidates=3, num_draft_tokens=block, seed=4)
        assert torch.equal(fast.codes, samples)

    with pytest.raises(InputError, match="guidance is not supported for emu3"):
        sample_images(emu3, prefixes, num_candidates=1, sampling=Sampling(guidance_scale=3.0))
    score = score_observations(emu3, [GRID], [ACTION], [OTHER])[0]
    segments = emu3.layout("fdm", source=GRID, action=ACTION, target=OTHER)
    ids, expected = flatten(segments), 0.0
    after = logits(ids)[:, emu3.image_rows]
    position = sum(len(segment.ids) for segment in segments)
    remaining = iter(reversed(OTHER))
    for segment in reversed(segments):
        for _ in segment.ids:
            position -= 1
            if segment.is_completion:
                expected += float(torch.log_softmax(after[position - 1], -1)[next(remaining)])
    # transformers keeps rotary frequencies in float32 even in a float64 model, the sampling engine does not.
    assert score == pytest.approx(expected, abs=1e-5)

    ranking = verify(emu3, GRID, ACTION, samples[0])
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
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]


def test_emu3_codec_is_transformers_vq_model(emu3_folder):
    codec = load_codec(emu3_folder)
    theirs = Emu3ForConditionalGeneration.from_pretrained(emu3_folder).model.vqmodel.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (codec.chunk, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        encoded = theirs.encode(codec.scale.apply(torch.from_numpy(pixels)), torch.full((codec.chunk, 2), 8))
        expected_BN = torch.stack(encoded.image_tokens).flatten(1)
        codes_BN, features_BND = codec.encode_with_features(pixels)
        assert torch.equal(codes_BN, expected_BN)
        assert len(codes_BN.unique()) > 4
        quantised = theirs.quant_conv(encoded.last_hidden_state.permute(0, 2, 1, 3, 4))
        assert torch.equal(features_BND, quantised[:, :, 0].flatten(2).transpose(1, 2))
        decoded = theirs.decode(codes_BN.view(-1, 4, 4)).clamp(-1, 1)
    expected = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(codec.decode(codes_BN), expected)
    assert expected.std() > 5


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
