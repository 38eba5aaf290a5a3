"""Measure key-frames: throughput of both kinds of motion over decoding alone and over the naive way, and agreement.

Naive: cv2.VideoCapture at full size and calcOpticalFlowFarneback (0.5, 3, 15, 3, 5, 1.2, 0) on every frame, one
process, one thread. All times are CPU seconds of this process, all kinds of work taking turns on each clip.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import av
import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from jobs.benchmark.clips import SHAPES, Shape, list_sources, made_clips, real_clips
from jobs.benchmark.harness import CommonRecipe, Figures, Seconds, check_out, interleaved, spread, write_record
from wm.paths import OutputPath, SourcePath
from wm.video import KEYFRAME_RULES, Scan, choose_keyframes, scan_video
from wm.video.decode import frames
from wm.video.farneback import compile_flow
from wm.video.fetch import fetch_decord, fetch_pyav

PACKAGES = ("wm", "av", "opencv-python-headless", "decord", "numba", "numpy")
TOLERANCE_FRAMES = 2
"""Key-frames this close count as equal."""
MAX_KEYFRAMES, MIN_INTERVAL = 6, 20
"""The paper's K_f and I_f."""

Curve: TypeAlias = npt.NDArray[np.float32]


class BenchmarkRecipe(CommonRecipe):
    """On which clips, and how often."""

    videos: SourcePath = ""
    """Folder, glob or list of real videos, re-encoded to both shapes; without it, clips are made."""
    clips: int = Field(default=8, ge=1)
    """Synthetic clips of each shape; of real ones, max number of videos (each gives up to two clips)."""
    rounds: int = Field(default=3, ge=1)
    """Turns that each kind of work takes on a clip; their median counts."""
    keep: OutputPath = ""
    """Folder to keep the clips in."""


@dataclass(frozen=True)
class ShapeResult:
    """What was measured on clips of one shape."""

    scores: list[dict[str, float]]
    """Agreement with the naive way, of each clip."""
    seconds: Seconds
    """CPU seconds by kind of work, of each clip."""
    fetch_s: Seconds
    """The same by reader of the key-frames."""
    frames: list[int]
    """Frames of each clip."""
    images: list[int]
    """Key-frames of each clip."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: What is measured, and where the record goes.
        dry_run: Print what would be measured; the record is empty.
    """
    check_out(recipe.out)
    sources = list_sources(recipe.videos)[: 1 if recipe.quick else recipe.clips]
    if dry_run:
        print(f"benchmark keyframes: would measure {len(sources) or recipe.clips} videos in two shapes")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        results = {shape.name: _measure_shape(recipe, Path(recipe.keep or folder), shape, sources) for shape in SHAPES}
    return _write(recipe, results)


def _measure_shape(recipe: BenchmarkRecipe, folder: Path, shape: Shape, sources: Sequence[Path]) -> ShapeResult:
    if sources:
        clips = real_clips(folder, shape, sources)
    else:
        clips = made_clips(folder, shape, 1 if recipe.quick else recipe.clips, 2.4 if recipe.quick else None)
    # A long real video gives two clips.
    clips, rounds = (clips[:1], 1) if recipe.quick else (clips, recipe.rounds)
    # Compiled before the clock runs; one run gives both the time and the result to compare.
    compile_flow()
    scans: dict[str, dict[Path, Scan]] = {name: {} for name in SCANS}
    curves: dict[Path, Curve] = {}

    def keep_scan(name: str) -> Callable[[Path], None]:
        return lambda clip: scans[name].update({clip: SCANS[name](clip)})

    work: dict[str, Callable[[Path], object]] = {
        "decode": decode,
        "grey": lambda clip: max(raw.grey().size for raw in frames(clip)),  # left to a core beside a GPU
        **{name: keep_scan(name) for name in SCANS},
        "naive": lambda clip: curves.update({clip: naive(clip)}),
    }
    seconds = interleaved(work, clips, rounds, {"decode": 3, "grey": 2, "dis": 3})
    # Fetching needs the scans of before.
    readers: dict[str, Callable[[Path], object]] = {
        "decord": lambda clip: fetch_decord(clip, scans["dis"][clip]),
        "pyav": lambda clip: fetch_pyav(clip, scans["dis"][clip]),
    }
    return ShapeResult(
        scores=[_compare({name: scans[name][clip] for name in SCANS}, curves[clip]) for clip in clips],
        seconds=seconds,
        fetch_s=interleaved(readers, clips, rounds, {"decord": 2, "pyav": 2}),
        frames=[len(curves[clip]) for clip in clips],
        images=[len(scans["dis"][clip].keyframes) for clip in clips],
    )


