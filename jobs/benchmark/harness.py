"""What benchmarks share: interleaved CPU time, spread, the machine, the versions, the JSON."""

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
    """CPU seconds of each kind of work on each item: the median of ``rounds`` rounds (after one to warm up, on the
    first item), in which all kinds take turns on an item, so that a machine that slows down slows all of them.

    ``repeats``: kinds that are too quick to be timed once a turn; the least of so many is taken.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for name, function in work.items():
        if items and repeats.get(name, 1) > 1:
            function(items[0])
    for item in items:
        turns: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(rounds):
            for name, function in work.items():
                turns[name].append(min(_cpu_s(function, item) for _ in range(repeats.get(name, 1))))
        for name, found in turns.items():
            seconds[name].append(float(np.median(found)))
    return seconds


def _cpu_s(function: Callable[[Item], object], item: Item) -> float:
    begin = time.process_time()
    function(item)
    return time.process_time() - begin


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, quartiles, most, and how many."""
    least, low, median, high, most = np.quantile(np.asarray(values, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1])
    named = {"min": least, "q25": low, "median": median, "q75": high, "max": most}
    return {name: round(float(value), 4) for name, value in named.items()} | {"count": len(values)}


def machine() -> dict[str, Any]:
    """What ran it; nothing that names it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def check_out(out: str) -> None:
    """Refuse a name at which no JSON file can be written, before anything is measured."""
    path = Path(out)
    check_place(path.parent)
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"out = {out!r}: expected the name of a .json file")


def write_benchmark(out: str, name: str, packages: Sequence[str], **parts: Any) -> dict[str, Any]:
    """Write the record of a benchmark, aside and then renamed; returns it."""
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


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()
