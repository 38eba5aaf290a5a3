"""Estimate how long an annotation takes on a cluster, its bottleneck and its cost: arithmetic over measured rates.

CPU cores measure motion and fetch key-frames; annotators (a GPU each, or cores) encode images, read actions and write.
Both work at the same time, so the slower of the two pools sets the pace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeAlias

from wm.errors import InputError

Pool: TypeAlias = Literal["cpu", "gpu"]
MotionRate: TypeAlias = Literal["dis", "farneback"]

MADE_BY = {
    "dis_frames_per_s": "keyframes",
    "exact_frames_per_s": "keyframes",
    "grey_frames_per_s": "keyframes",
    "flow_frames_per_s": "gpu",
    "fetch_images_per_s": "keyframes",
    "encode_images_per_s": "annotate",
    "idm_pairs_per_s": "annotate",
    "write_triplets_per_s": "annotate",
}
"""Rate → the benchmark that measures it (``wm benchmark NAME``)."""

_CUDA_RATES = ("grey_frames_per_s", "flow_frames_per_s")
_MOTION_RATES = {"dis": "dis_frames_per_s", "farneback": "exact_frames_per_s"}


@dataclass(frozen=True)
class Node:
    """``count`` machines of one kind: CPU cores and GPUs of each, and its price (None = not known)."""

    name: str
    count: int
    cpus: int
    gpus: int = 0
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Work:
    """What there is to do in all. ``images``: key-frames that are fetched and encoded."""

    videos: int
    length_s: float
    frames: float
    images: float
    pairs: float
    triplets: float


@dataclass(frozen=True)
class Rates:
    """Units a second: the first two of one core, the next three of one annotator, ``flow`` of one GPU, where that
    measures motion."""

    scan: float
    fetch: float
    encode: float
    idm: float
    write: float
    flow: float | None = None


def rates_from(
    measured: Mapping[str, float], motion: MotionRate = "dis", shape: str = "", *, on_gpu: bool = False
) -> Rates:
    """Pick the rates that a plan needs.

    Args:
        measured: Rates by name, of one or several benchmarks.
        motion: Kind of optical flow.
        shape: Shape of the clips that the rate of motion was measured on; "": the mean.
        on_gpu: A GPU measures motion, and cores decode for it.

    Raises:
        InputError: A rate is missing; the message names it and the benchmark that measures it.
    """
    motion_name, *flow_name = _CUDA_RATES if on_gpu else (_MOTION_RATES[motion],)
    suffix = f"_{shape}" if shape else ""
    # Every rate is checked before anything is computed of it.
    names = [
        motion_name + suffix,
        "fetch_images_per_s",
        "encode_images_per_s",
        "idm_pairs_per_s",
        "write_triplets_per_s",
        *(name + suffix for name in flow_name),
    ]
    for name in names:
        if name not in measured:
            benchmark = MADE_BY.get(name.removesuffix(suffix), "keyframes")
            raise InputError(
                f"rates lack {name!r}; wm benchmark {benchmark} out=FILE.json measures it. "
                f"There are {', '.join(sorted(measured)) or 'none'}"
            )
        # A rate of 0 would plan an endless run.
        if not measured[name] > 0:
            raise InputError(f"rate {name} = {measured[name]!r}; expected more than 0")
    return Rates(*(float(measured[name]) for name in names))


def stage_seconds(work: Work, rates: Rates) -> dict[str, float]:
    """Compute the seconds of one core (``scan``, ``fetch``), one annotator (``encode``, ``idm``, ``write``), or one GPU
    (``flow``).

    Args:
        work: All that there is to do.
        rates: Units a second of one core or annotator.
    """
    # Every frame is scanned; only key-frames are read and encoded.
    return {
        "scan": work.frames / rates.scan,
        **({"flow": work.frames / rates.flow} if rates.flow else {}),
        "fetch": work.images / rates.fetch,
        "encode": work.images / rates.encode,
        "idm": work.pairs / rates.idm,
        "write": work.triplets / rates.write,
    }


@dataclass(frozen=True)
class Estimate:
    """``hours`` of wall clock; ``busy``: share of each pool's capacity that is used; ``cost`` None without prices."""

    hours: float
    bottleneck: Pool
    capacity: dict[Pool, float]
    needed_hours: dict[Pool, float]
    busy: dict[Pool, float]
    cost: float | None


