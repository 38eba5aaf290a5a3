"""Figures of texts alone, and the names of them all."""

from wm.evaluation.metrics.text import ROUGE_METRICS, report_text

TEXT_METRICS = (*ROUGE_METRICS, "bleu", "exact_match")


def text_metrics(predictions, references):
    return report_text(predictions, references).figures
