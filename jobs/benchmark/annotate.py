"""Measure annotation: memory over many clips, scale-out of the CPU stages over workers, a run that is broken on
purpose (poisoned files, killed workers), and the rate of each stage for jobs.plan.

The clips are of UCF-101's shape, synthetic or re-encoded from real ones. The model is a random one of nano size unless
idm= names another: give it to measure the rates of the annotator that you will use.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.benchmark.annotate_trials import broken_run, memory_growth, scale_out
from jobs.benchmark.clips import XVID, made_clips, real_clips
from jobs.benchmark.harness import check_out, spread, write_benchmark
from wm.config import Recipe
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.paths import InputPath, OutputPath

PACKAGES = ("wm", "av", "decord", "numpy", "opencv-python-headless", "pyarrow", "ray", "torch")
_SOURCES = 12


class BenchmarkRecipe(Recipe):
    """Which trials, how large."""

    out: OutputPath
    """JSON file to write."""
    videos: InputPath = ""
    """Folder, glob or list of real videos, re-encoded; without it, clips are made."""
    idm: InputPath = ""
    """Model folder for the memory trial and the rates of encoding and IDM; without it a random nano model."""
    gpus_per_annotator: float = Field(default=0.0, ge=0)
    """Above 0: that model runs on a GPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of that model."""
    trials: list[Literal["memory", "scale", "broken"]] = ["memory", "scale", "broken"]
    """Which trials to run."""
    clip_s: float = Field(default=3.0, gt=0)
    """Length of a made clip in seconds (in the scale-out trial they are as long as UCF-101's)."""
    memory_clips: int = Field(default=2000, ge=20)
    """Clips of the memory trial; its first and last 500 (or quarter) are compared."""
    scale_clips: int = Field(default=240, ge=32)
    """Clips of each run of the scale-out trial."""
    scale_rounds: int = Field(default=3, ge=1)
    """Runs with one worker and with four, taking turns."""
    broken_clips: int = Field(default=1000, ge=20)
    """Files of the broken run."""
    poisoned: int = Field(default=50, ge=0)
    """How many of them are no videos."""
    kills: int = Field(default=5, ge=0)
    """Workers killed in the broken run."""
    quick: bool = False
    """A few clips a trial: shows that it works, measures nothing."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Run the trials, write ``recipe.out``, and return the record.

    Raises:
        InputError: A setting that leaves no good file, or a list that cannot be read.
    """
    check_out(recipe.out)
    if recipe.poisoned >= recipe.broken_clips:
        raise InputError(f"poisoned = {recipe.poisoned} of broken_clips = {recipe.broken_clips}: expected fewer")
    sources = [Path(str(row["uri"])) for row in list_videos(recipe.videos).to_pylist()] if recipe.videos else []
    if recipe.quick:
        small = {"memory_clips": 40, "scale_clips": 32, "scale_rounds": 1, "clip_s": 2.0}
        recipe = recipe.model_copy(update=small | {"broken_clips": 40, "poisoned": 3, "kills": 1})
    if dry_run:
        print(f"benchmark annotate: would run {', '.join(recipe.trials)} on {len(sources) or _SOURCES} different clips")
        return {}
    with tempfile.TemporaryDirectory(prefix="wm-benchmark-") as name:
        return _run_trials(recipe, Path(name), sources)


def _run_trials(recipe: BenchmarkRecipe, folder: Path, sources: list[Path]) -> dict[str, Any]:
    """Run each trial of the recipe on its own clips and collect the figures."""
    from wm.nano.preset import write_random_base

    if sources:
        clips = real_clips(folder / "sources", XVID, sources[:_SOURCES])
    else:
        clips = made_clips(folder / "sources", XVID, _SOURCES, recipe.clip_s)
    nano = folder / "nano"
    write_random_base(nano)
    ratios: dict[str, float] = {}
    spreads: dict[str, dict[str, float]] = {}
    parts: dict[str, Any] = {"rates": {}}
    if "memory" in recipe.trials:
        resources = {"gpus_per_annotator": recipe.gpus_per_annotator}
        settings = {"resources": resources, "dtype": recipe.dtype} if recipe.idm else {}
        memory = memory_growth(folder, clips, Path(recipe.idm or nano), recipe.memory_clips, settings)
        ratios["memory_growth"], parts["rates"] = round(memory.pop("ratio"), 4), memory.pop("rates")
        spreads["memory_growth"] = {name: memory[name] for name in ("first_mib", "last_mib", "peak_mib", "clips")}
        parts["memory"] = memory
    if "scale" in recipe.trials:
        # Longer clips, so that decoding and not the start of processes is measured.
        if not sources and not recipe.quick:
            clips = made_clips(folder / "long", XVID, _SOURCES)
        scale = scale_out(folder, clips, nano, recipe.scale_clips, recipe.scale_rounds)
        ratios["scale_out_2_cores"] = round(scale.pop("ratio"), 3)
        spreads["scale_out_2_cores"] = spread(scale["ratios"])
        parts["scale"] = scale
    if "broken" in recipe.trials:
        parts["broken"] = broken_run(
            folder, clips, nano, clips=recipe.broken_clips, poisoned=recipe.poisoned, kills=recipe.kills
        )
    record = write_benchmark(
        recipe.out,
        "annotate",
        PACKAGES,
        ratios=ratios,
        spread=spreads,
        settings=recipe.model_dump(exclude={"out"}) | {"model": recipe.idm or "random nano base"},
        **parts,
    )
    _print_record(record, recipe.out)
    return record


def _print_record(record: dict[str, Any], out: str) -> None:
    for name, value in (record["ratios"] | record["rates"]).items():
        print(f"{name:28s}{value:12,.3f}")
    for trial in ("memory", "scale", "broken"):
        if trial in record:
            print(f"{trial}: " + ", ".join(f"{name} {value}" for name, value in record[trial].items()))
    print(f"benchmark annotate: written to {out}")
