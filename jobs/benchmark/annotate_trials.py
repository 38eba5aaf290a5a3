"""Run trials of ``annotate``: memory over many clips, and a run that is broken on purpose."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import mean

import pyarrow.compute as pc

from jobs.annotate.annotator import Annotator
from jobs.annotate.counts import stage_rates, summarise
from jobs.annotate.decoder import Decoder
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.shards import cut_shards, shard_name, shard_table
from jobs.benchmark.harness import Figures
from jobs.shared.processes import actor_processes
from wm.cli import progress_bar
from wm.datasets.videos.videos import list_videos
from wm.records import REJECT_SCHEMA
from wm.tables import read_table

_MARK = "WM_BENCHMARK_RUN"
_WINDOW = 500
_KILL_EVERY_S = 1.5
_FILTERS = {"action": "score", "unchanged": "score"}
"""Nothing is filtered out by a random model's actions."""


def write_files(folder: Path, sources: Sequence[Path], count: int, poisoned: int = 0) -> Path:
    """Write files in ten classes, hard links to videos and ``poisoned`` ones among them; return the folder."""
    rng = random.Random(0)
    # Which files are poisoned is the same in every run.
    bad = set(rng.sample(range(count), poisoned))
    for number, source in enumerate(islice(cycle(sources), count)):
        path = folder / f"class {number % 10}" / f"clip-{number:05d}{source.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number in bad:
            _poison(path, source, rng, len(bad))
            bad.discard(number)
        else:
            # Hard links: a thousand copies would fill the disk and the cache.
            os.link(source, path)
    return folder


def _poison(path: Path, source: Path, rng: random.Random, kind: int) -> None:
    match kind % 5:
        case 0:
            path.write_bytes(source.read_bytes()[:400] + rng.randbytes(20_000))
        case 1:
            path.write_bytes(rng.randbytes(50_000))
        case 2:
            path.touch()
        case 3:
            path.write_text("no video\n" * 1000)
        case _:
            path.symlink_to("nowhere.mp4")


