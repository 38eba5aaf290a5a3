"""Gather the parts of single models and seeds into the figures of the tables."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from wm.evaluation.bank import Bank
from wm.evaluation.item_differences import PROPOSED, compare_choices
from wm.evaluation.metrics.stats import Floats, build_figure
from wm.evaluation.probe import NEGATIVES, NO_NEGATIVE, Preference, ProbeScores, preferences_by_pair
from wm.evaluation.rows import (
    Choice,
    DifferenceRow,
    Figure,
    ForwardRow,
    InverseRow,
    MeasuredTables,
    ProbeRow,
)
from wm.evaluation.sensitivity import Gaps
from wm.evaluation.sensitivity_table import build_sensitivity
from wm.evaluation.subset_means import average_subsets
from wm.evaluation.verification import verification_curve

if TYPE_CHECKING:
    from wm.evaluation.metrics.text import TextReport

BankKey: TypeAlias = tuple[str, int, int]
"""(label, training seed, sampling seed)."""
_NO_RUN = 0
"""Training seed of references, which nothing trained."""
TOPS = {
    "final": 10.0,
    "editing_success": 10.0,
    "minimal_editing": 10.0,
    "right": 1.0,
    "copied": 1.0,
    "state_equivalent": 1.0,
}
"""Max value of metrics that have bounds, the min being 0."""
COMPARED = ("final", "editing_success", "minimal_editing", "right", "copied", "l1")
"""Metrics whose differences between models are kept, item by item."""

Samples: TypeAlias = dict[str, dict[int, list[Floats]]]
"""Metric → training seed → one (B,) a sampling seed."""


@dataclass
class Collected:
    """What all units of an evaluation gave."""

    subsets: list[str]
    ks: Sequence[int]
    references: dict[str, dict[str, Floats]] = field(default_factory=dict)
    """label (Copy, …) → metric → (B,)."""
    banks: dict[BankKey, Bank] = field(default_factory=dict)
    greedy: dict[BankKey, Bank] = field(default_factory=dict)
    idm: dict[tuple[str, int], tuple[dict[str, float], dict[str, Floats]]] = field(default_factory=dict)
    """(label, training seed) → (figures of the set, figures of each item)."""
    texts: dict[tuple[str, int], "TextReport"] = field(default_factory=dict)
    """(label, training seed) → how its text metrics were computed, and which could not be."""
    probes: dict[tuple[str, str, int], dict[str, Preference]] = field(default_factory=dict)
    """(role, label, training seed) → kind of negative → preference."""
    gaps: dict[tuple[str, int], dict[str, Gaps]] = field(default_factory=dict)
    """(label, training seed) → other action → lead of the true one, of forward models."""
    margins: dict[tuple[str, int], dict[str, Gaps]] = field(default_factory=dict)
    """The same by the verifier's log-likelihood of the action."""
    reasons: dict[tuple[str, str, str], str] = field(default_factory=dict)
    """(label, by, other action) → why such a figure cannot be had."""
    probe_scores: dict[tuple[str, str, int], ProbeScores] = field(default_factory=dict)
    """(role, label, training seed) → log-likelihoods item by item; parts of earlier versions have none."""


def build_tables(collected: Collected) -> MeasuredTables:
    """Build the tables, ready for JSON."""
    return {
        "items": len(collected.subsets),
        "k": list(collected.ks),
        "subsets": sorted(set(collected.subsets)),
        "fdm": fdm_rows(collected),
        "idm": idm_rows(collected),
        "probe": probe_rows(collected),
        # A kind without a pair has no row: the reason stands for it.
        "absent": [
            {"role": role, "label": label, "negative": kind, "reason": NO_NEGATIVE[kind]}
            for role, label in dict.fromkeys((role, label) for role, label, _ in collected.probes)
            for kind in NEGATIVES
            if not any(kind in kinds for key, kinds in collected.probes.items() if key[:2] == (role, label))
        ],
        "sensitivity": build_sensitivity(
            collected.gaps, collected.subsets, verifier=collected.margins, reasons=collected.reasons
        ),
        "differences": difference_rows(collected),
    }


def fdm_rows(collected: Collected) -> list[ForwardRow]:
    """Build one row a label, choice and k. At k = 1 nothing is chosen: the row averages all candidates."""
    rows = []
    for label, metrics in collected.references.items():
        samples: Samples = {name: {_NO_RUN: [values]} for name, values in metrics.items()}
        rows.append(_build_row(label, "none", 1, samples, collected.subsets, over="items"))
    gathered = _gather_samples(collected)
    labels = list(dict.fromkeys(label for label, _, _ in gathered))
    # A label stays together: greedy, then verified by k, then the oracle by k.
    order = ("greedy", "idm", "oracle")
    for label, choice, k in sorted(gathered, key=lambda key: (labels.index(key[0]), order.index(key[1]), key[2])):
        rows.append(_build_row(label, choice, k, gathered[label, choice, k], collected.subsets, over="sampling seeds"))
    return rows


def _gather_samples(collected: Collected) -> dict[Choice, Samples]:
    """Sort the figures of each item by label, choice and k."""
    gathered: dict[Choice, Samples] = {}
    for (label, run, _), bank in collected.banks.items():
        distinct = np.array([len({tuple(codes) for codes in item.tolist()}) for item in bank.codes])
        for (choice, k), metrics in verification_curve(bank.metrics, bank.ranking, bank.best, collected.ks).items():
            # A figure of the bank, not of a choice: it is given once.
            extra = {"distinct_candidates": distinct.astype(np.float64)} if k == 1 else {}
            _gather(gathered, (label, choice, k), run, {**metrics, **extra})
    for (label, run, _), bank in collected.greedy.items():
        _gather(gathered, (label, "greedy", 1), run, {name: value[:, 0] for name, value in bank.metrics.items()})
    return gathered


