"""Hold the paper's claims against what was measured. Every verdict is computed from the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wm.config import Recipe
from wm.evaluation.metrics.stats import half_interval, student_quantile
from wm.evaluation.report.summary import spread_text
from wm.evaluation.tables import PROPOSED, Choice

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
    """``mean`` of first - second; ``spread``: what it must exceed to count, None if unknown; ``basis``: what the spread
    is."""

    mean: float
    spread: float | None
    basis: str

    def verdict(self, *, higher_is_better: bool = True) -> Verdict:
        if self.spread is None:
            return "not measured"
        gain = self.mean if higher_is_better else -self.mean
        if abs(gain) <= self.spread:
            return "within the spread"
        return "shows" if gain > 0 else "does not show"

    def text(self) -> str:
        return f"difference {self.mean:+.3f}, spread {'unknown' if self.spread is None else f'{self.spread:.3f}'}"


def difference(first: FigureDict, second: FigureDict, by_item: Mapping[str, Any] | None = None) -> Difference:
    """Compare two figures; what both have in common cancels: training seeds, test items, their sampling noise.

    The spread is half a 95 % interval: Student's over the differences of training seeds that both have (two at least),
    and that over the items, compared one by one; the larger of the two where both are known. Without either it is the
    two figures' own half intervals, added in squares.

    Args:
        first: A figure of ``tables.json``.
        second: Another.
        by_item: Their row of ``differences`` in ``tables.json``, if it has one.

    Returns:
        The difference, its spread unknown where the figures are one value each.
    """
    seeds = sorted(set(first["runs"]) & set(second["runs"]))
    paired = len(seeds) > 1
    gaps = [first["runs"][seed] - second["runs"][seed] for seed in seeds]
    mean = sum(gaps) / len(gaps) if paired else first["mean"] - second["mean"]
    over_items = None if by_item is None or by_item["ci_low"] is None else (by_item["ci_high"] - by_item["ci_low"]) / 2
    over_seeds = half_interval(gaps) if paired else _add_halves(first, second, over_items is None)
    halves = [half for half in (over_seeds, over_items) if half is not None]
    if not halves:
        return Difference(mean, None, "one value each, which has no spread")
    spread = max(halves)
    if spread == over_items:
        return Difference(
            mean, spread, f"half the 95 % interval over {by_item['items'] if by_item else 0} paired items"
        )
    if paired:
        return Difference(mean, spread, f"half the 95 % interval over {len(gaps)} paired training seeds")
    return Difference(mean, spread, "half the two figures' own 95 % intervals, added in squares")


def _add_halves(first: FigureDict, second: FigureDict, with_items: bool) -> float | None:
    """Add the half intervals of two figures in squares; without those over items, the ones that are known."""
    halves = [half for figure in (first, second) if (half := _compute_half(figure, with_items)) is not None]
    is_known = len(halves) == 2 if with_items else bool(halves)
    return math.hypot(*halves) if is_known else None


def _compute_half(figure: FigureDict, with_items: bool) -> float | None:
    """Compute half an interval over training seeds; with one run over items, or else over sampling seeds."""
    values = list(figure["runs"].values())
    if len(values) > 1:
        return half_interval(values)
    if not with_items:
        return None
    if figure["ci_low"] is not None:
        return float(figure["ci_high"] - figure["ci_low"]) / 2
    if figure["std"] is None:
        return None
    return student_quantile(0.95, figure["n"] - 1) * float(figure["std"]) / math.sqrt(figure["n"])


class Figures:
    """Look up figures in ``tables.json``."""

    def __init__(self, tables: Mapping[str, Any]) -> None:
        self.judged = tables["judge"] != "none"
        self.top_k = max(tables["k"])
        self._fdm = {(row["label"], row["choice"], row["k"]): row["metrics"] for row in tables["fdm"]}
        self._idm = {row["label"]: row["metrics"] for row in tables["idm"]}
        self._probe: dict[tuple[str, str], dict[str, FigureDict]] = {}
        for row in tables["probe"]:
            self._probe.setdefault((row["role"], row["label"]), {})[row["negative"]] = row["metrics"]["share"]
        self._differences = {
            (row["metric"], tuple(row["first"]), tuple(row["second"])): row for row in tables.get("differences", [])
        }

    def fdm(self, label: str, choice: str, k: int, metric: str) -> FigureDict | None:
        figure: FigureDict | None = self._fdm.get((label, choice, k), {}).get(metric)
        return figure

    def idm(self, label: str, metric: str) -> FigureDict | None:
        figure: FigureDict | None = self._idm.get(label, {}).get(metric)
        return figure

    def by_item(self, metric: str, first: Choice, second: Choice) -> Mapping[str, Any] | None:
        """Find the row of a difference, whichever of the two was first: its interval is as wide."""
        pairs = ((metric, first, second), (metric, second, first))
        return next((row for pair in pairs if (row := self._differences.get(pair)) is not None), None)

    def probe(self, role: str, label: str) -> dict[str, FigureDict]:
        """Return kind of negative → share."""
        return self._probe.get((role, label), {})


def judge_claims(tables: Mapping[str, Any], labels: Labels) -> list[Claim]:
    """Judge the claims, in the paper's order."""
    figures = Figures(tables)
    return [
        _judge_probe_before(figures, "idm", labels.zero_shot),
        _judge_probe_before(figures, "fdm", labels.zero_shot),
        _judge_probe_after(figures, "idm", [labels.idm]),
        _judge_probe_after(figures, "fdm", [labels.finetuned, labels.bootstrapped]),
        _judge_asymmetry(figures, labels),
        _judge_bootstrapping(figures, labels),
        _judge_weights(figures, labels),
        *(_judge_verification(figures, label) for label in (labels.finetuned, labels.bootstrapped)),
    ]


