"""Keep participants and their votes in a SQLite file that only grows: who withdraws is left out, not removed.

A vote that was acknowledged survives the death of the process and of the machine. Not known here: pages, figures.
"""

import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Literal, Self

from wm.evaluation.votes.records import Vote
from wm.study.codes import make_code
from wm.study.database import RefusedError, open_database, select, transaction
from wm.study.rows import VOTE_COLUMNS, Participant, PlaygroundItem, check_choice, now_utc, to_row, to_vote

__all__ = ["Participant", "PlaygroundItem", "RefusedError", "VoteStore", "now_utc"]

_INSERT = f"INSERT INTO votes ({', '.join(VOTE_COLUMNS)}) VALUES ({', '.join('?' * len(VOTE_COLUMNS))})"
# Rows stay for good, also those of people who have withdrawn: nobody reads them from then on.
_REMAINS = "NOT EXISTS (SELECT 1 FROM withdrawals AS w WHERE w.study_id = {0}.study_id AND w.code = {0}.{1})"
_VOTE_REMAINS = _REMAINS.format("votes", "participant")
_SELECT_ANY = f"SELECT {', '.join(VOTE_COLUMNS)} FROM votes WHERE study_id = ?"
_SELECT = f"{_SELECT_ANY} AND {_VOTE_REMAINS}"
_PARTICIPANT = (
    "SELECT study_id, code, number, consented_at, origin FROM participants "
    f"WHERE study_id = ? AND {_REMAINS.format('participants', 'code')}"
)


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
            # In the same transaction as the insertion, so that two who come at once do not share the last seat.
            if limit is not None and len(self.list_participants(study_id)) >= limit:
                raise RefusedError("This study has all the participants it needs: thank you for your interest.", "full")
            return self._insert_participant(study_id, make_code(), now_utc(), origin)

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
        check_choice(vote)
        with self._lock, transaction(self._connection):
            # Within the transaction: another process may be storing the same person's withdrawal.
            self.find_participant(vote.study_id, vote.participant)
            return "stored" if self._insert_vote(vote) else "stored before"

    def add_votes(self, votes: Sequence[Vote]) -> int:
        """Store imported or simulated votes, all of them or none; returns how many were new.

        Args:
            votes: Participants that the store does not know join in the order of their first vote.

        Raises:
            RefusedError: One of them cannot be stored, as in :meth:`add_vote`.
        """
        # Before anything is written: a bad vote is found without an undo.
        for vote in votes:
            check_choice(vote)
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
        return [to_vote(row) for row in rows]

    def list_studies(self) -> list[str]:
        """List the studies that have participants, in the order in which they began."""
        query = "SELECT study_id FROM participants GROUP BY study_id ORDER BY min(rowid)"
        with self._lock:
            return [row[0] for row in select(self._connection, query)]

    def count_votes(self, study_id: str) -> dict[str, int]:
        """Count the votes of each participant of a study who has any, by code; those on checks count too."""
        query = f"SELECT participant, count(*) FROM votes WHERE study_id = ? AND {_VOTE_REMAINS} GROUP BY participant"
        with self._lock:
            return dict(select(self._connection, query, study_id))

    def withdraw(self, study_id: str, code: str) -> None:
        """Leave a participant and all votes of theirs out from now on, as if they had never taken part.

        Args:
            study_id: The study.
            code: Of the participant.

        Raises:
            RefusedError: The study has none with this code, or the disk is full.
        """
        with self._lock, transaction(self._connection):
            self.find_participant(study_id, code)
            self._connection.execute("INSERT INTO withdrawals VALUES (?, ?, ?)", (study_id, code, now_utc()))

    def count_withdrawn(self, study_id: str) -> int:
        """Count the participants who have withdrawn."""
        query = "SELECT count(*) FROM withdrawals WHERE study_id = ?"
        with self._lock:
            return int(select(self._connection, query, study_id)[0][0])

    def list_withdrawn(self, study_id: str) -> list[str]:
        """List the codes of the participants who have withdrawn, for whoever would bring their votes back."""
        with self._lock:
            rows = select(self._connection, "SELECT code FROM withdrawals WHERE study_id = ?", study_id)
        return [row[0] for row in rows]

    def add_playground_item(self, study_id: str, context: Mapping[str, object]) -> PlaygroundItem:
        """Store a comparison that was made on the fly, under a new opaque name.

        Args:
            study_id: The study; a playground has one of its own.
            context: What is compared, as JSON values.

        Raises:
            RefusedError: The disk is full.
        """
        item = PlaygroundItem(study_id, secrets.token_hex(8), now_utc(), dict(context))
        # Written before the transaction begins: what JSON cannot hold is the caller's mistake.
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
        # One at most: names are unique within a study.
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
        return [PlaygroundItem(study, name, time, json.loads(context)) for study, name, time, context in rows]

    def _insert_participant(self, study_id: str, code: str, joined_at: str, origin: str) -> Participant:
        # Numbers of people who have withdrawn are not given again: orders of items and systems belong to them.
        query = "SELECT 1 + coalesce(max(number), -1) FROM participants WHERE study_id = ?"
        number = int(select(self._connection, query, study_id)[0][0])
        participant = Participant(study_id, code, number, joined_at, origin)
        query = "INSERT INTO participants (study_id, code, number, consented_at, origin) VALUES (?, ?, ?, ?, ?)"
        self._connection.execute(query, astuple(participant))
        return participant

    def _join(self, study_id: str, votes: Sequence[Vote]) -> None:
        """Insert the participants of votes whom the store does not know; refuse votes of those who have withdrawn."""
        query = "SELECT code FROM participants WHERE study_id = ?"
        codes = {row[0] for row in select(self._connection, query, study_id)}
        # Only of those who were here before: whoever joins now has not withdrawn.
        withdrawn = codes - {participant.code for participant in self.list_participants(study_id)}
        for vote in votes:
            if vote.participant in withdrawn:
                raise RefusedError(f"Participant {vote.participant!r:.40} has withdrawn from this study.", "withdrawn")
            if vote.participant not in codes:
                self._insert_participant(study_id, vote.participant, vote.stored_at or now_utc(), vote.origin)
                codes.add(vote.participant)

    def _insert_vote(self, vote: Vote) -> bool:
        """Insert a vote unless the same choice is stored; returns whether it was new."""
        query = f"{_SELECT_ANY} AND participant = ? AND item_id = ?"
        # One row at most, which UNIQUE guarantees.
        for row in select(self._connection, query, vote.study_id, vote.participant, vote.item_id):
            earlier = to_vote(row)
            if (earlier.best, earlier.worst) == (vote.best, vote.worst):
                return False
            raise RefusedError(
                "You chose otherwise here before; the first choice counts and stays as it is.", "answered"
            )
        self._connection.execute(_INSERT, to_row(vote))
        return True
