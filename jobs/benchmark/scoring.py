"""Measure scoring of images: what the feature cache is worth on a part of a bench like the paper's (8 candidates, CLIP
ViT-B/32 and DINO ViT-S/16 with random weights), and how time and the driver's memory grow with the number of images.

The baseline embeds prediction and target of each pair anew, pair by pair, in one process, as evaluation scripts of
image editing do. Growth is measured with tiny models and images, so that what is not models shows, and is extrapolated
by a line.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from jobs.benchmark.demo import TreeUsage
from jobs.benchmark.harness import CommonRecipe, Figures, check_out, cpu_seconds, print_ratios, write_record
from jobs.benchmark.scoring_data import EncoderSize, made_image, write_bench, write_candidates, write_encoders
from wm.errors import InputError
from wm.evaluation.metrics.encoders import load_clip, load_dino

PACKAGES = ("wm", "numpy", "pyarrow", "ray", "torch", "transformers")
_COMMAND = (sys.executable, "-m", "jobs.score")
_POLL_S = 0.2
_FAR = 100_000
"""Images that growth is extrapolated to."""


class BenchmarkRecipe(CommonRecipe):
    """How large the bench is, and how far growth is measured."""

    pairs: int = Field(default=32, ge=1)
    """Triplets of the bench that the cache is measured on; the paper's has 248."""
    candidates: int = Field(default=8, ge=1)
    """Predicted images of each triplet, there and for growth."""
    side_px: int = Field(default=512, ge=8)
    """Width and height of the bench's images."""
    encoders: EncoderSize = "base"
    """base: CLIP ViT-B/32 and DINO ViT-S/16; tiny: two layers."""
    baseline_pairs: int = Field(default=16, ge=1)
    """Predictions that the baseline scores; it costs the same for each."""
    growth: list[int] = [1000, 2000, 4000]
    """Numbers of images that growth is measured at; the line is of the last two and more."""
    growth_side_px: int = Field(default=32, ge=8)
    """Width and height of their images."""
    workers: list[int] = [0, 2]
    """Values of resources.num_workers that growth is measured with; 0: one process without Ray."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: Sizes, and where the record goes.
        dry_run: Print what would be measured; the record is empty.

    Raises:
        InputError: The record cannot be written, or a run failed.
    """
    check_out(recipe.out)
    if recipe.quick:
        small = {"pairs": 4, "candidates": 2, "side_px": 32, "encoders": "tiny", "baseline_pairs": 2}
        recipe = recipe.model_copy(update=small | {"growth": [8, 16], "workers": [0]})
    if dry_run:
        images = recipe.pairs * recipe.candidates
        print(f"benchmark score: would score {images:,} images, then {', '.join(map(str, recipe.growth))}")
        return {}
    with tempfile.TemporaryDirectory(prefix="wm-benchmark-") as name:
        bench, ratios = _measure_bench(recipe, Path(name))
        growth = {str(workers): _measure_growth(recipe, Path(name), workers) for workers in recipe.workers}
    for workers, figures in growth.items():
        ratios[f"driver_memory_growth_{workers}_workers"] = figures[-1]["driver_mib"] / figures[0]["driver_mib"]
    record = write_record(
        recipe.out,
        "score",
        PACKAGES,
        ratios=ratios,
        settings=recipe.settings(),
        bench=bench,
        growth=growth,
        at_100000_images={workers: extrapolate(figures) for workers, figures in growth.items()},
    )
    print_ratios(ratios)
    return record


def _measure_bench(recipe: BenchmarkRecipe, folder: Path) -> tuple[Figures, dict[str, float]]:
    """Score the bench, score it again with all features stored, and a part of it as the baseline does."""
    triplets = write_bench(folder / "bench", recipe.pairs, recipe.side_px)
    predictions = write_candidates(folder / "candidates", recipe.pairs, recipe.candidates, recipe.side_px)
    encoders = write_encoders(folder / recipe.encoders, recipe.encoders)
    keys = [f"triplets={triplets}", f'predictions=["{predictions}"]', f"cache={folder / 'features'}"]
    keys += [f"{name}={path}" for name, path in encoders.items()]
    # Processes of their own: start-up and memory are those of a user's run.
    first = run_score([*keys, f"out={folder / 'first'}"])
    again = run_score([*keys, f"out={folder / 'again'}"])
    baseline_s = _time_baseline(recipe, encoders) / recipe.baseline_pairs
    images = recipe.pairs * (recipe.candidates + 1)  # Copy is scored too
    # Rates of models are in CPU seconds: wall seconds depend on what else the machine does.
    figures: Figures = {
        "images": images,
        "first": first,
        "with_stored_features": again,
        "images_per_s": round(images / first["wall_s"], 2),
        "baseline_cpu_s_per_image": round(baseline_s, 4),
    }
    return figures, {
        "baseline_over_ours": baseline_s * images / first["cpu_s"],
        "first_over_stored_features": first["wall_s"] / again["wall_s"],
    }