def difference_rows(collected: Collected) -> list[DifferenceRow]:
    """Compare predictions triplet by triplet: whatever makes a triplet hard or lucky for both cancels.

    Compared are the labels with each other (greedy, and the inverse model's choice at k = 1 and at the largest k), each
    label's choice at the largest k with k = 1, and inverse with forward models by the share that is right.

    Args:
        collected: What the units gave.

    Returns:
        One row a pair and metric, ``first`` and ``second`` as ``[label, choice, k]``: ``mean`` of first - second, its
        95 % interval over the ``items`` and the training seeds (``runs``) it is of: those that both have, if there are
        two at least, else all of each.
    """
    values: dict[Choice, dict[str, dict[int, Floats]]] = {
        key: {
            name: {run: np.mean(seeds, axis=0) for run, seeds in runs.items()}
            for name, runs in samples.items()
            if name in COMPARED
        }
        for key, samples in _gather_samples(collected).items()
        if key[1] != "oracle"
    }
    for (label, run), (_, by_item) in collected.idm.items():
        if "state_equivalent" in by_item:
            of_label = values.setdefault((label, PROPOSED, 1), {"right": {}})
            of_label["right"][run] = by_item["state_equivalent"]
    return compare_choices(values, max(collected.ks))


def idm_rows(collected: Collected) -> list[InverseRow]:
    """Build one row a label: text metrics, and ``state_equivalent`` where a world can check actions."""
    by_label: dict[str, dict[int, tuple[dict[str, float], dict[str, Floats]]]] = defaultdict(dict)
    for (label, run), figures_and_items in collected.idm.items():
        by_label[label][run] = figures_and_items
    rows: list[InverseRow] = []
    for label, runs in by_label.items():
        figures: dict[str, Figure] = {}
        # A metric that one of the runs lacks has no mean over runs.
        names = next(iter(runs.values()))[0]
        for name in [name for name in names if all(name in of_set for of_set, _ in runs.values())]:
            items = [by_item[name] for _, by_item in runs.values() if name in by_item]
            figures[name] = build_figure(
                {run: [of_set[name]] for run, (of_set, _) in runs.items()},
                np.mean(items, axis=0) if items else None,
                over="one greedy answer",
                top=TOPS.get(name),
            )
        texts = [report for (name, _), report in sorted(collected.texts.items()) if name == label]
        notes, absent = ({**texts[0].notes}, {**texts[0].absent}) if texts else ({}, {})
        rows.append({"label": label, "metrics": figures, "notes": notes, "absent": absent})
    return rows


def probe_rows(collected: Collected) -> list[ProbeRow]:
    """Build one row a role, label and kind of negative."""
    # Runs of a label are one row, in the order of the kinds of negatives.
    gathered: dict[tuple[str, str, str], dict[int, Preference]] = defaultdict(dict)
    for (role, label, run), kinds in collected.probes.items():
        for kind, preference in kinds.items():
            gathered[role, label, kind][run] = preference
    rows: list[ProbeRow] = []
    for (role, label, kind), runs in sorted(gathered.items(), key=lambda item: NEGATIVES.index(item[0][2])):
        # The interval of the share is over items, averaged over the runs, which all have the same pairs.
        scores = [collected.probe_scores.get((role, label, run)) for run in runs]
        wins = [preferences_by_pair(*score.pairs(kind)) for score in scores if score is not None]
        share_P = np.mean(wins, axis=0) if len(wins) == len(runs) else None
        figures = {
            name: build_figure(
                {run: [float(getattr(preference, name))] for run, preference in runs.items()},
                share_P if name == "share" else None,
                over="one run",
                top=1.0,
            )
            for name in ("share", "share_per_token", "pearson_r")
            if all(getattr(preference, name) is not None for preference in runs.values())
        }
        first_preference = next(iter(runs.values()))
        rows.append(
            {
                "role": role,
                "label": label,
                "negative": kind,
                "pairs": first_preference.pairs,
                "ties": {str(run): preference.ties for run, preference in runs.items()},
                "metrics": figures,
            }
        )
    return rows


def _gather(gathered: dict[Choice, Samples], key: Choice, run: int, metrics: Mapping[str, Floats]) -> None:
    of_key = gathered.setdefault(key, {})
    for name, values in metrics.items():
        of_key.setdefault(name, {}).setdefault(run, []).append(values)


def _build_row(label: str, choice: str, k: int, samples: Samples, subsets: Sequence[str], *, over: str) -> ForwardRow:
    """Build the row of one choice of one label."""
    figures = {metric: summarise_runs(metric, runs, average_runs(runs), over=over) for metric, runs in samples.items()}
    return {"label": label, "choice": choice, "k": k, "metrics": figures, **average_subsets(samples, subsets)}


def average_runs(runs: Mapping[int, Sequence[Floats]]) -> Floats:
    """Average each item over the seeds of every training run, then over the runs: (B,)."""
    values_B: Floats = np.mean([np.mean(seeds, axis=0) for seeds in runs.values()], axis=0)
    return values_B


def summarise_runs(
    metric: str, runs: Mapping[int, Sequence[Floats]], values_B: Floats, *, over: str = "sampling seeds"
) -> Figure:
    """Summarise a metric.

    Args:
        metric: Its name, which says whether it has bounds.
        runs: Training seed → one (B,) a sampling seed.
        values_B: Their mean, as :func:`average_runs` gives it.
        over: What the values of one run are.

    Returns:
        The figure.
    """
    means = {run: [float(seed_B.mean()) for seed_B in seeds] for run, seeds in runs.items()}
    return build_figure(means, values_B, over=over, top=TOPS.get(metric))
