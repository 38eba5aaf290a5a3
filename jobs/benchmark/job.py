"""Measure this machine: wm benchmark NAME out=FILE.json key=value. The JSON feeds wm plan."""

import sys
from collections.abc import Sequence
from importlib import import_module

from wm.cli import main as cli_main

BENCHMARKS = {
    "annotate": "jobs.benchmark.annotate",
    "compare": "jobs.benchmark.compare",
    "demo": "jobs.benchmark.demo",
    "gpu": "jobs.benchmark.gpu",
    "keyframes": "jobs.benchmark.keyframes",
    "pixels": "jobs.benchmark.pixels",
    "probe": "jobs.benchmark.probe",
    "sampling": "jobs.benchmark.sampling",
    "scale": "jobs.benchmark.scale",
    "score": "jobs.benchmark.scoring",
    "serve": "jobs.benchmark.serving",
    "training": "jobs.benchmark.training",
}
"""Name → module with a class ``BenchmarkRecipe``, a function ``run`` and a docstring that says what is measured, or, of
``compare``, held against earlier records."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, whose first word names the benchmark."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in ("-h", "--help"):
        print(f"{__doc__}\n\nNAME is one of {', '.join(BENCHMARKS)}; wm benchmark NAME --help lists its keys.")
        return 0
    if name not in BENCHMARKS:
        print(f"error: benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    module = import_module(BENCHMARKS[name])
    recipe, run, about = module.BenchmarkRecipe, module.run, module.__doc__ or ""
    return cli_main(recipe, run, name=f"benchmark {name}", description=about, argv=rest[:-1])
