"""Share among benchmarks: interleaved CPU time, spread, the machine, the versions, the JSON."""

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wm.errors import InputError
from wm.runs import check_place, write_json

Item = TypeVar("Item")


def interleaved(
    work: Mapping[str, Callable[[Item], object]], items: Sequence[Item], rounds: int, repeats: Mapping[str, int]
) -> dict[str, list[float]]:
    """Measure CPU seconds of each kind of work on each item.

    All kinds take turns on an item, so that a machine that slows down slows all of them.

    Args:
        work: Function by kind.
        items: Inputs of the functions.
        rounds: Turns on each item; their median counts (after one to warm up, on the first item).
        repeats: Kinds that are too quick to be timed once a turn; the min of so many counts.

    Returns:
        Seconds by kind, in the order of the items.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    # Warm up: caches, and libraries that are loaded on first use.
    for name, function in work.items():
        if items and repeats.get(name, 1) > 1:
            function(items[0])
    for item in items:
        turns: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(rounds):
            for name, function in work.items():
                turns[name].append(min(_cpu_s(function, item) for _ in range(repeats.get(name, 1))))
        for name, turn_s in turns.items():
            seconds[name].append(float(np.median(turn_s)))
    return seconds


def _cpu_s(function: Callable[[Item], object], item: Item) -> float:
    begin = time.process_time()
    function(item)
    return time.process_time() - begin


def spread(values: Sequence[float]) -> dict[str, float]:
    """Compute min, quartiles, max and count."""
    smallest, low, median, high, largest = np.quantile(np.asarray(values, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1])
    quantiles = {"min": smallest, "q25": low, "median": median, "q75": high, "max": largest}
    return {name: round(float(value), 4) for name, value in quantiles.items()} | {"count": len(values)}


def machine() -> dict[str, Any]:
    """Describe the machine, without anything that identifies it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the packages."""
    by_name = {"python": platform.python_version()}
    for package in packages:
        try:
            by_name[package] = version(package)
        except PackageNotFoundError:
            by_name[package] = "not installed"
    return by_name


def check_out(out: str) -> None:
    """Refuse a name at which no JSON file can be written, before anything is measured."""
    # A measurement may take hours: its output must be possible.
    path = Path(out)
    check_place(path.parent)
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"out = {out!r}: expected the name of a .json file")


def write_benchmark(out: str, name: str, packages: Sequence[str], **parts: Any) -> dict[str, Any]:
    """Write the record of a benchmark, to a temporary file that is then renamed.

    Args:
        out: JSON file.
        name: The benchmark's.
        packages: Whose versions are recorded.
        **parts: Figures and settings.

    Returns:
        The record.
    """
    record = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python", "-m", "jobs.benchmark", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(packages),
        **parts,
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def write_ratios(
    out: str,
    name: str,
    packages: Sequence[str],
    *,
    ratios: Mapping[str, float],
    spreads: Mapping[str, Mapping[str, float]],
    **parts: Any,
) -> dict[str, Any]:
    """Write the record of a benchmark whose result is ratios, and print these with the times behind them.

    Args:
        out: JSON file.
        name: Of the benchmark.
        packages: Whose versions are recorded.
        ratios: Ratio by name; kept with four digits.
        spreads: :func:`spread` of the seconds of each kind of work.
        parts: Further parts of the record.

    Returns:
        The record.
    """
    rounded = {ratio: round(value, 4) for ratio, value in ratios.items()}
    record = write_benchmark(out, name, packages, ratios=rounded, spread=dict(spreads), **parts)
    width = max(map(len, [*rounded, *spreads]), default=0) + 2
    for ratio, value in rounded.items():
        print(f"{ratio:{width}s}{value:9.3f}")
    for work, figures in spreads.items():
        print(f"{work:{width}s}{figures['min']:.4f} s min, {figures['median']:.4f} median, {figures['max']:.4f} max")
    return record


def _cpu_model() -> str:
    # platform.processor() is empty on most Linux systems.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
