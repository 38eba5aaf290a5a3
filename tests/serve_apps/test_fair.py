"""Fair shares of threads and pixels: what many jobs of one client cost another, counted in jobs, not in seconds."""

import asyncio
import threading

import numpy as np
import pytest

from serve_apps.fair import FairThreads, PixelBudget
from serve_apps.graph import Graph
from serve_apps.keys import Key
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_graph
from wm.errors import InputError
from wm.images import decode_image, encode_png, fit_square

PNG = encode_png(np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8))


class Gate:
    """Jobs that wait until they are let through one by one; ``order``: who began, in turn."""

    def __init__(self):
        self.order, self._go = [], threading.Semaphore(0)

    def job(self, name):
        def work():
            self.order.append(name)
            assert self._go.acquire(timeout=30)
            return name

        return work

    def let(self, count):
        self._go.release(count)


async def until(condition):
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never happened")


def start(threads, client, cost, work):
    return asyncio.create_task(threads.run(client, cost, work))


def test_results_errors_and_context_come_back():
    async def run():
        threads = FairThreads()
        assert await threads.run("a", 1, lambda: threading.current_thread().name) != threading.current_thread().name
        with pytest.raises(ApiError, match="no"):
            await threads.run("a", 1, lambda: (_ for _ in ()).throw(ApiError("no")))
        with pytest.raises(SystemExit):
            await threads.run("a", 1, lambda: (_ for _ in ()).throw(SystemExit()))
        assert await threads.run("a", 1, lambda: 3) == 3

    asyncio.run(run())


def test_another_client_finds_a_free_thread_at_once():
    async def run():
        threads, gate = FairThreads(2), Gate()
        busy = [start(threads, "alice", 100, gate.job(f"a{number}")) for number in range(8)]
        await until(lambda: gate.order == ["a0"])
        other = start(threads, "bob", 1, gate.job("b"))
        await until(lambda: gate.order == ["a0", "b"])
        gate.let(9)
        assert await other == "b" and await asyncio.gather(*busy) == [f"a{number}" for number in range(8)]
        assert gate.order[2:] == [f"a{number}" for number in range(1, 8)], "one client's jobs keep their order"

    asyncio.run(run())


def test_many_small_jobs_are_not_held_up_by_large_ones():
    """One thread: after the job that runs, all small ones come before the next large one, as their cost is less."""

    async def run():
        threads, gate = FairThreads(1), Gate()
        jobs = [start(threads, "alice", 100, gate.job("A")) for _ in range(3)]
        await until(lambda: gate.order == ["A"])
        jobs += [start(threads, "bob", 10, gate.job("b")) for _ in range(12)]
        await asyncio.sleep(0)
        gate.let(15)
        await asyncio.gather(*jobs)
        # The clock stands at 0 when bob comes: he has 100 to catch up with.
        assert gate.order == ["A"] + ["b"] * 10 + ["A"] + ["b"] * 2 + ["A"]

    asyncio.run(run())


def test_who_was_idle_has_saved_up_nothing():
    async def run():
        threads, gate = FairThreads(1), Gate()
        jobs = [start(threads, "alice", 10, gate.job("a")) for _ in range(6)]
        await until(lambda: len(gate.order) == 1)
        gate.let(3)
        await until(lambda: len(gate.order) == 4)
        jobs += [start(threads, "bob", 10, gate.job("b")) for _ in range(3)]
        await asyncio.sleep(0)
        gate.let(6)
        await asyncio.gather(*jobs)
        assert gate.order == ["a"] * 4 + ["b", "a", "b", "a", "b"]

    asyncio.run(run())


def test_what_nobody_awaits_is_not_begun_and_holds_nothing():
    async def run():
        threads, gate = FairThreads(1), Gate()
        first = start(threads, "alice", 1, gate.job("a"))
        await until(lambda: gate.order == ["a"])
        left = start(threads, "bob", 1000, gate.job("never"))
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert not any(entry.jobs for entry in threads._clients.values())
        later = start(threads, "bob", 1, gate.job("b"))
        gate.let(2)
        await asyncio.gather(first, later)
        assert gate.order == ["a", "b"]
        await until(lambda: not threads._clients)

    asyncio.run(run())


