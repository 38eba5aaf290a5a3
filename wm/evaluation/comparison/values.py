"""Read the metrics of single items that results hold for one system: by metric, training run and triplet."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from wm.errors import InputError
from wm.evaluation.bank import Bank
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.comparison.bases import Basis, MetricKey, judge_basis, score_basis
from wm.evaluation.comparison.folders import Choice, Result, read_bench
from wm.evaluation.comparison.measures import JUDGE_PARTS, MEASURES
from wm.evaluation.image_scoring import Values
from wm.evaluation.judge.score_files import list_judged_systems, read_scores
from wm.evaluation.probe import preferences_by_pair
from wm.evaluation.probe_arrays import from_arrays
from wm.evaluation.score_tables import average_by_run, choices_of
from wm.evaluation.units import build_bank, load_part
from wm.evaluation.verification import chosen_values
from wm.names import quote_names
from wm.tables import open_parquet, read_table, table_files

RunValues: TypeAlias = dict[int, dict[str, float]]
"""Training run → id of the triplet → value."""

_VALUE_COLUMNS = ("triplet_id", "system", "run", "sampling_seed", "decoding", "candidates", "chosen_at")
_ORACLE_NAMES = {**{name: f"oracle.{name}" for name in JUDGE_PARTS}, "right": "right", "copied": "copied",
                 "l1": "l1_square"}  # fmt: skip
"""Metrics of ``wm evaluate`` and their keys here; its L1 is over the square that a model sees."""


@dataclass
class SystemValues:
    """What the results hold for one system."""

    label: str
    choice: Choice
    bench: tuple[BenchRow, ...]
    metrics: dict[MetricKey, RunValues] = field(default_factory=dict)
    origins: dict[MetricKey, Result] = field(default_factory=dict)
    bench_origin: Result | None = None
    """Whose bench it is."""

    def add(self, key: MetricKey, runs: RunValues, result: Result) -> None:
        """Add a metric; of the same one from two commands the first is taken.

        Args:
            key: Metric and basis.
            runs: Its values; without any, nothing is added.
            result: Where they are from.

        Raises:
            InputError: Two results of one command hold it.
        """
        if not any(runs.values()):
            return
        origin = self.origins.get(key)
        if origin is not None and origin.stage == result.stage:
            raise InputError(
                f"{origin.folder} and {result.folder} both hold {key[0]} of {self.label!r}: name one of them"
            )
        if origin is None:
            self.metrics[key], self.origins[key] = runs, result


def list_labels(results: Sequence[Result]) -> list[str]:
    """List the systems that results hold, in their order."""
    labels: list[str] = []
    for result in results:
        if result.stage == "evaluate":
            labels += [label for _, label, _, _ in _list_models(result)]
        elif result.stage == "judge":
            labels += list_judged_systems(result.folder)
        else:
            for folder in _value_folders(result):
                labels += _read_columns(folder, ["system"])["system"].unique().to_pylist()
    return list(dict.fromkeys(labels))


def read_values(results: Sequence[Result], label: str, choice: Choice, triplets: str = "") -> SystemValues:
    """Read all metrics of a system.

    Args:
        results: Where to look.
        label: The system.
        choice: Which of its predictions.
        triplets: Folder of the bench; empty: the one that the results name.

    Returns:
        The values; the bench is the largest one, of which the others are parts.

    Raises:
        InputError: No result holds the system at this choice, or the bench is not there or has changed.
    """
    values = SystemValues(label, choice, ())
    for result in results:
        # One folder may hold results of several benches: those that know the system count.
        if label not in list_labels([result]):
            continue
        bench = read_bench(result, triplets)
        _join_bench(values, bench, result)
        if result.stage == "judge":
            _add_judgements(values, result)
        elif result.stage == "score":
            _add_scores(values, result)
        else:
            _add_evaluation(values, result, bench)
    if not values.metrics:
        folders = ", ".join(str(result.folder) for result in results)
        raise InputError(
            f"{label!r:.100} has no value at {choice} in {folders:.300}; systems there: "
            f"{quote_names(list_labels(results))}"
        )
    return values


def _join_bench(values: SystemValues, bench: tuple[BenchRow, ...], result: Result) -> None:
    """Keep the larger of two benches, one of which must be a part of the other."""
    before, own = ({row.triplet_id for row in rows} for rows in (values.bench, bench))
    # Part of it: one of them may have been limited.
    shared = len(before & own)
    if values.bench_origin is not None and shared < min(len(before), len(own)):
        raise InputError(
            f"{values.label!r:.100} has results of two benches: {values.bench_origin.folder} of {len(before):,} "
            f"triplets, {result.folder} of {len(own):,}, {shared:,} in common; name a narrower folder, such as "
            f"{result.folder}:{values.label:.100}"
        )
    if len(bench) > len(values.bench):
        values.bench, values.bench_origin = bench, result


def _add_judgements(values: SystemValues, result: Result) -> None:
    # A judge never judges greedy predictions.
    if values.choice.is_greedy:
        return
    scores = [score for score in read_scores(result.folder) if score.system == values.label]
    basis = judge_basis(result)
    for name in JUDGE_PARTS:
        gathered: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        # What was not judged has no value: it is missing, never 0.
        for score in scores:
            value: float | None = getattr(score, name)
            if value is not None and score.num_candidates == values.choice.k:
                gathered[score.run][score.triplet_id].append(value)
        runs = {run: {key: float(np.mean(of)) for key, of in items.items()} for run, items in gathered.items()}
        values.add((f"judge.{name}", basis), runs, result)


def _value_folders(result: Result) -> list[Path]:
    return [folder for name in ("values", "action_values") if (folder := result.folder / name).is_dir()]


def _add_scores(values: SystemValues, result: Result) -> None:
    for folder in _value_folders(result):
        # Files of earlier versions lack the metrics that came later.
        with open_parquet(table_files(folder)[0]) as parquet:
            stored = parquet.schema_arrow.names
        metrics = [name for name in MEASURES if name in stored]
        columns = [name for name in _VALUE_COLUMNS if name in stored]
        # An action is the only one of its run: there is nothing to choose.
        single: Values = {"sampling_seed": 0, "decoding": "unknown", "candidates": [0], "chosen_at": []}
        rows: list[Values] = [single | row for row in _read_columns(folder, [*columns, *metrics]).to_pylist()]
        # Candidates of an item count as often as the verifier chose them.
        weighted = [
            (row, weight)
            for row in rows
            if row["system"] == values.label
            for (_, kind, k), weight in choices_of(row).items()
            if (kind == "greedy") == values.choice.is_greedy and k == values.choice.k
        ]
        for name in metrics:
            values.add((name, score_basis(result, name)), average_by_run(name, weighted), result)


def _add_evaluation(values: SystemValues, result: Result, bench: Sequence[BenchRow]) -> None:
    """Add what the files of an evaluation's units hold."""
    ids = [row.triplet_id for row in bench]
    search = result.key("search", {}) or {}
    max_unchanged = float(search.get("max_unchanged", result.key("max_unchanged", 1.0)))
    gathered: dict[str, RunValues] = defaultdict(dict)
    for name, _, role, run in [model for model in _list_models(result) if model[1] == values.label]:
        pattern = f"{name}.{'greedy' if values.choice.is_greedy else 'sample'}.*.npz"
        seeds: dict[str, list[np.ndarray]] = defaultdict(list)
        for file in sorted((result.folder / "parts").glob(pattern)) if role == "fdm" else []:
            bank = build_bank(load_part(file)[1], max_unchanged)
            _check_size(result, len(bank.codes), len(ids))
            for metric, value_B in _choose(bank, values.choice).items():
                seeds[_ORACLE_NAMES[metric]].append(value_B)
        # Sampling seeds are no runs: their mean is the item's value.
        for metric, arrays in seeds.items():
            gathered[metric][run] = dict(zip(ids, np.mean(arrays, axis=0).tolist(), strict=True))
        # The actions of an inverse model are greedy whatever is compared of images.
        for file in sorted((result.folder / "parts").glob(f"{name}.propose.*.npz")) if role == "idm" else []:
            for metric, by_id in _score_proposals(result, file, bench).items():
                gathered[metric][run] = by_id
        # Neither has the probe a choice of candidates.
        for file in sorted((result.folder / "parts").glob(f"{name}.probe.*.npz")):
            gathered[f"preference.{role}"][run] = _read_preferences(result, file, ids)
    for metric, runs in gathered.items():
        values.add((metric, Basis()), runs, result)


