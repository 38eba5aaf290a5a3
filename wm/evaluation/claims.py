"""What the paper claims, against what was measured. Every verdict is computed from the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wm.config import Recipe
from wm.evaluation.summary import spread_text

Verdict: TypeAlias = Literal["shows", "within the spread", "does not show", "not measured"]
CHANCE_MARGIN = 0.15
"""The probe is near chance if its mean share is this close to one half."""
FAR_ABOVE = 0.75
"""The probe is far above chance from this mean share on."""
FigureDict: TypeAlias = Mapping[str, Any]


class Labels(Recipe):
    """Which label of the tables plays which part in the claims."""

    zero_shot: str = "C-ZS"
    """The base as it is."""
    finetuned: str = "C-FT"
    """FDM trained on supervised triplets only."""
    bootstrapped: str = "C-FDM"
    """FDM trained on supervised and annotated triplets, with recognition weights."""
    unweighted: str = "C-FDM, no weights"
    """The same without recognition weights."""
    idm: str = "IDM"
    """The inverse model."""


@dataclass(frozen=True)
class Claim:
    """``key``: stable name for notes. ``measured``: lines with the figures."""

    key: str
    title: str
    verdict: Verdict
    measured: list[str]


@dataclass(frozen=True)
class Difference:
    """``mean`` of first − second; ``spread``: what it must exceed to count; ``basis``: what the spread is."""

    mean: float
    spread: float
    basis: str

    def verdict(self, *, higher_is_better: bool = True) -> Verdict:
        gain = self.mean if higher_is_better else -self.mean
        if abs(gain) <= self.spread:
            return "within the spread"
        return "shows" if gain > 0 else "does not show"

    def text(self) -> str:
        return f"difference {self.mean:+.3f}, spread {self.spread:.3f} ({self.basis})"


def difference(first: FigureDict, second: FigureDict) -> Difference:
    """Compare two figures: run by run where both have the same training seeds (at least two), else by the
    spread of each.

    A figure's own spread is its standard deviation over training seeds, or, with one run, half its 95 %
    interval over items, or, without that, its standard deviation over sampling seeds; two spreads add in
    squares.
    """
    seeds = sorted(set(first["runs"]) & set(second["runs"]))
    if len(seeds) >= 2:
        gaps = [first["runs"][seed] - second["runs"][seed] for seed in seeds]
        mean = sum(gaps) / len(gaps)
        std = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))
        return Difference(mean, std, f"standard deviation of {len(gaps)} paired training seeds")
    spread = math.hypot(_own_spread(first), _own_spread(second))
    return Difference(first["mean"] - second["mean"], spread, "spreads of both figures, added in squares")


def _own_spread(figure: FigureDict) -> float:
    if figure["over"] == "training seeds" and figure["std"] is not None:
        return float(figure["std"])
    if figure["ci_low"] is not None:
        return float(figure["ci_high"] - figure["ci_low"]) / 2
    return float(figure["std"] or 0.0)


class Figures:
    """Look-up in ``tables.json``."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.judged = tables["judge"] != "none"
        self.top_k = max(tables["k"])
        self._fdm = {(row["label"], row["choice"], row["k"]): row["metrics"] for row in tables["fdm"]}
        self._idm = {row["label"]: row["metrics"] for row in tables["idm"]}
        self._probe: dict[tuple[str, str], dict[str, FigureDict]] = {}
        for row in tables["probe"]:
            self._probe.setdefault((row["role"], row["label"]), {})[row["negative"]] = row["metrics"]["share"]

    def fdm(self, label: str, choice: str, k: int, metric: str) -> FigureDict | None:
        found: FigureDict | None = self._fdm.get((label, choice, k), {}).get(metric)
        return found

    def idm(self, label: str, metric: str) -> FigureDict | None:
        found: FigureDict | None = self._idm.get(label, {}).get(metric)
        return found

    def probe(self, role: str, label: str) -> dict[str, FigureDict]:
        """Kind of negative → share."""
        return self._probe.get((role, label), {})


def judge_claims(tables: Mapping[str, Any], labels: Labels) -> list[Claim]:
    """The claims in the paper's order."""
    figures = Figures(tables)
    return [
        _probe_claim(figures, "idm", labels.zero_shot, [labels.idm]),
        _probe_claim(figures, "fdm", labels.zero_shot, [labels.finetuned, labels.bootstrapped]),
        _asymmetry(figures, labels),
        _bootstrapping(figures, labels),
        _weights(figures, labels),
        *(_verification(figures, label) for label in (labels.finetuned, labels.bootstrapped)),
    ]