def _judge_asymmetry(figures: Figures, labels: Labels) -> Claim:
    title = "Inverse dynamics is learned far better than forward dynamics from the same data and steps"
    idm = figures.idm(labels.idm, "state_equivalent")
    choice = "greedy" if figures.fdm(labels.finetuned, "greedy", 1, "right") else "idm"
    fdm = figures.fdm(labels.finetuned, choice, 1, "right")
    if idm is None or fdm is None:
        return Claim("asymmetry", title, "not measured", [])
    wording = "greedy" if choice == "greedy" else "mean of samples"
    pair = (labels.idm, PROPOSED, 1), (labels.finetuned, choice, 1)
    gap = difference(idm, fdm, figures.by_item("right", *pair))
    measured = [
        f"{labels.idm}: share of actions that imply the target state {spread_text(idm)}",
        f"{labels.finetuned} ({wording}): share of predictions that show the target state {spread_text(fdm)}",
        f"{gap.text()} ({gap.basis})",
    ]
    return Claim("asymmetry", title, gap.verdict(), measured)


def _judge_probe_before(figures: Figures, role: str, label: str) -> Claim:
    """Require each kind of negative near chance: in a mean, a strong preference for copies could hide."""
    title = f"Before fine-tuning, preference for true trajectories is near chance ({_ROLE_WORDS[role]})"
    shares = figures.probe(role, label)
    if not shares:
        return Claim(f"probe-{role}-before", title, "not measured", [])
    off = [kind for kind, figure in shares.items() if abs(figure["mean"] - 0.5) > CHANCE_MARGIN]
    low, high = 0.5 - CHANCE_MARGIN, 0.5 + CHANCE_MARGIN
    measured = [
        f"{label}: mean {_compute_mean_share(shares):.2f} ({_format_shares(shares)})",
        f"near chance is {low:.2f} to {high:.2f} for each; outside: {_join_kinds(off)}",
    ]
    return Claim(f"probe-{role}-before", title, "does not show" if off else "shows", measured)