def _choose(bank: Bank, choice: Choice) -> Mapping[str, np.ndarray]:
    """Return the metrics of the chosen candidates, (B,) each; none where so many were not sampled or verified."""
    metrics = {name: value for name, value in bank.metrics.items() if name in _ORACLE_NAMES}
    if choice.is_greedy:
        return {name: value[:, 0] for name, value in metrics.items()}
    if choice.k > bank.codes.shape[1] or (choice.k > 1 and bank.ranking is None):
        return {}
    # Of single candidates all are averaged: which order the choice has does not matter.
    ranking = bank.best if bank.ranking is None else bank.ranking
    return {name: chosen_values(value, ranking, choice.k) for name, value in metrics.items()}


def _score_proposals(result: Result, file: Path, bench: Sequence[BenchRow]) -> dict[str, dict[str, float]]:
    from wm.evaluation.metrics.text_items import score_texts

    facts, arrays = load_part(file)
    texts: list[str] = facts["texts"]
    _check_size(result, len(texts), len(bench))
    ids = [row.triplet_id for row in bench]
    # Where a world can check actions, however they are worded; then as texts.
    columns: dict[str, Iterable[float | None]] = {}
    if "right" in arrays:
        columns["right_action"] = arrays["right"].astype(float).tolist()
    scores = score_texts(texts, [row.action for row in bench])
    columns |= {name: [item[name] for item in scores] for name in scores[0]}
    return {
        metric: {key: value for key, value in zip(ids, column, strict=True) if value is not None}
        for metric, column in columns.items()
    }


