"""The load of very many clips, by hand from round costs."""

import json
from pathlib import Path

import pytest

from jobs.annotate.shards import TABLES
from wm.datasets.scale import MEASURED, TABLES_A_SHARD, Habit, Store, UnitCosts, list_limits, simulate

UNIT_COSTS: UnitCosts = {
    "list_s": 2.0,
    "list_peak_mib": 60.0,
    "list_kept_mib": 40.0,
    "objects_s": 1.0,
    "objects_peak_mib": 50.0,
    "marks_s": 3.0,
    "marks_peak_mib": 8.0,
    "shards_s": 100.0,
    "shards_peak_mib": 200.0,
}
STORE = Store(list_request_s=0.16, request_s=0.032, price_per_1000_writes=5.0, price_per_1000_reads=0.5)


def test_a_million_clips_by_hand() -> None:
    habit = Habit(1_000_000, videos_per_shard=25, files_per_folder=10_000, bytes_per_clip=9 << 20)
    listing, shards, marks, handing, reading, writing = simulate(habit, UNIT_COSTS, STORE, shards_a_wave=20_000)
    # 100 folders of 10 requests, 16 at a time; ten times both costs; 16 folders' names in memory as objects.
    assert listing.seconds == pytest.approx(1000 * 0.16 / 16 + 10 * (2 + 1)) and listing.writes == 1000
    assert (listing.peak_mib, listing.fixed_mib, listing.held_mib) == (pytest.approx(10 * 60 + 1.6 * 50), 80, 400)
    # 40,000 shards of four tables and a mark: five listings of all, two of the marks alone.
    assert shards.writes == 5 * 200 + 2 * 40 and shards.price(STORE) == pytest.approx(5.4)
    assert shards.seconds == pytest.approx(1080 * 0.16 + 10.8 * 1.0) and shards.peak_mib == 100
    # Read by 24 threads, three requests each.
    assert marks.seconds == pytest.approx(4 * 3 + 120_000 * 0.032 / 24) and marks.reads == 120_000
    assert marks.peak_mib == 32
    # Of the memory of shards that of one wave counts.
    assert (handing.seconds, handing.peak_mib, handing.is_beside) == (400, 400, True)
    # Two parts and the size of each file; four tables and a mark a shard.
    assert reading.reads == 3_000_000 and writing.writes == 200_000
    assert reading.price(STORE) == 1500 and writing.price(STORE) == 1000
    local = simulate(Habit(1_000_000, 25, is_remote=False), UNIT_COSTS, STORE, 20_000)
    assert sum(load.writes + load.reads for load in local) == 0
    assert (local[0].seconds, local[0].peak_mib, local[1].seconds, local[2].seconds) == (20, 600, 0, 12)


def test_what_breaks_first_comes_first() -> None:
    habit = Habit(1_000_000, videos_per_shard=25)
    loads = simulate(habit, UNIT_COSTS, STORE, 20_000)
    # 680 MiB for the listing; then a wave of 400 beside the 400 that stay of it. Nodes work far longer than the driver.
    limits = list_limits(habit, loads, STORE, hours=100.0, driver_memory_mib=500)
    assert limits[0].name == "the driver's memory, to hand shards to Ray" and limits[0].share == pytest.approx(1.6)
    # Beside a wave there is room for a quarter of the listing.
    assert limits[0].breaks_at == 250_000
    assert all(limit.share < 0.02 for limit in limits[1:])
    # Nodes that are done within 100 s outrun the driver, and the bucket.
    limits = list_limits(habit, loads, STORE, hours=100 / 3600, driver_memory_mib=1e6)
    shares = {limit.name.partition(",")[0]: limit.share for limit in limits}
    assert shares["the driver's time beside the nodes"] == pytest.approx(4.0)
    assert shares["the bucket's writes a second"] == pytest.approx(200_000 / 100 / 3500)
    assert shares["the bucket's reads a second"] == pytest.approx(2_000_000 / 100 / 5500)
    assert [limit.share for limit in limits] == sorted(shares.values(), reverse=True)


def test_the_measured_costs_are_those_of_the_record() -> None:
    record = json.loads((Path(__file__).parents[3] / "jobs" / "measured" / "scale.json").read_text())
    assert record["unit_costs"] == MEASURED and record["date"] and "out=jobs/measured/scale.json" in record["command"]
    assert len(TABLES) == TABLES_A_SHARD
