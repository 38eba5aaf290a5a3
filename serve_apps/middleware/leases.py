"""Hold one process's part of the limits that all processes which speak HTTP share: see :mod:`serve_apps.ledger`.

A request takes from what is leased. Where that is not enough, one question is on its way at a time, for all requests
that wait meanwhile. What a process no longer uses it gives back within :data:`RETURN_S`. If the ledger does not answer,
each process lets through its share of the limit by itself.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from serve_apps import metrics
from serve_apps.keys import Key
from serve_apps.ledger import HOLDER_S, Claim, Grant
from serve_apps.middleware.allowance import Allowance, limit_headers, too_many_at_once, too_many_in_a_minute
from serve_apps.openai.errors import ApiError

logger = logging.getLogger("ray.serve")

RETURN_S = 0.5
ANSWER_S = 1.0
# After a ledger did not answer, for so long nobody waits for it.
REST_S = 2.0
# A refusal holds for so long at least: a flood of requests must not become a flood of questions.
REFUSAL_S = 0.2
MAX_QUESTIONS = 3

# Asks the ledger for this process: name of the process, claims.
Exchange = Callable[[str, Sequence[Claim]], Awaitable[list[Grant]]]


class Leases:
    """The leases of one process, for all keys.

    Args:
        exchange: Asks the ledger.
        clock: Returns seconds.
    """

    def __init__(self, exchange: Exchange, clock: Callable[[], float] = time.monotonic) -> None:
        self._exchange, self.clock = exchange, clock
        self._name = uuid.uuid4().hex
        self._allowances: dict[str, LeasedAllowance] = {}
        self._returning: asyncio.Task[None] | None = None
        self._broken_until_s = self._heard_s = -math.inf
        self.num_holders = 1

    def allowance(self, key: Key) -> "LeasedAllowance":
        """Return what is leased of a key.

        Args:
            key: With its limits as they are now.
        """
        allowance = self._allowances.get(key.sha256)
        if allowance is None:
            allowance = self._allowances[key.sha256] = LeasedAllowance(key, self)
        allowance.key = key
        return allowance

    @property
    def is_broken(self) -> bool:
        """Whether the ledger did not answer a moment ago."""
        return self.clock() < self._broken_until_s

    async def ask(self, claims: Sequence[Claim]) -> list[Grant] | None:
        """Ask the ledger.

        Args:
            claims: Of this process, one a key.

        Returns:
            A grant for each claim; None if it does not answer.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                grants = await self._exchange(self._name, claims)
        except Exception as error:
            if not self.is_broken:
                logger.warning("the shared limits of keys do not answer (%r); this process keeps its share", error)
            self._broken_until_s = self.clock() + REST_S
            return None
        self.num_holders, self._heard_s = grants[0].num_holders, self.clock()
        return grants

    def begin_returning(self) -> None:
        """Start to give back what is no longer used, if that does not run."""
        if self._returning is None or self._returning.done():
            self._returning = asyncio.create_task(self._return_all())

    async def give_back(self) -> None:
        """Give back what was not used since the last call, and say what is kept, if the ledger has not heard of it
        lately: it frees the slots of a process that is silent."""
        is_due = self.clock() - self._heard_s > HOLDER_S / 3
        returns = [allowance.claim_return(is_due=is_due) for allowance in self._allowances.values()]
        claims = [claim for claim in returns if claim is not None]
        if claims and not self.is_broken:
            await self.ask(claims)

    async def _return_all(self) -> None:
        while any(allowance.holds_any for allowance in self._allowances.values()):
            await asyncio.sleep(RETURN_S)
            await self.give_back()


