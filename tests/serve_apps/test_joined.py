"""Questions that go out together: who is answered what, how many calls it takes, and what one's end does to others."""

import asyncio
from contextvars import ContextVar

import pytest

from serve_apps.joined import MOST_TOGETHER, Joined
from serve_apps.openai import ApiError

WHO = ContextVar("WHO", default="nobody")


class Asked:
    """Doubles numbers; tells the calls, and waits for ``gate`` with each."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.callers: list[str] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.refuses = {}

    async def __call__(self, questions):
        self.calls.append(questions)
        self.callers.append(WHO.get())
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for question in questions:
            if question in self.refuses:
                raise self.refuses[question]
        return [2 * question for question in questions]


async def ready():
    for _ in range(5):
        await asyncio.sleep(0)


async def start(joined, questions):
    tasks = [asyncio.create_task(joined(question)) for question in questions]
    await ready()
    return tasks


def test_those_ready_at_once_share_a_call_and_each_has_its_own_answer():
    async def run():
        asked = Asked()
        asked.gate.set()
        assert await asyncio.gather(*map(Joined(asked, 1), range(10))) == [2 * number for number in range(10)]
        return asked.calls

    assert asyncio.run(run()) == [list(range(10))]


@pytest.mark.parametrize("most", [1, 2])
def test_while_as_many_calls_as_may_are_under_way_the_others_wait_and_go_as_one(most):
    async def run():
        asked = Asked()
        joined, tasks = Joined(asked, most), []
        for number in range(most + 3):
            tasks += await start(joined, [number])
        assert asked.calls == [[number] for number in range(most)]
        asked.gate.set()
        assert await asyncio.gather(*tasks) == [2 * number for number in range(most + 3)]
        return asked.calls[most:]

    assert asyncio.run(run()) == [list(range(most, most + 3))]


def test_a_call_holds_so_many_and_no_more():
    async def run():
        asked = Asked()
        asked.gate.set()
        count = 2 * MOST_TOGETHER + 1
        assert await asyncio.gather(*map(Joined(asked, 1), range(count))) == [2 * number for number in range(count)]
        return [len(call) for call in asked.calls]

    assert asyncio.run(run()) == [MOST_TOGETHER, MOST_TOGETHER, 1]


def test_one_that_is_refused_fails_nobody_elses():
    async def run():
        asked = Asked()
        asked.gate.set()
        asked.refuses = {1: ApiError("too long")}
        found = await asyncio.gather(*map(Joined(asked, 1), range(3)), return_exceptions=True)
        assert (found[0], found[2]) == (0, 4)
        assert found[1] is asked.refuses[1]
        return asked.calls

    assert asyncio.run(run()) == [[0, 1, 2], [0], [1], [2]]


def test_a_server_that_answers_nobody_is_not_asked_for_each():
    async def run():
        asked = Asked()
        asked.gate.set()
        asked.refuses = {1: ApiError.unavailable("busy", "overloaded")}
        found = await asyncio.gather(*map(Joined(asked, 1), range(3)), return_exceptions=True)
        assert found == [asked.refuses[1]] * 3
        return asked.calls

    assert asyncio.run(run()) == [[0, 1, 2]]


def test_who_leaves_takes_nobodys_answer_and_the_last_one_ends_the_call():
    async def run():
        asked = Asked()
        first, second = await start(Joined(asked, 1), [1, 2])
        first.cancel()
        await ready()
        assert (first.cancelled(), asked.cancelled) == (True, 0)
        second.cancel()
        await ready()
        return asked.cancelled

    assert asyncio.run(run()) == 1


def test_who_leaves_while_waiting_is_not_asked_for():
    async def run():
        asked = Asked()
        joined = Joined(asked, 1)
        first, second, third = [*await start(joined, [1]), *await start(joined, [2, 3])]
        second.cancel()
        asked.gate.set()
        assert await asyncio.gather(first, third) == [2, 6]
        return asked.calls

    assert asyncio.run(run()) == [[1], [3]]


def test_a_call_of_one_belongs_to_its_asker_and_one_of_several_to_none():
    async def run():
        asked = Asked()
        asked.gate.set()
        joined = Joined(asked, 1)

        async def ask(who, question):
            WHO.set(who)
            return await joined(question)

        await asyncio.create_task(ask("ann", 1))
        await asyncio.gather(*(ask(who, 2) for who in ("bob", "cid")))
        return asked.callers

    assert asyncio.run(run()) == ["ann", "nobody"]


def test_an_answer_too_few_is_an_error_for_each():
    async def ask(questions):
        return questions[1:]

    async def run():
        return await asyncio.gather(*map(Joined(ask, 1), range(2)), return_exceptions=True)

    assert [type(found) for found in asyncio.run(run())] == [ValueError, ValueError]
