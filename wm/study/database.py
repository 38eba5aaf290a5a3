"""Open the SQLite file of a store, made with its tables where it is new, and translate what goes wrong when writing.

Not known here: what participants and votes mean.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from wm.errors import InputError, to_line
from wm.files.mirror import uri_of

APPLICATION_ID: Final = 0x776D7631
"""``wmv1`` in ASCII, which SQLite files of other programs do not have (https://sqlite.org/pragma.html)."""
SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_MS: Final = 30_000
"""How long a process waits for another one that is writing: a write takes milliseconds."""

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
    | {f"fuse.{name}" for name in ("ceph", "glusterfs", "rclone", "s3fs", "sshfs")}
)
"""Kinds of Linux's /proc/self/mountinfo whose files other machines change. SQLite's write-ahead log needs memory that
all its processes share, which machines do not (https://sqlite.org/wal.html, "Overview", disadvantage 2)."""

_NAMES = ("settings", "participants", "votes", "withdrawals", "playground_items")
_TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE participants (
    study_id TEXT NOT NULL, code TEXT NOT NULL, number INTEGER NOT NULL, consented_at TEXT NOT NULL,
    origin TEXT NOT NULL, UNIQUE (study_id, code), UNIQUE (study_id, number));
CREATE TABLE votes (
    vote INTEGER PRIMARY KEY AUTOINCREMENT,
    study_id TEXT NOT NULL, participant TEXT NOT NULL, item_id TEXT NOT NULL, triplet_id TEXT NOT NULL,
    subset TEXT NOT NULL, systems TEXT NOT NULL, best TEXT, worst TEXT, seconds REAL NOT NULL, stored_at TEXT NOT NULL,
    origin TEXT NOT NULL, is_check INTEGER NOT NULL, passed_check INTEGER,
    UNIQUE (study_id, participant, item_id),
    CHECK ((best IS NULL) = (worst IS NULL) AND (best IS NULL OR best <> worst)),
    FOREIGN KEY (study_id, participant) REFERENCES participants (study_id, code));
CREATE TABLE withdrawals (
    study_id TEXT NOT NULL, code TEXT NOT NULL, withdrawn_at TEXT NOT NULL, UNIQUE (study_id, code),
    FOREIGN KEY (study_id, code) REFERENCES participants (study_id, code));
CREATE TABLE playground_items (
    study_id TEXT NOT NULL, item_id TEXT NOT NULL, created_at TEXT NOT NULL, context TEXT NOT NULL,
    UNIQUE (study_id, item_id));
"""
# What was once stored stays as it was: also for whoever opens the file with another program.
_GUARDS = "".join(
    f"CREATE TRIGGER {name}_no_{verb} BEFORE {verb} ON {name} "
    f"BEGIN SELECT RAISE(ABORT, '{name} are only added to, never changed'); END;\n"
    for name in _NAMES
    for verb in ("UPDATE", "DELETE")
)


class RefusedError(InputError):
    """A request of a participant that cannot be taken.

    Args:
        message: One sentence for the page.
        code: The reason for programs, such as ``answered`` (a choice on the item is stored), ``unknown`` (no such
            participant), ``unavailable`` (nothing can be stored now).
    """

    def __init__(self, message: str, code: str = "refused") -> None:
        super().__init__(message)
        self.code = code


def open_database(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file of a store.

    Args:
        path: The file.
        read_only: Whether it is opened as it is: nothing is made, and no write is allowed.

    Returns:
        A connection that any thread may use, one at a time.

    Raises:
        InputError: The file is no store, is of another version, is on a network share, or cannot be opened.
    """
    _check_place(path, read_only)
    # 1. Connect; SQLite does not look at the file yet.
    try:
        connection = _connect(path, read_only)
    except sqlite3.Error as error:
        raise InputError(f"store = {str(path)!r}: cannot be opened as a store of votes: {to_line(error)}") from error
    # 2. Look at it before anything is written: a file of another program must stay as it is.
    try:
        _check_kind(connection, path, read_only)
        if not read_only:
            _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise InputError(f"store = {str(path)!r}: no store of votes of wm study: {to_line(error)}") from error
    except InputError:
        connection.close()
        raise
    return connection


