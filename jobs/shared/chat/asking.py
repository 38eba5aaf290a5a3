"""Ask what has no answer yet, some requests at a time, and store every reply before the next step.

Not known here: what is asked, and when a reply can be used.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from jobs.shared.chat.budget import Budget, ChatLimits
from jobs.shared.chat.client import BAD_REQUEST, Reply, UnansweredError
from wm.errors import InputError
from wm.evaluation.reply_store import LineT, ReplyLine, ReplyStore

_MAX_UNANSWERED_RUN = 20
"""So many requests without an answer in a row end the run: the endpoint is down, and waiting costs money elsewhere."""
_MAX_REFUSED_FIRST = 20
"""So many first replies that all refuse the request's form end the run: the others would be refused too."""
_REPLY_CHARS = 4000

ItemT = TypeVar("ItemT")


class Endpoint(Protocol):
    """What answers."""

    def ask(self, body: Mapping[str, object]) -> Reply:
        """Ask once, see :meth:`jobs.shared.chat.client.ChatClient.ask`."""


@dataclass(frozen=True)
class Pending(Generic[ItemT]):
    """A question without an answer: its key, what it is about, and how often it was asked."""

    key: str
    item: ItemT
    attempts: int


class ChatSession(Protocol[ItemT, LineT]):
    """What asking needs: whom, what the requests are, and where replies go."""

    @property
    def client(self) -> Endpoint:
        """What answers; several threads ask at a time."""

    @property
    def store(self) -> ReplyStore[LineT]:
        """Where replies go."""

    @property
    def limits(self) -> ChatLimits:
        """How much is asked."""

    def body(self, question: Pending[ItemT]) -> Mapping[str, object]:
        """Build the body of a request."""

    def max_price(self, item: ItemT) -> float:
        """Estimate the price of a request, its reply as long as may be."""

    def build_line(self, question: Pending[ItemT], reply: Reply) -> LineT:
        """Build the line of a reply.

        Args:
            question: What was asked.
            reply: What the endpoint answered.

        Returns:
            The line; its ``failure`` says why it cannot be used.
        """


def spent_so_far(store: ReplyStore[LineT], limits: ChatLimits) -> float:
    """Compute what all replies in a store have cost, by the tokens that the endpoint reported.

    Args:
        store: The replies.
        limits: Prices.
    """
    # Failed attempts cost as much as others.
    lines: Iterable[LineT] = [*store.answered.values(), *(line for lines in store.failures.values() for line in lines)]
    tokens = [(line["input_tokens"] or 0, line["output_tokens"] or 0) for line in lines]
    return limits.cost(sum(count for count, _ in tokens), sum(count for _, count in tokens))


def list_pending(keys: Mapping[str, ItemT], store: ReplyStore[LineT], max_attempts: int) -> list[Pending[ItemT]]:
    """List the questions that are neither answered nor given up.

    Args:
        keys: What each question is about, by key.
        store: What was answered.
        max_attempts: Failures after which a question is given up.

    Returns:
        The questions, in the order of ``keys``.
    """
    # Failed attempts of earlier runs count: a question is not asked for ever.
    attempts = {key: len(store.failures.get(key, ())) for key in keys}
    return [
        Pending(key, item, attempts[key])
        for key, item in keys.items()
        if key not in store.answered and attempts[key] < max_attempts
    ]


def ask_all(
    session: ChatSession[ItemT, LineT], pending: Sequence[Pending[ItemT]], on_settled: Callable[[], object]
) -> list[Pending[ItemT]]:
    """Ask every question until it is answered or given up.

    Args:
        session: Its store is open for writing.
        pending: The questions.
        on_settled: Called once a question is answered or given up.

    Returns:
        Questions that got no answer; asked again by the next run.

    Raises:
        CostReachedError: ``max_cost`` allows no further request; all replies are stored.
        InputError: No request can succeed.
    """
    asker = _Asker(session, pending, on_settled)
    with ThreadPoolExecutor(session.limits.concurrency, thread_name_prefix="chat") as pool:
        try:
            while asker.has_work():
                asker.fill_up(pool)
                asker.take_answers()
        except BaseException:
            # Interrupted: what is on its way was paid for, and is kept.
            asker.keep_the_rest()
            raise
    if asker.stop is not None:
        raise asker.stop
    return asker.unanswered


