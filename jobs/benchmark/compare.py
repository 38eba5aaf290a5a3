"""Hold new records of benchmarks against earlier ones, by default those of the repository, and end with status 1 where
a ratio is worse by more than chance explains.

  wm benchmark sampling out=new/sampling.json
  wm benchmark compare new='["new/sampling.json"]'
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from jobs.benchmark.guards import GUARDS, Guard, tolerance
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import fetch, publish
from wm.paths import INPUT, InputPath, OptionalInputPath, OutputPath
from wm.runs import write_json

Verdict: TypeAlias = Literal["worse", "same", "better", "absent", "new"]
MEASURED = Path(__file__).resolve().parents[1] / "measured"
_SIGNS: Mapping[Verdict, str] = {"worse": "WORSE", "same": "", "better": "better", "absent": "ABSENT", "new": "new"}


class BenchmarkRecipe(Recipe):
    """Which records are compared."""

    new: Annotated[list[InputPath], INPUT] = Field(min_length=1)
    """JSON files of wm benchmark."""
    reference: OptionalInputPath = None
    """JSON file, or folder with a file of the same name for each new one; left out: jobs/measured of the repository."""
    out: OutputPath = ""
    """JSON file for the comparison; empty: it is printed only."""


class Row(NamedTuple):
    """A ratio of two records."""

    ratio: str
    reference: float | None
    new: float | None
    allowed: float
    """Relative difference that chance explains."""
    verdict: Verdict


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, list[Row]]:
    """Compare, and print a table a record.

    Args:
        recipe: The records.
        dry_run: Read all records and print nothing of them.

    Returns:
        The rows by new file.

    Raises:
        InputError: A file is no record, or of another benchmark than its reference.
        SystemExit: With status 1, if a ratio is worse or absent.
    """
    pairs = [(file, _find_reference(file, recipe.reference)) for file in recipe.new]
    records = [(file, _read(file), _read(str(reference))) for file, reference in pairs]
    tables: dict[str, list[Row]] = {}
    for file, new, reference in records:
        if new["benchmark"] != reference["benchmark"]:
            raise InputError(f"{file} is of benchmark {new['benchmark']}, its reference of {reference['benchmark']}")
        tables[file] = compare_records(new, reference)
    if dry_run:
        print(f"compare: {len(records)} records can be compared")
        return tables
    for file, new, reference in records:
        _print_table(file, new, reference, tables[file])
    if recipe.out:
        write_json(Path(recipe.out), {file: [row._asdict() for row in rows] for file, rows in tables.items()})
        publish(Path(recipe.out))
    worse = [
        f"{row.ratio} ({file})" for file, rows in tables.items() for row in rows if row.verdict in ("worse", "absent")
    ]
    if worse:
        print(f"worse than the reference: {', '.join(worse)}", file=sys.stderr)
        sys.exit(1)
    return tables


def compare_records(new: Mapping[str, Any], reference: Mapping[str, Any]) -> list[Row]:
    """Compare the guarded ratios of two records of one benchmark.

    Args:
        new: The later record.
        reference: The earlier one.

    Returns:
        A row for each guarded ratio that one of them has.
    """
    spreads = [record.get("spread") or {} for record in (new, reference)]
    rows = []
    for name, guard in GUARDS.get(str(reference["benchmark"]), {}).items():
        before, after = reference["ratios"].get(name), new["ratios"].get(name)
        if before is None and after is None:
            continue
        allowed = tolerance(guard, name, spreads)
        rows.append(Row(name, before, after, allowed, _judge(guard, before, after, allowed)))
    return rows


def _judge(guard: Guard, before: float | None, after: float | None, allowed: float) -> Verdict:
    if before is None:
        return "new"
    # A run that leaves a part out must not pass for one that is as good.
    if after is None:
        return "absent"
    better, other = (after, before) if guard.better == "higher" else (before, after)
    # The same for half and for twice: a loss relative to the earlier ratio would never reach 100 %.
    if before > 0 and after > 0:
        gain = better / other - 1 if better > other else 1 - other / better
    else:
        gain = (better - other) / (abs(before) or 1.0)
    # NaN is worse too.
    if not gain >= -allowed:
        return "worse"
    return "better" if gain > allowed else "same"


def _find_reference(file: str, reference: str | None) -> Path:
    path = Path(reference) if reference is not None else MEASURED
    return path / Path(file).name if path.is_dir() else path


def _read(file: str) -> dict[str, Any]:
    path = fetch(file)
    if not path.is_file():
        raise InputError(f"{file}: no such file; expected a record of wm benchmark")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("ratios"), dict) or "benchmark" not in record:
        raise InputError(f"{file} is no record of wm benchmark: it has no benchmark and ratios")
    if record["benchmark"] not in GUARDS:
        raise InputError(f"{file} is of benchmark {record['benchmark']!r:.60}; those compared are {', '.join(GUARDS)}")
    # Sizes at which nothing is measured would pass or fail by chance.
    if (record.get("settings") or {}).get("quick"):
        raise InputError(f"{file} was made with quick=true, which measures nothing")
    return record


def _print_table(file: str, new: Mapping[str, Any], reference: Mapping[str, Any], rows: list[Row]) -> None:
    print(f"{file}: {new['benchmark']}, {str(new.get('date'))[:10]}, against {str(reference.get('date'))[:10]}")
    machines = [str((record.get("machine") or {}).get("cpu", "another machine")) for record in (new, reference)]
    if machines[0] != machines[1]:
        print(f"  on {machines[0]}, the reference on {machines[1]}: ratios of two machines differ too")
    width = max((len(row.ratio) for row in rows), default=0)
    for row in rows:
        before, after = (f"{value:9.3f}" if value is not None else "   absent" for value in (row.reference, row.new))
        print(f"  {row.ratio:{width}s} {before} -> {after}  +-{row.allowed:4.0%}  {_SIGNS[row.verdict]}".rstrip())
