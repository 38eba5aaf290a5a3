"""Keep participants and their votes in a SQLite file that only grows.

A vote that was acknowledged survives the death of the process and of the machine. Not known here: pages, figures.
"""

import json
import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from wm.evaluation.votes.records import Vote
from wm.study.codes import make_code
from wm.study.database import RefusedError, open_database, select, transaction

__all__ = ["Participant", "PlaygroundItem", "RefusedError", "VoteStore", "now_utc"]

_COLUMNS = [field.name for field in fields(Vote)]
_INSERT = f"INSERT INTO votes ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM votes WHERE study_id = ?"
_PARTICIPANT = "SELECT study_id, code, number, consented_at, origin FROM participants WHERE study_id = ?"


@dataclass(frozen=True)
class Participant:
    """A person who takes part.

    Attributes:
        study_id: The study.
        code: Random code that the person comes back with.
        number: In the order of joining, from 0.
        consented_at: Time of the consent, UTC in ISO 8601.
        origin: As :attr:`wm.evaluation.votes.records.Vote.origin`.
    """

    study_id: str
    code: str
    number: int
    consented_at: str
    origin: str = "page"


@dataclass(frozen=True)
class PlaygroundItem:
    """A comparison that was made on the fly; an item of a study is in its ``study.json`` instead.

    Attributes:
        study_id: The study.
        item_id: Opaque name.
        created_at: Time at which it was stored, UTC in ISO 8601.
        context: What was compared: action, SHA-256 of the source, models, seeds; JSON values.
    """

    study_id: str
    item_id: str
    created_at: str
    context: Mapping[str, object]