class _Asker(Generic[ItemT, LineT]):
    """Questions that wait, requests on their way, and why no more are sent."""

    def __init__(
        self, session: ChatSession[ItemT, LineT], pending: Sequence[Pending[ItemT]], on_settled: Callable[[], object]
    ) -> None:
        self.session, self._on_settled = session, on_settled
        self.unanswered: list[Pending[ItemT]] = []
        self.stop: Exception | None = None
        # The store may be shared: what other runs spent counts too.
        self._budget = Budget(session.limits, spent_so_far(session.store, session.limits))
        self._waiting = deque(pending)
        self._running: dict[Future[Reply], tuple[Pending[ItemT], float]] = {}
        self._num_in_a_row = 0
        self._num_refused, self._has_reply = 0, False

    def has_work(self) -> bool:
        """Return whether requests are on their way or may be sent."""
        return bool(self._running) or (bool(self._waiting) and self.stop is None)

    def fill_up(self, pool: ThreadPoolExecutor) -> None:
        """Send as many requests as may be on their way; bodies are built here, so that few images are in memory."""
        while self._waiting and self.stop is None and len(self._running) < self.session.limits.concurrency:
            question = self._waiting.popleft()
            price = self.session.max_price(question.item)
            if not self._budget.reserve(price):
                self._waiting.appendleft(question)
                # Replies on their way may turn out cheaper than they were counted.
                if not self._running:
                    self.stop = self._budget.error()
                return
            request = pool.submit(self.session.client.ask, self.session.body(question))
            self._running[request] = question, price

    def take_answers(self) -> None:
        """Wait for an answer, and store all that are there before the next request leaves."""
        for request in wait(self._running, return_when=FIRST_COMPLETED).done if self._running else ():
            question, price = self._running.pop(request)
            try:
                line = self.session.build_line(question, request.result())
            except UnansweredError as error:
                self._budget.settle(price, 0.0)
                self._give_up_for_now(question, error)
                continue
            except InputError as error:
                # The first reason counts; the other requests fail for the same.
                self.stop = self.stop or error
                continue
            self._num_in_a_row = 0
            self._budget.settle(price, self._price_of(line, price))
            self.session.store.append(line)
            self._check_refused(line)
            if line["failure"] is not None and question.attempts + 1 < self.session.limits.max_attempts:
                self._waiting.append(Pending(question.key, question.item, question.attempts + 1))
            else:
                self._on_settled()

    def _price_of(self, line: LineT, estimate: float) -> float:
        """Return what a reply has cost; by the estimate where the endpoint does not count tokens."""
        if line["input_tokens"] is None and line["failure"] != BAD_REQUEST:
            return estimate
        return self.session.limits.cost(line["input_tokens"] or 0, line["output_tokens"] or 0)

    def _check_refused(self, line: LineT) -> None:
        """Stop a run whose requests are all refused, as by a setting that the model does not know."""
        self._has_reply |= line["failure"] != BAD_REQUEST
        self._num_refused += line["failure"] == BAD_REQUEST
        if not self._has_reply and self._num_refused >= _MAX_REFUSED_FIRST and self.stop is None:
            self.stop = InputError(f"the endpoint refused all of {self._num_refused} requests: {line['reply']}")

    def _give_up_for_now(self, question: Pending[ItemT], error: UnansweredError) -> None:
        self.unanswered.append(question)
        self._num_in_a_row += 1
        if self._num_in_a_row >= _MAX_UNANSWERED_RUN and self.stop is None:
            self.stop = InputError(
                f"{self._num_in_a_row} requests in a row got no answer, the last one: {error}; the replies so far are "
                "kept, the same command resumes"
            )

    def keep_the_rest(self) -> None:
        """Store what is on its way, and send nothing more."""
        for request, (question, _) in self._running.items():
            if not request.cancel():
                with suppress(UnansweredError, InputError):
                    self.session.store.append(self.session.build_line(question, request.result()))


def build_reply_line(key: str, reply: Reply) -> ReplyLine:
    """Build the part of a reply's line that is the same for all questions.

    Args:
        key: Of the question.
        reply: What the endpoint answered.

    Returns:
        The line; its ``failure`` is set where the endpoint refused the request.
    """
    # A request that was refused for its form says so itself.
    failure = None
    if reply.refusal:
        failure = BAD_REQUEST if reply.refusal.startswith(BAD_REQUEST) else "refusal"
    return {
        "key": key,
        "failure": failure,
        "reply": (reply.refusal or reply.text or "")[:_REPLY_CHARS],
        "finish_reason": reply.finish_reason,
        "model": reply.model,
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
        "answered_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
