"""Keep the limits of API keys for all processes that speak HTTP together: they lease from one ledger.

A request that begins needs a token of its key's bucket and a slot among its concurrent requests. Each process leases
both ahead, as many as it seems to need for a few seconds, so that most requests ask nobody. No token is granted twice:
however many processes there are, a key gets what one process would give it. Not known here: HTTP, keys' owners.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serve_apps.loopback import keep_replica_local

# A process that says nothing for so long is taken for dead: its slots are free again.
HOLDER_S = 10.0
# Of a key's requests a minute, the share that one process may lease ahead: three seconds of them.
MAX_AHEAD_SHARE = 0.05


@dataclass(frozen=True)
class Claim:
    """What a process says of a key, and asks for.

    Attributes:
        key: SHA-256 of the key.
        requests_per_minute: The key's limit, as this process has read it.
        concurrent_requests: The key's other limit.
        slots: Slots that the process keeps, those of requests being answered among them.
        returned: Tokens that it leased and gives back.
        wants: Requests that wait there for a token, and as many for a slot as exceed ``slots``.
        wants_slots: Slots wanted besides those kept.
    """

    key: str
    requests_per_minute: int
    concurrent_requests: int
    slots: int
    returned: int = 0
    wants: int = 0
    wants_slots: int = 0


@dataclass(frozen=True)
class Grant:
    """What a process gets: tokens and slots, and what it needs to know for answers and for times without a ledger."""

    tokens: int
    slots: int
    remaining: float
    """Tokens in the bucket after this."""
    num_holders: int
    """Processes that share the limits now."""


@dataclass
class _Account:
    remaining: float
    at_s: float
    tokens: dict[str, int] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)


class Ledger:
    """The buckets and slots of all keys.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._heard_s: dict[str, float] = {}

    def exchange(self, holder: str, claims: Sequence[Claim]) -> list[Grant]:
        """Take back what a process returns, and grant what it wants as far as there is any.

        Args:
            holder: Name of the process.
            claims: One a key.

        Returns:
            A grant for each claim.
        """
        now_s = self._clock()
        self._heard_s[holder] = now_s
        self._forget_silent(now_s)
        return [self._settle(holder, claim, now_s) for claim in claims]

    def _settle(self, holder: str, claim: Claim, now_s: float) -> Grant:
        limit = claim.requests_per_minute
        account = self._accounts.setdefault(claim.key, _Account(float(limit), now_s))
        # 1. What time has filled in, and what comes back: never more than was leased, or a bucket could grow.
        num_leased = account.tokens.get(holder, 0)
        num_returned = min(claim.returned, num_leased)
        account.remaining = min(limit, account.remaining + (now_s - account.at_s) * limit / 60 + num_returned)
        account.at_s = now_s
        # 2. Slots as the process says: a ledger that was started anew learns them so.
        others = sum(slots for name, slots in account.slots.items() if name != holder)
        slots = max(0, min(claim.wants_slots, claim.concurrent_requests - others - claim.slots))
        account.slots[holder] = claim.slots + slots
        # 3. Tokens: those wanted, and some ahead, of which the other processes must find their share.
        tokens = min(claim.wants, int(account.remaining))
        if claim.wants and tokens == claim.wants:
            spare = (int(account.remaining) - tokens) // (2 * len(self._heard_s))
            tokens += min(spare, int(limit * MAX_AHEAD_SHARE))
        account.remaining -= tokens
        account.tokens[holder] = num_leased - num_returned + tokens
        return Grant(tokens, slots, account.remaining, len(self._heard_s))

    def _forget_silent(self, now_s: float) -> None:
        silent = [name for name, heard_s in self._heard_s.items() if now_s - heard_s > HOLDER_S]
        for name in silent:
            del self._heard_s[name]
            # Its tokens are spent for all that is known; its requests have ended with it.
            for account in self._accounts.values():
                account.tokens.pop(name, None)
                account.slots.pop(name, None)
        # A bucket that is full again and that nobody leases from says nothing that a new one would not.
        self._accounts = {
            key: account
            for key, account in self._accounts.items()
            if any(account.slots.values()) or now_s - account.at_s <= 60
        }


class LimitsServer:
    """The deployment around a :class:`Ledger`: one replica, asked by every process that speaks HTTP."""

    def __init__(self) -> None:
        keep_replica_local()
        self._ledger = Ledger()

    async def exchange(self, holder: str, claims: Sequence[Claim]) -> list[Grant]:
        """Settle claims, on the event loop, one call after the other.

        Args:
            holder: As for :meth:`Ledger.exchange`.
            claims: As there.

        Returns:
            A grant for each claim.
        """
        return self._ledger.exchange(holder, claims)
