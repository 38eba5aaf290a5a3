"""Values come in order, a few ahead; errors come where their value would have; the thread ends."""

import threading
import time

import pytest

from wm.training.data.prefetch import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_values_come_in_order_and_the_thread_ends() -> None:
    assert list(prefetch(lambda item: item * item, range(50))) == [item * item for item in range(50)]
    assert threads() == []


def test_no_more_are_made_ahead_than_asked_for() -> None:
    made: list[int] = []
    values = prefetch(lambda item: made.append(item) or item, range(100), depth=3)
    assert next(values) == 0
    deadline = time.monotonic() + 60
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3, 4]  # the one taken, three that wait, one in the thread's hand
    values.close()
    assert threads() == []


def test_an_error_comes_in_its_place() -> None:
    def make(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    seen = []
    with pytest.raises(ValueError, match="three"):
        for value in prefetch(make, range(10)):
            seen.append(value)
    assert seen == [0, 1, 2] and threads() == []
