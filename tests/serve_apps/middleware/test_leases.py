"""Limits that several processes share, each process an object here: what passes, what is asked, what is given back."""

import asyncio
import contextlib
import hashlib
from collections import Counter

import pytest
from starlette.testclient import TestClient

from serve_apps import metrics
from serve_apps.ingress import build_app
from serve_apps.keys import Key
from serve_apps.ledger import HOLDER_S, Ledger, LimitsServer
from serve_apps.middleware import leases as leases_module
from serve_apps.middleware.leases import Leases
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import LocalHandle, local_graph


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class Processes:
    """Several processes over one ledger, in one event loop."""

    def __init__(self, number, clock):
        self.ledger, self.clock, self.questions, self.is_up = Ledger(clock), clock, 0, True
        self.all = [Leases(self._exchange, clock) for _ in range(number)]

    async def _exchange(self, holder, claims):
        self.questions += 1
        await asyncio.sleep(0)
        if not self.is_up:
            raise ConnectionError("no ledger")
        return self.ledger.exchange(holder, claims)

    async def give_back(self):
        """Twice: what was in use a moment before the first is idle at the second."""
        for process in 2 * self.all:
            await process.give_back()

    def allowances(self, key):
        return [process.allowance(key) for process in self.all]


def key_with(per_minute=60, at_once=1000):
    return Key(name="a", sha256="0" * 64, requests_per_minute=per_minute, concurrent_requests=at_once)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only in the test, which gives back what is idle by itself."""
    monkeypatch.setattr(leases_module, "RETURN_S", 3600.0)
    return Clock()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_all_processes_together_let_through_the_limit(clock):
    async def scenario():
        processes = Processes(4, clock)
        allowances = processes.allowances(key_with(60))
        answers = [await allowances[number % 4].take() for number in range(200)]
        passed = answers.count(None)
        # At most what one process may lease ahead is idle at the others.
        assert 60 - 3 * 3 <= passed <= 60
        refusal = answers[-1]
        assert refusal.status == 429 and refusal.headers["Retry-After"] == "1"
        assert "60 requests a minute are allowed to this key; try again in 1s" in refusal.message
        assert refusal.headers["x-ratelimit-limit-requests"] == "60"

    run(scenario)


def test_most_requests_ask_nobody(clock):
    async def scenario():
        processes = Processes(1, clock)
        (allowance,) = processes.allowances(key_with(6000))
        for _ in range(600):
            assert await allowance.take() is None
            allowance.release()
        assert processes.questions <= 2 + 600 // 300

    run(scenario)


def test_requests_at_once_wait_for_one_question(clock):
    async def scenario():
        processes = Processes(1, clock)
        (allowance,) = processes.allowances(key_with(60, at_once=8))
        answers = await asyncio.gather(*(allowance.take() for _ in range(20)))
        assert Counter(answer is None for answer in answers) == {True: 8, False: 12}
        assert processes.questions == 1
        refused = next(answer for answer in answers if answer is not None)
        assert "8 requests of this key are being answered" in refused.message
        # A flood asks nobody either.
        assert [answer for answer in [await allowance.take() for _ in range(50)] if answer is None] == []
        assert processes.questions == 1

    run(scenario)


def test_a_slot_that_is_free_at_one_process_comes_to_another(clock):
    async def scenario():
        processes = Processes(2, clock)
        first, second = processes.allowances(key_with(600, at_once=2))
        assert [await first.take(), await first.take()] == [None, None]
        assert (await second.take()).status == 429
        first.release()
        clock.now_s += 1.0
        await processes.give_back()
        assert await second.take() is None
        assert (await second.take()).status == 429

    run(scenario)


def test_what_is_idle_is_given_back(clock):
    async def scenario():
        processes = Processes(2, clock)
        first, second = processes.allowances(key_with(60))
        assert await first.take() is None
        first.release()
        await processes.give_back()
        assert not first.holds_any
        passed = 0
        while await second.take() is None:
            passed += 1
        assert passed == 59

    run(scenario)


def test_giving_back_ends_with_what_is_held(monkeypatch):
    monkeypatch.setattr(leases_module, "RETURN_S", 0.0)

    async def scenario():
        processes = Processes(1, Clock())
        (allowance,) = processes.allowances(key_with(60))
        assert await allowance.take() is None
        allowance.release()
        await processes.all[0]._returning
        assert not allowance.holds_any

    run(scenario)


def test_long_requests_keep_their_slots(clock):
    async def scenario():
        processes = Processes(2, clock)
        first, second = processes.allowances(key_with(600, at_once=1))
        assert await first.take() is None
        for _ in range(10):
            clock.now_s += HOLDER_S / 2
            await processes.give_back()
            assert (await second.take()).status == 429
        first.release()

    run(scenario)


def test_without_a_ledger_each_process_lets_its_share_through(clock, serve_log):
    alone = []
    metrics.record_to(lambda metric, value, tags: alone.append(metric.name))

    async def scenario():
        processes = Processes(4, clock)
        allowances = processes.allowances(key_with(60))
        for allowance in allowances:  # so that each knows of the others
            assert await allowance.take() is None
        assert await allowances[0].take() is None
        processes.is_up = False
        clock.now_s += 120.0
        (first, *_) = allowances
        first._tokens = first._slots = 0
        processes.all[0].num_holders = 4
        answers = [await first.take() for _ in range(30)]
        assert answers.count(None) == 15 and alone == ["wm_limits_alone"] * 15
        assert serve_log.text.count("the shared limits of keys do not answer") == 1
        # It is there again.
        processes.is_up = True
        clock.now_s += 60.0
        assert await first.take() is None and len(alone) == 15

    try:
        run(scenario)
    finally:
        metrics.record_to(None)


def test_a_client_that_leaves_takes_nothing_from_the_others(clock):
    async def scenario():
        processes = Processes(1, clock)
        (allowance,) = processes.allowances(key_with(60, at_once=1))
        leaving, staying = asyncio.create_task(allowance.take()), asyncio.create_task(allowance.take())
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying is None
        assert allowance.in_progress == 1

    run(scenario)


def test_limits_of_a_changed_key_file_hold_at_once(clock):
    async def scenario():
        processes = Processes(1, clock)
        (allowance,) = processes.allowances(key_with(60, at_once=4))
        assert [await allowance.take() for _ in range(4)] == [None] * 4
        (same,) = processes.allowances(key_with(60, at_once=2))
        assert same is allowance and (await same.take()).status == 429

    run(scenario)


def test_two_ingresses_let_through_what_one_would(tiny_base, tmp_path):
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[keys]]\nname = "a"\nsha256 = "{hashlib.sha256(b"wm-a").hexdigest()}"\nrequests_per_minute = 5\n'
    )
    recipe = ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), keys=str(path), ingress={"num_replicas": 2})
    assert recipe.shares_limits
    graph, limits = local_graph(recipe), LocalHandle(LimitsServer())
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(TestClient(build_app(graph, limits=limits))) for _ in range(2)]
        replies = [
            clients[number % 2].get("/v1/models", headers={"authorization": "Bearer wm-a"}) for number in range(8)
        ]
    assert [reply.status_code for reply in replies] == [200] * 5 + [429] * 3
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies[:5]] == ["4", "3", "2", "1", "0"]
    assert 11 <= int(replies[-1].headers["retry-after"]) <= 12


@pytest.mark.parametrize(
    ("options", "is_shared"),
    [
        ({}, False),
        ({"num_replicas": 1}, False),
        ({"num_replicas": 2}, True),
        ({"num_replicas": "auto"}, True),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}, True),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}, False),
    ],
)
def test_limits_are_shared_where_there_may_be_several_ingresses(tiny_base, options, is_shared):
    models = {"fdm": str(tiny_base), "idm": str(tiny_base), "ingress": options}
    assert ServeRecipe(**models, keys="keys.toml").shares_limits is is_shared
    assert not ServeRecipe(**models).shares_limits, "without keys there are no limits"
