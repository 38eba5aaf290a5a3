"""Compute the work that ``plan`` is asked about.

Rates come from benchmarks, work from a list, hours or a finished run.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.plan.recipe import PlanRecipe
from wm.datasets.planning import Work
from wm.datasets.videos.listing import passed_over_of
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.files.mirror import list_below, shown, uri_of
from wm.files.uris import is_remote
from wm.runs import read_run
from wm.tables import table_files
from wm.video.keyframes import find_rule

DEFAULT_FPS = 25.0
_PROBE_COUNTS = (
    *("videos", "decoded", "frames", "video_s"),
    *("keyframes_of_paired", "pairs", "triplets", "triplet_bytes"),
)
BYTES_PER_TRIPLET = 190_000
"""Two PNG images of 340 x 256 pixels (91 kB each in the mean over frames of real clips), codes and change."""


@dataclass(frozen=True)
class Habits:
    """What one video is like; None where it is not known. Key-frames, pairs and triplets are of one that decodes."""

    length_s: float | None = None
    fps: float | None = None
    keyframes: float | None = None
    pairs: float | None = None
    triplets: float | None = None
    decoded: float = 1.0
    bytes_per_triplet: float = BYTES_PER_TRIPLET
    has_model: bool = True


def read_rates(files: Sequence[str]) -> dict[str, float]:
    """Load the numbers under ``rates`` of benchmark files; of a rate in several files, the last one counts.

    Raises:
        InputError: Names the file and what was expected.
    """
    all_rates: dict[str, float] = {}
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise InputError(f"rates: no such file: {file}")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of too many digits
            raise InputError(f"rates: {file} is not JSON: {error}") from error
        rates = record.get("rates") if isinstance(record, dict) else None
        if not isinstance(rates, dict) or not rates:
            raise InputError(f"rates: {file} holds no object 'rates'; wm benchmark writes such files")
        for name, value in rates.items():
            # True is an integer to Python.
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"rates: {file} has {name} = {value!r:.60}; expected a number")
            all_rates[name] = float(value)
    return all_rates


@dataclass(frozen=True)
class Probe:
    """What a probe says of videos and cluster, beside its rates."""

    file: str
    counts: dict[str, Any]
    efficiency: float | None


def read_probe(files: Sequence[str]) -> Probe | None:
    """Load the last record of ``wm benchmark probe`` among the files of rates.

    Args:
        files: As :func:`read_rates` has read them.

    Returns:
        The record; None where none of them is one, or no video of it decodes.

    Raises:
        InputError: A record lacks a count.
    """
    for file in reversed(files):
        record = json.loads(Path(file).read_text(encoding="utf-8"))
        if record.get("benchmark") != "probe":
            continue
        counts = record.get("counts")
        missing = [name for name in _PROBE_COUNTS if not isinstance(counts, dict) or name not in counts]
        if missing:
            raise InputError(f"rates: {file} is a probe without counts.{missing[0]}; run wm benchmark probe again")
        efficiency = (record.get("ratios") or {}).get("efficiency")
        if counts["decoded"] and counts["video_s"]:
            return Probe(file, counts, None if efficiency is None else float(efficiency))
    return None


def work_of(recipe: PlanRecipe) -> tuple[Work, float, list[str], dict[str, Any]]:
    """Compute the work of a recipe.

    Returns:
        The work, bytes a triplet, notes on what was assumed, and the record of what the listing passed over.

    Raises:
        InputError: The recipe names no work, or the length of a video is not known.
    """
    if (recipe.videos is None) == (recipe.hours is None):
        raise InputError("give either videos, or hours and mean_length_s")
    notes: list[str] = []
    passed_over: dict[str, Any] = {}
    # 1. How many videos, and how long they are.
    habits = _choose_habits(recipe, notes)
    mean_s, fps = recipe.mean_length_s or habits.length_s, recipe.fps or habits.fps
    if recipe.hours is not None:
        if mean_s is None:
            raise InputError("hours needs mean_length_s, the mean length of a video in seconds, or from_run")
        videos, total_s = max(1, round(recipe.hours * 3600 / mean_s)), recipe.hours * 3600
    else:
        listing = list_videos(str(recipe.videos), layout=recipe.dataset_layout, annotations=recipe.annotations)
        videos, passed_over = listing.num_rows, passed_over_of(listing)
        if videos == 0:
            raise InputError(f"videos = {recipe.videos!r} holds no video")
        given_s = pc.subtract(listing["end_s"], pc.fill_null(listing["start_s"], 0.0))
        num_given = videos - given_s.null_count
        # Segments bring their length; only complete videos have to be opened.
        if mean_s is None and num_given < videos:
            mean_s, probed_fps, note = _probe_headers(listing.filter(pc.is_null(given_s)), recipe.probe)
            fps = fps or probed_fps
            notes.append(note)
        total_s = (pc.sum(given_s).as_py() or 0.0) + (videos - num_given) * (mean_s or 0.0)
    if fps is None:
        fps = DEFAULT_FPS
        notes.append(f"{fps:g} frames/s: assumed; give fps")
    # 2. Key-frames of a video: from the recipe, else a finished run, else the paper's table.
    length_s = total_s / videos
    keyframes = recipe.keyframes_per_video
    pairs = None if keyframes is None else max(0.0, keyframes - 1)
    if keyframes is None:
        keyframes, pairs = habits.keyframes, habits.pairs
    if keyframes is None or pairs is None:
        keyframes = find_rule(recipe.keyframes.rule).expected_keyframes(length_s)
        pairs = keyframes - 1
        notes.append(
            f"{keyframes:.2f} key-frames a video of {length_s:.2f} s: as in the paper's Table 7 for "
            f"{recipe.keyframes.rule}, every video counted as one with pairs"
        )
    # 3. What filters take out is known from a finished run only.
    kept_share = habits.triplets / habits.pairs if habits.pairs and habits.triplets is not None else 1.0
    decoded = videos * habits.decoded
    frames = total_s * fps * habits.decoded
    work = Work(videos, total_s, frames, decoded * keyframes, decoded * pairs, decoded * pairs * kept_share)
    return work, float(recipe.bytes_per_triplet or habits.bytes_per_triplet), notes, passed_over


def _choose_habits(recipe: PlanRecipe, notes: list[str]) -> Habits:
    """Say what a video gives: as a finished run has it, else a probe; adds a note on which."""
    if recipe.from_run:
        habits = _load_habits(recipe.from_run)
        unjudged = "" if habits.has_model else ", without the filters that need a model"
        notes.append(f"what a video gives: from {shown(recipe.from_run)}{unjudged}")
        return habits
    probe = read_probe(recipe.rates)
    if probe is None:
        return Habits()
    notes.append(f"what a video gives: from {shown(probe.file)}, {probe.counts['decoded']:,} videos that decode")
    return _to_habits(probe.counts, probe.counts["triplets"], probe.counts["triplet_bytes"])


def _load_habits(folder: str) -> Habits:
    record = read_run(folder) or {}
    counts = record.get("counts") or {}
    stage = record.get("stage")
    if stage not in ("annotate", "look") or not counts.get("decoded") or not counts.get("video_s"):
        raise InputError(f"from_run = {folder!r} is no finished annotate or look with videos that decode (run.json)")
    if stage == "look":
        # Before the filters that need a model; a triplet is little more than its two images.
        triplets = counts["kept"]
        stored = triplets * 2 * (counts["png_bytes_per_image"] or 0)
    else:
        triplets = counts["triplets"]
        stored = _sum_bytes(Path(folder) / "triplets") if triplets else 0
    return _to_habits(counts, triplets, stored, has_model=stage == "annotate")


def _to_habits(counts: Mapping[str, Any], triplets: int, stored: float, *, has_model: bool = True) -> Habits:
    # A video that decodes is the unit: failed ones give nothing, and are a share of their own.
    decoded = counts["decoded"]
    return Habits(
        length_s=counts["video_s"] / decoded,
        fps=counts["frames"] / counts["video_s"],
        keyframes=counts["keyframes_of_paired"] / decoded,
        pairs=counts["pairs"] / decoded,
        triplets=triplets / decoded,
        decoded=decoded / counts["videos"],
        bytes_per_triplet=stored / triplets if triplets else BYTES_PER_TRIPLET,
        has_model=has_model,
    )


def _sum_bytes(folder: Path) -> int:
    """Sum the sizes of the Parquet files below a folder; of one in a bucket its listing says them."""
    if uri_of(folder) is not None:
        return sum(facts.size_bytes for facts in list_below(folder) if facts.name.endswith(".parquet"))
    return sum(file.stat().st_size for file in table_files(folder))


def _probe_headers(listing: pa.Table, at_most: int) -> tuple[float, float, str]:
    """Measure (mean length in s, frames/s, a note) from the headers of local videos, evenly spread over the list."""
    import av

    # Remote headers are not probed: each would cost a request.
    paths = [uri for uri in listing["uri"].to_pylist() if not is_remote(uri)]
    picked = sorted({int(row) for row in np.linspace(0, len(paths) - 1, min(at_most, len(paths)))}) if paths else []
    lengths: list[float] = []
    frames: list[float] = []
    for row in picked:
        path = Path(paths[row])
        try:
            if not path.is_file():
                continue
            with av.open(str(path)) as container:
                stream = next(iter(container.streams.video), None)
                if stream is None or not container.duration or not stream.average_rate:
                    continue
                lengths.append(container.duration / av.time_base)
                frames.append(lengths[-1] * float(stream.average_rate))
        except (av.FFmpegError, OSError):
            continue  # what cannot be read is a reject of the annotation, and here one video less to learn from
    if not lengths:
        raise InputError(
            f"how long are the videos? None of {len(picked)} headers says; give mean_length_s, or from_run, the folder "
            "of a finished annotation of some of them"
        )
    note = f"length and frame rate: from the headers of {len(lengths)} of {len(picked)} local videos"
    return sum(lengths) / len(lengths), sum(frames) / sum(lengths), note
