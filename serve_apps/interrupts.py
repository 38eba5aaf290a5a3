"""Take Ctrl-C and SIGTERM for a server: each ends it once, in an orderly way, whatever is being done then."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The handlers of :data:`SIGNALS` while a server runs, in the main thread.

    The first signal raises ``KeyboardInterrupt``; those that follow are ignored, as half a session would be left if
    they broke off its end. A signal that the process ignores from its start, as one that a script runs in the
    background ignores Ctrl-C, stays ignored.
    """

    def __init__(self) -> None:
        self._is_holding = self._is_interrupted = False
        self._numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    def install(self) -> None:
        """Set the handlers; again where others have been set meanwhile."""
        for number in self._numbers:
            signal.signal(number, self._interrupt)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Let the block run to its end first: what is broken off in the middle of it could not be undone."""
        from ray._private import utils

        self._is_holding = True
        self.install()
        # Ray would set handlers of its own in the middle of its start, one of which ends the process at once.
        set_sigterm_handler = getattr(utils, "set_sigterm_handler", None)
        utils.set_sigterm_handler = lambda handler: None
        try:
            yield
        finally:
            self._is_holding = False
            utils.set_sigterm_handler = set_sigterm_handler
        # Again: its native code has set one all the same.
        self.install()
        if self._is_interrupted:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Ignore the signals from now on."""
        self._is_interrupted = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        is_first, self._is_interrupted = not self._is_interrupted, True
        if is_first and not self._is_holding:
            raise KeyboardInterrupt
