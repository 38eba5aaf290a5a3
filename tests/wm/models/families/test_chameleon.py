"""Chameleon as a two-way model: logits and losses against a plain reference and transformers' masking."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from tests.helpers.models_reference import lively, reference_logits
from wm.errors import InputError
from wm.models import load_model, pack
from wm.models.families.chameleon import image_token_code, image_token_name
from wm.models.vocabulary import code_rows
from wm.nano.preset import TINY, TINY_WORDS, build_nano

SOURCE, TARGET = [3, 0, 15, 7], [3, 1, 15, 9]


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


def test_logits_are_those_of_the_plain_transformer(vlm):
    ids_BT, _, _ = pack([vlm.layout("fdm", source=SOURCE, action="move the red cup", target=TARGET)], vlm.pad_id)
    with torch.no_grad():
        logits_TV = vlm.head(vlm.body(ids_BT))[0]
    expected_TV = reference_logits(vlm, ids_BT[0].tolist())
    assert expected_TV.std() > 0.5, "weights too small to tell anything"
    torch.testing.assert_close(logits_TV.double(), expected_TV, atol=2e-4, rtol=1e-4)


def test_image_token_loss_is_finite_where_transformers_is_not(tiny_base, vlm):
    segments = vlm.layout("fdm", source=SOURCE, action="move the red cup", target=TARGET)
    ids_BT, is_completion_BT, is_image_BT = pack([segments], vlm.pad_id)
    labels_BT = ids_BT.masked_fill(~is_completion_BT, -100)

    released = ChameleonForConditionalGeneration.from_pretrained(tiny_base)
    released.load_state_dict(vlm.inner.state_dict(), strict=False)
    with torch.no_grad():
        masked = released(input_ids=ids_BT, labels=labels_BT)
        logits_BTV = vlm.head(vlm.body(ids_BT))
    assert masked.loss > 1e30, "transformers has stopped masking image logits: this family may be simplified"
    assert torch.all(masked.logits[..., vlm.image_rows] == torch.finfo(torch.float32).min)
    others = [row for row in range(logits_BTV.shape[-1]) if row not in vlm.image_rows.tolist()]
    torch.testing.assert_close(masked.logits[..., others], logits_BTV[..., others])

    loss = F.cross_entropy(logits_BTV[0, :-1], labels_BT[0, 1:], ignore_index=-100)
    reference_TV = reference_logits(vlm, ids_BT[0].tolist())
    nats = [
        float(torch.logsumexp(reference_TV[position - 1], 0) - reference_TV[position - 1, ids_BT[0, position]])
        for position in is_completion_BT[0].nonzero().flatten().tolist()
    ]
    assert len(nats) == 4
    assert float(loss) == pytest.approx(np.mean(nats), abs=1e-4)
    assert torch.equal(is_completion_BT, is_completion_BT & is_image_BT)


def test_head_on_rows_is_the_slice_of_the_whole_head(vlm):
    hidden = torch.randn(2, 3, TINY.hidden_size)
    with torch.no_grad():
        for rows in (vlm.image_rows, vlm.image_rows.flip(0), vlm.text_rows):
            torch.testing.assert_close(vlm.head(hidden, rows), vlm.head(hidden)[..., rows])


def test_gradients_reach_every_trainable_weight(tiny_base):
    vlm = load_model(tiny_base)
    ids_BT, _, _ = pack([vlm.layout("idm", source=SOURCE, target=TARGET, action="put")], vlm.pad_id)
    vlm.head(vlm.body(ids_BT)).square().sum().backward()
    without = [name for name, parameter in vlm.module.named_parameters() if parameter.grad is None]
    assert without == []


def test_image_rows_of_a_shuffled_vocabulary_are_transformers():
    codes = list(range(130))
    rows = np.random.default_rng(0).permutation(len(codes)) + 4
    vocabulary = {image_token_name(code): int(row) for code, row in zip(codes, rows, strict=True)}
    theirs = ChameleonImageVocabularyMapping(vocabulary | {"<image>": 999}).img2bpe
    assert (
        code_rows(vocabulary, 130, image_token_code, "here").tolist()
        == [theirs[code] for code in codes]
        == rows.tolist()
    )
    assert image_token_name(8191) == "IMGIMGIBJBZ"


def test_image_rows_name_what_is_missing():
    vocabulary = {image_token_name(code): code for code in range(7)}
    with pytest.raises(InputError, match="no token for 1 image codes, 7 among them"):
        code_rows(vocabulary, 8, image_token_code, "here")
    with pytest.raises(InputError, match="names no code of a codebook of 5"):
        code_rows(vocabulary, 5, image_token_code, "here")


def test_text_rows_are_the_words_and_the_end(vlm):
    words = vlm.tokenizer.convert_ids_to_tokens(vlm.text_rows.tolist())
    assert set(words) == {*TINY_WORDS, "</s>"}


def test_text_round_trip_lower_cases_and_marks_unknown_words(vlm):
    ids = vlm.tokenize_action("Move the RED zebra left")
    assert vlm.tokenizer.convert_ids_to_tokens(ids) == ["move", "the", "red", "<unk>", "left"]
    assert vlm.detokenize([vlm.bos_id, *vlm.image_rows.tolist()[:2], *ids, vlm.eos_id]) == "move the red left"


def test_cached_tokens_equal_the_tokenizers_and_are_few(tiny_base, monkeypatch):
    monkeypatch.setattr("wm.models.vlm.MAX_CACHED_TEXTS", 3)
    vlm = load_model(tiny_base)
    texts = ["move the red cup", "put", "the blue cup " * 200, "left", "take the block up", "down"]
    plain = [vlm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    for _ in range(2):
        for text, ids in zip(texts, plain, strict=True):
            vlm.tokenize_action(text).append(0)
            assert vlm.tokenize_action(text) == ids
            assert len(vlm._token_cache) <= 3 and all(len(text) <= 1000 for text in vlm._token_cache)
    assert vlm._token_cache["down"] == tuple(plain[-1])


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, lambda codes: [np.int32(code) for code in codes]])
def test_layout_takes_codes_in_any_form(vlm, kind):
    plain = vlm.layout("idm", source=SOURCE, target=TARGET, action="put")
    assert vlm.layout("idm", source=kind(SOURCE), target=kind(TARGET), action="put") == plain


def test_layout_refuses_bad_codes_and_actions(vlm):
    with pytest.raises(InputError, match=r"source image: expected 4 codes, got shape \(3,\)"):
        vlm.layout("idm", source=[1, 2, 3], target=TARGET)
    with pytest.raises(InputError, match=r"target image: code 16 is outside the codebook \[0, 16\)"):
        vlm.layout("idm", source=SOURCE, target=[1, 2, 3, 16])
    with pytest.raises(InputError, match="action '  ' is empty"):
        vlm.layout("fdm", source=SOURCE, action="  ")
    with pytest.raises(InputError, match="reserved token '<racm3:break>'"):
        vlm.layout("fdm", source=SOURCE, action="put <racm3:break> down")


def test_nano_has_the_size_of_the_prototype():
    vlm, codec = build_nano([f"word{i}" for i in range(100)])
    count = sum(parameter.numel() for parameter in vlm.module.parameters())
    assert 0.7e6 < count < 0.9e6
    assert (codec.tokens_per_image, codec.num_codes, vlm.inner.config.vocab_size) == (
        9,
        192,
        4 + 192 + 4 + 100,
    )
