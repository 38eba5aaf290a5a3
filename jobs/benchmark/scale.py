"""Measure what the driver of wm annotate does for every clip, whatever the nodes do: seconds and memory of listing, of
reading shard marks, and of handing shards to Ray. wm plan simulates 100 million clips from them.

Each part runs in a process of its own, on folders of empty videos and of tiny shards; nothing is decoded.

  wm benchmark scale out=jobs/measured/scale.json
"""

import gc
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import pyarrow as pa
from pydantic import Field

from jobs.annotate.counts import ShardCounts, summarise
from jobs.annotate.shards import TABLES, shard_name, tidy
from jobs.annotate.waves import run_waves
from jobs.benchmark.harness import CommonRecipe, Figures, check_out, write_record
from wm.datasets.scale import UnitCosts
from wm.datasets.videos.listing import LISTING_SCHEMA, listing_digest
from wm.datasets.videos.videos import list_videos
from wm.files.storage import collect_objects
from wm.runs import write_json

if TYPE_CHECKING:
    from ray.data import Dataset

PACKAGES = ("wm", "pyarrow", "ray")
_CLASS = "class-00000"
_LESS = 4
"""The smaller size is this part of the larger one."""


class BenchmarkRecipe(CommonRecipe):
    """How large the parts are."""

    files: int = Field(default=100_000, ge=100)
    """Files that are listed."""
    shards: int = Field(default=10_000, ge=10)
    """Shards whose marks are read, and that Ray is given."""


