"""Keep requests within a cost: what was spent, and what those on their way may cost."""

from typing import Protocol

from wm.errors import InputError


class ChatLimits(Protocol):
    """Keys of a recipe that asking reads."""

    @property
    def concurrency(self) -> int:
        """Requests at a time."""

    @property
    def max_attempts(self) -> int:
        """Replies that cannot be used after which a question is given up."""

    @property
    def max_cost(self) -> float:
        """Of all replies of the store together; 0: no limit."""

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """Compute a price.

        Args:
            input_tokens: Of requests.
            output_tokens: Of replies.
        """


class CostReachedError(InputError):
    """The next request could cost more than is left of ``max_cost``."""


class Budget:
    """What was spent and what requests on their way may cost."""

    def __init__(self, limits: ChatLimits, spent: float) -> None:
        """Take the limit and what was spent before."""
        self._max_cost, self._spent, self._reserved = limits.max_cost, spent, 0.0

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
        """Build the error of a request that no longer fits."""
        return CostReachedError(
            f"max_cost = {self._max_cost:g} allows no further request ({self._spent:.4f} spent); the replies so far "
            "are kept, the same command with a larger max_cost resumes"
        )
