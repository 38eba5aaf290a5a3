"""Say what the values of a metric were measured with, and in what two such bases differ. Knows no value."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from wm.evaluation.comparison.folders import Result

_MODEL_KEYS = {
    "clip_i": ("clip",),
    "clip_t_target": ("clip", "blip"),
    "clip_t_prediction": ("clip", "blip"),
    "dino": ("dino", "dino_preparation"),
}
"""Metrics of ``wm score`` that depend on models, and the keys that name these."""
_JUDGE_DEFAULTS = {"detail": "auto", "source_view": "as_seen", "temperature": "default", "max_tokens": 300}
"""Keys of ``wm judge`` that change what a judge sees or replies, and what earlier records without them had."""


@dataclass(frozen=True)
class Basis:
    """What a metric was measured with: only values of one basis are compared. Empty: nothing but images or texts.

    Attributes:
        models: Names and values that a screen has room for.
        settings: What else changes the values.
    """

    models: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def short(self) -> str:
        """Return the models' names."""
        return ", ".join(value for _, value in self.models if value)

    def __str__(self) -> str:
        """Return all of it, as files have it."""
        return ", ".join(filter(None, [self.short, *(f"{name} {value}" for name, value in self.settings)]))


MetricKey: TypeAlias = tuple[str, Basis]
"""Metric and basis."""


def judge_basis(result: Result) -> Basis:
    """Return the basis of judgements: the model, and whatever else the question holds beside images and action."""
    template = str(result.record.get("inputs", {}).get("template", ""))
    settings = [("template", template)] if template else []
    for name, default in _JUDGE_DEFAULTS.items():
        value = result.key(name)
        settings.append((name, str(default if value is None else value)))
    return Basis((("model", str(result.key("model", ""))),), tuple(settings))


def score_basis(result: Result, metric: str) -> Basis:
    """Return the basis of a metric of ``wm score``.

    Args:
        result: Its folder.
        metric: Such as ``clip_i``.
    """
    # Names without their folders, which differ from machine to machine.
    if metric == "bertscore":
        settings = result.key("bertscore", {}) or {}
        return Basis(
            tuple((name, Path(str(value)).name) for name, value in settings.items() if value not in (None, ""))
        )
    return Basis(tuple((name, Path(str(result.key(name, ""))).name) for name in _MODEL_KEYS.get(metric, ())))


def list_differences(first: Iterable[MetricKey], second: Iterable[MetricKey]) -> list[str]:
    """Say which metrics both systems have on different bases alone, and in what these differ.

    Args:
        first: Metrics of the first system.
        second: Of the second.

    Returns:
        A line for all metrics of the same difference, such as ``judge.final: detail is 'low' and 'high'``.
    """
    # A metric that only one of them has is no matter of bases.
    by_name = [_group(keys) for keys in (first, second)]
    lines: dict[str, list[str]] = {}
    for name, bases in by_name[0].items():
        others = by_name[1].get(name, [])
        if others and not set(bases) & set(others):
            # Of several results the two that are most alike.
            pairs = [_differ(basis, other) for basis in bases for other in others]
            fewest = min(pairs, key=len)
            lines.setdefault(", ".join(fewest), []).append(name)
    return [f"{', '.join(names)}: {difference}" for difference, names in lines.items()]


def _group(keys: Iterable[MetricKey]) -> dict[str, list[Basis]]:
    groups: dict[str, list[Basis]] = {}
    for name, basis in keys:
        groups.setdefault(name, []).append(basis)
    return groups


def _differ(first: Basis, second: Basis) -> list[str]:
    """List the parts in which two bases differ."""
    # A setting that one basis lacks differs too: what it was is not known.
    own, other = (dict((*basis.models, *basis.settings)) for basis in (first, second))
    names: Sequence[str] = list(dict.fromkeys([*own, *other]))
    return [
        f"{name} is {own.get(name, 'absent')!r:.80} and {other.get(name, 'absent')!r:.80}"
        for name in names
        if own.get(name) != other.get(name)
    ]