def memory_growth(
    folder: Path, sources: Sequence[Path], idm: Path, count: int, settings: Mapping[str, object]
) -> tuple[dict[str, float], dict[str, int], dict[str, float]]:
    """Measure resident memory of a decoder, its child and an annotator in one process.

    Args:
        folder: Working folder.
        sources: Videos.
        idm: Model folder.
        count: Clips to annotate.
        settings: Further keys of ``annotate``.

    Returns:
        MiB, and their ``ratio``: the mean over the last 500 clips over that over the first 500, after the first shard
        (which loads everything). The run's counts. Rates of all stages in this run, in which nothing else works.
    """
    videos = write_files(folder / "memory", sources, count)
    recipe = build_recipe(videos, idm, folder / "memory-out", **settings)
    listing = list_videos(recipe.videos)
    decoder = Decoder(recipe.clip_settings(), recipe.download_settings(), recipe.dataset)
    annotator = Annotator(recipe.annotator_settings())
    sizes: list[int] = []
    bar = progress_bar(count, "clip", "memory")
    # In one process without Ray: memory is this code's own.
    for number, (start, rows) in cut_shards(listing, recipe.videos_per_shard).items():
        annotator(decoder(shard_table(listing, number, start, rows)))
        sizes += [_resident_bytes(os.getpid())] * rows
        bar.update(rows)
    bar.close()
    # Ends the decoder's child, whose memory was counted too.
    decoder.reader.close()
    # The first shard loads models and libraries.
    size = min(_WINDOW, count // 4)
    sizes = sizes[recipe.videos_per_shard :]
    first, last = mean(sizes[:size]), mean(sizes[-size:])
    counts = summarise(Path(recipe.out))
    memory = {
        "ratio": last / first,
        "clips": count,
        "first_mib": round(first / 2**20, 1),
        "last_mib": round(last / 2**20, 1),
        "peak_mib": round(max(sizes) / 2**20, 1),
    }
    return memory, {name: counts[name] for name in ("videos", "triplets", "filtered", "failed")}, stage_rates(counts)


def _resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its children, in bytes."""
    total = 0
    # A child is listed at the thread that started it.
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            total += _resident_bytes(int(child))
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return total + int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def broken_run(folder: Path, sources: Sequence[Path], idm: Path, *, clips: int, poisoned: int, kills: int) -> Figures:
    """Annotate while workers are killed, and compare with an undisturbed run.

    Args:
        folder: Working folder.
        sources: Videos.
        idm: Model folder.
        clips: Number of files.
        poisoned: How many of them are no videos.
        kills: Workers to kill, one after another.

    Returns:
        Counts of triplets that are lost, strange or there twice, of videos without a row, and seconds.
    """
    videos = write_files(folder / "broken", sources, clips, poisoned=poisoned)
    out, quiet = folder / "broken-out", folder / "quiet-out"
    begin = time.perf_counter()
    # First the broken run, then the same one undisturbed, whose rows must be the same.
    killed = _annotate_and_kill(_command(videos, idm, out), out, kills)
    broken_s = time.perf_counter() - begin
    begin = time.perf_counter()
    subprocess.run(_command(videos, idm, quiet), check=True, capture_output=True)
    quiet_s = time.perf_counter() - begin
    triplets, expected = _count_ids(out), _count_ids(quiet)
    # Each poisoned file must be a failure, and nothing else may be one.
    rejects = read_table(out / "rejects", REJECT_SCHEMA, ["outcome", "uri"])
    failed = rejects.filter(pc.equal(rejects["outcome"], "failed"))["uri"].to_pylist()
    return {
        "clips": clips,
        "poisoned": poisoned,
        "killed_workers": killed,
        "triplets": triplets.total(),
        "failed": len(failed),
        "lost": len(expected - triplets),
        "strange": len(triplets.keys() - expected.keys()),
        "twice": triplets.total() - len(triplets),
        "unaccounted_videos": clips - _count_videos(out),
        "broken_s": round(broken_s, 1),
        "undisturbed_s": round(quiet_s, 1),
    }


def _annotate_and_kill(command: list[str], out: Path, kills: int) -> Counter[str]:
    """Run a command and kill its decoders and annotators in turn; return how many of each were killed."""
    # Marks this run's processes: another Ray may work on the machine.
    mark = uuid.uuid4().hex
    killed: Counter[str] = Counter()
    with (out.parent / f"{out.name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | {_MARK: mark}, stdout=log, stderr=log)
        actors = cycle(["Decoder", "Annotator"])
        while killed.total() < kills and process.poll() is None:
            actor = next(actors)
            # Only actors in the middle of a call: an idle one has nothing to lose.
            at_work = actor_processes(_MARK, mark, f"({actor})).submit")
            # Not before the first shard is stored: else nothing could be lost.
            if at_work and (out / "shards" / f"{shard_name(0)}.json").exists():
                os.kill(at_work[0], signal.SIGKILL)
                killed[actor] += 1
                time.sleep(_KILL_EVERY_S)
            time.sleep(0.02)
        if process.wait():
            raise RuntimeError(f"the broken run ended with status {process.returncode}; see {log.name}")
    return killed


def _count_ids(out: Path) -> Counter[str]:
    return Counter(read_table(out / "triplets", columns=["triplet_id"])["triplet_id"].to_pylist())


def _count_videos(out: Path) -> int:
    """Count the videos that have a triplet or a reject."""
    # A video without key-frames or with a failure has a reject instead.
    with_triplets = set(read_table(out / "triplets", columns=["video_uri"])["video_uri"].to_pylist())
    with_rejects = set(read_table(out / "rejects", REJECT_SCHEMA, ["uri"])["uri"].to_pylist())
    return len(with_triplets | with_rejects)


def build_recipe(videos: Path, idm: Path, out: Path, **settings: object) -> AnnotateRecipe:
    """Build a recipe for an output folder, which is emptied.

    Args:
        videos: Folder of the videos.
        idm: Model folder.
        out: Output folder.
        settings: Further keys of ``annotate``.
    """
    # A finished folder would end the run at once.
    shutil.rmtree(out, ignore_errors=True)
    # Short answers: a random model would write up to the limit.
    values = {"videos": str(videos), "idm": str(idm), "out": str(out), "max_new_tokens": 8, "filters": _FILTERS}
    return AnnotateRecipe.parse(values | settings, "the benchmark")


def _command(videos: Path, idm: Path, out: Path) -> list[str]:
    settings = {"videos": videos, "idm": idm, "out": out, "max_new_tokens": 8, "videos_per_shard": 4}
    settings |= {f"filters.{key}": value for key, value in _FILTERS.items()}
    return [sys.executable, "-m", "jobs.annotate", *(f"{key}={value}" for key, value in settings.items())]