def _time_baseline(recipe: BenchmarkRecipe, encoders: Mapping[str, Path]) -> float:
    """Measure CPU seconds of embedding each prediction and its target anew, without reading or decoding them."""
    clip, dino = load_clip(encoders["clip"], batch_size=1), load_dino(encoders["dino"], batch_size=1)
    images = [made_image(number, recipe.side_px) for number in range(2 * recipe.baseline_pairs)]

    def score(pair: int) -> None:
        for image in images[2 * pair : 2 * pair + 2]:
            clip.embed_images([image])
            dino.embed_images([image])

    score(0)  # warm up
    return sum(cpu_seconds(score, pair) for pair in range(recipe.baseline_pairs))


def _measure_growth(recipe: BenchmarkRecipe, folder: Path, workers: int) -> list[dict[str, float]]:
    """Score more and more images; returns the figures of each number of them."""
    encoders = write_encoders(folder / "tiny", "tiny")
    figures = []
    for count in recipe.growth:
        # The bench grows with the images, as a larger bench would.
        pairs = max(1, count // recipe.candidates)
        triplets, predictions = folder / f"bench-{count}", folder / f"candidates-{count}"
        if not triplets.exists():
            write_bench(triplets, pairs, recipe.growth_side_px)
            write_candidates(predictions, pairs, recipe.candidates, recipe.growth_side_px)
        keys = [f"triplets={triplets}", f'predictions=["{predictions}"]', f"resources.num_workers={workers}"]
        keys += [f"{name}={path}" for name, path in encoders.items()]
        usage = run_score([*keys, "with_copy=false", f"out={folder / f'scores-{count}-{workers}'}"])
        figures.append({"images": float(pairs * recipe.candidates), **usage})
    return figures


def run_score(keys: Sequence[str]) -> dict[str, float]:
    """Run ``score`` as a process of its own and look at it while it runs.

    Args:
        keys: Of its recipe, as ``key=value``.

    Returns:
        ``wall_s``; ``cpu_s`` and ``tree_mib`` (peak of proportional set sizes) of all its processes; ``driver_mib``:
        its own peak resident memory.

    Raises:
        InputError: It failed.
    """
    begin, usage, driver_kib = time.monotonic(), TreeUsage(), 0
    command = [*_COMMAND, *keys]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            usage.look(process.pid)
            driver_kib = max(driver_kib, _peak_kib(process.pid))
            time.sleep(_POLL_S)
        message = process.stderr.read() if process.stderr else ""
    if process.returncode:
        raise InputError(f"{' '.join(command):.200} ended with status {process.returncode}: {message[-300:]}")
    return {
        "wall_s": round(time.monotonic() - begin, 2),
        "cpu_s": round(sum(usage.cpu_s.values()), 2),
        "tree_mib": round(usage.peak_bytes / 2**20, 1),
        "driver_mib": round(driver_kib / 2**10, 1),
    }


def _peak_kib(process: int) -> int:
    """Return the peak resident memory of a process so far, which a look between two peaks does not miss."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0  # it ended meanwhile
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def extrapolate(figures: Sequence[Mapping[str, float]], images: int = _FAR) -> dict[str, float]:
    """Extrapolate time and memory to more images by the line of least squares.

    Args:
        figures: Of each number of images, two or more.
        images: Number to extrapolate to.

    Returns:
        Figure → its value there, and ``NAME_per_1000_images``, the line's slope.
    """
    counts = np.array([row["images"] for row in figures])
    values: dict[str, float] = {}
    for name in ("wall_s", "cpu_s", "tree_mib", "driver_mib"):
        slope, offset = np.polyfit(counts, np.array([row[name] for row in figures]), 1)
        values |= {name: round(slope * images + offset, 1), f"{name}_per_1000_images": round(slope * 1000, 3)}
    return values