def test_clients_are_forgotten_while_another_is_busy():
    async def run():
        threads, gate = FairThreads(2), Gate()
        busy = [start(threads, "busy", 100, gate.job("a")) for _ in range(2)]
        await until(lambda: gate.order == ["a"])
        for number in range(200):
            await threads.run(f"address {number}", 1, lambda: None)
        gate.let(1)
        await until(lambda: gate.order == ["a", "a"])
        assert list(threads._clients) == ["busy"], "whoever is level with it now is one like any other"
        gate.let(1)
        await asyncio.gather(*busy)

    asyncio.run(run())


def refused_by(budget, client, pixels):
    with pytest.raises(ApiError) as caught, budget.reserve(client, pixels):
        raise AssertionError
    assert caught.value.headers["Retry-After"] == "1"
    return caught.value


def test_a_pixel_budget_is_each_clients_and_alls():
    budget = PixelBudget(max_pixels=250, max_pixels_each=100)
    with budget.reserve("a", 60), budget.reserve("a", 40):
        refused = refused_by(budget, "a", 1)
        assert refused.status == 429 and "being decoded for this client have 100 pixels, these 1;" in refused.message
        with budget.reserve("b", 100):
            refused = refused_by(budget, "c", 51)
            assert refused.status == 503 and "250 pixels together" in refused.message
        with budget.reserve("b", 100), budget.reserve("c", 50):
            pass
    with budget.reserve("a", 100):
        pass


def test_a_budget_of_less_than_one_request_is_refused():
    models = {"fdm": "a", "idm": "b", "max_pixels": 10}
    assert ServeRecipe.parse(models, "test").pixel_budget() == (320, 80)
    assert ServeRecipe.parse(models | {"max_pending_pixels": 20}, "test").pixel_budget() == (80, 20)
    with pytest.raises(InputError, match="max_pending_pixels = 19 is less than 2 x max_pixels = 20"):
        ServeRecipe.parse(models | {"max_pending_pixels": 19}, "test")


def test_work_is_charged_to_the_key_or_the_network():
    graph = Graph(ServeRecipe(fdm="a", idm="b"), None, None)
    key = Key(name="alice", sha256="0" * 64)
    assert graph.for_key(key)._client == key.sha256
    clients = [graph.for_client(address)._client for address in ("10.0.0.7", "2001:db8::1", "2001:db8::2", "unix", "")]
    assert clients == ["10.0.0.7", "2001:db8::/64", "2001:db8::/64", "unix", ""]
    # Behind a socket of both families: two clients of IPv4, not one network.
    mapped = [graph.for_client(f"::ffff:10.0.0.{host}")._client for host in (7, 8)]
    assert mapped == ["10.0.0.7", "10.0.0.8"]
    assert graph.for_key(key)._threads is graph.for_client("10.0.0.7")._threads


def test_images_beyond_the_budget_are_refused_others_answered(tiny_base):
    """Two requests of 2 x 100 pixels fit into the budget of a client; the third comes while they are decoded."""

    async def run():
        graph = local_graph(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), max_pixels=100, max_pending_pixels=400))
        gate = Gate()
        images = [("image", PNG), ("targets[0]", PNG)]
        alice, bob = graph.for_client("10.0.0.1"), graph.for_client("10.0.0.2")
        # One job of hers holds the thread that she may have: what follows has been counted, and waits.
        held = asyncio.create_task(alice.work(1, gate.job("held")))
        await until(lambda: gate.order == ["held"])
        with alice._budget.reserve(alice._client, 400):
            assert (await bob.prepare(images, 16)).shape == (2, 16, 16, 3)
            gate.let(1)
            await held
            with pytest.raises(ApiError) as refused:
                await alice.prepare(images, 16)
            assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
        expected = np.stack([fit_square(decode_image(PNG, "image"), 16)] * 2)
        assert np.array_equal(await alice.prepare(images, 16), expected), "every bit is the library's"

    asyncio.run(run())
