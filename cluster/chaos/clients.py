"""Ask a server without pause, count what fails, and hold every answer against the one that the seed had before."""

import hashlib
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import requests

from wm.packaged import SHIPPED

NUM_SEEDS = 12
TIMEOUT_S = 120.0
_PAUSE_S = 0.1
_NUM_NAMED = 50


@dataclass(frozen=True)
class Failure:
    """A request that had no answer."""

    at_s: float
    seed: int
    reason: str
    """HTTP status with the server's words, or the exception of a connection."""


@dataclass
class Load:
    """Clients that ask until the block ends, each on a thread; none repeats a request that failed."""

    url: str
    num_clients: int
    expected: dict[int, str] = field(default_factory=dict)
    """Digest of the answer by seed."""
    num_answers: int = 0
    failures: list[Failure] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Answers that differ from the expected one."""

    def __post_init__(self) -> None:
        self._over, self._lock = threading.Event(), threading.Lock()
        # One of the images that the playground offers.
        self._png = min((SHIPPED / "images").glob("*.png")).read_bytes()
        self._begin_s = time.monotonic()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,), daemon=True) for number in range(self.num_clients)
        ]

    def __enter__(self) -> "Load":
        self._begin_s = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A request that is under way is waited for, and counts.
        self._over.set()
        for thread in self._threads:
            thread.join()

    def ask(self, seed: int) -> str:
        """Ask for a prediction.

        Args:
            seed: Of its sampling.

        Returns:
            Digest of the answer.

        Raises:
            requests.RequestException: There was none.
        """
        reply = requests.post(
            f"{self.url}/v1/images/edits",
            files={"image": ("a.png", self._png, "image/png")},
            data={"prompt": "move the red square left", "seed": str(seed), "n": "1"},
            timeout=TIMEOUT_S,
        )
        # The server's own words: a status alone does not say what was missing.
        if reply.status_code != requests.codes.ok:
            raise requests.HTTPError(f"HTTP {reply.status_code}: {reply.text[:120]}")
        return hashlib.sha256(reply.json()["data"][0]["b64_json"].encode()).hexdigest()

    def learn(self) -> None:
        """Ask with every seed once, before anything is disturbed."""
        self.expected = {seed: self.ask(seed) for seed in range(NUM_SEEDS)}

    def count_reasons(self) -> dict[str, int]:
        """Count failures by their reason, without its details."""
        return dict(Counter(failure.reason.split(":")[0] for failure in self.failures).most_common())

    def named_failures(self) -> list[Failure]:
        """Return the first failures; all of them are counted."""
        return self.failures[:_NUM_NAMED]

    def _ask_on(self, number: int) -> None:
        seed = number % NUM_SEEDS
        while not self._over.is_set():
            at_s = round(time.monotonic() - self._begin_s, 1)
            try:
                digest = self.ask(seed)
            # An answer that is cut is no answer: its JSON, or a key of it, is missing.
            except (requests.RequestException, ValueError, KeyError) as error:
                reason = str(error) if isinstance(error, requests.HTTPError) else f"{type(error).__name__}: {error}"
                with self._lock:
                    self.failures.append(Failure(at_s, seed, reason[:200]))
            else:
                with self._lock:
                    self.num_answers += 1
                    if digest != self.expected.get(seed, digest):
                        self.wrong.append(f"seed {seed} after {at_s} s")
            # Together the clients ask with every seed.
            seed = (seed + self.num_clients) % NUM_SEEDS
            self._over.wait(_PAUSE_S)