def decode(clip: Path) -> int:
    """Decode and nothing else; return the number of frames."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        # One thread, as everything else here.
        stream.thread_type = "NONE"
        return sum(len(packet.decode()) for packet in container.demux(stream))


def naive(clip: Path) -> Curve:
    """Compute the motion curve as most people do, px/frame."""
    # One thread, as everything that it is compared with.
    capture = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    curve: list[float] = []
    before = None
    while True:
        # Every frame at full size, as the naive way has it.
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


_scan = partial(scan_video, max_keyframes=MAX_KEYFRAMES, min_interval_frames=MIN_INTERVAL)
_choose = partial(choose_keyframes, max_keyframes=MAX_KEYFRAMES, min_interval_frames=MIN_INTERVAL)
SCANS: dict[str, Callable[[Path], Scan]] = {
    "dis": partial(_scan, motion="dis"),
    **{f"exact_{rule}": partial(_scan, motion="farneback", rule=rule) for rule in KEYFRAME_RULES},
}
"""Our scan by kind: quick, and exact by either rule."""


def _compare(scans: Mapping[str, Scan], reference: Curve) -> dict[str, float]:
    """Score the agreement of one clip's scans with the naive way's curve."""
    scores = {"dis_spearman": spearman(scans["dis"].motion[1:], reference[1:])}
    for rule in KEYFRAME_RULES:
        # The same rule on either curve: only the motion differs.
        by_reference, by_dis = (_choose(curve, rule=rule) for curve in (reference, scans["dis"].motion))
        scan = scans[f"exact_{rule}"]
        for name, keyframes in (("exact", scan.keyframes), ("dis", by_dis)):
            scores[f"{name}_jaccard_{rule}"] = jaccard(keyframes, by_reference)
            # How much of the motion at the best frames these have: near misses count by their motion.
            scores[f"{name}_capture_{rule}"] = float(
                reference[keyframes].sum() / max(reference[by_reference].sum(), 1e-9)
            )
        scores[f"exact_measured_{rule}"] = float(scan.measured.mean())
    return scores


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Compute the rank correlation; equal values share their mean rank.

    Args:
        a: (n,) numbers.
        b: (n,) numbers.

    Returns:
        -1 to 1; 1 for two constant curves, 0 for one.
    """
    # Spearman's correlation is Pearson's of the ranks.
    ranks_a, ranks_b = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    # Of a constant curve numpy would give NaN.
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return float(np.ptp(ranks_a) == np.ptp(ranks_b))
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # Equal values share the mean of the ranks that they cover.
    ends = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def jaccard(frames: Sequence[int], expected: Sequence[int]) -> float:
    """Compute shared over all key-frames, equal up to :data:`TOLERANCE_FRAMES`.

    Args:
        frames: Frame numbers, sorted and spaced wider than the tolerance.
        expected: The same of the reference.
    """
    # Each reference frame may be a partner once.
    remaining, shared = list(expected), 0
    for frame in frames:
        near = [other for other in remaining if abs(other - frame) <= TOLERANCE_FRAMES]
        # The nearest, so that one key-frame does not take another's partner.
        if near:
            remaining.remove(min(near, key=lambda other: abs(other - frame)))
            shared += 1
    union = len(frames) + len(expected) - shared
    return shared / union if union else 1.0


