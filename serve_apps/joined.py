"""Questions that wait for others go out together: a call between processes costs as much as a nano model's work."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any

from serve_apps.openai import ApiError

MOST_TOGETHER = 16
"""Questions in one call."""


@dataclass(frozen=True)
class _Asked:
    question: Any
    answer: "asyncio.Future[Any]"
    context: Context


class Joined:
    """Asks for many at once what each asks for alone.

    While ``most`` calls are under way, the questions that come wait and go as one, in their order. What ``ask`` returns
    is an answer for each question. If it raises, every question is asked again by itself, so that one fails nobody
    else's; but not where nobody can be answered (an :class:`ApiError` of 500 or more), which all are told. A call that
    nobody awaits any more is cancelled. One that holds several questions is made outside the context of them all: Ray
    Serve would cancel it with the request it belongs to. For tasks of one event loop.
    """

    def __init__(self, ask: Callable[[list[Any]], Awaitable[Sequence[Any]]], most: int) -> None:
        self._ask, self._most = ask, most
        self._waiting: list[_Asked] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Any) -> Any:
        """Return the answer to a question."""
        loop = asyncio.get_running_loop()
        asked = _Asked(question, loop.create_future(), copy_context())
        self._waiting.append(asked)
        loop.call_soon(self._go)  # after those who are ready to ask now
        return await asked.answer

    def _go(self) -> None:
        self._waiting = _open(self._waiting)
        while self._waiting and len(self._under_way) < self._most:
            sent, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
            context = Context() if len(sent) > 1 else sent[0].context
            task = asyncio.get_running_loop().create_task(self._send(sent), context=context)
            self._under_way.add(task)
            task.add_done_callback(self._end)
            _cancel_with(task, sent)

    def _end(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._go()

    async def _send(self, sent: Sequence[_Asked]) -> None:
        try:
            found = await self._ask([asked.question for asked in sent])
            answered = list(zip(sent, found, strict=True))
        except Exception as error:
            if len(sent) > 1 and not (isinstance(error, ApiError) and error.status >= 500):
                await asyncio.gather(*(self._send([asked]) for asked in _open(sent)))
                return
            for asked in _open(sent):
                asked.answer.set_exception(error)
            return
        for asked, one in answered:
            if not asked.answer.done():
                asked.answer.set_result(one)


def _open(asked: Sequence[_Asked]) -> list[_Asked]:
    """Those that wait for an answer still."""
    return [one for one in asked if not one.answer.done()]


def _cancel_with(task: "asyncio.Task[None]", sent: Sequence[_Asked]) -> None:
    """Cancel ``task`` once all that await it are cancelled."""
    awaited = len(sent)

    def left(answer: "asyncio.Future[Any]") -> None:
        nonlocal awaited
        awaited -= answer.cancelled()
        if not awaited:
            task.cancel()

    for asked in sent:
        asked.answer.add_done_callback(left)
