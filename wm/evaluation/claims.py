"""What the paper claims, against what was measured. Every verdict is computed from the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wm.config import Recipe
from wm.evaluation.summary import spread_text

Verdict: TypeAlias = Literal["shows", "within the spread", "does not show", "not measured"]
CHANCE_MARGIN = 0.15
"""The probe is near chance if its share is this close to one half for each kind of negative."""
FAR_ABOVE = 0.75
"""The probe is far above chance from this mean share on."""
METRIC_WORDS = {
    "final": "score (0 to 10)",
    "editing_success": "editing success (0 to 10)",
    "minimal_editing": "minimal editing (0 to 10)",
    "right": "share right",
    "copied": "share of copies",
    "l1": "L1 distance to the target",
}
_ROLE_WORDS = {"idm": "inverse", "fdm": "forward"}
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
        return f"difference {self.mean:+.3f}, spread {self.spread:.3f}"


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
        return Difference(mean, std, f"the standard deviation of the difference over {len(gaps)} paired training seeds")
    spread = math.hypot(_own_spread(first), _own_spread(second))
    return Difference(first["mean"] - second["mean"], spread, "the two figures' own spreads, added in squares")


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
        _probe_before(figures, "idm", labels.zero_shot),
        _probe_before(figures, "fdm", labels.zero_shot),
        _probe_after(figures, "idm", [labels.idm]),
        _probe_after(figures, "fdm", [labels.finetuned, labels.bootstrapped]),
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
        f"{gap.text()} ({gap.basis})",
    ]
    return Claim("asymmetry", title, gap.verdict(), measured)


def _probe_before(figures: Figures, role: str, label: str) -> Claim:
    """A mean near one half would let a strong preference for copies hide behind another: each kind must be
    near."""
    title = f"Before fine-tuning, preference for true trajectories is near chance ({_ROLE_WORDS[role]})"
    shares = figures.probe(role, label)
    if not shares:
        return Claim(f"probe-{role}-before", title, "not measured", [])
    off = [kind for kind, figure in shares.items() if abs(figure["mean"] - 0.5) > CHANCE_MARGIN]
    low, high = 0.5 - CHANCE_MARGIN, 0.5 + CHANCE_MARGIN
    measured = [
        f"{label}: mean {_mean_share(shares):.2f} ({_shares(shares)})",
        f"near chance is {low:.2f} to {high:.2f} for each; outside: {_kinds(off)}",
    ]
    return Claim(f"probe-{role}-before", title, "does not show" if off else "shows", measured)


def _probe_after(figures: Figures, role: str, labels: Sequence[str]) -> Claim:
    title = f"After fine-tuning, preference for true trajectories is far above chance ({_ROLE_WORDS[role]})"
    found = {label: figures.probe(role, label) for label in labels if figures.probe(role, label)}
    if not found:
        return Claim(f"probe-{role}-after", title, "not measured", [])
    measured = []
    for label, shares in found.items():
        low = [kind for kind, figure in shares.items() if figure["mean"] < FAR_ABOVE]
        exceptions = f"below {FAR_ABOVE:.2f}: {_kinds(low)}"
        measured.append(f"{label}: mean {_mean_share(shares):.2f} ({_shares(shares)}); {exceptions}")
    measured.append(f"far above is a mean of {FAR_ABOVE:.2f} or more{' for each' if len(found) > 1 else ''}")
    far = all(_mean_share(shares) >= FAR_ABOVE for shares in found.values())
    return Claim(f"probe-{role}-after", title, "shows" if far else "does not show", measured)


def _kinds(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names) or "none"


def _mean_share(shares: Mapping[str, FigureDict]) -> float:
    return float(sum(figure["mean"] for figure in shares.values()) / len(shares))


def _shares(shares: Mapping[str, FigureDict]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {figure['mean']:.2f}" for kind, figure in shares.items())


def _headline(figures: Figures) -> tuple[str, bool]:
    """(metric, higher is better)."""
    if figures.judged:
        return "final", True
    return "l1", False


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
    metric, higher = _headline(figures)
    names = metrics if figures.judged else (metric,)
    rows = []
    for name in names:
        first, second = (figures.fdm(label, "idm", 1, name) for label in pair)
        if first is not None and second is not None:
            rows.append((name, first, second))
    if not rows:
        return Claim(key, title, "not measured", [])
    gaps = [(name, first, second, difference(first, second)) for name, first, second in rows]
    measured = [
        f"{METRIC_WORDS.get(name, name)}: {pair[0]} {spread_text(first)}, {pair[1]} {spread_text(second)}; "
        + gap.text()
        for name, first, second, gap in gaps
    ]
    measured.append(f"spread: {gaps[0][3].basis}")
    return Claim(key, title, gaps[0][3].verdict(higher_is_better=higher), measured)


def _verification(figures: Figures, label: str) -> Claim:
    key, top = f"verification-{label}", figures.top_k
    title = f"Verification by the inverse model improves {label} from K = 1 to K = {top}"
    metric, higher = _headline(figures)
    names = ["right", metric] if figures.judged else [metric]
    measured, decisive = [], None
    for name in names:
        one, many = figures.fdm(label, "idm", 1, name), figures.fdm(label, "idm", top, name)
        best = figures.fdm(label, "oracle", top, name)
        if top == 1 or one is None or many is None:
            continue
        gap = difference(many, one)
        decisive = decisive or gap
        measured.append(
            f"{METRIC_WORDS[name]}: K = 1 {spread_text(one)}, K = {top} {spread_text(many)}, "
            f"oracle best of {top} {spread_text(best)}; {gap.text()}"
        )
    if decisive is None:
        return Claim(key, title, "not measured", [])
    measured.append(f"spread: {decisive.basis}")
    return Claim(key, title, decisive.verdict(higher_is_better=higher), measured)
