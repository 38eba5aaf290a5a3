"""Values come in order, a few ahead; errors come where their value would have; the thread ends."""

import threading
import time

import pytest

from wm.training.data.prefetch import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_keeps_the_order_and_ends_its_thread() -> None:
    assert list(prefetch(lambda item: item * item, range(50))) == [item * item for item in range(50)]
    assert threads() == []


def test_prefetch_builds_at_most_depth_values_ahead() -> None:
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


def test_prefetch_raises_an_error_in_its_turn() -> None:
    def make(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    seen = []
    with pytest.raises(ValueError, match="three"):
        for value in prefetch(make, range(10)):
            seen.append(value)
    assert seen == [0, 1, 2] and threads() == []