def _judge_probe_after(figures: Figures, role: str, labels: Sequence[str]) -> Claim:
    title = f"After fine-tuning, preference for true trajectories is far above chance ({_ROLE_WORDS[role]})"
    by_label = {label: figures.probe(role, label) for label in labels if figures.probe(role, label)}
    if not by_label:
        return Claim(f"probe-{role}-after", title, "not measured", [])
    measured = []
    for label, shares in by_label.items():
        low = [kind for kind, figure in shares.items() if figure["mean"] < FAR_ABOVE]
        exceptions = f"below {FAR_ABOVE:.2f}: {_join_kinds(low)}"
        measured.append(f"{label}: mean {_compute_mean_share(shares):.2f} ({_format_shares(shares)}); {exceptions}")
    measured.append(f"far above is a mean of {FAR_ABOVE:.2f} or more{' for each' if len(by_label) > 1 else ''}")
    far = all(_compute_mean_share(shares) >= FAR_ABOVE for shares in by_label.values())
    return Claim(f"probe-{role}-after", title, "shows" if far else "does not show", measured)


def _join_kinds(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names) or "none"


def _compute_mean_share(shares: Mapping[str, FigureDict]) -> float:
    return float(sum(figure["mean"] for figure in shares.values()) / len(shares))


def _format_shares(shares: Mapping[str, FigureDict]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {figure['mean']:.2f}" for kind, figure in shares.items())


def _choose_headline(figures: Figures) -> tuple[str, bool]:
    """Return the metric of the headline, and whether higher is better."""
    if figures.judged:
        return "final", True
    return "l1", False


def _judge_bootstrapping(figures: Figures, labels: Labels) -> Claim:
    title = "Training on videos annotated by the inverse model improves the forward model"
    pair = (labels.bootstrapped, labels.finetuned)
    return _compare_labels(figures, "bootstrapping", title, pair, ("final", "right", "copied"))


def _judge_weights(figures: Figures, labels: Labels) -> Claim:
    title = "Recognition weights raise editing success"
    pair = (labels.bootstrapped, labels.unweighted)
    return _compare_labels(figures, "weights", title, pair, ("editing_success", "copied", "minimal_editing", "final"))


def _compare_labels(figures: Figures, key: str, title: str, pair: tuple[str, str], metrics: Sequence[str]) -> Claim:
    """Compare two labels: the first metric decides; without a judge, the headline metric alone."""
    metric, higher = _choose_headline(figures)
    names = metrics if figures.judged else (metric,)
    rows = []
    for name in names:
        first, second = (figures.fdm(label, "idm", 1, name) for label in pair)
        if first is not None and second is not None:
            rows.append((name, first, second))
    if not rows:
        return Claim(key, title, "not measured", [])
    choices = [(label, "idm", 1) for label in pair]
    gaps = [
        (name, first, second, difference(first, second, figures.by_item(name, choices[0], choices[1])))
        for name, first, second in rows
    ]
    measured = [
        f"{METRIC_WORDS.get(name, name)}: {pair[0]} {spread_text(first)}, {pair[1]} {spread_text(second)}; "
        + gap.text()
        for name, first, second, gap in gaps
    ]
    measured.append(f"spread: {gaps[0][3].basis}")
    return Claim(key, title, gaps[0][3].verdict(higher_is_better=higher), measured)


def _judge_verification(figures: Figures, label: str) -> Claim:
    key, top = f"verification-{label}", figures.top_k
    title = f"Verification by the inverse model improves {label} from K = 1 to K = {top}"
    metric, higher = _choose_headline(figures)
    names = ["right", metric] if figures.judged else [metric]
    measured, decisive = [], None
    for name in names:
        single, many = figures.fdm(label, "idm", 1, name), figures.fdm(label, "idm", top, name)
        best = figures.fdm(label, "oracle", top, name)
        if top == 1 or single is None or many is None:
            continue
        gap = difference(many, single, figures.by_item(name, (label, "idm", 1), (label, "idm", top)))
        decisive = decisive or gap
        measured.append(
            f"{METRIC_WORDS[name]}: K = 1 {spread_text(single)}, K = {top} {spread_text(many)}, "
            f"oracle best of {top} {spread_text(best)}; {gap.text()}"
        )
    if decisive is None:
        return Claim(key, title, "not measured", [])
    measured.append(f"spread: {decisive.basis}")
    return Claim(key, title, decisive.verdict(higher_is_better=higher), measured)
