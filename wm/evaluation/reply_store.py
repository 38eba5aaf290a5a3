"""Keep replies of models: one JSON line a reply, appended, so that nothing that was paid for is lost or asked twice.

Not known here: who asks, what is asked, and what becomes of the replies.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TextIO, TypedDict, TypeVar

from wm.errors import InputError
from wm.files.lease import Lease
from wm.files.mirror import fetch, publish, uri_of
from wm.files.transfer import BucketError

PUBLISH_S = 15.0
"""Seconds after which the lines of a store in a bucket are uploaded: so much may be paid for twice."""


class ReplyLine(TypedDict):
    """One reply. ``failure`` says why it cannot be used; null where it can."""

    key: str
    failure: str | None
    reply: str
    finish_reason: str | None
    model: str
    input_tokens: int | None
    output_tokens: int | None
    answered_at: str


LineT = TypeVar("LineT", bound=ReplyLine)


class ReplyStore(Generic[LineT]):
    """The lines of a folder; use it inside :meth:`writing` to add some."""

    def __init__(
        self, folder: str | Path, lines: str = "replies", *, noun: str = "reply", fields: Sequence[str] = ()
    ) -> None:
        """Read all lines that are there.

        Args:
            folder: Folder of the store; need not exist.
            lines: Folder of the lines below it.
            noun: What a line is called in messages.
            fields: Fields that a line has beside those of every reply.

        Raises:
            InputError: A line other than the last one of a file is damaged.
        """
        self.folder = Path(folder)
        self._lines, self._noun, self._fields = lines, noun, ("key", "failure", *fields)
        self.answered: dict[str, LineT] = {}
        """Lines that can be used by key."""
        self.failures: dict[str, list[LineT]] = {}
        """Lines that cannot by key, in the order of the attempts."""
        self.num_torn = 0
        """Lines that a kill cut off, whose requests are asked again."""
        self._file: TextIO | None = None
        self._opened_s = 0.0
        self._load()

    def _load(self) -> None:
        self._fetch_lines()
        self.answered.clear()
        self.failures.clear()
        self.num_torn = 0
        for path in sorted((self.folder / self._lines).glob("*.jsonl")):
            for line in self._read(path):
                self._add(line)

    def _fetch_lines(self) -> None:
        """Bring the lines of a store in a bucket here; there may be none yet."""
        try:
            fetch(self.folder / self._lines, prune=True)
        except BucketError as error:
            if error.reason != "missing_file":
                raise

    def _read(self, path: Path) -> Iterator[LineT]:
        # Bytes: a line that was cut within a character is no UTF-8.
        lines = path.read_bytes().split(b"\n")
        for number, data in enumerate(lines, 1):
            if not data:
                continue
            try:
                line: LineT = json.loads(data)
                _ = [line[name] for name in self._fields]  # type: ignore[literal-required]
            except (ValueError, KeyError, TypeError) as error:
                # A line is complete when its line end is: the writer was killed within the last one.
                if number == len(lines):
                    self.num_torn += 1
                    return
                raise InputError(f"{path}, line {number} is damaged; expected a {self._noun} as JSON") from error
            yield line

    def _add(self, line: LineT) -> None:
        if line["failure"] is None:
            # The first one stays: figures that were computed from it do not change.
            self.answered.setdefault(line["key"], line)
        else:
            self.failures.setdefault(line["key"], []).append(line)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let this process alone add lines; every writer has a file of its own. Lines are read again before.

        Raises:
            InputError: Another process writes.
        """
        # The kernel frees the lock of a writer that was killed.
        folder = self.folder / self._lines
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("a") as lock, self._lease():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"{self.folder}: another run is writing into it; wait for it") from error
            # Another writer may have ended since they were read: what it paid for is not asked again.
            self._load()
            # A new file for every writer: a torn line stays the last one of its own.
            self._open_file()
            try:
                yield
            finally:
                self._close_file()

    @contextmanager
    def _lease(self) -> Iterator[None]:
        """Let one node at a time write into a store in a bucket; elsewhere the lock does."""
        uri = uri_of(self.folder / self._lines)
        if uri is None:
            yield
            return
        lease = Lease(uri, f"store of {self._lines}")
        lease.acquire()
        try:
            yield
        finally:
            lease.release()

    def _open_file(self) -> None:
        name = f"{time.time_ns()}-{os.getpid()}.jsonl"
        self._file = (self.folder / self._lines / name).open("a", encoding="utf-8")
        self._opened_s = time.monotonic()

    def _close_file(self) -> None:
        """Close the file of this writer, and upload it where the store is in a bucket."""
        assert self._file is not None
        path = Path(self._file.name)
        self._file.close()
        self._file = None
        if path.stat().st_size:
            publish(path)
        else:
            path.unlink()

    def flush(self) -> None:
        """Upload the lines of a store in a bucket so far; lines elsewhere are on the disk already."""
        if self._file is not None and uri_of(self.folder) is not None:
            self._close_file()
            self._open_file()

    def append(self, line: LineT) -> None:
        """Write a line to the disk before anything else happens: it was paid for.

        A bucket takes no single lines: there a file is uploaded, and another one begun, every :data:`PUBLISH_S`.

        Args:
            line: The reply.

        Raises:
            OSError: The disk is full or may not be written.
            RuntimeError: Outside of :meth:`writing`.
        """
        if self._file is None:
            raise RuntimeError("append() belongs inside of writing()")
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._add(line)
        if time.monotonic() - self._opened_s > PUBLISH_S:
            self.flush()