class Cost(TypedDict):
    """What a part took, beyond what its process had before."""

    seconds: float
    """Of CPU; of handing shards to Ray wall seconds, as most of it is other processes' work."""
    peak_mib: float
    kept_mib: float
    """What its result holds."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure all parts, write ``recipe.out``, and return the record.

    Args:
        recipe: How large they are.
        dry_run: Print what would be measured.

    Returns:
        The record; empty on a dry run.
    """
    check_out(recipe.out)
    if recipe.quick:
        recipe = recipe.model_copy(update={"files": min(recipe.files, 300), "shards": min(recipe.shards, 20)})
    print(f"benchmark scale: {recipe.files:,} files, {recipe.shards:,} shards")
    if dry_run:
        return {}
    # Of two sizes the difference counts: what libraries and Ray take once is in both.
    sizes = [(recipe.files // _LESS, recipe.shards // _LESS), (recipe.files, recipe.shards)]
    costs = []
    for num_files, num_shards in sizes:
        with tempfile.TemporaryDirectory(prefix="wm-scale-") as name:
            costs.append(_measure_all(Path(name), num_files, num_shards))
    unit_costs = _compute_unit_costs(costs[0], costs[1], recipe)
    record = write_record(
        recipe.out,
        "scale",
        PACKAGES,
        ratios={},
        unit_costs=unit_costs,
        parts=dict(zip(["small", "large"], costs, strict=True)),
        settings=recipe.settings(),
    )
    for name, value in unit_costs.items():
        unit = "100,000 files" if name.startswith(("list", "objects")) else "10,000 shards"
        print(f"{name:20s}{value:10,.2f} per {unit}")
    return record


def _compute_unit_costs(small: dict[str, Cost], large: dict[str, Cost], recipe: BenchmarkRecipe) -> UnitCosts:
    """Compute what 100,000 files and 10,000 shards take."""

    def unit_cost(part: str, key: Literal["seconds", "peak_mib", "kept_mib"]) -> float:
        size, unit = (recipe.files, 100_000) if part in ("list", "objects") else (recipe.shards, 10_000)
        # Noise of a small size may exceed what a large one takes more.
        more = max(0.0, large[part][key] - small[part][key])
        return round(more / (size - size // _LESS) * unit, 3)

    return {
        "list_s": unit_cost("list", "seconds"),
        "list_peak_mib": unit_cost("list", "peak_mib"),
        "list_kept_mib": unit_cost("list", "kept_mib"),
        "objects_s": unit_cost("objects", "seconds"),
        "objects_peak_mib": unit_cost("objects", "peak_mib"),
        "marks_s": unit_cost("marks", "seconds"),
        "marks_peak_mib": unit_cost("marks", "peak_mib"),
        "shards_s": unit_cost("shards", "seconds"),
        "shards_peak_mib": unit_cost("shards", "peak_mib"),
    }


def _measure_all(folder: Path, num_files: int, num_shards: int) -> dict[str, Cost]:
    _write_files(folder / "videos", num_files)
    _write_shards(folder / "out", num_shards)
    parts: dict[str, tuple[Callable[..., Cost], tuple[object, ...]]] = {
        "list": (_measure_listing, (folder / "videos",)),
        "objects": (_measure_objects, (folder / "videos",)),
        "marks": (_measure_marks, (folder / "out", num_shards)),
        "shards": (_measure_shards, (num_shards,)),
    }
    costs: dict[str, Cost] = {}
    for name, (function, arguments) in parts.items():
        # A process for each: memory that one has freed is not given to the next one.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            costs[name] = pool.submit(function, *arguments).result()
    return costs


def _write_files(folder: Path, count: int) -> None:
    # In one folder: of a bucket its names are in memory together.
    videos = folder / _CLASS
    videos.mkdir(parents=True)
    for number in range(count):
        (videos / f"v_clip_of_usual_length_{number:09d}.mp4").touch()


def _write_shards(out: Path, count: int) -> None:
    """Write marks of shards with a file of one byte in each table, which is all that reading marks looks at."""
    for name in (*TABLES, "shards"):
        (out / name).mkdir(parents=True)
    counts: ShardCounts = {
        "videos": 32, "decoded": 31, "frames": 5642, "video_s": 225.68, "paired": 30, "keyframes": 93,
        "keyframes_of_paired": 92, "pairs": 62, "triplets": 55, "videos_with_triplets": 29, "observations": 84,
        "words": 220, "filtered": 6, "failed": 1, "reasons": {"failed/unreadable": 1, "filtered/unchanged": 6},
        "findings": {"near_duplicate": 1, "unchanged": 6}, "readers": {"decord": 31}, "decord_fallbacks": 0,
        "measured_on": {"cpu": 31}, "seconds": {"scan": 4.1, "fetch": 1.5, "encode": 6.2, "idm": 9.7, "write": 0.2},
    }  # fmt: skip
    for number in range(count):
        for table in TABLES:
            (out / table / f"{shard_name(number)}.parquet").write_bytes(b"0")
        write_json(out / "shards" / f"{shard_name(number)}.json", counts)


def _measure_listing(folder: Path) -> Cost:
    with _measured() as cost:
        # Held until the end, as a run holds it.
        listing = list_videos(str(folder))
        listing_digest(listing)
    assert listing.num_rows
    return cost


def _measure_objects(folder: Path) -> Cost:
    """List as a bucket is listed, without its server: the same objects in memory."""
    from pyarrow.fs import LocalFileSystem

    # The client of local files makes the same objects.
    with _measured() as cost:
        table = collect_objects(LocalFileSystem(), str(folder / _CLASS))
    assert table.num_rows
    return cost


def _measure_marks(out: Path, count: int) -> Cost:
    # What a run does with marks at its begin and at its end.
    with _measured() as cost:
        finished = tidy(out)
        counts = summarise(out)
    assert len(finished) == count and counts["videos"] == 32 * count
    return cost


def _measure_shards(count: int) -> Cost:
    """Give shards of one video to actors that do nothing: what Ray and this process need for each."""
    import ray

    from jobs.shared.ray_session import connect, quiet_data

    names = [f"s3://bucket/videos/{_CLASS}/v_clip_of_usual_length_{number:09d}.mp4" for number in range(count)]
    # One video a shard: what a shard costs does not depend on its rows.
    columns: dict[str, object] = {"uri": names, "key": names, "class_label": [_CLASS] * count, "license": [""] * count}
    columns |= dict.fromkeys(("start_s", "end_s"), [None] * count)
    listing = pa.table(columns, schema=LISTING_SCHEMA)
    connect()
    quiet_data()
    with _measured(time.perf_counter) as cost:
        num_rows = sum(1 for _ in run_waves(listing, {number: (number, 1) for number in range(count)}, _pass_through))
    ray.shutdown()
    assert num_rows == count
    return cost


def _pass_through(shards: "Dataset") -> "Dataset":
    from ray.data import ActorPoolStrategy

    # Two pools, as decoders and annotators.
    for _ in range(2):
        pool = ActorPoolStrategy(min_size=2, max_size=2)
        shards = shards.map_batches(_Idle, batch_size=None, batch_format="pyarrow", compute=pool, num_cpus=0.5)
    return shards


class _Idle:
    """An actor without work."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        return batch


@contextmanager
def _measured(clock: Callable[[], float] = time.process_time) -> Iterator[Cost]:
    """Measure what the block takes in this process; the sums are there once it is left."""
    gc.collect()
    cost: Cost = {"seconds": 0.0, "peak_mib": 0.0, "kept_mib": 0.0}
    before, begin = _resident_mib(), clock()
    yield cost
    cost["seconds"] = round(clock() - begin, 3)
    cost["kept_mib"] = round(_resident_mib() - before, 1)
    # The kernel's own mark: no look at intervals would see a short peak.
    cost["peak_mib"] = round(max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before), 1)


def _resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
