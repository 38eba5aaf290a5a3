"""BERTScore against its definition, over a tiny RoBERTa cut after the layer, as the reference package cuts it."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, RobertaModel

from tests.helpers.models_encoders import write_roberta
from wm.errors import InputError
from wm.evaluation.metrics.bertscore import load_bertscore
from wm.evaluation.metrics.text import report_text
from wm.evaluation.metrics.text_items import score_texts

PREDICTIONS = ["put the red cup", "move a block on the table", "  take it", "", "a " * 60, "put the cup"]
REFERENCES = ["put the blue cup", "move the block", "take it", "take", "red " * 50, "put the cup"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    return write_roberta(tmp_path_factory.mktemp("roberta"))


@torch.no_grad()
def by_definition(folder, layer, prediction, reference):
    """One pair, token by token; a text begins with a blank, as the package's add_prefix_space has it."""
    model = RobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
    model.encoder.layer = model.encoder.layer[:layer]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sides = []
    for text in (prediction.strip(), reference.strip()):
        ids = tokenizer(f" {text}" if text else "", truncation=True, max_length=30, return_tensors="pt")["input_ids"]
        vectors = model(ids)[0][0]
        sides.append((vectors / vectors.norm(dim=-1, keepdim=True)).numpy())
    first, second = sides
    if min(len(first), len(second)) == 2:
        return 0.0
    similarity = first @ second.T
    precision, recall = similarity.max(axis=1)[1:-1].mean(), similarity.max(axis=0)[1:-1].mean()
    return 2 * precision * recall / (precision + recall)


def test_f1_is_that_of_the_definition(roberta):
    scorer = load_bertscore(roberta, layer=3, rescale=False, batch_size=4)
    expected = [by_definition(roberta, 3, *pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    scores = scorer.score(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores[-1] == pytest.approx(1.0, abs=1e-6) and scores[3] == 0.0
    backwards = scorer.score(PREDICTIONS[::-1], REFERENCES[::-1])
    np.testing.assert_allclose(backwards[::-1], scores, atol=1e-6)
    rescaled = load_bertscore(roberta, layer=3, baseline=0.6).score(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(rescaled, (scores - 0.6) / 0.4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is not roberta-large; give layer, 1 to 4"),
        ({"layer": 5}, "layer = 5, expected 1 to 4"),
        ({"layer": 3}, "no baseline is known for layer 3"),
    ],
)
def test_layer_and_baseline_must_be_known(roberta, settings, message):
    with pytest.raises(InputError, match=message):
        load_bertscore(roberta, **settings)


def test_items_average_to_the_figures_of_the_set(roberta):
    predictions = ["Put the red cup", "move", "拿 杯子", ""]
    references = ["put the blue cup", "move the block", "拿起杯子", "take"]
    items = score_texts(predictions, references, load_bertscore(roberta, layer=2, rescale=False))
    report = report_text(predictions, references)
    for name in ("rouge1", "rouge2", "rougeL", "exact_match"):
        values = [item[name] for item in items if item[name] is not None]
        assert np.mean(values) == pytest.approx(report.figures[name]), name
    assert items[3]["rouge2"] is None and items[3]["bertscore"] == 0.0
    (same,) = score_texts(["put the cup"], ["put the cup"])
    assert same["bleu_sentence"] == pytest.approx(1.0) and same["bertscore"] is None
    # 3 of 4 words, 1 of 3 pairs, and smoothed: neither a triple nor a quadruple agrees.
    (near,) = score_texts(["put the red cup"], ["put the blue cup"])
    assert near["bleu_sentence"] == pytest.approx((3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4), abs=1e-6)
