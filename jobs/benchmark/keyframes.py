"""Measure key-frames: throughput of both kinds of motion over decoding alone and over the naive way, and agreement.

Naive: cv2.VideoCapture at full size and calcOpticalFlowFarneback (0.5, 3, 15, 3, 5, 1.2, 0) on every frame, one
process, one thread. All times are CPU seconds of this process, all kinds of work taking turns on each clip.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from jobs.benchmark.clips import SHAPES, Shape, made_clips, real_clips
from jobs.benchmark.harness import check_out, interleaved, spread, write_benchmark
from wm.config import Recipe
from wm.datasets.videos.videos import list_videos
from wm.paths import InputPath, OutputPath
from wm.video import KEYFRAME_RULES, Scan, choose_keyframes, scan_video
from wm.video.fetch import fetch_decord, fetch_pyav

PACKAGES = ("wm", "av", "opencv-python-headless", "decord", "numpy")
TOLERANCE_FRAMES = 2
"""Key-frames this close count as equal."""

MAX_KEYFRAMES, MIN_INTERVAL = 6, 20
"""The paper's K_f and I_f."""


class BenchmarkRecipe(Recipe):
    """On which clips, and how often."""

    out: OutputPath
    """JSON file to write."""
    videos: InputPath = ""
    """Folder, glob or list of real videos, re-encoded to both shapes; without it, clips are made."""
    clips: int = Field(default=8, ge=1)
    """Synthetic clips of each shape; of real ones, max number of videos (each gives up to two clips)."""
    rounds: int = Field(default=3, ge=1)
    """Turns that each kind of work takes on a clip; their median counts."""
    quick: bool = False
    """One short clip of each shape, one round: shows that it works, measures nothing."""
    keep: OutputPath = ""
    """Folder to keep the clips in."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Measure, write ``recipe.out``, and return the record."""
    check_out(recipe.out)
    sources = [Path(str(row["uri"])) for row in list_videos(recipe.videos).to_pylist()] if recipe.videos else []
    sources = sources[: 1 if recipe.quick else recipe.clips]
    if dry_run:
        print(f"benchmark keyframes: would measure {len(sources) or recipe.clips} videos in two shapes")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        results = {shape.name: _measure_shape(recipe, Path(recipe.keep or folder), shape, sources) for shape in SHAPES}
    return _write(recipe, results)


def _measure_shape(recipe: BenchmarkRecipe, folder: Path, shape: Shape, sources: Sequence[Path]) -> dict[str, Any]:
    """Measure clips of one shape; return scores, seconds and counts by clip."""
    if sources:
        clips = real_clips(folder, shape, sources)
    else:
        clips = made_clips(folder, shape, 1 if recipe.quick else recipe.clips, 2.4 if recipe.quick else None)
    clips = clips[:1] if recipe.quick else clips
    # One run gives both the time and the result to compare.
    by_work: dict[str, dict[Path, Any]] = {name: {} for name in WORK}

    def record(name: str, work: Callable[[Path], Any]) -> Callable[[Path], None]:
        def do(clip: Path) -> None:
            by_work[name][clip] = work(clip)

        return do

    work = {name: record(name, function) for name, function in WORK.items()}
    seconds = interleaved(work, clips, 1 if recipe.quick else recipe.rounds, {"decode": 3, "dis": 3})
    # Fetching needs the scans of before.
    fetch_s = _measure_fetch(clips, by_work["dis"], 1 if recipe.quick else recipe.rounds)
    return {
        "clips": [_compare(by_work, clip) for clip in clips],
        "seconds": seconds,
        "fetch_s": fetch_s,
        "frames": [len(by_work["naive"][clip]) for clip in clips],
        "images": [len(by_work["dis"][clip].keyframes) for clip in clips],
    }


