"""Measure your own videos and models on your own cluster for some minutes: the rates that wm plan reads.

wm annotate runs as you would run it, on a random part of your videos, is stopped when the time is over, and what its
finished shards say becomes the record: the rate of each stage, what a video gives, and how busy both pools were.

  wm benchmark probe videos=s3://bucket/clips idm=runs/idm minutes=10 work=runs/probe out=probe.json
  wm plan plan/cluster rates=probe.json videos=s3://bucket/clips
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.annotate.counts import ShardCounts, stage_rates, summarise
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.tables import DECODE_STAGES
from jobs.benchmark.harness import CommonRecipe, Figures, check_out, write_record
from wm.datasets.videos.budget import random_order
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.files.mirror import fetch, list_below, publish, to_uri, uri_of
from wm.files.uris import is_remote
from wm.packaged import to_packaged_name
from wm.paths import ModelPath, OutputPath, SourcePath
from wm.tables import table_files

PACKAGES = ("wm", "av", "decord", "numpy", "opencv-python-headless", "pyarrow", "ray", "torch")
_COMMAND = (sys.executable, "-m", "jobs.annotate")
_SAMPLE = "sample.parquet"
_POLL_S = 0.5
_END_S = 120.0
_MOTION_RATES = {"dis": "dis_frames_per_s", "farneback": "exact_frames_per_s"}
"""Kind of motion → the rate that wm plan takes for it."""


class BenchmarkRecipe(CommonRecipe):
    """Which videos and model, how long."""

    videos: SourcePath
    """Folder, glob or list, as for wm annotate."""
    idm: ModelPath
    """Model folder of the inverse model, as for wm annotate."""
    annotate: str = ""
    """Recipe of wm annotate for all other keys: a file, or the name of an installed one; empty: its defaults."""
    overrides: list[str] = []
    """Keys of that recipe as key=value, such as overrides='["resources.num_decoders=64"]'."""
    work: OutputPath = ""
    """Folder for the sample's list and its annotation, which every node reaches, as out of wm annotate; empty: beside
    the record and named after it. The same probe again adds to what is there."""
    minutes: float = Field(default=10.0, gt=0)
    """Time to measure, from the first finished shard on."""
    start_limit_minutes: float = Field(default=30.0, gt=0)
    """Give up where no shard is finished after so long: models are loaded meanwhile, and nodes started."""
    max_videos: int = Field(default=20_000, ge=1)
    """Random videos of the list that are annotated at most."""
    seed: int = Field(default=0, ge=0)
    """Of their choice."""


class Window(TypedDict):
    """What both pools did from the first finished shard to the last one."""

    seconds: float
    shards: int
    videos: int
    pool_s: dict[str, float]
    """Seconds at work of all decoders together, and of all annotators."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Annotate a sample for some minutes, write ``recipe.out``, and return the record.

    Args:
        recipe: Videos, model, time.
        dry_run: Check everything and print what would be annotated.

    Returns:
        The record; empty on a dry run.

    Raises:
        InputError: The annotation failed, or finished no shard in time.
    """
    check_out(recipe.out)
    if not recipe.work:
        recipe = recipe.model_copy(update={"work": recipe.out.removesuffix(".json")})
    # Parsed here too, so that a wrong key shows before anything starts.
    annotation = AnnotateRecipe.load(recipe.annotate or None, _settings(recipe))
    listing = list_videos(recipe.videos, layout=annotation.dataset_layout, annotations=annotation.annotations)
    sample = _sample(listing, recipe.max_videos, recipe.seed)
    print(
        f"benchmark probe: {sample.num_rows:,} random ones of {listing.num_rows:,} videos, stopped "
        f"{recipe.minutes:g} minutes after the first shard"
    )
    if dry_run:
        return {}
    work = Path(recipe.work)
    work.mkdir(parents=True, exist_ok=True)
    pq.write_table(sample, work / _SAMPLE)
    publish(work / _SAMPLE)
    is_complete = _annotate(recipe, Path(annotation.out))
    return _write(recipe, annotation, listing.num_rows, is_complete=is_complete)


def _settings(recipe: BenchmarkRecipe) -> list[str]:
    """Build the keys of the annotation; the sample's list stands for the videos."""
    # As the user wrote them: a list in a bucket is read from there.
    work = to_uri(recipe.work).rstrip("/")
    own = {"videos": f"{work}/{_SAMPLE}", "idm": to_uri(recipe.idm), "out": f"{work}/annotated"}
    return [*recipe.overrides, *(f"{key}={value}" for key, value in own.items())]


def _sample(listing: pa.Table, max_videos: int, seed: int) -> pa.Table:
    """Take random videos as a list for any node: its addresses are absolute."""
    # In random order, so that a probe that ends early has seen all kinds.
    rows = random_order(listing["key"].to_pylist(), seed)[:max_videos]
    sample = listing.take(pa.array(rows)).drop_columns(["key"])
    uris = [uri if is_remote(uri) else os.path.abspath(uri) for uri in sample["uri"].to_pylist()]  # noqa: PTH100
    return sample.set_column(0, "uri", pa.array(uris)).replace_schema_metadata(None)


