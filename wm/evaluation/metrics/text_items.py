"""Score predicted actions one by one, for intervals and paired comparisons; figures of a set are in :mod:`.text`."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from wm.evaluation.metrics.bertscore import BertScorer
from wm.evaluation.metrics.text import ROUGE_METRICS, UnicodeWords
from wm.words import bleu_tokenizer, normalise, same_text, split_words

TEXT_ITEM_METRICS = (*ROUGE_METRICS, "bleu_sentence", "exact_match", "bertscore")
"""Metrics of one text; corpus BLEU has no value of an item."""


def score_texts(
    predictions: Sequence[str], references: Sequence[str], bert: BertScorer | None = None
) -> list[dict[str, float | None]]:
    """Compute ROUGE-1/2/L F1, sentence BLEU, exact match and BERTScore of each text.

    The means over the items of ROUGE and exact match are the figures of :func:`wm.evaluation.metrics.text.report_text`,
    in the same words. Sentence BLEU (sacrebleu, exponential smoothing, effective order) goes through the tokenizer of
    the reference's script.

    Args:
        predictions: The texts to judge.
        references: What they should say, as many.
        bert: For BERTScore; None: it is null.

    Returns:
        Metric → value, 0 to 1, a dict a text; null where a reference has too few words for the metric.
    """
    scorer = RougeScorer(list(ROUGE_METRICS), tokenizer=UnicodeWords())
    bert_scores = [None] * len(predictions) if bert is None else bert.score(predictions, references).tolist()
    items: list[dict[str, float | None]] = []
    for prediction, reference, bert_score in zip(predictions, references, bert_scores, strict=True):
        text, expected = normalise(prediction), normalise(reference)
        rouge, num_words = scorer.score(expected, text), len(split_words(expected))
        values: dict[str, float | None] = {
            name: rouge[name].fmeasure if num_words >= min_words else None for name, min_words in ROUGE_METRICS.items()
        }
        # Of one sentence BLEU is smoothed, or most would be 0.
        values["bleu_sentence"] = _sentence_bleu(text, expected)
        values["exact_match"] = float(same_text(text) == same_text(expected))
        items.append(values | {"bertscore": bert_score})
    return items


def _sentence_bleu(text: str, reference: str) -> float | None:
    bleu = BLEU(tokenize=bleu_tokenizer(reference), effective_order=True)
    # A reference of marks alone may have no token, and nothing can agree with it.
    if not bleu.tokenizer(reference.rstrip()):
        return None
    return float(bleu.sentence_score(text, [reference]).score) / 100.0