def decode(clip: Path) -> int:
    """Decode and nothing else; return the number of frames."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        return sum(len(packet.decode()) for packet in container.demux(stream))


def naive(clip: Path) -> npt.NDArray[np.float32]:
    """Compute the motion curve as most people do, px/frame."""
    # One thread, as everything that it is compared with.
    capture = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    curve: list[float] = []
    before = None
    while True:
        has_image, image = capture.read()
        if not has_image:
            break
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        if before is None:
            curve.append(0.0)
        else:
            flow = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            curve.append(float(cv2.magnitude(flow[..., 0], flow[..., 1]).mean()))
        before = grey
    capture.release()
    return np.asarray(curve, dtype=np.float32)


def _dis(clip: Path) -> Scan:
    return scan_video(clip, motion="dis", max_keyframes=MAX_KEYFRAMES, min_interval_frames=MIN_INTERVAL)


def _exact(rule: str) -> Callable[[Path], Scan]:
    def scan(clip: Path) -> Scan:
        return scan_video(
            clip, motion="farneback", max_keyframes=MAX_KEYFRAMES, min_interval_frames=MIN_INTERVAL, rule=rule
        )

    return scan


WORK: dict[str, Callable[[Path], Any]] = {
    "decode": decode,
    "dis": _dis,
    **{f"exact_{rule}": _exact(rule) for rule in KEYFRAME_RULES},
    "naive": naive,
}


def _measure_fetch(clips: Sequence[Path], scans: dict[Path, Scan], rounds: int) -> dict[str, list[float]]:
    """Measure CPU seconds to read each clip's key-frames at full size, by either reader."""
    return interleaved(
        {
            "decord": lambda clip: fetch_decord(clip, scans[clip]),
            "pyav": lambda clip: fetch_pyav(clip, scans[clip]),
        },
        clips,
        rounds,
        {"decord": 2, "pyav": 2},
    )