def _annotate(recipe: BenchmarkRecipe, out: Path) -> bool:
    """Run wm annotate and stop it when the time is over; returns whether it was finished before."""
    # A process of its own, which is stopped as a user would stop it.
    words = [recipe.annotate] if recipe.annotate else []
    command = [*_COMMAND, *words, *_settings(recipe)]
    begin = time.monotonic()
    first: float | None = None
    # Its output is shown as it comes: a probe takes minutes.
    with subprocess.Popen(command) as process:
        try:
            while process.poll() is None:
                now = time.monotonic()
                if first is None and list_marks(out):
                    first = now
                limit = begin + 60 * recipe.start_limit_minutes if first is None else first + 60 * recipe.minutes
                if now >= limit:
                    break
                time.sleep(_POLL_S)
        finally:
            is_running = process.poll() is None
            _end(process)
    # One that was stopped ends with another status, and is no failure.
    if not is_running and process.returncode != 0:
        raise InputError(f"wm annotate ended with status {process.returncode}; see above")
    if not list_marks(out):
        raise InputError(
            f"no shard was finished within {recipe.start_limit_minutes:g} minutes; give start_limit_minutes, or "
            "smaller shards: overrides='[\"videos_per_shard=8\"]'"
        )
    return not is_running


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt a command as Ctrl-C would: what it has finished is kept."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        # Shards are complete or absent: a kill loses what is under way only.
        process.kill()
        process.wait()


def list_marks(out: Path) -> dict[Path, float]:
    """Find the marks of finished shards, and when each was written, in seconds.

    Args:
        out: Folder of an annotation, or the path that stands for it.
    """
    folder = out / "shards"
    # Workers write marks of a run in a bucket on nodes of their own.
    if uri_of(out) is not None:
        return {folder / facts.name: (facts.mtime_ns or 0) / 1e9 for facts in list_below(folder, missing_ok=True)}
    return {path: path.stat().st_mtime for path in folder.glob("shard-*.json")}


def measure_window(marks: Mapping[Path, float]) -> Window:
    """Add up what was done between the first finished shard and the last one.

    Args:
        marks: Of the finished shards, and when each was written.

    Returns:
        The sums; the first shard is not in them, as models were loaded for it.
    """
    times = sorted((time_s, path) for path, time_s in marks.items())
    pool_s = {"decoders": 0.0, "annotators": 0.0}
    num_videos = 0
    for _, path in times[1:]:
        counts: ShardCounts = json.loads(path.read_text())
        for stage, value in counts["seconds"].items():
            pool_s["decoders" if stage in DECODE_STAGES else "annotators"] += value
        num_videos += counts["videos"]
    return {
        "seconds": round(times[-1][0] - times[0][0], 3),
        "shards": len(times) - 1,
        "videos": num_videos,
        "pool_s": {pool: round(value, 3) for pool, value in pool_s.items()},
    }


def measure_efficiency(window: Window, pools: Mapping[str, range]) -> float | None:
    """Compute the share of its time that the busier pool was at work.

    Args:
        window: What was done.
        pools: Min (``start``) and max number (``stop``) of actors of each pool.

    Returns:
        The share, 1 at most; None where pools grow, so that nobody knows how many actors there were, and for less than
        two shards an actor, whose begin and end would be most of the time.
    """
    # Of fewer shards the last ones, for which some actors wait, would count too much.
    num_actors = max(pool.start for pool in pools.values())
    if any(pool.start != pool.stop for pool in pools.values()) or window["shards"] < 2 * num_actors:
        return None
    shares = [window["pool_s"][name] / pool.start / window["seconds"] for name, pool in pools.items()]
    return round(min(1.0, max(shares)), 3)


def _sum_sizes(folder: Path) -> int:
    """Sum the sizes of a folder's tables, wherever they are."""
    if uri_of(folder) is not None:
        return sum(facts.size_bytes for facts in list_below(folder, missing_ok=True))
    return sum(file.stat().st_size for file in table_files(folder))


def _write(recipe: BenchmarkRecipe, annotation: AnnotateRecipe, num_listed: int, *, is_complete: bool) -> Figures:
    """Write the record and print its rates."""
    out = Path(annotation.out)
    marks = list_marks(out)
    if uri_of(out) is not None:
        fetch(out / "shards", prune=True)
    counts = summarise(out)
    rates = stage_rates(counts)
    # Under the name that a plan looks for; a decoder with a share of a GPU is no core.
    scan_rate = rates.pop("scan_frames_per_s", None)
    if scan_rate is not None and annotation.keyframes.device == "cpu":
        rates[_MOTION_RATES[annotation.keyframes.motion]] = scan_rate
    window = measure_window(marks)
    decoders, annotators = annotation.resources.pool_sizes(10**9)
    efficiency = measure_efficiency(window, {"decoders": decoders, "annotators": annotators})
    ratios = {} if efficiency is None else {"efficiency": efficiency}
    # What a plan needs to know of the videos, as a finished run would have it.
    stored = _sum_sizes(out / "triplets") if counts["triplets"] else 0
    of_videos = {name: counts[name] for name in ("videos", "decoded", "frames", "video_s", "keyframes_of_paired")}
    of_videos |= {"pairs": counts["pairs"], "triplets": counts["triplets"], "triplet_bytes": stored}
    record = write_record(
        recipe.out, "probe", PACKAGES, ratios=ratios, rates=rates, counts=of_videos, window=window,
        listed=num_listed, is_complete=is_complete,
        settings=recipe.settings() | {"idm": to_packaged_name(recipe.idm)},
        resources=annotation.resources.model_dump(mode="json"), videos_per_shard=annotation.videos_per_shard,
    )  # fmt: skip
    for name, value in (ratios | rates).items():
        print(f"{name:28s}{value:12,.3f}")
    failed = counts["videos"] - counts["decoded"]
    print(f"{counts['videos']:,} videos, {failed:,} of them not decoded, {counts['triplets']:,} triplets: {recipe.out}")
    missing = [name for name in ("encode_images_per_s", "idm_pairs_per_s") if name not in rates]
    if missing:
        print(f"warning: no rate of {', '.join(missing)}, as no video gave a pair; wm plan needs them")
    return record
