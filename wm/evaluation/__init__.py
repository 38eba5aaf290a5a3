"""Evaluate models: metrics, the preference probe, verification at several K, tables and the report."""

from wm.evaluation.metrics.text import text_metrics
from wm.evaluation.probe import NEGATIVES, Likelihoods, Preference, probe
from wm.evaluation.verification import verification_curve

__all__ = ["NEGATIVES", "Likelihoods", "Preference", "probe", "text_metrics", "verification_curve"]
