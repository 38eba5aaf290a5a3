"""The thread that owns a replica's models: requests of event loops, their images, their ends."""

import asyncio
import threading

import pytest
import torch

from serve_apps.model_thread import ModelThread
from tests.helpers.models_reference import lively
from wm.dynamics.fdm import forward_prefix
from wm.models import load_model
from wm.sampling import ImageEngine, ImageRequest, Sampling, build_model_runner, sample_images

ACTIONS = ["put", "move the red cup left", "take the block"]


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


@pytest.fixture
def pool(vlm):
    return ImageEngine(vlm, build_model_runner(vlm), line_tokens=1)


@pytest.fixture
def thread():
    made = ModelThread()
    yield made
    made.close()


def request_of(vlm, number, count=2):
    prefix = forward_prefix(vlm, [number % 7, 5, 9, 0], ACTIONS[number % 3])
    return ImageRequest(prefix, count, Sampling(), seed=number)


def alone(vlm, request):
    return sample_images(vlm, [request.prefix], num_candidates=request.num_candidates, seed=request.seed)[0]


def test_many_at_once_get_their_own_images_and_their_lines(vlm, thread, pool):
    requests = [request_of(vlm, number, 1 + number % 3) for number in range(9)]
    lines = [[] for _ in requests]

    async def ask():
        return await asyncio.gather(
            *(thread.sample(pool, request, line.append) for request, line in zip(requests, lines, strict=True))
        )

    for request, found, line in zip(requests, asyncio.run(ask()), lines, strict=True):
        expected = alone(vlm, request)
        assert torch.equal(found, expected)
        assert [entry.codes.shape[1] for entry in line] == list(range(1, vlm.tokens_per_image + 1))
        assert all(torch.equal(entry.codes, expected[:, : entry.codes.shape[1]]) for entry in line)


def test_work_has_its_turn_while_images_grow(vlm, thread, pool):
    async def ask():
        images = asyncio.create_task(thread.sample(pool, request_of(vlm, 1)))
        names = [await thread.call(lambda: threading.current_thread().name) for _ in range(3)]
        return await images, names

    images, names = asyncio.run(ask())
    assert torch.equal(images, alone(vlm, request_of(vlm, 1))) and names == ["model"] * 3


def test_a_cancelled_request_leaves_the_pool(vlm, thread, pool):
    async def ask():
        begun = asyncio.Event()
        doomed = asyncio.create_task(thread.sample(pool, request_of(vlm, 1, 3), lambda grown: begun.set()))
        kept = asyncio.create_task(thread.sample(pool, request_of(vlm, 2)))
        await begun.wait()
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        is_cancelled.set()
        return await kept

    is_cancelled = threading.Event()
    advance, keys, calls = pool.step, [], []

    def advance_until_cancelled():
        # The first line is reported at once; before the next one the request is cancelled, however slow the machine is.
        if calls:
            is_cancelled.wait(60)
        calls.append(1)
        grown = advance()
        keys.extend(entry.request_id for entry in grown if entry.is_finished)
        return grown

    pool.step = advance_until_cancelled
    assert torch.equal(asyncio.run(ask()), alone(vlm, request_of(vlm, 2)))
    assert keys == [1] and pool.num_unfinished == pool.num_running_rows == 0


def test_work_that_is_cancelled_before_its_turn_is_not_done(thread):
    done = []

    async def ask():
        gate = threading.Event()
        first = asyncio.create_task(thread.call(gate.wait))
        second = asyncio.create_task(thread.call(lambda: done.append(1)))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.sleep(0)
        gate.set()
        await first
        await thread.call(lambda: done.append(2))

    asyncio.run(ask())
    assert done == [2]


def test_errors_reach_those_who_asked_and_the_thread_goes_on(vlm, thread, pool):
    def fail():
        raise ValueError("of this work")

    with pytest.raises(ValueError, match="of this work"):
        asyncio.run(thread.call(fail))
    advance = pool.step
    pool.step = fail
    with pytest.raises(ValueError, match="of this work"):
        asyncio.run(thread.sample(pool, request_of(vlm, 1)))
    assert pool.num_unfinished == 0
    pool.step = advance
    assert torch.equal(asyncio.run(thread.sample(pool, request_of(vlm, 1))), alone(vlm, request_of(vlm, 1)))


def test_a_batch_shares_one_call_and_each_item_has_its_own_error(vlm):
    thread, gate, seen = ModelThread(), threading.Event(), []

    def double(_, items):
        seen.append(list(items))
        if any(item < 0 for item in items):
            raise ValueError(f"negative: {items}")
        return [2 * item for item in items]

    async def ask():
        blocked = asyncio.ensure_future(thread.call(gate.wait))
        await asyncio.sleep(0.05)
        asked = [asyncio.ensure_future(thread.batch(double, None, item)) for item in (1, 2, -3, 4, 5)]
        await asyncio.sleep(0)
        asked[4].cancel()
        await asyncio.sleep(0)
        gate.set()
        await blocked
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(ask())
    thread.close()
    assert [found[place] for place in (0, 1, 3)] == [2, 4, 8]
    assert isinstance(found[2], ValueError) and str(found[2]) == "negative: [-3]"
    assert isinstance(found[4], asyncio.CancelledError)
    assert seen == [[1, 2, -3, 4], [1], [2], [-3], [4]]


def test_pools_of_several_models_take_turns(vlm, thread, pool, tiny_base):
    other = lively(load_model(tiny_base), seed=4)
    second, order = ImageEngine(other, build_model_runner(other), line_tokens=1), []

    async def ask():
        return await asyncio.gather(
            thread.sample(pool, request_of(vlm, 1), lambda grown: order.append("first")),
            thread.sample(second, request_of(other, 2), lambda grown: order.append("second")),
        )

    found = asyncio.run(ask())
    assert torch.equal(found[0], alone(vlm, request_of(vlm, 1)))
    assert torch.equal(found[1], alone(other, request_of(other, 2)))
    assert sorted(order) == ["first"] * 4 + ["second"] * 4 and order != sorted(order)


def test_nothing_is_held_for_those_who_left(vlm, thread, pool):
    async def leave():
        begun = asyncio.Event()
        doomed = asyncio.create_task(thread.sample(pool, request_of(vlm, 1), lambda grown: begun.set()))
        await begun.wait()
        doomed.cancel()
        await asyncio.gather(doomed, return_exceptions=True)
        await thread.call(lambda: None)

    asyncio.run(leave())
    assert pool.num_unfinished == pool.num_running_rows == 0
