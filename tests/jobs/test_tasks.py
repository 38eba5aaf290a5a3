"""Tasks on Ray and in process: the same results, whatever happens to a worker."""

import os
import signal
from pathlib import Path

import pytest

from jobs.shared.tasks import each
from wm.errors import InputError


def test_in_process_results_come_in_order() -> None:
    def square(number: int, offset: int) -> int:
        return number * number + offset

    assert list(each(square, [(number,) for number in range(5)], 1, on_ray=False)) == [1, 2, 5, 10, 17]
    assert list(each(square, [], 1, on_ray=False)) == []


@pytest.mark.slow
def test_on_ray_a_killed_worker_costs_time_only(tmp_path: Path, ray_session: None) -> None:
    # Inside the test, so that Ray sends them along: its workers cannot import this file.
    def square(number: int, offset: int) -> int:
        return number * number + offset

    def fragile(number: int, folder: str) -> int:
        """Its process is killed the first time it gets an odd number."""
        mark = Path(folder) / str(number)
        if number % 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def picky(number: int) -> int:
        if number == 3:
            raise InputError("3 is not wanted")
        return number

    numbers = [(number,) for number in range(40)]
    assert sorted(each(square, numbers, 1, on_ray=True)) == [square(number, 1) for number in range(40)]
    assert list(each(square, [], 1, on_ray=True)) == []
    assert sorted(each(square, numbers, 1, on_ray=True, max_running=1)) == [square(number, 1) for number in range(40)]
    assert sorted(each(fragile, numbers[:8], str(tmp_path), on_ray=True)) == list(range(8))
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(InputError, match=r"^3 is not wanted$") as caught:
        list(each(picky, numbers, on_ray=True))
    assert caught.type is InputError and caught.value.__cause__ is None
