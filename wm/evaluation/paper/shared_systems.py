"""Join what several result folders hold: a system that two of them hold must have equal figures, and counts once.

Two evaluations on one base hold its zero-shot row both, for instance. Knows no table of the paper.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

from wm.errors import InputError
from wm.evaluation.paper.folders import Source
from wm.evaluation.rows import REFERENCES, Tables

T = TypeVar("T")
Facts: TypeAlias = tuple[object, object]
"""What a row is of, and what was measured: numbers, texts, None, and lists and mappings of these."""

_REL_TOL, _ABS_TOL = 1e-6, 1e-9
"""Figures closer than this are equal: batches of other shapes differ in their last digits."""
_TABLE_PARTS = ("fdm", "idm", "probe", "adaptive")


@dataclass(frozen=True)
class SharedSystem:
    """A system that two folders hold with equal figures: those of ``folder`` are shown, those of ``other`` are not."""

    system: str
    folder: Path
    other: Path


@dataclass(frozen=True)
class SharedSystems:
    """All systems that are in several folders, as they were met."""

    systems: list[SharedSystem] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Say of each which folder's figures are shown."""
        # Of images, actions and tables alike: one sentence for all.
        return [
            f"{shared.system} is in {shared.folder} and in {shared.other} with equal figures, and is shown once."
            for shared in dict.fromkeys(self.systems)
        ]

    def join_rows(
        self,
        sources: Sequence[Source],
        load: Callable[[Source], list[T]],
        system_of: Callable[[T], str],
        facts_of: Callable[[T], Facts],
    ) -> list[T]:
        """Join the rows of several folders; of a system that two have, and of references, the first folder's are taken.

        Args:
            sources: The folders.
            load: Reads the rows of one.
            system_of: The system of a row.
            facts_of: What must be equal where two folders hold one system.

        Returns:
            The rows in the order of the folders.

        Raises:
            InputError: Two folders hold a system with other figures.
        """
        owners: dict[str, Source] = {}
        rows: list[T] = []
        for source in sources:
            own_rows = load(source)
            for system in dict.fromkeys(map(system_of, own_rows)):
                owner = owners.setdefault(system, source)
                if owner is not source and system not in REFERENCES:
                    facts = [[facts_of(row) for row in part if system_of(row) == system] for part in (rows, own_rows)]
                    self._check_equal(system, owner, source, _find_difference(*facts))
            rows += [row for row in own_rows if owners[system_of(row)] is source]
        return rows

    def join_tables(self, sources: Sequence[Source]) -> list[tuple[Source, Tables]]:
        """Read ``tables.json`` of evaluations; a label that an earlier one has with equal figures is taken out.

        Args:
            sources: The evaluations.

        Returns:
            Each with its tables.

        Raises:
            InputError: Two evaluations hold a label with other figures, or a file is missing or damaged.
        """
        owners: dict[str, tuple[Source, Tables]] = {}
        joined: list[tuple[Source, Tables]] = []
        for source in sources:
            tables = cast(Tables, source.load_json("tables.json"))
            shared: set[str] = set()
            for label in dict.fromkeys(_list_labels(tables)):
                owner, others = owners.setdefault(label, (source, tables))
                if owner is not source:
                    facts = [_facts_of_label(of, label) for of in (others, tables)]
                    self._check_equal(label, owner, source, _find_difference(*facts))
                    shared.add(label)
            joined.append((source, _without(tables, shared) if shared else tables))
        return joined

    def _check_equal(self, system: str, owner: Source, source: Source, difference: str) -> None:
        if difference:
            raise InputError(
                f"{owner.folder} and {source.folder} both hold a system named {system!r}, with other figures "
                f"({difference}): give one of them, or {_name_way_out(source, system)}"
            )
        self.systems.append(SharedSystem(system, owner.folder, source.folder))


def _name_way_out(source: Source, system: str) -> str:
    """Say how a folder is made again so that it does not hold a system under this name."""
    if source.stage == "evaluate":
        # The base is evaluated beside whatever models a recipe names.
        if source.recipe("zero_shot_label", "C-ZS") == system:
            return "evaluate one of them with zero_shot=false, or under another zero_shot_label"
        return "evaluate one of them under another label (models.NAME.label)"
    ways = {
        "ask": "ask one of them under another label (models.NAME.label)",
        "judge": "judge all its predictions into one folder, or leave it out by systems=[…]",
        "score": "score all prediction sets into one folder",
    }
    return ways.get(source.stage, "make one of them under another system=NAME")


def _find_difference(first: Sequence[Facts], second: Sequence[Facts]) -> str:
    """Say in what two sets of rows differ; empty where they do not."""
    if len(first) != len(second):
        return f"{len(first):,} and {len(second):,} rows"
    # The order of rows says nothing.
    others = {repr(key): values for key, values in second}
    for key, values in first:
        if repr(key) not in others:
            return f"only one has {_shorten(key)}"
        if not _is_equal(values, others[repr(key)]):
            return f"of {_shorten(key)}: {_name_values(values, others[repr(key)])}"
    return ""


def _shorten(key: object) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return f"{' '.join(str(part) for part in parts if part != ''):.80}"


def _name_values(first: object, second: object) -> str:
    """Name the first values in which two facts differ."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        name = next(name for name in {**first, **second} if not _is_equal(first.get(name), second.get(name)))
        return f"{name} {_name_values(first.get(name), second.get(name))}"
    return f"{first!s:.40} and {second!s:.40}"


def _is_equal(first: object, second: object) -> bool:
    if isinstance(first, float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=_REL_TOL, abs_tol=_ABS_TOL)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_is_equal(first[name], second[name]) for name in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(_is_equal(*pair) for pair in zip(first, second, strict=True))
    return first == second


def _list_labels(tables: Tables) -> list[str]:
    # References are in every evaluation.
    rows = [*tables["fdm"], *tables["idm"], *tables["probe"]]
    return [row["label"] for row in rows if row["label"] not in REFERENCES]


def _facts_of_label(tables: Tables, label: str) -> list[Facts]:
    facts: list[Facts] = [("triplets", tables["items"])]
    for part in _TABLE_PARTS:
        for row in cast(Sequence[Mapping[str, object]], tables.get(part, ())):
            if row["label"] == label:
                key = (part, *(row.get(name, "") for name in ("role", "negative", "choice", "k", "margin")))
                # The mean is enough of a figure: its spread and interval follow from the same values.
                metrics = cast(Mapping[str, Mapping[str, object]], row["metrics"])
                means = {name: figure.get("mean") for name, figure in metrics.items()}
                facts.append((key, {**means, "pairs": row.get("pairs")}))
    return facts


def _without(tables: Tables, labels: set[str]) -> Tables:
    filtered = dict(tables)
    for part in _TABLE_PARTS:
        if part in filtered:
            rows = cast(Sequence[Mapping[str, object]], filtered[part])
            filtered[part] = [row for row in rows if row["label"] not in labels]
    return cast(Tables, filtered)
