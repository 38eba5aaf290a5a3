"""Measure make demo: seconds of each stage, memory and CPU time of all its processes together.

The run goes into a folder of its own, so that every stage is done. Its record is what docs and the estimate of the time
that is left read: wm benchmark demo out=jobs/measured/demo.json
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from jobs.benchmark.harness import CommonRecipe, Figures, check_out, write_record
from wm.errors import InputError
from wm.runs import read_run

PACKAGES = ("wm", "deepspeed", "numpy", "ray", "torch", "transformers")
ROOT = Path(__file__).parents[2]

_POLL_S = 1.0
_TINY = [
    "tabletop.train=24",
    "tabletop.test=8",
    "tabletop.videos=6",
    "idm.max_steps=2",
    "idm.global_batch_size=8",
    "fdm.max_steps=2",
    "fdm.global_batch_size=8",
    "select.min_changed_codes=0",
    "annotate.filters.action=score",
    "annotate.filters.unchanged=score",
    "evaluate.limit=4",
    "evaluate.search.num_candidates=[1,2]",
    "evaluate.search.min_gains_nats=[]",
    "evaluate.examples=1",
]


class BenchmarkRecipe(CommonRecipe):
    """What is run."""

    demo: str = Field(default="nano/demo", min_length=1)
    """Recipe of wm bootstrap: a file, or the name of one in the package."""
    overrides: list[str] = []
    """Keys of that recipe as key=value, which override it."""
    install: bool = False
    """Measure an install into an empty virtual environment first; needs a checkout, and the network or pip's cache."""
    limit_s: float = Field(default=3600.0, gt=0)
    """A run that takes longer is ended."""


@dataclass
class TreeUsage:
    """What a process and all that it started have used so far."""

    peak_bytes: int = 0
    """Largest sum of their proportional set sizes: a page that several share counts once."""
    cpu_s: dict[int, float] = field(default_factory=dict)
    """CPU seconds by process id; what one used after the last look is missing."""

    def look(self, root: int) -> None:
        """Look at the processes below ``root``, and at itself.

        Args:
            root: Process id.
        """
        processes = _list_tree(root)
        self.peak_bytes = max(self.peak_bytes, sum(map(_proportional_bytes, processes)))
        for process in processes:
            self.cpu_s[process] = max(self.cpu_s.get(process, 0.0), _cpu_seconds(process))


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Run the demo, write ``recipe.out``, and return the record.

    Args:
        recipe: What is run.
        dry_run: Check that the record can be written.

    Returns:
        The record; empty on a dry run.

    Raises:
        InputError: The record cannot be written, or the install or the run failed.
    """
    check_out(recipe.out)
    if dry_run:
        print(f"benchmark demo: would run {recipe.demo} and write {recipe.out}")
        return {}
    # Removed afterwards: a complete run in it would have nothing to measure the next time.
    with tempfile.TemporaryDirectory(prefix="wm-demo-") as folder:
        more: Figures = {"install_s": _install(Path(folder) / "venv")} if recipe.install else {}
        settings = [*(_TINY if recipe.quick else []), *recipe.overrides, f"out={folder}/demo"]
        usage, wall_s = _run_demo(["-m", "jobs.bootstrap", recipe.demo, *settings], recipe.limit_s)
        # What bootstrap itself has noted; without it there was nothing to do.
        times = read_run(Path(folder) / "demo", "stages.json")
        if times is None:
            raise InputError(f"{recipe.demo} ran no stage")
    # The clock of bootstrap begins after its imports: the run as a user sees it is longer.
    seconds: dict[str, float] = times["stages"]
    figures = {
        "wall_s": round(wall_s, 1),
        "cpu_s": round(sum(usage.cpu_s.values()), 1),
        "peak_memory_bytes": usage.peak_bytes,
        **{name: times[name] for name in ("recipe_digest", "max_stages", "stages", "timeline")},
    }
    # Above 1: stages that ran side by side.
    ratios = {"stages by wall": sum(seconds.values()) / wall_s}
    record = write_record(recipe.out, "demo", PACKAGES, ratios=ratios, settings=recipe.settings(), **more, **figures)
    for name, stage_s in seconds.items():
        print(f"{name:<24}{stage_s:>8.1f} s")
    print(
        f"demo: {wall_s:.0f} s, {figures['cpu_s']} s of CPU, {usage.peak_bytes / 2**30:.2f} GiB at most: {recipe.out}"
    )
    return record


def _install(folder: Path) -> float:
    """Install into an empty virtual environment as make install does; returns the seconds."""
    if not (ROOT / "constraints.txt").is_file():
        raise InputError(f"install = true: {ROOT} is no checkout")
    begin = time.monotonic()
    # From the checkout, with its constraints, tests and all.
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for words in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-c", "constraints.txt", ".[dev]"]):
        _check_end(subprocess.run(words, cwd=ROOT, check=False).returncode, words)
    return round(time.monotonic() - begin, 1)


def _run_demo(words: list[str], limit_s: float) -> tuple[TreeUsage, float]:
    """Run Python with these words, and look at its processes while it runs; returns their usage and the seconds."""
    # Its output is shown as it comes: a run takes minutes.
    begin, usage = time.monotonic(), TreeUsage()
    with subprocess.Popen([sys.executable, *words]) as process:
        while True:
            try:
                code = process.wait(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                usage.look(process.pid)
            if time.monotonic() - begin > limit_s:
                process.send_signal(signal.SIGINT)  # it ends its stages
                process.wait()
                raise InputError(f"limit_s = {limit_s:g}: the run took longer")
        _check_end(code, words)
    return usage, time.monotonic() - begin


def _check_end(code: int, words: list[str]) -> None:
    if code:
        raise InputError(f"{' '.join(words):.200} ended with status {code}; its reason is above")


def _list_tree(root: int) -> list[int]:
    """List a process and all that it, and what it started, has started."""
    # Of all processes at once: one after another, a child could move up unseen.
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # it ended meanwhile
            parents[int(folder.name)] = int(_read_stat(int(folder.name))[1])
    tree = [root]
    # Grows while it is read: children of children follow.
    for process in tree:
        tree += [child for child, parent in parents.items() if parent == process]
    return tree


def _read_stat(process: int) -> list[str]:
    """Read a process's figures from its state on; its name before them may have blanks."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def _cpu_seconds(process: int) -> float:
    try:
        user, system = _read_stat(process)[11:13]  # in ticks
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _proportional_bytes(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)
