"""Let one writer at a time have an output in a bucket, on stores without rename, locks or conditional requests.

Each writer puts a claim of its own name into the output's folder and then lists the folder. Stores list what was
written before (S3 since 2020, Google Cloud Storage): of two writers at least one sees the other, and whoever sees a
live claim withdraws. The first to write never meets a claim written later: its listing came before. A claim lives while
its count of beats grows; it is watched by a local stopwatch, and no clocks are compared. A claim that does not change
for :data:`EXPIRY_S` belongs to a killed writer and is removed; one of an ended process of this machine, at once.

A writer that was suspended for longer than that finds its claim gone at its next beat or :meth:`Lease.check`, and
stops. What it had begun to upload at that very moment still arrives: no store without fencing can prevent that.
Not known here: what is written.
"""

import atexit
import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from wm.errors import InputError
from wm.files.mirror import WRITERS
from wm.files.transfer import BucketError, delete_object, list_objects, read_object, write_object
from wm.files.uris import join_uri
from wm.files.writer_lock import Writer, describe_writer, this_writer

BEAT_S = 10.0
"""Seconds between two beats of a writer."""
EXPIRY_S = 45.0
"""A claim without a beat for so long has lost its writer."""
POLL_S = 2.0
"""Seconds between two looks at others' claims."""

_held: "dict[str, Lease]" = {}


class Claim(Writer):
    """What a claim holds."""

    machine: str
    """Boot and process namespace: process ids are compared within one only."""
    started: str
    """When the process started, in the kernel's ticks: ids are used again."""
    is_writing: bool
    """False: it waits for the claims of others."""
    beats: int
    took_over: list[str]
    """Names of claims that it has removed."""


class Lease:
    """The right to write into one output in a bucket."""

    def __init__(self, folder_uri: str, stage: str) -> None:
        """Prepare it; nothing is written yet.

        Args:
            folder_uri: Of the output.
            stage: Name of the command, for messages.
        """
        self.folder_uri = folder_uri
        self._name = f"{secrets.token_hex(8)}.json"
        self._claim: Claim = {
            **this_writer(stage),
            "machine": _machine(),
            "started": _start_of(os.getpid()),
            "is_writing": False,
            "beats": 0,
            "took_over": [],
        }
        self._ended = threading.Event()
        self._lost = ""
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the right to write, after a killed writer's claim has expired.

        Raises:
            InputError: Another writer has it; the message names host, process and time.
            BucketError: The bucket cannot be written.
        """
        # A run that raised in this very process has left its own.
        if (earlier := _held.pop(self.folder_uri, None)) is not None:
            earlier.release()
        self._beat()
        try:
            self._wait_for_others()
        except BaseException:
            with suppress(BucketError):
                delete_object(self._uri(self._name))
            raise
        self._claim["is_writing"] = True
        self._beat()
        _held[self.folder_uri] = self
        atexit.register(self.release)
        # A daemon: a process that ends without releasing leaves a claim that does not change.
        self._thread = threading.Thread(target=self._keep, name="wm-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise :class:`InputError` if another writer has taken over."""
        if self._lost:
            raise InputError(f"{self.folder_uri}: {self._lost}")

    def release(self) -> None:
        """Give the right back. A claim that cannot be removed expires."""
        # A forked process inherits this object and not the right.
        if self._ended.is_set() or self._claim["pid"] != os.getpid():
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=BEAT_S)
        if _held.get(self.folder_uri) is self:
            del _held[self.folder_uri]
        atexit.unregister(self.release)
        with suppress(BucketError):
            delete_object(self._uri(self._name), patience_s=POLL_S)

    def _wait_for_others(self) -> None:
        """Return when no other claim is there; raise :class:`InputError` for one that lives."""
        counts: dict[str, int] = {}
        seen_s: dict[str, float] = {}
        beaten_s = time.monotonic()
        while others := self._others():
            for name, claim in others.items():
                is_here = claim["machine"] == _machine()
                if is_here and _start_of(claim["pid"]) != claim["started"]:
                    self._remove_dead(name)
                elif is_here and claim["is_writing"]:
                    raise self._refusal(claim)
                elif name not in counts:
                    counts[name], seen_s[name] = claim["beats"], time.monotonic()
                    self._announce(claim)
                elif claim["beats"] != counts[name]:
                    # Of two that wait for each other the one with the lesser name stays.
                    if claim["is_writing"] or name < self._name:
                        raise self._refusal(claim)
                    counts[name], seen_s[name] = claim["beats"], time.monotonic()
                elif time.monotonic() - seen_s[name] > EXPIRY_S:
                    self._remove_dead(name)
            if time.monotonic() - beaten_s > BEAT_S:
                self._beat()
                beaten_s = time.monotonic()
            time.sleep(POLL_S)
        if read_object(self._uri(self._name)) is None:
            raise InputError(f"{self.folder_uri} was taken by another writer at the same moment; run the command again")

    def _refusal(self, claim: Claim) -> InputError:
        writer = describe_writer(claim)
        return InputError(f"{self.folder_uri} is being written by {writer}; wait for it, or end it first")

    def _announce(self, claim: Claim) -> None:
        print(
            f"{self._claim['stage']}: {self.folder_uri} was being written by {describe_writer(claim)}; waiting up to "
            f"{EXPIRY_S:g} s for a sign of life",
            file=sys.stderr,
        )

    def _remove_dead(self, name: str) -> None:
        # Noted first: should its writer wake up, it reads who took over.
        self._claim["took_over"].append(name)
        self._beat()
        delete_object(self._uri(name))

    def _keep(self) -> None:
        """Beat until the end, or until another has taken over."""
        while not self._ended.wait(BEAT_S):
            try:
                names = [facts.name for facts in list_objects(self._uri(""), missing_ok=True, patience_s=BEAT_S)]
                names = [name for name in names if name.endswith(".json")]
                others = self._others() if names != [self._name] else {}
                thieves = [claim for claim in others.values() if self._name in claim["took_over"]]
                if thieves or self._name not in names:
                    by = f" by {describe_writer(thieves[0])}" if thieves else ""
                    self._lost = f"its writer was without a sign of life for {EXPIRY_S:g} s, and it was taken over{by}"
                    return
                if not self._ended.is_set():
                    self._beat(BEAT_S)
            except BucketError:
                # A store that is down: the claim does not change, and is looked at when the store is back.
                continue

    def _beat(self, patience_s: float = 60.0) -> None:
        self._claim["beats"] += 1
        write_object(self._uri(self._name), json.dumps(self._claim).encode(), patience_s=patience_s)

    def _others(self) -> dict[str, Claim]:
        """Read all claims but this one."""
        claims: dict[str, Claim] = {}
        for facts in list_objects(self._uri(""), missing_ok=True):
            # Others' tests of the bucket are no claims.
            if facts.name == self._name or not facts.name.endswith(".json"):
                continue
            content = read_object(self._uri(facts.name))
            # None: withdrawn meanwhile.
            if content is not None:
                try:
                    claims[facts.name] = json.loads(content)
                except ValueError as error:
                    uri = self._uri(facts.name)
                    raise InputError(f"{uri} is no claim of a writer: {error}; remove that object") from error
        return claims

    def _uri(self, name: str) -> str:
        return join_uri(self.folder_uri, f"{WRITERS}/{name}")


def _machine() -> str:
    """Name the space in which process ids are unique: this boot, this namespace; "" where that is not known."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{secrets.token_hex(8)}"


def _start_of(pid: int) -> str:
    """Return when a process started, in ticks since the boot; "" if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # Field 22, counted behind the name, which may hold blanks; Z: it waits for its parent only.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
