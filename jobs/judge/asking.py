"""Ask what is not judged yet, some requests at a time, and store every reply before the next step."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

from jobs.judge.client import JudgeClient, Reply, UnansweredError
from jobs.judge.recipe import JudgeRecipe
from wm.errors import InputError
from wm.evaluation.judge.items import Bench, JudgeItem
from wm.evaluation.judge.replies import ReplyError, parse_reply
from wm.evaluation.judge.requests import JudgeSettings, build_body, count_image_tokens, count_text_tokens
from wm.evaluation.judge.store import JudgementLine, JudgementStore
from wm.evaluation.judge.template import Template

_MAX_UNANSWERED_RUN = 20
"""So many requests without an answer in a row end the run: the endpoint is down, and waiting costs money elsewhere."""
_REPLY_CHARS = 4000


@dataclass(frozen=True)
class Pending:
    """A question without a judgement: its key and an item that asks it."""

    key: str
    item: JudgeItem
    attempts: int


@dataclass(frozen=True)
class JudgeSession:
    """What asking needs: the images, what is asked about them, whom, and where replies go."""

    bench: Bench
    template: Template
    settings: JudgeSettings
    client: JudgeClient
    store: JudgementStore
    recipe: JudgeRecipe

    def body(self, item: JudgeItem) -> dict[str, object]:
        """Build the body of the request about an item; its images are read for it."""
        images = self.bench.images(item)
        return build_body(self.bench.actions[item.triplet_id], *images, self.template, self.settings)

    def spent(self) -> float:
        """Compute what all replies in the store have cost, by the tokens that the endpoint reported."""
        return spent_so_far(self.store, self.recipe)

    def max_price(self, item: JudgeItem) -> float:
        """Estimate the price of a request about an item, its reply as long as may be."""
        return self.recipe.cost(_count_tokens(item, self.bench, self.template, self.recipe), self.recipe.max_tokens)


class CostReachedError(InputError):
    """The next request could cost more than is left of ``max_cost``."""


def spent_so_far(store: JudgementStore, recipe: JudgeRecipe) -> float:
    """Compute what all replies in a store have cost, by the tokens that the endpoint reported.

    Args:
        store: The replies.
        recipe: Prices.
    """
    # Failed attempts cost as much as others.
    lines = [*store.judged.values(), *(line for failures in store.failures.values() for line in failures)]
    return recipe.cost(
        sum(line["input_tokens"] or 0 for line in lines), sum(line["output_tokens"] or 0 for line in lines)
    )


def list_pending(keys: Mapping[str, JudgeItem], store: JudgementStore, max_attempts: int) -> list[Pending]:
    """List the questions that are neither judged nor given up.

    Args:
        keys: An item for every key.
        store: What was judged.
        max_attempts: Failures after which a question is given up.

    Returns:
        The questions, in the order of ``keys``.
    """
    attempts = {key: len(store.failures.get(key, ())) for key in keys}
    return [
        Pending(key, item, attempts[key])
        for key, item in keys.items()
        if key not in store.judged and attempts[key] < max_attempts
    ]


def estimate_cost(
    pending: Sequence[Pending], bench: Bench, template: Template, recipe: JudgeRecipe
) -> tuple[int, float]:
    """Estimate what judging costs, every reply as long as may be.

    Args:
        pending: The questions.
        bench: Their images.
        template: Their text.
        recipe: Detail and prices.

    Returns:
        Input tokens, and the price in the currency of the recipe's prices.
    """
    # Replies are counted at their max length: an estimate that is too low would be found when the money is spent.
    tokens = sum(_count_tokens(question.item, bench, template, recipe) for question in pending)
    return tokens, recipe.cost(tokens, len(pending) * recipe.max_tokens)


def ask_all(session: JudgeSession, pending: Sequence[Pending], on_judged: Callable[[], object]) -> list[Pending]:
    """Ask every question until it is judged or given up.

    Args:
        session: Its store is open for writing.
        pending: The questions.
        on_judged: Called once a question is judged or given up.

    Returns:
        Questions that got no answer; asked again by the next run.

    Raises:
        CostReachedError: ``max_cost`` allows no further request; all replies are stored.
        InputError: No request can succeed.
    """
    asker = _Asker(session, pending, on_judged)
    with ThreadPoolExecutor(session.recipe.concurrency, thread_name_prefix="judge") as pool:
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


class _Asker:
    """Questions that wait, requests on their way, and why no more are sent."""

    def __init__(self, session: JudgeSession, pending: Sequence[Pending], on_judged: Callable[[], object]) -> None:
        self.session, self._on_judged = session, on_judged
        self.unanswered: list[Pending] = []
        self.stop: Exception | None = None
        # The store may be shared: what other runs spent counts too.
        self._budget = _Budget(session.recipe, session.spent())
        self._waiting = deque(pending)
        self._running: dict[Future[Reply], tuple[Pending, float]] = {}
        self._num_in_a_row = 0

    def has_work(self) -> bool:
        """Return whether requests are on their way or may be sent."""
        return bool(self._running) or (bool(self._waiting) and self.stop is None)

    def fill_up(self, pool: ThreadPoolExecutor) -> None:
        """Send as many requests as may be on their way; images are read here, so that few are in memory."""
        while self._waiting and self.stop is None and len(self._running) < self.session.recipe.concurrency:
            question = self._waiting.popleft()
            price = self.session.max_price(question.item)
            if not self._budget.reserve(price):
                self._waiting.appendleft(question)
                # Replies on their way may turn out cheaper than they were counted.
                if not self._running:
                    self.stop = self._budget.error()
                return
            request = pool.submit(self.session.client.ask, self.session.body(question.item))
            self._running[request] = question, price

    def take_answers(self) -> None:
        """Wait for an answer, and store all that are there before the next request leaves."""
        for request in wait(self._running, return_when=FIRST_COMPLETED).done if self._running else ():
            question, price = self._running.pop(request)
            try:
                line = build_line(question.key, request.result())
            except UnansweredError as error:
                self._budget.settle(price, 0.0)
                self._give_up_for_now(question, error)
                continue
            except InputError as error:
                # The first reason counts; the other requests fail for the same.
                self.stop = self.stop or error
                continue
            self._num_in_a_row = 0
            tokens = line["input_tokens"] or 0, line["output_tokens"] or 0
            self._budget.settle(price, self.session.recipe.cost(*tokens))
            self.session.store.append(line)
            if line["failure"] is not None and question.attempts + 1 < self.session.recipe.max_attempts:
                self._waiting.append(Pending(question.key, question.item, question.attempts + 1))
            else:
                self._on_judged()

    def _give_up_for_now(self, question: Pending, error: UnansweredError) -> None:
        self.unanswered.append(question)
        self._num_in_a_row += 1
        if self._num_in_a_row >= _MAX_UNANSWERED_RUN and self.stop is None:
            self.stop = InputError(
                f"{self._num_in_a_row} requests in a row got no answer, the last one: {error}; what is judged is kept, "
                "the same command resumes"
            )

    def keep_the_rest(self) -> None:
        """Store what is on its way, and send nothing more."""
        for request, (question, _) in self._running.items():
            if not request.cancel():
                with suppress(UnansweredError, InputError):
                    self.session.store.append(build_line(question.key, request.result()))


def build_line(key: str, reply: Reply) -> JudgementLine:
    """Build the line of a reply.

    Args:
        key: Of the question.
        reply: What the endpoint answered.

    Returns:
        The line, with scores or with the reason why there are none.
    """
    # Filled in below; a line without scores is as valuable as one with them, since it is not asked again for ever.
    line: JudgementLine = {
        "key": key,
        "editing_success": None,
        "minimal_editing": None,
        "reasoning": "",
        "failure": None,
        "reply": (reply.refusal or reply.text or "")[:_REPLY_CHARS],
        "finish_reason": reply.finish_reason,
        "model": reply.model,
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
        "answered_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if reply.refusal:
        line["failure"] = "bad request" if reply.refusal.startswith("bad request") else "refusal"
        return line
    try:
        judgement = parse_reply(reply.text)
    except ReplyError as error:
        line["failure"] = error.reason
        return line
    line["editing_success"], line["minimal_editing"] = judgement.editing_success, judgement.minimal_editing
    line["reasoning"] = judgement.reasoning
    return line


class _Budget:
    """What was spent and what requests on their way may cost."""

    def __init__(self, recipe: JudgeRecipe, spent: float) -> None:
        self._max_cost, self._spent, self._reserved = recipe.max_cost, spent, 0.0

    def reserve(self, price: float) -> bool:
        """Return whether a request of that price still fits, and count it."""
        # What is on its way may cost its full estimate.
        if self._max_cost and self._spent + self._reserved + price > self._max_cost:
            return False
        self._reserved += price
        return True

    def settle(self, reserved: float, spent: float) -> None:
        """Replace an estimate by what a reply has cost."""
        self._reserved -= reserved
        self._spent += spent

    def error(self) -> CostReachedError:
        return CostReachedError(
            f"max_cost = {self._max_cost:g} allows no further request ({self._spent:.4f} spent); what is judged is "
            "kept, the same command with a larger max_cost resumes"
        )


def _count_tokens(item: JudgeItem, bench: Bench, template: Template, recipe: JudgeRecipe) -> int:
    images = sum(count_image_tokens(*size_px, recipe.detail) for size_px in bench.sizes_px(item))
    return count_text_tokens(bench.actions[item.triplet_id], template) + images
