"""Values come in order, a few ahead; errors come where their value would have; the thread ends."""

import threading
import time

import pytest

from wm.training.data.prefetch import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_keeps_the_order_and_ends_its_thread() -> None:
    assert list(prefetch(lambda item: item * item, range(50))) == [item * item for item in range(50)]
    assert threads() == []


def test_prefetch_builds_at_most_depth_values_ahead() -> None:
    built: list[int] = []
    values = prefetch(lambda item: built.append(item) or item, range(100), depth=3)
    assert next(values) == 0
    deadline = time.monotonic() + 60
    while len(built) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert built == [0, 1, 2, 3]  # the one that was taken, and three ahead of it
    values.close()
    assert threads() == []


def test_prefetch_raises_an_error_in_its_turn() -> None:
    def build(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    values = []
    with pytest.raises(ValueError, match="three"):
        for value in prefetch(build, range(10)):
            values.append(value)
    assert values == [0, 1, 2] and threads() == []
