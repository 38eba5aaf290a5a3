"""Measure how close predicted actions are to the reference ones, as text (paper section 4.2, table 1).

Any script is read; no model of a language is, so that words of scripts without spaces are compared by characters.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics.bleu import BLEU

from wm.errors import InputError
from wm.words import bleu_tokenizer, has_unspaced, normalise, same_text, split_words

ROUGE_METRICS = {"rouge1": 1, "rouge2": 2, "rougeL": 1}
"""ROUGE's figures, each with the words that a reference needs for it."""
MAX_ORDER = 4


@dataclass(frozen=True)
class TextReport:
    """Figures of a set of texts; each metric is in ``figures`` or in ``absent``."""

    figures: dict[str, float]  # metric → value, 0 to 1
    absent: dict[str, str]  # metric → why it cannot be had
    notes: dict[str, str]  # metric → by which tokens it was computed, and over how many items if not over all


def report_text(predictions: Sequence[str], references: Sequence[str]) -> TextReport:
    """Compute ROUGE-1/2/L F1, corpus BLEU and exact match, all from 0 to 1; one reference a prediction.

    Texts are compared in the canonical form of Unicode (NFC), full-width and half-width forms as the plain ones.

    ROUGE (rouge_score): no stemming, the mean of the items' F1. Words are runs of letters, digits and their marks
    without regard to case, those of scripts without spaces single characters with their marks; of ASCII text that is
    rouge_score's own tokeniser. An item whose reference has no word (for ROUGE-2 no two) is left out of the mean.

    BLEU (sacrebleu, ``BLEU(effective_order=True)``): case kept, exponential smoothing, up to 4-grams, or as many words
    as the longest prediction has, one figure for the corpus, divided by 100 as the paper's table has it. Each pair goes
    through the tokeniser of sacrebleu that knows the script of its reference: ``13a`` for Latin letters, ``zh`` for
    Chinese, ``char`` for Japanese, Thai, Lao, Khmer, Burmese and the like, ``intl`` for all others.

    Exact match ignores case and runs of blanks.

    Args:
        predictions: The texts to judge.
        references: What they should say.

    Returns:
        The figures, what could not be had, and which tokens were compared. 0 means that nothing agrees.

    Raises:
        InputError: If the lists are empty or of different lengths.
    """
    if not references or len(predictions) != len(references):
        raise InputError(
            f"text metrics need as many predictions as references and at least one; "
            f"got {len(predictions)} and {len(references)}"
        )
    pairs = [(normalise(text), normalise(reference)) for text, reference in zip(predictions, references, strict=True)]
    report = TextReport({}, {}, {})
    _add_rouge(report, pairs)
    _add_bleu(report, pairs)
    same = sum(same_text(text) == same_text(reference) for text, reference in pairs)
    report.figures["exact_match"] = same / len(pairs)
    return report


class UnicodeWords(Tokenizer):  # type: ignore[misc]
    """:func:`split_words` for rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text into words."""
        return split_words(text)


def _add_rouge(report: TextReport, pairs: Sequence[tuple[str, str]]) -> None:
    # Without a stemmer, which knows English only.
    scorer = RougeScorer(list(ROUGE_METRICS), tokenizer=UnicodeWords())
    scores = [scorer.score(reference, text) for text, reference in pairs]
    lengths = [len(split_words(reference)) for _, reference in pairs]
    tokens = "words of rouge_score" if all(text.isascii() for pair in pairs for text in pair) else "Unicode words"
    if any(has_unspaced(reference) for _, reference in pairs):
        tokens += ", characters in scripts without spaces"
    for name, min_words in ROUGE_METRICS.items():
        values = [score[name].fmeasure for score, length in zip(scores, lengths, strict=True) if length >= min_words]
        words = "a word" if min_words == 1 else "two words"
        if not values:
            report.absent[name] = f"no reference has {words}"
            continue
        report.figures[name] = sum(values) / len(values)
        coverage = (
            "" if len(values) == len(pairs) else f"; over the {len(values)} of {len(pairs)} references with {words}"
        )
        report.notes[name] = tokens + coverage


def _add_bleu(report: TextReport, pairs: Sequence[tuple[str, str]]) -> None:
    # By the reference alone: a prediction in another script must not choose how it is compared.
    names = [bleu_tokenizer(reference) for _, reference in pairs]
    tokenize = {name: BLEU(tokenize=name).tokenizer for name in set(names)}
    texts, references = (
        [tokenize[name](pair[side].rstrip()) for name, pair in zip(names, pairs, strict=True)] for side in (0, 1)
    )
    if not any(references):
        report.absent["bleu"] = "no reference has a token"
        return
    # What is tokenised already goes through unchanged: for one tokeniser this is sacrebleu's own figure.
    score = BLEU(tokenize="none", force=True, effective_order=True).corpus_score(texts, [references])
    report.figures["bleu"] = score.score / 100.0
    counts = sorted(Counter(names).items())
    used = names[0] if len(counts) == 1 else ", ".join(f"{name} of {count} items" for name, count in counts)
    order = sum(total > 0 for total in score.totals)
    shorter = f"; up to {order}-grams, all there are" if 0 < order < MAX_ORDER else ""
    report.notes["bleu"] = f"sacrebleu's {used}{shorter}"
