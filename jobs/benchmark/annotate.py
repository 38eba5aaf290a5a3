"""Measure annotation: memory over many clips, scale-out of the CPU stages over workers, a run that is broken on
purpose (poisoned files, killed workers), and the rate of each stage for wm plan.

The clips are of UCF-101's shape, synthetic or re-encoded from real ones. The model is a random one of nano size unless
idm= names another: give it to measure the rates of the annotator that you will use.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import Field

from jobs.benchmark.annotate_scale import scale_out
from jobs.benchmark.annotate_trials import broken_run, memory_growth
from jobs.benchmark.clips import XVID, list_sources, made_clips, real_clips
from jobs.benchmark.harness import CommonRecipe, Figures, check_out, spread, write_record
from wm.errors import InputError
from wm.paths import InputPath, SourcePath

PACKAGES = ("wm", "av", "decord", "numpy", "opencv-python-headless", "pyarrow", "ray", "torch")
_SOURCES = 12


class BenchmarkRecipe(CommonRecipe):
    """Which trials, how large."""

    videos: SourcePath = ""
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
    """Runs with one worker and with two, taking turns."""
    broken_clips: int = Field(default=1000, ge=20)
    """Files of the broken run."""
    poisoned: int = Field(default=50, ge=0)
    """How many of them are no videos."""
    kills: int = Field(default=5, ge=0)
    """Workers killed in the broken run."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Run the trials, write ``recipe.out``, and return the record.

    Args:
        recipe: Videos, models, trials, and where the record goes.
        dry_run: Print what would be measured; the record is empty.

    Raises:
        InputError: A setting that leaves no good file, or a list that cannot be read.
    """
    check_out(recipe.out)
    if recipe.poisoned >= recipe.broken_clips:
        raise InputError(f"poisoned = {recipe.poisoned} of broken_clips = {recipe.broken_clips}: expected fewer")
    sources = list_sources(recipe.videos)
    # Sizes of a smoke test, whatever else the recipe says.
    if recipe.quick:
        small = {"memory_clips": 40, "scale_clips": 32, "scale_rounds": 1, "clip_s": 2.0}
        recipe = recipe.model_copy(update=small | {"broken_clips": 40, "poisoned": 3, "kills": 1})
    if dry_run:
        print(f"benchmark annotate: would run {', '.join(recipe.trials)} on {len(sources) or _SOURCES} different clips")
        return {}
    with tempfile.TemporaryDirectory(prefix="wm-benchmark-") as name:
        return _run_trials(recipe, Path(name), sources)


def _run_trials(recipe: BenchmarkRecipe, folder: Path, sources: list[Path]) -> Figures:
    """Run each trial of the recipe on its own clips and collect the figures."""
    from wm.nano.preset import write_random_base

    if sources:
        clips = real_clips(folder / "sources", XVID, sources[:_SOURCES])
    else:
        clips = made_clips(folder / "sources", XVID, _SOURCES, recipe.clip_s)
    nano = folder / "nano"
    write_random_base(nano)
    ratios: dict[str, float] = {}
    rates: dict[str, float] = {}
    spreads: dict[str, dict[str, float]] = {}
    trials: dict[str, Figures] = {}
    if "memory" in recipe.trials:
        # A random model is small: it needs no GPU and no other precision.
        resources = {"gpus_per_annotator": recipe.gpus_per_annotator}
        of_idm = {"resources": resources, "dtype": recipe.dtype} if recipe.idm else {}
        memory, counts, rates = memory_growth(folder, clips, Path(recipe.idm or nano), recipe.memory_clips, of_idm)
        ratios["memory_growth"] = memory.pop("ratio")
        spreads["memory_growth"] = memory
        trials["memory"] = memory | {"counts": counts}
    if "scale" in recipe.trials:
        # Longer clips, so that decoding and not the start of processes is measured.
        if not sources and not recipe.quick:
            clips = made_clips(folder / "long", XVID, _SOURCES)
        # The nano model: decoding alone is scaled out.
        speed_ups, trials["scale"] = scale_out(folder, clips, nano, recipe.scale_clips, recipe.scale_rounds)
        for name, kind in (("scale_out_2_cores", "ray"), ("plain_2_processes", "plain")):
            spreads[name] = spread(speed_ups[kind])
            ratios[name] = round(median(speed_ups[kind]), 3)
    if "broken" in recipe.trials:
        trials["broken"] = broken_run(
            folder, clips, nano, clips=recipe.broken_clips, poisoned=recipe.poisoned, kills=recipe.kills
        )
    settings = recipe.settings() | {"model": recipe.idm or "random nano base"}
    record = write_record(
        recipe.out, "annotate", PACKAGES, ratios=ratios, spread=spreads, settings=settings, rates=rates, **trials
    )
    for name, value in (ratios | rates).items():
        print(f"{name:28s}{value:12,.3f}")
    for trial, figures in trials.items():
        print(f"{trial}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    print(f"benchmark annotate: written to {recipe.out}")
    return record