def _compare(by_work: dict[str, dict[Path, Any]], clip: Path) -> dict[str, float]:
    """Score the agreement with the naive way on one clip."""
    reference = by_work["naive"][clip]
    scores = {"dis_spearman": spearman(by_work["dis"][clip].motion[1:], reference[1:])}
    for rule in KEYFRAME_RULES:
        by_reference = choose_keyframes(
            reference, max_keyframes=MAX_KEYFRAMES, min_interval_frames=MIN_INTERVAL, rule=rule
        )
        by_dis = choose_keyframes(
            by_work["dis"][clip].motion, max_keyframes=MAX_KEYFRAMES, min_interval_frames=MIN_INTERVAL, rule=rule
        )
        scan = by_work[f"exact_{rule}"][clip]
        for name, keyframes in (("exact", scan.keyframes), ("dis", by_dis)):
            scores[f"{name}_jaccard_{rule}"] = jaccard(keyframes, by_reference)
            scores[f"{name}_capture_{rule}"] = float(
                reference[keyframes].sum() / max(reference[by_reference].sum(), 1e-9)
            )
        scores[f"exact_measured_{rule}"] = float(scan.measured.mean())
    return scores


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Compute the rank correlation; equal values share their mean rank. 1 for two constant curves, 0 for one."""
    ranks_a, ranks_b = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    # A constant curve has no correlation; numpy would give NaN.
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return float(np.ptp(ranks_a) == np.ptp(ranks_b))
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def jaccard(frames: Sequence[int], expected: Sequence[int], tolerance: int = TOLERANCE_FRAMES) -> float:
    """Compute shared over all key-frames.

    Args:
        frames: Frame numbers, sorted and spaced wider than the tolerance.
        expected: The same of the reference.
        tolerance: Frames at most this far apart count as equal; each is used once.
    """
    remaining, shared = list(expected), 0
    for frame in frames:
        near = [other for other in remaining if abs(other - frame) <= tolerance]
        # The nearest, so that one key-frame does not take another's partner.
        if near:
            remaining.remove(min(near, key=lambda other: abs(other - frame)))
            shared += 1
    union = len(frames) + len(expected) - shared
    return shared / union if union else 1.0


def _write(recipe: BenchmarkRecipe, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ratios: dict[str, float] = {}
    spreads: dict[str, dict[str, float]] = {}
    rates: dict[str, float] = {}
    exact_names = [f"exact_{rule}" for rule in KEYFRAME_RULES]

    def add(name: str, over: str, under: str, shapes: Sequence[str]) -> None:
        """Add the throughput of ``over`` as a multiple of ``under``'s: of all clips' CPU time; spread: clip by clip."""
        slow = [value for shape in shapes for value in results[shape]["seconds"][under]]
        fast = [value for shape in shapes for value in results[shape]["seconds"][over]]
        ratios[name] = round(sum(slow) / sum(fast), 3)
        spreads[name] = spread([slow_s / fast_s for slow_s, fast_s in zip(slow, fast, strict=True)])

    for shape in results:
        add(f"dis_over_naive_{shape}", "dis", "naive", [shape])
        add(f"dis_over_decode_{shape}", "dis", "decode", [shape])
        for name in exact_names:
            add(f"{name}_over_naive_{shape}", name, "naive", [shape])
        for name in ("decode", "dis", *exact_names, "naive"):
            rates[f"{name}_frames_per_s_{shape}"] = _rate(results[shape]["frames"], results[shape]["seconds"][name])
        for name in ("decord", "pyav"):
            rates[f"fetch_{name}_images_per_s_{shape}"] = _rate(
                results[shape]["images"], results[shape]["fetch_s"][name]
            )
    for name in exact_names:
        add(f"{name}_over_naive", name, "naive", list(results))
    # Agreement is a mean over clips, throughput a ratio of sums.
    every = [clip for shape in results.values() for clip in shape["clips"]]
    for name in every[0]:
        values = [clip[name] for clip in every]
        ratios[name] = round(float(np.mean(values)), 4)
        spreads[name] = spread(values)
    # The headline is the worse of the two readings of the rule; both are beside it.
    for headline, parts in (
        ("exact_over_naive", [f"{name}_over_naive" for name in exact_names]),
        ("exact_jaccard", [f"exact_jaccard_{rule}" for rule in KEYFRAME_RULES]),
        ("exact_capture", [f"exact_capture_{rule}" for rule in KEYFRAME_RULES]),
    ):
        worse = min(parts, key=lambda name: ratios[name])
        ratios[headline], spreads[headline] = ratios[worse], spreads[worse]
    for name in ("decode", "dis", *exact_names):
        frames = [value for shape in results.values() for value in shape["frames"]]
        seconds = [value for shape in results.values() for value in shape["seconds"][name]]
        rates[f"{name}_frames_per_s"] = _rate(frames, seconds)
    rates["exact_frames_per_s"] = min(rates[f"{name}_frames_per_s"] for name in exact_names)
    images = [value for shape in results.values() for value in shape["images"]]
    rates["fetch_images_per_s"] = _rate(images, [s for shape in results.values() for s in shape["fetch_s"]["decord"]])
    settings = recipe.model_dump(exclude={"out"}) | {
        "clips_measured": {name: len(shape["clips"]) for name, shape in results.items()},
        "tolerance_frames": TOLERANCE_FRAMES,
        "max_keyframes": MAX_KEYFRAMES,
        "min_interval": MIN_INTERVAL,
    }
    record = write_benchmark(
        recipe.out, "keyframes", PACKAGES, ratios=ratios, spread=spreads, rates=rates, settings=settings
    )
    _print_record(record, recipe.out)
    return record


def _rate(counts: Sequence[int], seconds: Sequence[float]) -> float:
    return round(sum(counts) / max(sum(seconds), 1e-9), 1)


def _print_record(record: dict[str, Any], out: str) -> None:
    print(f"{'':40s}{'all':>9s}   by clip: min, quartiles, max")
    for name, value in record["ratios"].items():
        parts = record["spread"][name]
        by_clip = "  ".join(f"{parts[key]:.3f}" for key in ("min", "q25", "median", "q75", "max"))
        print(f"{name:40s}{value:9.3f}   {by_clip}")
    for name, value in record["rates"].items():
        print(f"{name:50s}{value:11,.1f}")
    print(f"benchmark keyframes: {record['settings']['clips_measured']} clips, written to {out}")
