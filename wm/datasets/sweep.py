"""Estimate an annotation on clusters of 1 to 10,000 nodes: the driver and the bucket do not grow with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Literal, TypeAlias

from wm.datasets.planning import Node, Pool, estimate
from wm.datasets.scale import Load, Store

Bottleneck: TypeAlias = Literal["cpu", "gpu", "driver", "bucket", "driver alone"]


@dataclass(frozen=True)
class ClusterSize:
    """What a cluster of one size takes.

    Attributes:
        nodes: Machines of all kinds.
        hours: Of wall clock, with what the driver does before and after.
        bottleneck: What sets the pace: a pool, the driver that hands out shards, the bucket's requests a second, or
            what the driver does alone.
        cost: None without prices.
    """

    nodes: int
    hours: float
    bottleneck: Bottleneck
    cost: float | None


def list_sizes(nodes: Sequence[Node], max_nodes: int) -> list[list[Node]]:
    """List clusters of the same mix: 1, 2, 5, 10, … nodes, or the nearest that the mix allows.

    Args:
        nodes: The mix.
        max_nodes: Machines of the largest one.

    Returns:
        The clusters; the smallest has each kind in the smallest whole numbers.
    """
    unit = gcd(*(node.count for node in nodes))
    smallest = [replace(node, count=node.count // max(1, unit)) for node in nodes]
    total = sum(node.count for node in smallest)
    # Round numbers, as a table of every size would not be read.
    targets = [digit * 10**power for power in range(len(str(max_nodes))) for digit in (1, 2, 5)]
    multiples = {max(1, round(target / total)) for target in targets if target <= max_nodes}
    return [
        [replace(node, count=node.count * multiple) for node in smallest]
        for multiple in sorted(multiples)
        if multiple == 1 or multiple * total <= max_nodes
    ]


def estimate_sizes(
    seconds: Mapping[str, float],
    sizes: Sequence[Sequence[Node]],
    loads: Sequence[Load],
    store: Store,
    *,
    annotate_on: Pool = "gpu",
    cpus_per_annotator: float = 1.0,
    efficiency: float = 0.9,
) -> list[ClusterSize]:
    """Estimate each cluster.

    Args:
        seconds: Seconds of each stage, from :func:`wm.datasets.planning.stage_seconds`.
        sizes: Of :func:`list_sizes`.
        loads: Of :func:`wm.datasets.scale.simulate`.
        store: The bucket's limits.
        annotate_on: Pool that codec and IDM run on.
        cpus_per_annotator: Cores that a GPU's annotator keeps busy.
        efficiency: Share of a pool's time at work, 0 to 1.
    """
    # What no node can take over.
    beside = [load for load in loads if load.is_beside]
    alone_hours = sum(load.seconds for load in loads if not load.is_beside) / 3600
    requests_s = (
        sum(load.writes for load in beside) / store.writes_per_s,
        sum(load.reads for load in beside) / store.reads_per_s,
    )
    rows = []
    for nodes in sizes:
        pools = estimate(
            seconds, nodes, annotate_on=annotate_on, cpus_per_annotator=cpus_per_annotator, efficiency=efficiency
        )
        # They work at the same time: the slowest sets the pace.
        paces: dict[Bottleneck, float] = {
            pools.bottleneck: pools.hours,
            "driver": sum(load.seconds for load in beside) / 3600,
            "bucket": max(requests_s) / 3600,
        }
        slowest = max(paces, key=lambda name: paces[name])
        hours = paces[slowest] + alone_hours
        # Nodes are paid while the driver works alone, too.
        an_hour = None if pools.cost is None or not pools.hours else pools.cost / pools.hours
        bottleneck: Bottleneck = "driver alone" if alone_hours > paces[slowest] else slowest
        cost = None if an_hour is None else hours * an_hour
        rows.append(ClusterSize(sum(node.count for node in nodes), hours, bottleneck, cost))
    return rows