def capacities(nodes: Sequence[Node], annotate_on: Pool, cpus_per_annotator: float) -> dict[Pool, float]:
    """Count the cores that decode, and the annotators, of a cluster.

    A GPU takes ``cpus_per_annotator`` cores of its node with it.

    Args:
        nodes: The cluster.
        annotate_on: Pool that codec and IDM run on.
        cpus_per_annotator: Cores that a GPU's annotator keeps busy.

    Raises:
        InputError: There is no node, no GPU though annotators need one, or no core left over.
    """
    if sum(node.count for node in nodes) < 1:
        raise InputError("nodes holds no node; expected at least one with count = 1 or more")
    # 1. A pool of cores alone.
    if annotate_on == "cpu":
        cores: dict[Pool, float] = {"cpu": float(sum(node.count * node.cpus for node in nodes))}
        return cores
    # 2. A pool of GPUs, and the cores that are left beside them.
    gpus = float(sum(node.count * node.gpus for node in nodes))
    if gpus == 0:
        raise InputError(
            "resources.annotate_on = 'gpu' and no node has gpus; add a kind of node with gpus, or annotate on 'cpu'"
        )
    # Annotators take cores of their own node only.
    for node in nodes:
        if node.count and node.gpus * cpus_per_annotator > node.cpus:
            raise InputError(
                f"node {node.name!r}: {node.gpus} gpus take {cpus_per_annotator:g} cpus each, it has {node.cpus}"
            )
    spare_cpus = sum(node.count * (node.cpus - node.gpus * cpus_per_annotator) for node in nodes)
    if spare_cpus <= 0:
        raise InputError("no cpus are left for decoding beside the annotators; add nodes with more cpus")
    return {"cpu": float(spare_cpus), "gpu": gpus}


def estimate(
    seconds: Mapping[str, float],
    nodes: Sequence[Node],
    *,
    annotate_on: Pool = "gpu",
    cpus_per_annotator: float = 1.0,
    efficiency: float = 0.9,
) -> Estimate:
    """Estimate wall clock and cost.

    Args:
        seconds: Seconds of each stage, from :func:`stage_seconds`.
        nodes: The cluster.
        annotate_on: Pool that codec and IDM run on.
        cpus_per_annotator: Cores that a GPU's annotator keeps busy.
        efficiency: Share of a pool's time at work, 0 to 1.
    """
    capacity = capacities(nodes, annotate_on, cpus_per_annotator)
    # Stages of one pool follow each other on the same cores.
    needed_hours: dict[Pool, float] = dict.fromkeys(capacity, 0.0)
    for stage, value in seconds.items():
        needed_hours["cpu" if stage in ("scan", "fetch") else annotate_on] += value / 3600
    # Both pools work at the same time, so the slower one sets the pace.
    alone = {pool: needed_hours[pool] / capacity[pool] / efficiency for pool in capacity}
    bottleneck = max(alone, key=lambda pool: alone[pool])
    hours = alone[bottleneck]
    # One unknown price makes the sum unknown: a part of a cost would be taken for all of it.
    prices = [node.price_per_hour for node in nodes if node.count]
    known_prices = [price for price in prices if price is not None]
    an_hour = sum(node.count * (node.price_per_hour or 0.0) for node in nodes)
    busy = {pool: needed_hours[pool] / capacity[pool] / hours if hours else 0.0 for pool in capacity}
    return Estimate(
        hours, bottleneck, capacity, needed_hours, busy, hours * an_hour if len(known_prices) == len(prices) else None
    )


def with_one_more(nodes: Sequence[Node], name: str) -> list[Node]:
    """Return the cluster with one more node of a kind.

    Args:
        nodes: The cluster.
        name: Kind of node.
    """
    return [replace(node, count=node.count + 1) if node.name == name else node for node in nodes]


def as_numbers(result: Estimate, digits: int = 6) -> dict[str, object]:
    """Convert an estimate to JSON values, rounded.

    Args:
        result: The estimate.
        digits: Decimals that are kept.
    """

    def rounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: rounded(part) for key, part in value.items()}
        return round(value, digits) if isinstance(value, float) else value

    return {key: rounded(value) for key, value in asdict(result).items()}
