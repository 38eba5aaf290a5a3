"""Simulate what a driver and a bucket have to do for very many clips, from what a few were measured to cost.

Arithmetic only: each cost grows with the number of files or of shards, of which ``wm benchmark scale`` measures two
sizes. Nothing here knows how a clip is annotated; that is :mod:`wm.datasets.planning`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from wm.files.mirror import SMALL_FILE_THREADS
from wm.files.storage import LIST_THREADS

_FILES = 100_000
_SHARDS = 10_000


class UnitCosts(TypedDict):
    """Seconds and MiB of the driver; the first five for 100,000 files, the others for 10,000 shards.

    Attributes:
        list_s: List a local folder and compute the listing's digest.
        list_peak_mib: Memory meanwhile.
        list_kept_mib: Memory of the listing, which the driver holds to the end.
        objects_s: Turn a bucket's answers into the same table, without waiting for them.
        objects_peak_mib: Memory of one folder of a bucket meanwhile.
        marks_s: Read the marks of finished shards, at the begin and at the end of a run.
        marks_peak_mib: Memory meanwhile.
        shards_s: Hand shards to Ray and take their counts.
        shards_peak_mib: Memory meanwhile, which one wave of shards needs.
    """

    list_s: float
    list_peak_mib: float
    list_kept_mib: float
    objects_s: float
    objects_peak_mib: float
    marks_s: float
    marks_peak_mib: float
    shards_s: float
    shards_peak_mib: float


MEASURED: UnitCosts = {
    "list_s": 1.563,
    "list_peak_mib": 49.867,
    "list_kept_mib": 17.2,
    "objects_s": 0.508,
    "objects_peak_mib": 31.0,
    "marks_s": 3.495,
    "marks_peak_mib": 25.167,
    "shards_s": 99.823,
    "shards_peak_mib": 186.0,
}
"""Of ``jobs/measured/scale.json``, which is no part of an installed package."""


@dataclass(frozen=True)
class Store:
    """What a bucket allows and charges.

    Attributes:
        list_request_s: Seconds of a request that lists 1,000 names, one after another in a folder.
        request_s: Seconds of any other small request.
        price_per_1000_writes: Of PUT and LIST requests.
        price_per_1000_reads: Of GET and HEAD requests.
        writes_per_s: Requests a second that a prefix takes.
        reads_per_s: Likewise.
    """

    list_request_s: float = 0.1
    request_s: float = 0.03
    price_per_1000_writes: float = 0.005
    price_per_1000_reads: float = 0.0004
    writes_per_s: float = 3500.0
    reads_per_s: float = 5500.0


@dataclass(frozen=True)
class Habit:
    """How clips lie and how they are annotated.

    Attributes:
        clips: Videos in all.
        videos_per_shard: As for an annotation.
        files_per_folder: Clips in one folder of the bucket, as large as the largest.
        bytes_per_clip: Mean size of a file.
        is_remote: The clips are in a bucket, and so is what is written.
    """

    clips: int
    videos_per_shard: int = 32
    files_per_folder: int = 10_000
    bytes_per_clip: int = 2_000_000
    is_remote: bool = True

    @property
    def shards(self) -> int:
        """Return the number of shards."""
        return -(-self.clips // self.videos_per_shard)


@dataclass(frozen=True)
class Load:
    """What one part of a run asks of the driver and of the bucket.

    Attributes:
        name: Of the part.
        seconds: Of the driver, in which no node works, except for parts with ``is_beside``.
        peak_mib: Memory of the driver meanwhile, beyond what earlier parts hold.
        fixed_mib: Of that, what does not grow with the clips any more.
        held_mib: Memory of the driver from then on.
        writes: PUT and LIST requests.
        reads: GET and HEAD requests.
        is_beside: The driver does it while nodes work.
    """

    name: str
    seconds: float = 0.0
    peak_mib: float = 0.0
    fixed_mib: float = 0.0
    held_mib: float = 0.0
    writes: int = 0
    reads: int = 0
    is_beside: bool = False

    def price(self, store: Store) -> float:
        """Compute what its requests cost.

        Args:
            store: Prices.
        """
        return (self.writes * store.price_per_1000_writes + self.reads * store.price_per_1000_reads) / 1000


SHARDS_A_WAVE = 20_000
"""Shards that Ray is given at a time. Actors load their models once a wave: 640,000 videos at 32 a shard."""
MARK_THREADS = 32
"""Marks of a shared folder that are read at a time."""
READS_A_MARK = 3
"""Requests for a mark of a bucket: one for the size, one for the content, one that asks whether it has changed."""
NAMES_A_LIST = 1000
"""Names that a LIST request returns at most (Amazon S3's API reference, ListObjectsV2)."""
OUTPUT_LISTINGS = 5
"""How often a resumed run lists its output: twice as it starts, twice to look for left-overs, and at the end."""
MARK_LISTINGS = 2
"""How often it lists the marks alone: before it reads them."""
PART_BYTES = 8 << 20
"""A video is read in parts of so many bytes, a request each."""
TABLES_A_SHARD = 4


def simulate(habit: Habit, unit_costs: UnitCosts, store: Store, shards_a_wave: int) -> list[Load]:
    """Compute the load of each part of a run.

    Args:
        habit: The clips.
        unit_costs: Measured seconds and memory.
        store: The bucket.
        shards_a_wave: Shards that Ray is given at a time.

    Returns:
        The parts in the order in which a run comes to them.
    """
    # All in units of what was measured.
    files, shards = habit.clips / _FILES, habit.shards / _SHARDS
    # 1. Listing: a request a thousand names; the names of the folders under way are in memory as objects.
    list_seconds = files * unit_costs["list_s"]
    peak_mib = files * unit_costs["list_peak_mib"]
    requests, names_mib = 0, 0.0
    if habit.is_remote:
        folders = -(-habit.clips // habit.files_per_folder)
        # Requests of one folder wait for each other, those of several do not.
        at_a_time = min(LIST_THREADS, folders)
        requests = folders * -(-min(habit.files_per_folder, habit.clips) // NAMES_A_LIST)
        list_seconds += requests * store.list_request_s / at_a_time + files * unit_costs["objects_s"]
        underway = min(habit.clips, at_a_time * habit.files_per_folder) / _FILES
        names_mib = underway * unit_costs["objects_peak_mib"]
    listing = Load(
        "list the videos", list_seconds, peak_mib + names_mib, fixed_mib=names_mib,
        held_mib=files * unit_costs["list_kept_mib"], writes=requests,
    )  # fmt: skip
    # 2. Marks are read before the work, of which a resumed run finds some, and after it; the second time
    # the driver has copies of a bucket's.
    mark_reads = habit.shards * READS_A_MARK if habit.is_remote else 0
    waiting_s = mark_reads * store.request_s / SMALL_FILE_THREADS
    marks = Load(
        "read the shards' marks", shards * unit_costs["marks_s"] + waiting_s, shards * unit_costs["marks_peak_mib"],
        reads=mark_reads,
    )  # fmt: skip
    # 3. Shards go to Ray while nodes work: memory of one wave.
    wave = min(habit.shards, shards_a_wave) / _SHARDS
    wave_mib = wave * unit_costs["shards_peak_mib"]
    handing = Load("hand shards to Ray", shards * unit_costs["shards_s"], wave_mib, fixed_mib=wave_mib, is_beside=True)
    # 4. What the nodes ask of the bucket: a request for the size, one a part; four tables and a mark a shard.
    parts = 1 + -(-habit.bytes_per_clip // PART_BYTES)
    reading = Load("read the videos", reads=habit.clips * parts if habit.is_remote else 0, is_beside=True)
    writes = habit.shards * (TABLES_A_SHARD + 1) if habit.is_remote else 0
    writing = Load("write the shards", writes=writes, is_beside=True)
    return [listing, _list_output(habit, unit_costs, store), marks, handing, reading, writing]


def _list_output(habit: Habit, unit_costs: UnitCosts, store: Store) -> Load:
    """Compute the load of listing what a run has written into a bucket: one that is resumed when it is nearly done."""
    if not habit.is_remote:
        return Load("list the shards' files")
    names = habit.shards * (TABLES_A_SHARD + 1)
    # One page after another: each begins where the one before it ends.
    requests = OUTPUT_LISTINGS * -(-names // NAMES_A_LIST) + MARK_LISTINGS * -(-habit.shards // NAMES_A_LIST)
    num_names = OUTPUT_LISTINGS * names + MARK_LISTINGS * habit.shards
    seconds = requests * store.list_request_s + num_names / _FILES * unit_costs["objects_s"]
    return Load("list the shards' files", seconds, names / _FILES * unit_costs["objects_peak_mib"], writes=requests)


def memory_by_part(loads: Sequence[Load]) -> dict[str, float]:
    """Compute the driver's memory in MiB during each part, with what it holds of those before.

    Args:
        loads: Of :func:`simulate`.
    """
    memory, kept_mib = {}, 0.0
    for load in loads:
        memory[load.name] = load.peak_mib + kept_mib
        kept_mib += load.held_mib
    return memory


@dataclass(frozen=True)
class Limit:
    """Something that does not grow with the cluster.

    Attributes:
        name: What it is, in words.
        share: Of the limit that the run needs: above 1 it breaks.
        breaks_at: Clips at which it is reached; 0: it depends on the pace of the nodes, not on the number of clips.
        remedy: What to do about it.
    """

    name: str
    share: float
    breaks_at: int
    remedy: str


def list_limits(
    habit: Habit, loads: Sequence[Load], store: Store, *, hours: float, driver_memory_mib: float
) -> list[Limit]:
    """List what a run comes near to, what breaks first in front.

    Args:
        habit: The clips.
        loads: Of :func:`simulate`.
        store: The bucket's limits.
        hours: Of the nodes' work.
        driver_memory_mib: What the driver may take.
    """
    # 1. Memory at its highest, and the driver's time in which no node works.
    by_name = {load.name: load for load in loads}
    seconds = hours * 3600
    memory = memory_by_part(loads)
    worst = max(loads, key=lambda load: memory[load.name])
    alone_s = sum(load.seconds for load in loads if not load.is_beside)
    # 2. Each as a share of what there is of it, with what to do about it.
    shares = {
        f"the driver's memory, to {worst.name}": (
            memory[worst.name] / driver_memory_mib,
            "give the list as a Parquet file and cut it into several runs, or take a larger head node",
        ),
        "the driver's time beside the nodes, to hand shards to Ray": (
            by_name["hand shards to Ray"].seconds / seconds,
            "larger videos_per_shard, or several runs side by side",
        ),
        "the driver's time alone, to list videos and shards and read marks (limit: a tenth of the nodes' hours)": (
            alone_s / (0.1 * seconds),
            "larger videos_per_shard, fewer and larger folders, or several runs side by side",
        ),
        "the bucket's writes a second": (
            sum(load.writes for load in loads if load.is_beside) / seconds / store.writes_per_s,
            "larger videos_per_shard",
        ),
        "the bucket's reads a second": (
            sum(load.reads for load in loads if load.is_beside) / seconds / store.reads_per_s,
            "spread the videos over several prefixes, each of which has a limit of its own",
        ),
    }
    # Memory grows with the clips; the others' shares do not, as the nodes' hours grow likewise.
    # 3. Where memory ends, by what grows with the clips alone.
    growing_mib = memory[worst.name] - worst.fixed_mib
    breaks_at = int(habit.clips * max(0.0, driver_memory_mib - worst.fixed_mib) / growing_mib) if growing_mib else 0
    limits = [
        Limit(name, share, breaks_at if "memory" in name else 0, remedy) for name, (share, remedy) in shares.items()
    ]
    return sorted(limits, key=lambda limit: -limit.share)
