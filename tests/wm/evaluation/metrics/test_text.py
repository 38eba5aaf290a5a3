import math

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from tests.helpers.text_figures import TEXT_METRICS, text_metrics
from wm.errors import InputError


def test_identical_texts_score_one():
    texts = ["move the red circle to the left cell", "remove the blue square from the table"]
    assert text_metrics(texts, texts) == pytest.approx(dict.fromkeys(TEXT_METRICS, 1.0))


def test_values_worked_out_by_hand():
    # prediction "move red circle", reference "move the red circle": unigrams P = 3/3, R = 3/4; bigrams:
    # "red circle" of P 2 and R 3; longest common subsequence 3 of 3 and 4.
    figures = text_metrics(["move red circle"], ["move the red circle"])
    assert figures["rouge1"] == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert figures["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert figures["rougeL"] == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert figures["exact_match"] == 0.0


def test_bleu_by_hand():
    # 5 of 6 unigrams, 4 of 5 bigrams, 3 of 4 trigrams, 2 of 3 four-grams match; lengths are equal.
    figures = text_metrics(["put the red circle up there"], ["put the red circle up here"])
    expected = math.exp(sum(math.log(p) for p in (5 / 6, 4 / 5, 3 / 4, 2 / 3)) / 4)
    assert figures["bleu"] == pytest.approx(expected)


def test_agrees_with_the_libraries():
    predictions = ["Pick up the cup", "close door", "", "turn, left!"]
    references = ["pick up a cup", "close the door", "open the drawer", "turn left"]
    figures = text_metrics(predictions, references)
    scorer = RougeScorer(["rouge1"])
    expected = [scorer.score(r, p)["rouge1"].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert figures["rouge1"] == pytest.approx(sum(expected) / 4)
    assert figures["bleu"] == pytest.approx(corpus_bleu(predictions, [references]).score / 100)


def test_exact_match_ignores_case_and_blanks():
    assert text_metrics(["Move  the cup ", "x"], ["move the cup", "y"])["exact_match"] == 0.5


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], ["a", "b"])])
def test_lengths_must_agree(predictions, references):
    with pytest.raises(InputError, match=f"got {len(predictions)} and {len(references)}"):
        text_metrics(predictions, references)
