"""Decide who may open a study: this machine alone, or whoever has the invitation with its key.

Not known here: HTTP.
"""

import hmac
import os
import secrets
import threading
import time
from collections import OrderedDict, deque
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from wm.errors import InputError
from wm.study.database import RefusedError

MIN_KEY_LETTERS: Final = 22
"""Of base64: 128 random bits have so many."""
MAX_MISSES: Final = 20
"""Wrong codes, or wrong keys, of one address within :data:`WINDOW_S`: mistyping is not hindered, guessing is."""
MAX_MISSES_TOGETHER: Final = 500
"""Of all addresses together."""
WINDOW_S: Final = 60.0
_MAX_ADDRESSES: Final = 10_000


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is reached from this machine alone; of names only localhost is."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_keys(path: Path) -> tuple[str, ...]:
    """Load the keys of invitations, one a line; lines that begin with ``#`` are comments.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, holds no key, or one that is short enough to be guessed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"keys = {str(path)!r}: cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise InputError(f"keys = {str(path)!r}: no key in it; expected one a line, or no file: then one is made")
    # The key itself is in no message: messages end up in logs.
    for number, key in enumerate(keys, start=1):
        letters = set(key) - set("-_")
        if len(key) < MIN_KEY_LETTERS or not all(char.isascii() and char.isalnum() for char in letters):
            raise InputError(
                f"keys = {str(path)!r}: key {number} has {len(key)} letters; expected {MIN_KEY_LETTERS} or more of "
                "A-Z, a-z, 0-9, - and _"
            )
    return keys


def make_keys(path: Path) -> tuple[str, ...]:
    """Write a file with one new key, which only its owner may read, and return the key.

    Args:
        path: The file, which must not exist.

    Raises:
        InputError: It cannot be written.
    """
    key = secrets.token_urlsafe(16)
    # Never world-readable, not even for a moment, and never over another file.
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(f"# Keys of invitations to a study, one a line. Whoever has one can take part.\n{key}\n")
    except OSError as error:
        raise InputError(f"keys = {str(path)!r}: cannot be written: {error.strerror}") from error
    return (key,)


def is_known(key: str, keys: tuple[str, ...]) -> bool:
    """Return whether a key is one of several; it takes as long whichever it is.

    Args:
        key: As a client sent it.
        keys: Those that are right.
    """
    # No early end: the time must not say how much of it was right.
    return sum(hmac.compare_digest(key.encode(), valid_key.encode()) for valid_key in keys) > 0


class Guesses:
    """Count the wrong codes, or keys, of each address, and refuse those who guess for the rest of a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._misses: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque()

    def check(self, address: str, now_s: float | None = None) -> None:
        """Refuse an address that guesses.

        Args:
            address: Of the client.
            now_s: Time on a clock that only advances, s; None: the present.

        Raises:
            RefusedError: It has been wrong too often, or all addresses together have.
        """
        now_s = time.monotonic() if now_s is None else now_s
        with self._lock:
            mine = self._misses.get(address, deque())
            # Misses leave the window by themselves: nothing has to be cleaned up later.
            for misses in (mine, self._all):
                while misses and misses[0] <= now_s - WINDOW_S:
                    misses.popleft()
            if len(mine) >= MAX_MISSES or len(self._all) >= MAX_MISSES_TOGETHER:
                raise RefusedError("Too many wrong codes came from here: please wait a minute.", "too_many")

    def count(self, address: str, now_s: float | None = None) -> None:
        """Count a wrong code or key.

        Args:
            address: Of the client.
            now_s: As in :meth:`check`.
        """
        now_s = time.monotonic() if now_s is None else now_s
        with self._lock:
            self._misses.setdefault(address, deque()).append(now_s)
            self._misses.move_to_end(address)
            self._all.append(now_s)
            # Whoever has many addresses must not fill the memory.
            while len(self._misses) > _MAX_ADDRESSES:
                self._misses.popitem(last=False)
