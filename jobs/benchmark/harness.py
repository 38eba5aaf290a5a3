"""Share among benchmarks: common keys, seconds of work that takes turns, spread, the machine, the record as JSON."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import publish
from wm.paths import OutputPath
from wm.runs import check_place, write_json

Item = TypeVar("Item")
Result = TypeVar("Result")
Seconds: TypeAlias = dict[str, list[float]]
"""Seconds of each round by kind of work."""
Figures: TypeAlias = dict[str, object]
"""Parts of a record, by name: what JSON can hold."""

SHORT_S = 0.05
"""Work shorter than this is repeated within a turn."""
SLOWER = 1.25
"""Of alternatives, one that takes this many times the quickest's time is timed once."""


class CommonRecipe(Recipe):
    """Keys of every benchmark."""

    out: OutputPath
    """JSON file to write."""
    quick: bool = False
    """Tiny sizes, one round: shows that it works, measures nothing."""

    def settings(self) -> Figures:
        """Return the keys that a record keeps."""
        return self.model_dump(exclude={"out"})


def turns(
    work: Mapping[str, Callable[[], object]], rounds: int, alternatives: Sequence[str] = (), repeats: int = 1
) -> Seconds:
    """Measure CPU seconds of each kind of work in each round, in which all kinds take turns, after one to warm up.

    Args:
        work: Function by kind.
        rounds: Turns of each kind.
        alternatives: Kinds of which only the quickest will count; one that took over :data:`SLOWER` times another's
            time in warming up is timed in that round alone.
        repeats: Times that work shorter than :data:`SHORT_S` is done in a turn; the shortest counts.

    Returns:
        Seconds by kind, one of each round.
    """
    # The first round warms up: it packs weights and fills caches, and does not count.
    first = {name: cpu_seconds(function) for name, function in work.items()}
    quickest = min((first[name] for name in alternatives), default=0.0)
    # A slow alternative cannot win any more: timing it again would take hours at the long shape.
    slow = {name for name in alternatives if first[name] > SLOWER * quickest}
    seconds: Seconds = {name: [first[name]] if name in slow else [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            if name not in slow:
                times = repeats if first[name] < SHORT_S else 1
                seconds[name].append(min(cpu_seconds(function) for _ in range(times)))
    return seconds


def interleaved(
    work: Mapping[str, Callable[[Item], object]], items: Sequence[Item], rounds: int, repeats: Mapping[str, int]
) -> Seconds:
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
    seconds: Seconds = {name: [] for name in work}
    # Warm up: caches, and libraries that are loaded on first use.
    for name, function in work.items():
        if items and repeats.get(name, 1) > 1:
            function(items[0])
    for item in items:
        by_round: Seconds = {name: [] for name in work}
        for _ in range(rounds):
            for name, function in work.items():
                times = (cpu_seconds(function, item) for _ in range(repeats.get(name, 1)))
                by_round[name].append(min(times))
        for name, values in by_round.items():
            # The median: one turn may fall into another process's burst.
            seconds[name].append(float(np.median(values)))
    return seconds


def cpu_seconds(function: Callable[..., object], *arguments: object) -> float:
    """Measure the CPU seconds that a call takes in this process, all threads together.

    Args:
        function: What is called.
        *arguments: Its arguments.
    """
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


def wall_seconds(function: Callable[[], Result]) -> tuple[float, Result]:
    """Measure the wall seconds that a call takes; return them and its result."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads inside the block: CPU seconds of several depend on what else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Compute min, quartiles, max and count."""
    # Times are skewed: a standard deviation would mislead.
    smallest, low, median, high, largest = np.quantile(np.asarray(values, dtype=np.float64), [0, 0.25, 0.5, 0.75, 1])
    quantiles = {"min": smallest, "q25": low, "median": median, "q75": high, "max": largest}
    return {name: round(float(value), 4) for name, value in quantiles.items()} | {"count": len(values)}


def machine() -> Figures:
    """Describe the machine, without anything that identifies it."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        # What else the machine had to do: over 1, 5 and 15 minutes.
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    # platform.processor() is empty on most Linux systems.
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    # One line a core, all of one model.
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the packages."""
    by_name = {"python": platform.python_version()}
    for package in packages:
        try:
            by_name[package] = version(package)
        except PackageNotFoundError:
            # A benchmark runs on bare machines too; its record says what was absent.
            by_name[package] = "not installed"
    return by_name


def check_out(out: str) -> None:
    """Refuse a name at which no JSON file can be written, before anything is measured."""
    # A measurement may take hours: its output must be possible.
    path = Path(out)
    check_place(path.parent)
    if path.suffix != ".json" or path.is_dir():
        raise InputError(f"out = {out!r}: expected the name of a .json file")


def write_record(
    out: str, name: str, packages: Sequence[str], *, ratios: Mapping[str, float], **parts: object
) -> Figures:
    """Write the record of a benchmark, to a temporary file that is then renamed.

    Args:
        out: JSON file.
        name: The benchmark's.
        packages: Whose versions are recorded.
        ratios: Ratio by name; kept with four digits.
        parts: Further parts of the record.

    Returns:
        The record.
    """
    record = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        # The arguments as given, so that the record can be made again.
        "command": " ".join(["python", "-m", "jobs.benchmark", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(packages),
        "ratios": {ratio: round(value, 4) for ratio, value in ratios.items()},
        **parts,
    }
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    publish(path)
    return record


def print_ratios(ratios: Mapping[str, float], spreads: Mapping[str, Mapping[str, float]] | None = None) -> None:
    """Print ratios, and below them the seconds that they come from.

    Args:
        ratios: By name.
        spreads: Min, median and max seconds by kind of work (:func:`spread`); None: not printed.
    """
    spreads = spreads or {}
    width = max(map(len, [*ratios, *spreads]), default=0) + 2
    for ratio, value in ratios.items():
        print(f"{ratio:{width}s}{value:9.3f}")
    for work, figures in spreads.items():
        print(f"{work:{width}s}{figures['min']:.4f} s min, {figures['median']:.4f} median, {figures['max']:.4f} max")
