"""How close predicted actions are to the reference ones, as text (paper section 4.2, table 1)."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from wm.errors import InputError

TEXT_METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "exact_match")
BLEU_TOKENIZE = "13a"


def text_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1/2/L F1, corpus BLEU and exact match, all from 0 to 1; one reference a prediction.

    ROUGE (rouge_score): lower case, runs of ``[a-z0-9]``, no stemming, the mean of the items' F1.
    BLEU (sacrebleu): case kept, tokeniser 13a, up to 4-grams, exponential smoothing, one figure for the
    corpus, divided by 100 as the paper's table has it. Exact match ignores case and runs of blanks. Raises
    :class:`InputError` if the lists are empty or of different lengths.
    """
    if not references or len(predictions) != len(references):
        raise InputError(
            f"text metrics need as many predictions as references and at least one; "
            f"got {len(predictions)} and {len(references)}"
        )
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    scored = [rouge.score(target, text) for target, text in zip(references, predictions, strict=True)]
    figures = {
        name: sum(item[name].fmeasure for item in scored) / len(scored) for name in ("rouge1", "rouge2", "rougeL")
    }
    bleu = BLEU(tokenize=BLEU_TOKENIZE).corpus_score(list(predictions), [list(references)]).score
    same = sum(_plain(a) == _plain(b) for a, b in zip(predictions, references, strict=True))
    return figures | {"bleu": bleu / 100.0, "exact_match": same / len(references)}


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
