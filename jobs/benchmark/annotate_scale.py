"""Measure the scale-out of annotation's CPU stages: decoders under Ray Data, and the same decoders in plain processes.

What two plain processes do over one is this machine's own limit (cores that share memory, caches and a host); what is
missing under Ray is Ray's cost. Not known here: how a record is written.
"""

import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import TypedDict

import numpy as np
import pyarrow as pa

from jobs.annotate.decoder import Decoder, DownloadSettings
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.shards import cut_shards, shard_table
from jobs.benchmark.annotate_trials import build_recipe, write_files
from jobs.benchmark.cpu_time import CpuSampler, compute_shares
from jobs.benchmark.harness import Figures
from wm.datasets.videos.videos import list_videos
from wm.video import ClipSettings
from wm.video.fetch import limit_short_side

WORKERS = 2
"""As many as the cores: with more of them than cores, decoders take each other's cache."""

DecoderSettings = tuple[ClipSettings, DownloadSettings, str]


class ShardEnd(TypedDict):
    """A shard that a worker has finished."""

    clips: int
    done_s: float
    """Of :func:`time.time`."""
    worker: int
    """Process id."""


def scale_out(
    folder: Path, sources: Sequence[Path], idm: Path, clips: int, rounds: int
) -> tuple[dict[str, list[float]], Figures]:
    """Measure the throughput of two decoders over one.

    Shards are cut as ``annotate`` cuts them.

    Args:
        folder: Working folder.
        sources: Videos.
        idm: Model folder, which is named and not loaded.
        clips: Clips of each run.
        rounds: Runs with one worker and with two.

    Returns:
        The ratio of each round, under Ray and of plain processes; and the figures, with the shares of CPU time in
        each round: where ``elsewhere`` is large, the machine was not quiet, and the round says little.
    """
    videos = write_files(folder / "scale", sources, clips)
    recipes = {
        workers: build_recipe(videos, idm, folder / "scale-out", resources={"num_decoders": workers})
        for workers in (1, WORKERS)
    }
    rates: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[dict[str, float]]] = defaultdict(list)
    # Plain processes first, while there is no session that takes time of theirs.
    for kind, decode in (("plain", _decode_plain), ("ray", _decode_with_ray)):
        # One run that does not count: a new session starts workers in the background.
        decode(recipes[WORKERS], WORKERS)
        # Rounds alternate, so that a machine that slows down slows both.
        for _, (workers, recipe) in product(range(rounds), recipes.items()):
            with CpuSampler() as sampler:
                rate, begin_s, end_s = compute_rate(decode(recipe, workers))
            rates[f"{kind}_{workers}"].append(rate)
            shares[f"{kind}_{workers}"].append(compute_shares(sampler.samples, begin_s, end_s, os.cpu_count() or 1))
    ratios = {
        kind: [two / one for one, two in zip(rates[f"{kind}_1"], rates[f"{kind}_{WORKERS}"], strict=True)]
        for kind in ("ray", "plain")
    }
    return ratios, {
        "ratios": {kind: [round(value, 3) for value in values] for kind, values in ratios.items()},
        "clips_per_s": {name: round(median(values), 2) for name, values in rates.items()},
        "cpu_shares": dict(shares),
    }


def compute_rate(ends: Iterable[ShardEnd]) -> tuple[float, float, float]:
    """Compute clips/s of all workers together while each of them works, so that starting and waiting do not count.

    Of each worker those shards count that it finished between the moments when all workers had finished one and when
    the first has nothing left, from the end of the first of them to the end of the last. Where a worker has fewer than
    two (a run of seconds), all shards count from the first end to the last: waiting is included, the rate is lower.

    Args:
        ends: Finished shards, at least two, in any order.

    Returns:
        The rate, and the two moments.
    """
    by_worker: dict[int, list[ShardEnd]] = defaultdict(list)
    shards = sorted(ends, key=lambda end: end["done_s"])
    for shard in shards:
        by_worker[shard["worker"]].append(shard)
    begin_s = max(done[0]["done_s"] for done in by_worker.values())
    end_s = min(done[-1]["done_s"] for done in by_worker.values())
    windows = [[shard for shard in done if begin_s <= shard["done_s"] <= end_s] for done in by_worker.values()]
    if any(len(window) < 2 for window in windows):
        begin_s, end_s, windows = shards[0]["done_s"], shards[-1]["done_s"], [shards]
    rate = 0.0
    for window in windows:
        # The first one's clips were decoded before it ended.
        clips = sum(shard["clips"] for shard in window[1:])
        rate += clips / (window[-1]["done_s"] - window[0]["done_s"])
    return rate, begin_s, end_s


class TimedDecoder(Decoder):
    """A decoder that returns no images but when each shard was finished, and by which process."""

    def __init__(self, clips: ClipSettings, downloads: DownloadSettings, dataset: str) -> None:
        """Start the child and load its libraries, so that the first shard does not wait for them.

        Args:
            clips: As for :class:`Decoder`.
            downloads: As for :class:`Decoder`.
            dataset: As for :class:`Decoder`.
        """
        super().__init__(clips, downloads, dataset)
        # Any function of the module that reads clips.
        self.reader.process.call(60.0, limit_short_side, np.zeros((1, 1, 3), np.uint8), 0)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Decode a shard; return one row, a :class:`ShardEnd`."""
        rows = super().__call__(batch).num_rows
        end: ShardEnd = {"clips": rows, "done_s": time.time(), "worker": os.getpid()}
        return pa.Table.from_pylist([end])


def _settings(recipe: AnnotateRecipe) -> DecoderSettings:
    return recipe.clip_settings(), recipe.download_settings(), recipe.dataset


def _cut(recipe: AnnotateRecipe) -> list[pa.Table]:
    listing = list_videos(recipe.videos)
    shards = cut_shards(listing, recipe.videos_per_shard)
    return [shard_table(listing, number, *rows) for number, rows in shards.items()]


def _decode_with_ray(recipe: AnnotateRecipe, workers: int) -> list[ShardEnd]:
    from jobs.shared.ray_session import connect, quiet_data

    connect()
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    quiet_data()
    # All of them from the first shard on.
    DataContext.get_current().wait_for_min_actors_s = 120
    rows = (
        ray.data.from_blocks(_cut(recipe))
        .map_batches(
            TimedDecoder,
            fn_constructor_args=_settings(recipe),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=workers),
            num_cpus=recipe.resources.cpus_per_decoder,
        )
        .take_all()
    )
    return [{"clips": row["clips"], "done_s": row["done_s"], "worker": row["worker"]} for row in rows]


_decoder: TimedDecoder
"""Of a plain process."""


def _decode_plain(recipe: AnnotateRecipe, workers: int) -> list[ShardEnd]:
    context = multiprocessing.get_context("spawn")
    arguments = (context.Barrier(workers), _settings(recipe))
    # A pool of multiprocessing would start a worker that cannot begin anew, without an end.
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_decoder, initargs=arguments) as pool:
        return list(pool.map(_decode_shard, _cut(recipe)))


def _start_decoder(barrier: Barrier, settings: DecoderSettings) -> None:
    global _decoder  # noqa: PLW0603 - a pool's worker has no other place for what it keeps
    _decoder = TimedDecoder(*settings)
    # Nobody begins alone.
    barrier.wait()


def _decode_shard(shard: pa.Table) -> ShardEnd:
    end: ShardEnd = _decoder(shard).to_pylist()[0]
    return end