def _read_preferences(result: Result, file: Path, ids: Sequence[str]) -> dict[str, float]:
    """Read the share of negatives to which the truth is preferred, of each item; of equal likelihoods half."""
    scores = from_arrays(load_part(file)[1])
    # Evaluations of earlier versions hold no likelihoods of items.
    if scores is None:
        return {}
    _check_size(result, len(scores.reference.sums), len(ids))
    by_item: dict[str, list[float]] = defaultdict(list)
    for kind, pairs in scores.negatives.items():
        preferences = preferences_by_pair(*scores.pairs(kind))
        for row, share in zip(pairs.rows.tolist(), preferences.tolist(), strict=True):
            by_item[ids[row]].append(share)
    return {key: float(np.mean(shares)) for key, shares in by_item.items()}


def _check_size(result: Result, count: int, expected: int) -> None:
    # Its files have no ids: their order is the bench's.
    if count != expected:
        raise InputError(f"{result.folder} is of {count} triplets, its bench has {expected} now; give triplets=FOLDER")


def _list_models(result: Result) -> list[tuple[str, str, str, int]]:
    """List the models of an evaluation: name of their files, label, role, training seed."""
    models = [
        (name, str(entry["label"]), str(entry["role"]), int(entry.get("seed", 0)))
        for name, entry in (result.key("models", {}) or {}).items()
    ]
    if result.key("base", "") and result.key("zero_shot", True):
        label = str(result.key("zero_shot_label", "C-ZS"))
        models += [("zero-shot-idm", label, "idm", 0), ("zero-shot-fdm", label, "fdm", 0)]
    return models


def _read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    files = table_files(path)
    if not files:
        raise InputError(f"{path} holds no values, though its stage is complete")
    with open_parquet(files[0]) as parquet:
        schema = parquet.schema_arrow
    # Only these columns are checked: later versions may have others beside them.
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise InputError(f"{files[0]} lacks the column {missing[0]!r}")
    return read_table(path, pa.schema([schema.field(name) for name in columns]), columns)
