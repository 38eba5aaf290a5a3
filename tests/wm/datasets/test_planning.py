"""Arithmetic of a plan, against numbers worked out by hand."""

import pytest

from wm.datasets.planning import (
    Node,
    Rates,
    Work,
    capacities,
    estimate,
    rates_from,
    stage_seconds,
    with_one_more,
)
from wm.errors import InputError

NODES = [Node("gpu", 2, cpus=8, gpus=2, price_per_hour=3.0), Node("cpu", 3, cpus=10, price_per_hour=0.5)]
FOUND = {
    "dis_frames_per_s": 1000.0,
    "dis_frames_per_s_h264": 800.0,
    "exact_frames_per_s": 100.0,
    "fetch_images_per_s": 50,
    "encode_images_per_s": 20.0,
    "idm_pairs_per_s": 10.0,
    "write_triplets_per_s": 200.0,
}


def test_seconds_of_each_stage() -> None:
    work = Work(videos=100, length_s=700.0, frames=20_000.0, images=300.0, pairs=200.0, triplets=100.0)
    assert stage_seconds(work, rates_from(FOUND)) == {"scan": 20, "fetch": 6, "encode": 15, "idm": 20, "write": 0.5}
    assert rates_from(FOUND, "dis", "h264") == Rates(800, 50, 20, 10, 200)
    assert rates_from(FOUND, "farneback").scan == 100


def test_the_slower_pool_sets_the_pace() -> None:
    # 42 core hours and 8 GPU hours on 2 x (8 - 2) + 3 x 10 = 42 cores and 4 GPUs, half of the time at work.
    seconds = {"scan": 30 * 3600.0, "fetch": 12 * 3600.0, "encode": 3 * 3600.0, "idm": 4 * 3600.0, "write": 3600.0}
    actual = estimate(seconds, NODES, efficiency=0.5)
    assert actual.capacity == {"cpu": 42, "gpu": 4} and actual.needed_hours == {"cpu": 42, "gpu": 8}
    assert (actual.hours, actual.bottleneck) == (4.0, "gpu")
    assert actual.busy == {"cpu": 0.25, "gpu": 0.5}
    assert actual.cost == 4 * (2 * 3.0 + 3 * 0.5)
    more = estimate(seconds, with_one_more(NODES, "gpu"), efficiency=0.5)
    assert more.hours == pytest.approx(8 / 6 / 0.5) and more.cost == pytest.approx(28.0)
    assert estimate(seconds, with_one_more(NODES, "cpu"), efficiency=0.5).hours == 4.0
    on_cores = estimate(seconds, NODES, annotate_on="cpu", efficiency=1.0)
    assert on_cores.capacity == {"cpu": 46} and on_cores.hours == 50 / 46 and on_cores.bottleneck == "cpu"
    assert estimate(seconds, [Node("a", 1, 4, 1, 2.0), Node("b", 1, 4)]).cost is None
    assert estimate(seconds, [Node("a", 1, 4, 1, 2.0), Node("b", 0, 4)]).cost is not None


def test_clusters_that_cannot_annotate() -> None:
    with pytest.raises(InputError, match="nodes holds no node"):
        capacities([Node("a", 0, 4, 1)], "gpu", 1.0)
    with pytest.raises(InputError, match="no node has gpus"):
        capacities([Node("a", 3, 4)], "gpu", 1.0)
    with pytest.raises(InputError, match="node 'a': 4 gpus take 2 cpus each, it has 4"):
        capacities([Node("a", 1, 4, 4), Node("b", 1, 64)], "gpu", 2.0)
    with pytest.raises(InputError, match="no cpus are left"):
        capacities([Node("a", 1, 4, 4)], "gpu", 1.0)


def test_rates_that_are_missing_or_no_rates() -> None:
    without = {name: value for name, value in FOUND.items() if name != "idm_pairs_per_s"}
    with pytest.raises(InputError, match=r"rates lack 'idm_pairs_per_s'; wm benchmark annotate"):
        rates_from(without)
    with pytest.raises(InputError, match=r"lack 'dis_frames_per_s_vp9'; wm benchmark keyframes .* are dis"):
        rates_from(FOUND, "dis", "vp9")
    with pytest.raises(InputError, match="rate fetch_images_per_s = 0; expected more than 0"):
        rates_from(FOUND | {"fetch_images_per_s": 0})
