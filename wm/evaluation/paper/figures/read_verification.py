"""Gather the data of figure 4 from results: by a judge, by an evaluation's own judge, or by a distance."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from wm.evaluation.aurora_bench import order_subsets, subset_title
from wm.evaluation.judge.figures import MACRO, MICRO, JudgeFigure, compute_figures
from wm.evaluation.metrics.stats import build_figure
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.verification import AVERAGE, Choice, Curve, Level, Panel, Point, Verification
from wm.evaluation.paper.sources import REFERENCES, Sources
from wm.evaluation.rows import AdaptiveRow, ForwardRow, Tables

TOY_JUDGE: Final = "nano:oracle"


@dataclass(frozen=True)
class _Value:
    """A point of a system in one panel. ``n`` of ``expected`` items where some are missing."""

    panel: str
    label: str
    choice: Choice
    point: Point
    over: str = "sampling seeds"
    n: int = 0
    expected: int = 0


def read_verification(sources: Sources) -> Verification | Absent:
    """Gather the panels: by a judge where one judged several K, else by what the evaluation measured.

    Args:
        sources: The results.

    Returns:
        The data; absent where no result has several K.
    """
    values, metric, lower_is_better = _read_judged(sources), _name_judge(sources), False
    # The toy world's judge gives the score that an evaluation there measures itself, adaptive N among it.
    if _has_curve(values) and metric == f"score by {TOY_JUDGE}":
        values += [value for value in _read_tables(sources, "final") if value.choice == "adaptive"]
    # A distance of the full target is everybody's; that of an evaluation is its own models' alone.
    if not _has_curve(values):
        values, metric, lower_is_better = _read_tables(sources, "final"), "score by the oracle", False
    if not _has_curve(values):
        values, metric, lower_is_better = _read_scored(sources), "L1 to the target", True
    if not _has_curve(values):
        values, metric, lower_is_better = _read_tables(sources, "l1"), "L1 to the target's square", True
    if not _has_curve(values):
        return Absent(
            "no result at several K of a model with a verifier",
            "wm evaluate paper/evaluate-aurora-bench && wm judge predictions='[\"runs/paper/evaluate-aurora-bench\"]' "
            f"triplets={sources.triplets or 'BENCH'} num_candidates='[1, 2, 4, 8]' out=JUDGED",
        )
    # Systems may differ in what they were repeated by.
    over = " or ".join(dict.fromkeys(value.over for value in values if value.point.std is not None))
    bound = "closest to the target" if lower_is_better else "oracle"
    return Verification(_build_panels(sources, values), metric, over, bound, lower_is_better, sources.is_toy)


def _has_curve(values: Iterable[_Value]) -> bool:
    return any(value.choice == "verifier" and value.point.k > 1 for value in values)


def _build_panels(sources: Sources, values: Sequence[_Value]) -> tuple[Panel, ...]:
    """Sort the points into panels; a system that has one K is a level."""
    names = [name for name in dict.fromkeys(value.panel for value in values) if name != AVERAGE]
    order = [*order_subsets(names), *([AVERAGE] if any(value.panel == AVERAGE for value in values) else [])]
    several = {value.label for value in values if value.choice == "verifier" and value.point.k > 1}
    panels = []
    for name in order:
        own = [value for value in values if value.panel == name]
        groups: dict[tuple[str, Choice], list[Point]] = defaultdict(list)
        for value in own:
            groups[value.label, value.choice].append(value.point)
        # The reference systems have no K, and Copy's score is 0 by definition.
        curves = tuple(
            Curve(sources.title(label), choice, tuple(sorted(points, key=lambda point: point.k)))
            for (label, choice), points in groups.items()
            if label in several
        )
        levels = tuple(
            Level(sources.title(label), points[0].mean)
            for (label, choice), points in groups.items()
            if label not in several and choice == "verifier"
        )
        size = sum(subset == name for subset in sources.subsets.values())
        title = AVERAGE if name == AVERAGE else subset_title(name)
        panels.append(Panel(title, curves, levels, size or None, _note_missing(sources, own)))
    return tuple(panels)


def _note_missing(sources: Sources, own: Sequence[_Value]) -> str:
    """Say whose mean is over fewer items than there are: a mean never hides that."""
    shares: dict[str, tuple[int, int]] = {}
    for value in own:
        if value.n < value.expected:
            shares[value.label] = min(shares.get(value.label, (value.n, value.expected)), (value.n, value.expected))
    return ", ".join(f"{sources.title(label)}: {n:,} of {expected:,}" for label, (n, expected) in shares.items())


def _name_judge(sources: Sources) -> str:
    models = [str(source.recipe("model")) for source in sources.of("judge")]
    return f"score by {models[0]}" if models else ""


def _read_judged(sources: Sources) -> list[_Value]:
    values: list[_Value] = []
    for row in compute_figures(sources.judgements, sources.subsets) if sources.judgements else []:
        if row["system"] in REFERENCES:
            continue
        # One subset is all of the bench: its average would repeat it.
        for name, figure in _list_panels(row["figures"]["final"], len(sources.subset_order)):
            point = Point(row["num_candidates"], figure["mean"], figure["std"])
            values.append(
                _Value(name, row["system"], "verifier", point, row["over"], figure["judged"], figure["expected"])
            )
    return values


def _list_panels(figures: Mapping[str, JudgeFigure], num_subsets: int) -> list[tuple[str, JudgeFigure]]:
    panels = [(name, figure) for name, figure in figures.items() if name not in (MACRO, MICRO)]
    if num_subsets > 1 and MACRO in figures:
        panels.append((AVERAGE, figures[MACRO]))
    return panels


def _read_scored(sources: Sources) -> list[_Value]:
    """Average the distances of scored images, each candidate as often as the verifier chose it."""
    # (system, k) → (run, seed) → triplet → [weighted sum, weight].
    sums: dict[tuple[str, int], dict[tuple[int, int], dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in sources.values:
        system, distance = cast(str, row["system"]), row["l1"]
        if distance is None or system in REFERENCES or row["decoding"] == "greedy":
            continue
        # What was sampled counts at each K that chose it; other systems have one prediction and no choice.
        is_sampled = row["decoding"] == "sampled"
        for k in cast(list[int], row["chosen_at"]) if is_sampled else [1] * len(cast(list[int], row["candidates"])):
            run = cast(int, row["run"]), cast(int, row["sampling_seed"])
            total = sums[system, k][run].setdefault(cast(str, row["triplet_id"]), [0.0, 0.0])
            total[0] += cast(float, distance)
            total[1] += 1
    values: list[_Value] = []
    for (system, k), seeds in sums.items():
        values += _average_items(sources, system, k, {run: _divide(items) for run, items in seeds.items()})
    return values


def _divide(items: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {triplet_id: total / weight for triplet_id, (total, weight) in items.items()}


def _average_items(
    sources: Sources, system: str, k: int, seeds: Mapping[tuple[int, int], Mapping[str, float]]
) -> list[_Value]:
    """Average the items of each run and subset; the average of subsets needs all of them in every run."""
    # Run → one mean a seed, by panel: what the spread is over.
    panels: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (run, _), items in sorted(seeds.items()):
        groups: dict[str, list[float]] = defaultdict(list)
        for triplet_id, value in items.items():
            groups[sources.subsets[triplet_id]].append(value)
        for name, group in groups.items():
            panels[name][run].append(float(np.mean(group)))
        if len(groups) == len(sources.subset_order) > 1:
            panels[AVERAGE][run].append(float(np.mean([np.mean(group) for group in groups.values()])))
    ids = {triplet_id for items in seeds.values() for triplet_id in items}
    values = []
    for name, runs in panels.items():
        figure = build_figure(runs)
        members = [key for key, subset in sources.subsets.items() if name in (AVERAGE, subset)]
        point = Point(k, figure["mean"], figure["std"])
        count = sum(key in ids for key in members)
        values.append(_Value(name, system, "verifier", point, figure["over"], count, len(members)))
    return values


def _read_tables(sources: Sources, metric: str) -> list[_Value]:
    """Take the figures of evaluations: the verifier's, the oracle's and those of adaptive N."""
    values: list[_Value] = []
    # Labels of two evaluations differ, which the sources have checked.
    for _, tables in sources.tables:
        if metric == "final" and tables["judge"] == "none":
            continue
        for row in tables["fdm"]:
            if row["choice"] not in ("idm", "oracle"):
                continue
            choice: Choice = "verifier" if row["choice"] == "idm" else "oracle"
            # Nothing is chosen yet at K = 1, where the oracle's line starts.
            choices: list[Choice] = ["verifier", "oracle"] if row["k"] == 1 else [choice]
            over = row["metrics"][metric].get("over", "sampling seeds") if metric in row["metrics"] else ""
            for name, mean, std in _list_means(row, metric, tables):
                values += [_Value(name, row["label"], option, Point(row["k"], mean, std), over) for option in choices]
        for adaptive in tables.get("adaptive", []):
            if adaptive["margin"] is not None:
                counts = {name: mean for name, mean, _ in _list_means(adaptive, "draws", tables)}
                values += [
                    _Value(name, adaptive["label"], "adaptive", Point(counts[name], mean, std))
                    for name, mean, std in _list_means(adaptive, metric, tables)
                ]
    return values


def _list_means(row: ForwardRow | AdaptiveRow, metric: str, tables: Tables) -> list[tuple[str, float, float | None]]:
    """List panel, mean and spread of a row; rows of earlier versions lack some panels."""
    if metric not in row["metrics"]:
        return []
    if len(tables["subsets"]) < 2:
        figure = row["metrics"][metric]
        return [(name, figure["mean"], figure["std"]) for name in tables["subsets"]]
    stds = row.get("by_subset_std", {})
    means: list[tuple[str, float, float | None]] = [
        (name, of_subset[metric], stds.get(name, {}).get(metric))
        for name, of_subset in row.get("by_subset", {}).items()
    ]
    if metric in row.get("macro", {}):
        means.append((AVERAGE, row["macro"][metric], row.get("macro_std", {}).get(metric)))
    return means
