"""Janus-Pro against transformers' own modules, and what it refuses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration

from tests.helpers.code_calls import verify
from tests.helpers.models_families import ACTION, GRID, OTHER, greedy_by_hand, write_janus
from wm.dynamics import Sampling, propose_actions, sample_observations, score_observations
from wm.errors import InputError
from wm.models import flatten, load_codec, load_model, pack
from wm.sampling import sample_images
from wm.sampling.speculative import speculate_images
from wm.training.loss import completion_loss


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
    gradient = torch.autograd.grad(loss, weight)[0]
    positions = is_completion_BT[0].nonzero().flatten()
    logits_NV = janus.image_head(janus.body(ids_BT)[0, positions - 1])
    losses_N = F.cross_entropy(logits_NV, torch.tensor(OTHER), reduction="none")
    alone = (losses_N * weights_BT[0, positions]).sum() / 16
    torch.testing.assert_close(gradient, torch.autograd.grad(alone, weight)[0])
    constant = np.log(2) * float(weights_BT[0, positions].sum()) / 16
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
    codes = sample_observations(janus, [GRID], [ACTION], num_candidates=1, sampling=Sampling(greedy=True))[0, 0]
    assert codes.tolist() == greedy_by_hand(janus, prefix, lambda ids: logits(ids)[-1])
    samples = sample_images(janus, [prefix], num_candidates=3, seed=2)
    fast = speculate_images(janus, [prefix], torch.tensor([GRID]), num_candidates=3, num_draft_tokens=4, seed=2)
    assert torch.equal(fast.codes, samples)
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
        decoded = theirs.decode(codes_BN).clamp(-1, 1)
        # transformers' quantiser agrees where both are of length 1, as the authors make them.
        codebook.copy_(F.normalize(codebook, dim=-1))
        _, _, unit = theirs.quantize(F.normalize(raw_BDHW, dim=1))
        assert torch.equal(codes_BN.flatten(), unit)
    expected = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(codec.decode(codes_BN), expected)
    assert len(codes_BN.unique()) > 4
