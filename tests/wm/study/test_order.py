"""Orders of items and systems: every count of a system at a position, by brute force over participants and items."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.helpers.study_files import make_study
from wm.study.order import order_items, order_systems, shuffle
from wm.study.study import Study, StudyItem


def count_places(orders: list[list[str]]) -> Counter[tuple[int, str]]:
    """Count how often each system is at each position."""
    return Counter((position, name) for order in orders for position, name in enumerate(order))


def count_followers(orders: list[list[str]]) -> Counter[tuple[str, str]]:
    """Count how often each system directly follows each other."""
    return Counter(pair for order in orders for pair in pairwise(order))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_positions_are_balanced_over_participants(size):
    study = make_study(size, 7)
    for item in study.items:
        for block in range(3):
            orders = [list(order_systems(study, item, block * size + number)) for number in range(size)]
            assert all(sorted(order) == sorted(item.candidates) for order in orders)
            places = count_places(orders)
            assert len(places) == size * size and set(places.values()) == {1}


@pytest.mark.parametrize(("size", "num_items"), [(2, 5), (3, 11), (4, 25), (5, 25)])
def test_positions_are_near_balanced_within_a_participant(size, num_items):
    study = make_study(size, num_items)
    for number in range(9):
        places = count_places([list(order_systems(study, item, number)) for item in study.items])
        assert set(places.values()) <= {num_items // size, -(-num_items // size)} and len(places) == size * size


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_system_follows_every_other_equally_often(size):
    study = make_study(size, 3)
    span = size if size % 2 == 0 else 2 * size
    for item in study.items:
        followers = count_followers([list(order_systems(study, item, number)) for number in range(span)])
        assert len(followers) == size * (size - 1) and len(set(followers.values())) == 1


def test_the_papers_14_participants_by_25_items():
    study = make_study(4, 25, seed=3)
    orders = {(item.item_id, n): tuple(order_systems(study, item, n)) for item in study.items for n in range(14)}
    for item in study.items:
        places = count_places([list(orders[item.item_id, n]) for n in range(14)])
        assert set(places.values()) == {3, 4}
    # The order of an item says nothing about that of another one: all 24 orders are used.
    assert len(set(orders.values())) == 24


def test_checks_do_not_change_other_items():
    with_checks, without = make_study(4, 5, num_checks=3), make_study(4, 5)
    for first, second in zip(with_checks.items, without.items, strict=False):
        assert order_systems(with_checks, first, 2) == order_systems(without, second, 2)
    places = count_places([list(order_systems(with_checks, with_checks.items[-1], n)) for n in range(4)])
    assert set(places.values()) == {1} and len(places) == 16


def test_items_are_shuffled_for_each_participant():
    study = make_study(4, 25, seed=1)
    orders = [[item.item_id for item in order_items(study, number)] for number in range(40)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len({tuple(order) for order in orders}) == 40
    # A page that is loaded again is the same; another seed is another study.
    assert orders[7] == [item.item_id for item in order_items(study, 7)]
    assert orders[7] != [item.item_id for item in order_items(make_study(4, 25, seed=2), 7)]
    # Nobody's first item is favoured: 40 draws out of 25.
    assert len({order[0] for order in orders}) > 15


def test_orders_do_not_depend_on_names_of_files():
    first, second = make_study(4, 5), make_study(4, 5)
    renamed = tuple(StudyItem(f"x{n}", *list(vars(item).values())[1:]) for n, item in enumerate(second.items))
    other = Study("other", "title", "consent", "how", second.systems, renamed, 14, 0, 64)
    for a, b in zip(first.items, other.items, strict=True):
        assert order_systems(first, a, 5) == order_systems(other, b, 5)
    assert [item.triplet_id for item in order_items(first, 5)] == [item.triplet_id for item in order_items(other, 5)]


def test_orders_depend_on_the_secret():
    study = make_study(4, 25)
    other = replace(study, secret="s")
    systems = [[tuple(order_systems(of, item, 0)) for item in study.items] for of in (study, other)]
    assert systems[0] != systems[1] and order_items(study, 0) != order_items(other, 0)


def test_a_shuffle_is_the_same_on_every_machine():
    assert shuffle("abcdefgh", "key") == list(shuffle(list("abcdefgh"), "key"))
    assert "".join(shuffle("abcdefgh", "key")) == "agedbhfc"