def _compute_ratios(results: Mapping[str, ShapeResult]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Compute ratios of throughput and means of agreement, and the spread of each over the clips."""
    ratios: dict[str, float] = {}
    spreads: dict[str, dict[str, float]] = {}
    exact_names = [f"exact_{rule}" for rule in KEYFRAME_RULES]

    def add(name: str, over: str, under: str, shapes: Sequence[str]) -> None:
        """Add the throughput of ``over`` as a multiple of ``under``'s: of all clips' CPU time; spread: clip by clip."""
        slow = [value for shape in shapes for value in results[shape].seconds[under]]
        fast = [value for shape in shapes for value in results[shape].seconds[over]]
        ratios[name] = round(sum(slow) / sum(fast), 3)
        spreads[name] = spread([slow_s / fast_s for slow_s, fast_s in zip(slow, fast, strict=True)])

    # 1. Throughput, in each shape and over both.
    for shape in results:
        add(f"dis_over_naive_{shape}", "dis", "naive", [shape])
        add(f"dis_over_decode_{shape}", "dis", "decode", [shape])
        for name in exact_names:
            add(f"{name}_over_naive_{shape}", name, "naive", [shape])
    for name in exact_names:
        add(f"{name}_over_naive", name, "naive", list(results))
    # 2. Agreement: a mean over clips, where throughput is a ratio of sums.
    scores = [score for result in results.values() for score in result.scores]
    for name in scores[0]:
        values = [score[name] for score in scores]
        ratios[name] = round(float(np.mean(values)), 4)
        spreads[name] = spread(values)
    # 3. The headline is the worse of the two readings of the rule; both are beside it.
    for headline, parts in (
        ("exact_over_naive", [f"{name}_over_naive" for name in exact_names]),
        ("exact_jaccard", [f"exact_jaccard_{rule}" for rule in KEYFRAME_RULES]),
        ("exact_capture", [f"exact_capture_{rule}" for rule in KEYFRAME_RULES]),
    ):
        worse = min(parts, key=lambda name: ratios[name])
        ratios[headline], spreads[headline] = ratios[worse], spreads[worse]
    return ratios, spreads


def _write(recipe: BenchmarkRecipe, results: Mapping[str, ShapeResult]) -> Figures:
    (ratios, spreads), rates = _compute_ratios(results), _compute_rates(results)
    # Real videos may give fewer clips than were asked for.
    clips_measured = {name: len(result.scores) for name, result in results.items()}
    settings = recipe.settings() | {
        "clips_measured": clips_measured,
        "tolerance_frames": TOLERANCE_FRAMES,
        "max_keyframes": MAX_KEYFRAMES,
        "min_interval": MIN_INTERVAL,
    }
    record = write_record(
        recipe.out, "keyframes", PACKAGES, ratios=ratios, spread=spreads, rates=rates, settings=settings
    )
    print(f"{'':40s}{'all':>9s}   by clip: min, quartiles, max")
    for name, value in ratios.items():
        by_clip = "  ".join(f"{spreads[name][key]:.3f}" for key in ("min", "q25", "median", "q75", "max"))
        print(f"{name:40s}{value:9.3f}   {by_clip}")
    for name, value in rates.items():
        print(f"{name:50s}{value:11,.1f}")
    print(f"benchmark keyframes: {clips_measured} clips, written to {recipe.out}")
    return record


def _compute_rates(results: Mapping[str, ShapeResult]) -> dict[str, float]:
    """Compute frames and images a CPU second: in each shape, and over both."""
    rates: dict[str, float] = {}
    groups = {f"_{name}": [result] for name, result in results.items()} | {"": [*results.values()]}
    for suffix, group in groups.items():
        for name in group[0].seconds:
            rates[f"{name}_frames_per_s{suffix}"] = _rate((result.frames, result.seconds[name]) for result in group)
        for name in group[0].fetch_s:
            rates[f"fetch_{name}_images_per_s{suffix}"] = _rate((r.images, r.fetch_s[name]) for r in group)
    # Over both shapes the planner's names: the worse rule, and the reader that annotation uses.
    del rates["naive_frames_per_s"], rates["fetch_pyav_images_per_s"]
    rates["fetch_images_per_s"] = rates.pop("fetch_decord_images_per_s")
    rates["exact_frames_per_s"] = min(rates[f"exact_{rule}_frames_per_s"] for rule in KEYFRAME_RULES)
    return rates


def _rate(groups: Iterable[tuple[list[int], list[float]]]) -> float:
    counts, seconds = zip(*groups, strict=True)
    return round(sum(map(sum, counts)) / max(sum(map(sum, seconds)), 1e-9), 1)