def _asymmetry(figures: Figures, labels: Labels) -> Claim:
    title = "Inverse dynamics is learned far better than forward dynamics from the same data and steps"
    idm = figures.idm(labels.idm, "state_equivalent")
    choice = "greedy" if figures.fdm(labels.finetuned, "greedy", 1, "right") else "idm"
    fdm = figures.fdm(labels.finetuned, choice, 1, "right")
    if idm is None or fdm is None:
        return Claim("asymmetry", title, "not measured", [])
    how = "greedy" if choice == "greedy" else "mean of samples"
    gap = difference(idm, fdm)
    measured = [
        f"{labels.idm}: share of actions that imply the target state {spread_text(idm)}",
        f"{labels.finetuned} ({how}): share of predictions that show the target state {spread_text(fdm)}",
        gap.text(),
    ]
    return Claim("asymmetry", title, gap.verdict(), measured)


def _probe_claim(figures: Figures, role: str, before_label: str, after_labels: Sequence[str]) -> Claim:
    word = {"idm": "inverse", "fdm": "forward"}[role]
    title = f"Preference for true trajectories ({word}): near chance before fine-tuning, far above after"
    before = figures.probe(role, before_label)
    after = {label: figures.probe(role, label) for label in after_labels if figures.probe(role, label)}
    if not before or not after:
        return Claim(f"probe-{role}", title, "not measured", [])
    start = _mean_share(before)
    measured = [f"before, {before_label}: mean {start:.2f} ({_shares(before)})"]
    ends = []
    for label, shares in after.items():
        ends.append(_mean_share(shares))
        measured.append(f"after, {label}: mean {ends[-1]:.2f} ({_shares(shares)})")
    near, far = abs(start - 0.5) <= CHANCE_MARGIN, all(end >= FAR_ABOVE for end in ends)
    low, high = 0.5 - CHANCE_MARGIN, 0.5 + CHANCE_MARGIN
    measured += [
        f"near chance, a mean of {low:.2f} to {high:.2f}: {'yes' if near else 'no'}",
        f"far above, {FAR_ABOVE:.2f} or more{' for each' if len(ends) > 1 else ''}: {'yes' if far else 'no'}",
    ]
    return Claim(f"probe-{role}", title, "shows" if near and far else "does not show", measured)


def _mean_share(shares: Mapping[str, FigureDict]) -> float:
    return float(sum(figure["mean"] for figure in shares.values()) / len(shares))


def _shares(shares: Mapping[str, FigureDict]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {figure['mean']:.2f}" for kind, figure in shares.items())


def _headline(figures: Figures) -> tuple[str, str, bool]:
    """(metric, words, higher is better)."""
    if figures.judged:
        return "final", "judge's score, 0 to 10", True
    return "l1", "L1 distance to the target", False


def _bootstrapping(figures: Figures, labels: Labels) -> Claim:
    title = "Training on videos annotated by the inverse model improves the forward model"
    pair = (labels.bootstrapped, labels.finetuned)
    return _versus(figures, "bootstrapping", title, pair, ("final", "right", "copied"))


def _weights(figures: Figures, labels: Labels) -> Claim:
    title = "Recognition weights raise editing success"
    pair = (labels.bootstrapped, labels.unweighted)
    return _versus(figures, "weights", title, pair, ("editing_success", "copied", "minimal_editing", "final"))


def _versus(figures: Figures, key: str, title: str, pair: tuple[str, str], metrics: Sequence[str]) -> Claim:
    """The first metric decides; without a judge, the headline metric alone."""
    metric, _, higher = _headline(figures)
    names = metrics if figures.judged else (metric,)
    rows = []
    for name in names:
        first, second = (figures.fdm(label, "idm", 1, name) for label in pair)
        if first is not None and second is not None:
            rows.append((name, first, second))
    if not rows:
        return Claim(key, title, "not measured", [])
    measured = [
        f"{name.replace('_', ' ')}: {pair[0]} {spread_text(first)}, {pair[1]} {spread_text(second)}; "
        + difference(first, second).text()
        for name, first, second in rows
    ]
    decisive = difference(rows[0][1], rows[0][2])
    return Claim(key, title, decisive.verdict(higher_is_better=higher), measured)


def _verification(figures: Figures, label: str) -> Claim:
    key, top = f"verification-{label}", figures.top_k
    title = f"Verification by the inverse model improves {label} from K = 1 to K = {top}"
    metric, words, higher = _headline(figures)
    names = ["right", metric] if figures.judged else [metric]
    measured, decisive = [], None
    for name in names:
        one, many = figures.fdm(label, "idm", 1, name), figures.fdm(label, "idm", top, name)
        best = figures.fdm(label, "oracle", top, name)
        if top == 1 or one is None or many is None:
            continue
        gap = difference(many, one)
        decisive = decisive or gap
        text = "share right" if name == "right" else words
        measured.append(
            f"{text}: K = 1 {spread_text(one)}, K = {top} {spread_text(many)}, "
            f"oracle best of {top} {spread_text(best)}; {gap.text()}"
        )
    if decisive is None:
        return Claim(key, title, "not measured", [])
    return Claim(key, title, decisive.verdict(higher_is_better=higher), measured)