def _check_place(path: Path, read_only: bool) -> None:
    bucket = uri_of(path)
    if bucket is not None:
        raise InputError(f"store = {bucket!r}: SQLite needs a local disk; give store=FILE on one")
    if path.is_dir():
        raise InputError(f"store = {str(path)!r}: a folder; expected a file")
    if read_only and not path.is_file():
        raise InputError(f"store = {str(path)!r}: no such file; wm study serve makes one")
    if not path.parent.is_dir():
        raise InputError(f"store = {str(path)!r}: its folder does not exist")
    # Where a link leads to is where SQLite writes.
    kind = file_system(path.resolve().parent)
    # One machine alone could read it safely; whether another one is writing cannot be seen from here.
    if kind in NETWORK_FILE_SYSTEMS and not read_only:
        raise InputError(
            f"store = {str(path)!r}: on a network share ({kind}), where SQLite would lose votes when two machines "
            "write; give store=FILE on a local disk"
        )


def file_system(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the kind of file system of a folder, as Linux names it; empty where that is not known.

    Args:
        folder: An existing folder.
        mounts: Table of mounts, of https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
    """
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = mounts.read_text(errors="replace").splitlines() if mounts.exists() else []
    # Fields: id, parent, device, root, mount point, options, tags …, "-", kind, source, options.
    kinds = [line.partition(" - ")[2].split()[0] for line in lines if line.split()[2:3] == [number]]
    return kinds[-1] if kinds else ""


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    # Transactions are begun and ended by hand: the module's own begin too late for a check before a write.
    timeout_s = BUSY_TIMEOUT_MS / 1000
    if not read_only:
        connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    else:
        connection = _connect_for_reading(path, timeout_s)
    # What is in the file is data, never code, and OR REPLACE deletes nothing in silence.
    for setting in ("trusted_schema = OFF", "recursive_triggers = ON", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def _connect_for_reading(path: Path, timeout_s: float) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        # A write-protected folder has no place for the shared memory. Without a log there is nothing to share.
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        address += "&immutable=1"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _check_kind(connection: sqlite3.Connection, path: Path, read_only: bool) -> None:
    """Refuse a file of another program or version; nothing is written."""
    kind = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    # A file that was never written to has none of these.
    is_new = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if kind == 0 and version == 0 and is_new:
        if not read_only:
            return
        raise InputError(
            f"store = {str(path)!r}: nothing in it; where it is a copy, its votes may be in the -wal file beside "
            "the original, which wm study serve empties when it ends"
        )
    if kind != APPLICATION_ID:
        raise InputError(f"store = {str(path)!r}: an SQLite file of another program, no store of votes of wm study")
    if version != SCHEMA_VERSION:
        raise InputError(f"store = {str(path)!r}: format {version} of another version of wm; expected {SCHEMA_VERSION}")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Switch to a write-ahead log that is flushed at each commit, and make the tables where they are missing."""
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise InputError(
            f"store = {str(path)!r}: its disk does not let processes share memory, which SQLite's write-ahead log "
            "needs; give store=FILE on a local disk"
        )
    # NORMAL would flush the log only now and then: an acknowledged vote could be lost with the machine's power.
    connection.execute("PRAGMA synchronous = FULL")
    # On macOS a flush leaves data in the disk's own memory unless it is asked for more
    # (https://sqlite.org/pragma.html#pragma_fullfsync).
    connection.execute("PRAGMA fullfsync = ON")
    # Another process may be making the tables at this moment: look again once it is done.
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _split(_TABLES + _GUARDS):
                connection.execute(statement)
            # For opaque names: known to no page, and the same after a restart and for every server of the store.
            connection.execute("INSERT INTO settings VALUES ('secret', ?)", (secrets.token_bytes(32),))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def select(connection: sqlite3.Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query.

    Args:
        connection: Of :func:`open_database`.
        query: SQL with ``?`` for each value.
        values: The values.

    Raises:
        InputError: The file is damaged, or cannot be read.
    """
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.DatabaseError as error:
        raise InputError(f"the store of votes cannot be read: {to_line(error)}") from error


def _split(script: str) -> Iterator[str]:
    """Split SQL into statements: executescript() would commit between them."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run statements as one write: all of them are on the disk at the end, or none is.

    Args:
        connection: Of :func:`open_database`.

    Raises:
        RefusedError: The disk is full or cannot be written, or another process keeps the store busy.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except BaseException as error:
        # After a full disk SQLite may have rolled back by itself.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError):
            raise RefusedError(_explain(error), "unavailable") from error
        raise


def _explain(error: sqlite3.OperationalError) -> str:
    # The low byte is the kind, the rest says more (https://sqlite.org/rescode.html).
    # People read it in the middle of a study: what happened to their choice comes first.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "Nothing was saved, because the server's disk is full: please inform the people who run this study."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "Nothing was saved, because the server is busy: please try again in a moment."
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return "Nothing was saved, because the server cannot write: please inform the people who run this study."
    raise error