class VoteStore:
    """Participants and votes in a file; safe for several threads and processes of one machine."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Open the file, made if it is not there.

        Args:
            path: The file, on a local disk. Beside it, SQLite keeps its log as ``-wal`` and ``-shm`` while it is open.
            read_only: Whether the file must be there and stays as it is.

        Raises:
            InputError: It is no such store, of another version, or cannot be opened or made.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        self._connection = open_database(self.path, read_only=read_only)
        self.secret: bytes = select(self._connection, "SELECT value FROM settings WHERE name = 'secret'")[0][0]
        """Random bytes of this store, for names that nobody outside can compute."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def add_participant(self, study_id: str, *, origin: str = "page", limit: int | None = None) -> Participant:
        """Make a participant with a new code, who has consented just now.

        Args:
            study_id: The study.
            origin: As of the votes that will come.
            limit: Max participants of the study; None: any number.

        Raises:
            RefusedError: The study has that many already, or the disk is full.
        """
        with self._lock, transaction(self._connection):
            number = self._count_participants(study_id)
            if limit is not None and number >= limit:
                raise RefusedError("This study has all the participants it needs: thank you for your interest.", "full")
            return self._insert_participant(Participant(study_id, make_code(), number, now_utc(), origin))

    def find_participant(self, study_id: str, code: str) -> Participant:
        """Find a participant by the code.

        Raises:
            RefusedError: The study has none with this code.
        """
        with self._lock:
            rows = select(self._connection, f"{_PARTICIPANT} AND code = ?", study_id, code)
        if not rows:
            raise RefusedError("Nobody takes part in this study under this code: please check its letters.", "unknown")
        return Participant(*rows[0])

    def list_participants(self, study_id: str) -> list[Participant]:
        """List the participants of a study in the order of joining."""
        with self._lock:
            rows = select(self._connection, f"{_PARTICIPANT} ORDER BY number", study_id)
        return [Participant(*row) for row in rows]

    def add_vote(self, vote: Vote) -> Literal["stored", "stored before"]:
        """Store a vote; once this returns it is on the disk.

        Args:
            vote: Of a participant of the store. Without a time of storing it gets the present one.

        Returns:
            Whether it is new. The same choice sent again, as after a lost reply, is stored once.

        Raises:
            RefusedError: The participant has chosen otherwise on this item before, is unknown, or the disk is full; or
                the choice is none, such as a best that is the worst.
        """
        _check_choice(vote)
        with self._lock, transaction(self._connection):
            self.find_participant(vote.study_id, vote.participant)
            return "stored" if self._insert_vote(vote) else "stored before"

    def add_votes(self, votes: Sequence[Vote]) -> int:
        """Store imported or simulated votes, all of them or none; returns how many were new.

        Args:
            votes: Participants that the store does not know join in the order of their first vote.

        Raises:
            RefusedError: One of them cannot be stored, as in :meth:`add_vote`.
        """
        for vote in votes:
            _check_choice(vote)
        with self._lock, transaction(self._connection):
            for study_id in dict.fromkeys(vote.study_id for vote in votes):
                self._join(study_id, [vote for vote in votes if vote.study_id == study_id])
            return sum(self._insert_vote(vote) for vote in votes)

    def list_votes(self, study_id: str, participant: str | None = None) -> list[Vote]:
        """List the votes of a study in the order in which they were stored.

        Args:
            study_id: The study.
            participant: Code of the one whose votes are wanted; None: of all.
        """
        query, values = _SELECT, [study_id]
        if participant is not None:
            query, values = f"{query} AND participant = ?", [study_id, participant]
        with self._lock:
            rows = select(self._connection, f"{query} ORDER BY vote", *values)
        return [_to_vote(row) for row in rows]

    def list_studies(self) -> list[str]:
        """List the studies that have participants, in the order in which they began."""
        query = "SELECT study_id FROM participants GROUP BY study_id ORDER BY min(rowid)"
        with self._lock:
            return [row[0] for row in select(self._connection, query)]

    def count_votes(self, study_id: str) -> dict[str, int]:
        """Count the votes of each participant of a study who has any, by code; those on checks count too."""
        query = "SELECT participant, count(*) FROM votes WHERE study_id = ? GROUP BY participant"
        with self._lock:
            return dict(select(self._connection, query, study_id))  # type: ignore[arg-type]  # pairs, as selected

    def add_playground_item(self, study_id: str, context: Mapping[str, object]) -> PlaygroundItem:
        """Store a comparison that was made on the fly, under a new opaque name.

        Args:
            study_id: The study; a playground has one of its own.
            context: What is compared, as JSON values.

        Raises:
            RefusedError: The disk is full.
        """
        item = PlaygroundItem(study_id, secrets.token_hex(8), now_utc(), dict(context))
        text = json.dumps(item.context, ensure_ascii=False, sort_keys=True, allow_nan=False)
        with self._lock, transaction(self._connection):
            values = (item.study_id, item.item_id, item.created_at, text)
            self._connection.execute("INSERT INTO playground_items VALUES (?, ?, ?, ?)", values)
        return item

    def find_playground_item(self, study_id: str, item_id: str) -> PlaygroundItem:
        """Find a comparison by its name.

        Raises:
            RefusedError: The study has none of this name.
        """
        for item in self._select_items(study_id, "AND item_id = ?", item_id):
            return item
        raise RefusedError("This comparison is not known here: please make a new one.", "unknown")

    def list_playground_items(self, study_id: str) -> list[PlaygroundItem]:
        """List the comparisons that were made on the fly, in the order in which they were stored."""
        return self._select_items(study_id, "ORDER BY rowid")

    def _select_items(self, study_id: str, condition: str, *values: str) -> list[PlaygroundItem]:
        query = f"SELECT study_id, item_id, created_at, context FROM playground_items WHERE study_id = ? {condition}"
        with self._lock:
            rows = select(self._connection, query, study_id, *values)
        return [PlaygroundItem(*row[:3], json.loads(row[3])) for row in rows]

    def _count_participants(self, study_id: str) -> int:
        query = "SELECT count(*) FROM participants WHERE study_id = ?"
        return int(select(self._connection, query, study_id)[0][0])

    def _insert_participant(self, participant: Participant) -> Participant:
        query = "INSERT INTO participants (study_id, code, number, consented_at, origin) VALUES (?, ?, ?, ?, ?)"
        self._connection.execute(query, astuple(participant))
        return participant

    def _join(self, study_id: str, votes: Sequence[Vote]) -> None:
        """Insert the participants of votes whom the store does not know."""
        known = {participant.code for participant in self.list_participants(study_id)}
        for vote in votes:
            if vote.participant not in known:
                joined_at = vote.stored_at or now_utc()
                new = Participant(study_id, vote.participant, len(known), joined_at, vote.origin)
                known.add(self._insert_participant(new).code)

    def _insert_vote(self, vote: Vote) -> bool:
        """Insert a vote unless the same choice is stored; returns whether it was new."""
        query = f"{_SELECT} AND participant = ? AND item_id = ?"
        for row in select(self._connection, query, vote.study_id, vote.participant, vote.item_id):
            earlier = _to_vote(row)
            if (earlier.best, earlier.worst) == (vote.best, vote.worst):
                return False
            raise RefusedError(
                "You chose otherwise here before; the first choice counts and stays as it is.", "answered"
            )
        self._connection.execute(_INSERT, _to_row(vote))
        return True


def now_utc() -> str:
    """Return the present time in UTC as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_choice(vote: Vote) -> None:
    """Refuse what is no choice. Model numbers and codes are not repeated: the sentence is shown on the page."""
    if len(set(vote.systems)) != len(vote.systems) or len(vote.systems) < 2:
        raise RefusedError("A choice needs two or more different models.")
    if not (math.isfinite(vote.seconds) and vote.seconds >= 0):
        raise RefusedError("The time of a choice must be a number of seconds, 0 or more.")
    if vote.best is None and vote.worst is None and len(vote.systems) == 2:
        return
    if vote.best not in vote.systems or vote.worst not in vote.systems:
        raise RefusedError("Please choose a best and a worst model among those shown.")
    if vote.best == vote.worst:
        raise RefusedError("Please choose two different models as the best and the worst.")


def _to_row(vote: Vote) -> list[object]:
    values = {name: getattr(vote, name) for name in _COLUMNS}
    values |= {"systems": json.dumps(vote.systems, ensure_ascii=False), "stored_at": vote.stored_at or now_utc()}
    return list(values.values())


def _to_vote(row: Sequence[object]) -> Vote:
    # SQLite has neither lists nor truth values.
    values = dict(zip(_COLUMNS, row, strict=True))
    passed = values["passed_check"]
    values |= {
        "systems": tuple(json.loads(str(values["systems"]))),
        "is_check": bool(values["is_check"]),
        "passed_check": None if passed is None else bool(passed),
    }
    return Vote(**values)  # type: ignore[arg-type]  # columns are named and typed as the record's fields