class LeasedAllowance:
    """What this process holds of one key's limits; requests of the key pass by :meth:`take` and :meth:`release`."""

    def __init__(self, key: Key, leases: Leases) -> None:
        self.key, self._leases = key, leases
        self.in_progress = 0
        self._tokens = self._slots = self._peak = self._num_next = 0
        self._was_used = False
        self._remaining, self._counted_s = float(key.requests_per_minute), leases.clock()
        self._next: asyncio.Task[bool | None] | None = None
        self._lock = asyncio.Lock()
        self._refusal: tuple[float, ApiError] | None = None
        self._alone: Allowance | None = None

    @property
    def holds_any(self) -> bool:
        """Whether anything of the ledger's is here."""
        return bool(self._tokens or self._slots or self.in_progress)

    async def take(self) -> ApiError | None:
        """Count a request in, or return the answer that it gets instead."""
        # 1. The hot path: what was leased before.
        if self._take_leased():
            return None
        if self._leases.is_broken:
            return self._take_alone()
        if self._refusal is not None and self._leases.clock() < self._refusal[0]:
            return self._refusal[1]
        # 2. One question for all that wait: who comes while it is on its way waits for the next one.
        for _ in range(MAX_QUESTIONS):
            if self._next is None:
                self._next = asyncio.create_task(self._ask())
            self._num_next += 1
            # A client that leaves must not cancel it for the others.
            is_granted = await asyncio.shield(self._next)
            if self._take_leased():
                return None
            if is_granted is None:
                return self._take_alone()
            # All that was asked for came, but requests that came later were quicker: ask again.
            if not is_granted:
                break
        return self._refuse()

    def release(self) -> None:
        """Count a request out."""
        self.in_progress -= 1

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers of requests a minute: of the key, as far as this process knows."""
        return limit_headers(self.key.requests_per_minute, self._estimate_remaining())

    def claim_return(self, *, is_due: bool) -> Claim | None:
        """Give back what was not used since the last call.

        Args:
            is_due: Whether to claim what is kept even if nothing comes back.

        Returns:
            What to report; None: nothing.
        """
        # A key in use keeps its tokens, and as many slots as it needed at once.
        num_returned = 0 if self._was_used else self._tokens
        slots = max(self.in_progress, self._peak)
        is_changed = num_returned > 0 or slots < self._slots
        self._tokens, self._slots = self._tokens - num_returned, slots
        self._peak, self._was_used = self.in_progress, False
        return self._claim(returned=num_returned) if is_changed or (is_due and slots) else None

    def _claim(self, *, returned: int = 0, wants: int = 0, wants_slots: int = 0) -> Claim:
        key, slots = self.key, max(self._slots, self.in_progress)
        return Claim(key.sha256, key.requests_per_minute, key.concurrent_requests, slots, returned, wants, wants_slots)

    def _take_leased(self) -> bool:
        if self._tokens < 1 or self.in_progress >= min(self._slots, self.key.concurrent_requests):
            return False
        self._tokens -= 1
        self._count_in()
        return True

    def _count_in(self) -> None:
        self.in_progress += 1
        self._peak = max(self._peak, self.in_progress)
        self._was_used = True
        self._leases.begin_returning()

    async def _ask(self) -> bool | None:
        """Ask for all that wait when it is sent; returns whether all of it came, None without an answer."""
        async with self._lock:
            num_waiting, self._num_next, self._next = self._num_next, 0, None
            wants = max(0, num_waiting - self._tokens)
            wants_slots = max(0, self.in_progress + num_waiting - self._slots)
            grants = await self._leases.ask([self._claim(wants=wants, wants_slots=wants_slots)])
            if grants is None:
                return None
            (grant,) = grants
            self._tokens += grant.tokens
            self._slots = max(self._slots, self.in_progress) + grant.slots
            self._peak = max(self._peak, min(self._slots, self.in_progress + num_waiting))
            self._remaining, self._counted_s = grant.remaining, self._leases.clock()
            # What has just come is not idle, though nobody has taken it yet.
            self._was_used = True
            self._leases.begin_returning()
            return grant.tokens >= wants and grant.slots >= wants_slots

    def _refuse(self) -> ApiError:
        key, headers = self.key, self.headers()
        if self._tokens < 1:
            wait_s = max(0.0, 1 - self._remaining) * 60 / key.requests_per_minute
            error = too_many_in_a_minute(key.requests_per_minute, wait_s, headers)
        else:
            error, wait_s = too_many_at_once(key.concurrent_requests, headers), REFUSAL_S
        self._refusal = self._leases.clock() + min(wait_s, REFUSAL_S), error
        return error

    def _take_alone(self) -> ApiError | None:
        """Let through this process's share of the limit."""
        num_holders = self._leases.num_holders
        shares = {
            name: max(1, getattr(self.key, name) // num_holders)
            for name in ("requests_per_minute", "concurrent_requests")
        }
        share = self.key.model_copy(update=shares)
        if self._alone is None or self._alone.key != share:
            self._alone = Allowance(share, self._leases.clock)
        self._alone.in_progress = self.in_progress
        error = self._alone.take_now()
        if error is None:
            metrics.record(metrics.LIMITS_ALONE)
            self._count_in()
        return error

    def _estimate_remaining(self) -> float:
        limit = self.key.requests_per_minute
        filled = (self._leases.clock() - self._counted_s) * limit / 60
        return min(float(limit), self._remaining + self._tokens + filled)
