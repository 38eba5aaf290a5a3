"""Hold the paper's claims against what was measured. Every verdict is computed from the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wm.config import Recipe
from wm.evaluation.item_differences import PROPOSED
from wm.evaluation.report.differences import Difference, Verdict, compare_figures
from wm.evaluation.report.summary import name_best, spread_text
from wm.evaluation.rows import Choice, DifferenceRow, Figure, Tables

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
    """A claim of the paper with its verdict."""

    key: str  # stable name for notes
    title: str
    verdict: Verdict
    measured: list[str]  # lines with the figures


class _Figures:
    """Look up figures in ``tables.json``."""

    def __init__(self, tables: Tables) -> None:
        self.is_judged = tables["judge"] != "none"
        self.headline = "final" if self.is_judged else "l1"
        self.top_k = max(tables["k"])
        self._fdm: dict[Choice, dict[str, Figure]] = {
            (row["label"], row["choice"], row["k"]): row["metrics"] for row in tables["fdm"]
        }
        self._idm = {row["label"]: row["metrics"] for row in tables["idm"]}
        self._probe: dict[tuple[str, str], dict[str, Figure]] = {}
        for row in tables["probe"]:
            self._probe.setdefault((row["role"], row["label"]), {})[row["negative"]] = row["metrics"]["share"]
        self._differences: dict[tuple[object, ...], DifferenceRow] = {
            (row["metric"], tuple(row["first"]), tuple(row["second"])): row for row in tables.get("differences", [])
        }

    def fdm(self, label: str, choice: str, k: int, metric: str) -> Figure | None:
        """Return a figure of a forward model, if it was measured."""
        return self._fdm.get((label, choice, k), {}).get(metric)

    def idm(self, label: str, metric: str) -> Figure | None:
        """Return a figure of an inverse model, if it was measured."""
        return self._idm.get(label, {}).get(metric)

    def by_item(self, metric: str, first: Choice, second: Choice) -> DifferenceRow | None:
        """Find the row of a difference, whichever of the two was first there."""
        row, turned = (self._differences.get((metric, *pair)) for pair in ((first, second), (second, first)))
        return row if row is not None or turned is None else _turn(turned)

    def probe(self, role: str, label: str) -> dict[str, Figure]:
        """Return kind of negative → share."""
        return self._probe.get((role, label), {})


def _turn(row: DifferenceRow) -> DifferenceRow:
    """Turn first minus second into second minus first."""
    # The upper bound becomes the lower one.
    turned = row.copy()
    turned["first"], turned["second"], turned["runs"] = row["second"], row["first"], row["runs"][::-1]
    turned["mean"] = -row["mean"]
    turned["ci_low"], turned["ci_high"] = _negate(row["ci_high"]), _negate(row["ci_low"])
    turned["bootstrap_low"] = _negate(row.get("bootstrap_high"))
    turned["bootstrap_high"] = _negate(row.get("bootstrap_low"))
    return turned


def _negate(value: float | None) -> float | None:
    return None if value is None else -value


def judge_claims(tables: Tables, labels: Labels) -> list[Claim]:
    """Judge the claims of the paper.

    Args:
        tables: The content of ``tables.json``.
        labels: Which label plays which part.

    Returns:
        The claims in the paper's order; one whose figures are missing is ``not measured``.
    """
    figures = _Figures(tables)
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


def _judge_asymmetry(figures: _Figures, labels: Labels) -> Claim:
    title = "Inverse dynamics is learned far better than forward dynamics from the same data and steps"
    idm = figures.idm(labels.idm, "state_equivalent")
    # Actions are greedy: greedy predictions compare best, sampled ones where there are none.
    choice = "greedy" if figures.fdm(labels.finetuned, "greedy", 1, "right") else "idm"
    fdm = figures.fdm(labels.finetuned, choice, 1, "right")
    if idm is None or fdm is None:
        return Claim("asymmetry", title, "not measured", [])
    wording = "greedy" if choice == "greedy" else "mean of samples"
    pair = (labels.idm, PROPOSED, 1), (labels.finetuned, choice, 1)
    gap = compare_figures(idm, fdm, figures.by_item("right", *pair))
    measured = [
        f"{labels.idm}: share of actions that imply the target state {spread_text(idm)}",
        f"{labels.finetuned} ({wording}): share of predictions that show the target state {spread_text(fdm)}",
        f"{gap.text()} ({gap.basis})",
    ]
    return Claim("asymmetry", title, gap.verdict(), measured)


def _judge_probe_before(figures: _Figures, role: str, label: str) -> Claim:
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


def _judge_probe_after(figures: _Figures, role: str, labels: Sequence[str]) -> Claim:
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


def _compute_mean_share(shares: Mapping[str, Figure]) -> float:
    return float(sum(figure["mean"] for figure in shares.values()) / len(shares))


def _format_shares(shares: Mapping[str, Figure]) -> str:
    return ", ".join(f"{kind.replace('_', ' ')} {figure['mean']:.2f}" for kind, figure in shares.items())


def _judge_bootstrapping(figures: _Figures, labels: Labels) -> Claim:
    title = "Training on videos annotated by the inverse model improves the forward model"
    pair = (labels.bootstrapped, labels.finetuned)
    return _compare_labels(figures, "bootstrapping", title, pair, ("final", "right", "copied"))


def _judge_weights(figures: _Figures, labels: Labels) -> Claim:
    title = "Recognition weights raise editing success"
    pair = (labels.bootstrapped, labels.unweighted)
    return _compare_labels(figures, "weights", title, pair, ("editing_success", "copied", "minimal_editing", "final"))


def _compare_labels(figures: _Figures, key: str, title: str, pair: tuple[str, str], metrics: Sequence[str]) -> Claim:
    """Compare two labels: the first metric decides; without a judge, the headline metric alone."""
    choices = [(label, "idm", 1) for label in pair]
    measured, decisive = [], None
    for name in metrics if figures.is_judged else (figures.headline,):
        first, second = (figures.fdm(*choice, name) for choice in choices)
        if first is None or second is None:
            continue
        gap = compare_figures(first, second, figures.by_item(name, choices[0], choices[1]))
        decisive = decisive or gap
        measured.append(
            f"{METRIC_WORDS[name]}: {pair[0]} {spread_text(first)}, {pair[1]} {spread_text(second)}; {gap.text()}"
        )
    return _build_claim(figures, key, title, measured, decisive)


def _judge_verification(figures: _Figures, label: str) -> Claim:
    top = figures.top_k
    title = f"Verification by the inverse model improves {label} from K = 1 to K = {top}"
    measured, decisive = [], None
    for name in ["right", figures.headline] if figures.is_judged else [figures.headline]:
        single, many = figures.fdm(label, "idm", 1, name), figures.fdm(label, "idm", top, name)
        best = figures.fdm(label, "oracle", top, name)
        if top == 1 or single is None or many is None:
            continue
        # Paired by item: verification chooses among candidates of the same sources.
        gap = compare_figures(many, single, figures.by_item(name, (label, "idm", top), (label, "idm", 1)))
        decisive = decisive or gap
        measured.append(
            f"{METRIC_WORDS[name]}: K = 1 {spread_text(single)}, K = {top} {spread_text(many)}, "
            f"{name_best(top, is_judged=figures.is_judged)} {spread_text(best)}; {gap.text()}"
        )
    return _build_claim(figures, f"verification-{label}", title, measured, decisive)


def _build_claim(figures: _Figures, key: str, title: str, measured: list[str], decisive: Difference | None) -> Claim:
    """Build the claim that the first difference measured decides."""
    if decisive is None:
        return Claim(key, title, "not measured", [])
    # Without a judge the headline is a distance: lower is better.
    verdict = decisive.verdict(higher_is_better=figures.is_judged)
    return Claim(key, title, verdict, [*measured, f"spread: {decisive.basis}"])
