"""Clusters of all sizes, by hand."""

import pytest

from wm.datasets.planning import Node
from wm.datasets.scale import Load, Store
from wm.datasets.sweep import estimate_sizes, list_sizes

SECONDS = {"scan": 36_000.0, "fetch": 0.0, "encode": 72_000.0, "idm": 0.0, "write": 0.0}


def test_sizes_keep_the_mix() -> None:
    nodes = [Node("gpu", 2, 8, 1, 4.0), Node("cpu", 4, 8, 0, 1.0)]
    counts = [[node.count for node in size] for size in list_sizes(nodes, 100)]
    # A GPU node with two others; the nearest to 1, 2, 5, 10, 20, 50 and 100 that have so many of each.
    assert counts == [[1, 2], [2, 4], [3, 6], [7, 14], [17, 34], [33, 66]]
    assert [size[0].count for size in list_sizes([Node("one", 3, 8)], 20)] == [1, 2, 5, 10, 20]
    # Larger than the largest that is asked for, but the mix has no smaller one.
    assert [[node.count for node in size] for size in list_sizes(nodes, 1)] == [[1, 2]]


def test_the_driver_sets_the_pace_of_large_clusters() -> None:
    loads = [
        Load("list", seconds=360.0),
        Load("hand", seconds=3600.0, is_beside=True),
        Load("write", writes=1000, is_beside=True),
    ]
    sizes = list_sizes([Node("gpu", 1, 11, 1, 4.0)], 100)
    rows = estimate_sizes(SECONDS, sizes, loads, Store(writes_per_s=1.0), efficiency=1.0)
    # 20 h of a GPU, 1 h of its ten cores; the driver needs 1 h and before that 0.1 alone.
    assert [(row.nodes, row.hours, row.bottleneck) for row in rows] == [
        (1, pytest.approx(20.1), "gpu"), (2, pytest.approx(10.1), "gpu"), (5, pytest.approx(4.1), "gpu"),
        (10, pytest.approx(2.1), "gpu"), (20, pytest.approx(1.1), "gpu"), (50, pytest.approx(1.1), "driver"),
        (100, pytest.approx(1.1), "driver"),
    ]  # fmt: skip
    # More nodes than the driver can feed cost money for nothing.
    assert [row.cost for row in rows[-2:]] == [pytest.approx(50 * 4 * 1.1), pytest.approx(100 * 4 * 1.1)]
    slow = estimate_sizes(SECONDS, sizes[-1:], loads, Store(writes_per_s=0.1), efficiency=1.0)
    assert (slow[0].bottleneck, slow[0].hours) == ("bucket", pytest.approx(10_000 / 3600 + 0.1))
    alone = estimate_sizes(SECONDS, sizes[-1:], [Load("list", seconds=36_000.0)], Store(), efficiency=1.0)
    assert alone[0].bottleneck == "driver alone"
    free = estimate_sizes(SECONDS, [[Node("gpu", 1, 11, 1)]], loads, Store(), efficiency=1.0)
    assert free[0].cost is None
