"""A budget's videos: the same whatever the order and the place, counted by class, until the hours are full."""

import random
from collections import Counter

import pyarrow as pa
import pytest

from wm.config import Recipe
from wm.datasets.videos.budget import VideoBudget, apply_budget, describe_budget, random_order
from wm.datasets.videos.listing import LISTING_SCHEMA, Entry, make_listing
from wm.errors import InputError

SIZES = {"wave": 60, "jump": 30, "": 5}


def listing_of(root: str = "/data", order: int = 0) -> pa.Table:
    keys = [(f"{label}/{number}.mp4", label) for label, size in SIZES.items() for number in range(size)]
    random.Random(order).shuffle(keys)
    return make_listing((Entry(f"{root}/{key}", key, label) for key, label in keys), {})


def take(listing: pa.Table, seconds: float | None = 100.0, **settings: object) -> tuple[list[str], dict[str, object]]:
    lengths = listing.column("key").to_pylist()
    asked: list[str] = []
    part, report = apply_budget(
        listing, VideoBudget.parse(settings, "test"), lambda row: (asked.append(lengths[row]), seconds)[1]
    )
    assert part.schema.equals(LISTING_SCHEMA) and part.num_rows == report["taken"]
    return part.column("key").to_pylist(), {**report, "asked": asked}


def test_videos_per_class_depend_on_key_and_seed_alone() -> None:
    keys, report = take(listing_of(), videos_per_class=20)
    assert Counter(key.split("/")[0] for key in keys) == {"wave": 20, "jump": 20, "": 5} == report["by_class"]
    assert (report["short_classes"], report["hours"], report["asked"], report["listed"]) == (1, None, [], 95)
    assert keys == sorted(keys)
    assert take(listing_of("/elsewhere", order=7), videos_per_class=20)[0] == keys
    assert take(listing_of(), videos_per_class=20, seed=1)[0] != keys
    # A smaller number is a part of a larger one, and a class keeps its videos when others leave.
    assert set(take(listing_of(), videos_per_class=5)[0]) < set(keys)
    waves = listing_of().filter(pa.compute.equal(listing_of()["class_label"], "wave"))
    assert take(waves, videos_per_class=20)[0] == [key for key in keys if key.startswith("wave")]


def test_hours_are_filled_in_the_random_order_and_no_further() -> None:
    listing = listing_of()
    keys, report = take(listing, seconds=100.0, hours=0.5)
    # 18 videos of 100 s are half an hour; no other header was asked for.
    assert (len(keys), report["hours"], report["is_full"]) == (18, 0.5, True)
    order = [listing.column("key")[row].as_py() for row in random_order(listing.column("key").to_pylist(), 0).tolist()]
    assert report["asked"] == order[:18] and sorted(order[:18]) == keys
    # The last one may go beyond: a budget is a lower bound by less than a video.
    assert take(listing, seconds=70.0, hours=0.1)[1]["hours"] == round(6 * 70 / 3600, 4)
    both, report = take(listing, seconds=100.0, hours=0.25, videos_per_class=4)
    assert len(both) == 9 and max(report["by_class"].values()) <= 4


def test_more_hours_than_there_are_take_all_and_say_so() -> None:
    keys, report = take(listing_of(), seconds=36.0, hours=2.0)
    assert (len(keys), report["hours"], report["is_full"]) == (95, 0.95, False)
    text = describe_budget(report)
    assert text.startswith("budget: 95 of 95 videos, 5 to 60 of each of 3 classes; 0.95 h of the 2 h asked for: there ")
    unknown = take(listing_of(), seconds=None, hours=2.0)[1]
    assert (unknown["taken"], unknown["unknown_lengths"], unknown["hours"]) == (95, 95, 0.0)
    assert "the length of 95 cannot be read" in describe_budget(unknown)


def test_a_class_of_few_is_named() -> None:
    text = describe_budget(take(listing_of(), videos_per_class=40)[1])
    assert text == (
        "budget: 75 of 95 videos, 5 to 40 of each of 3 classes (all of 2 classes that have fewer than was asked for)"
    )


@pytest.mark.parametrize("wrong", [{"hours": 0}, {"hours": -1}, {"videos_per_class": 0}, {"seed": -1}])
def test_no_budget_of_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        VideoBudget.parse(wrong, "test")
    assert issubclass(VideoBudget, Recipe) and not VideoBudget().is_limited
