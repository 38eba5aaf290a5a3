"""Keep participants and their votes in a SQLite file that only grows.

A vote that was acknowledged survives the death of the process and of the machine. Not known here: pages, figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from wm.errors import InputError
from wm.evaluation.votes.records import Vote


class RefusedError(InputError):
    """A request of a participant that cannot be taken: the message is one sentence for the page."""


@dataclass(frozen=True)
class Participant:
    """A person who takes part.

    Attributes:
        study_id: The study.
        code: Random code that the person comes back with.
        number: In the order of joining, from 0.
        consented_at: Time of the consent, UTC in ISO 8601.
    """

    study_id: str
    code: str
    number: int
    consented_at: str


class VoteStore:
    """Participants and votes in a file; safe for several threads and processes of one machine."""

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        """Open the file, made if it is not there.

        Raises:
            InputError: It is no such store, of another version, or cannot be opened or made.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError

    def add_participant(self, study_id: str, *, origin: str = "page") -> Participant:
        """Make a participant with a new code, who has consented just now."""
        raise NotImplementedError

    def find_participant(self, study_id: str, code: str) -> Participant:
        """Find a participant by the code.

        Raises:
            RefusedError: The study has none with this code.
        """
        raise NotImplementedError

    def list_participants(self, study_id: str) -> list[Participant]:
        """List the participants of a study in the order of joining."""
        raise NotImplementedError

    def add_vote(self, vote: Vote) -> Literal["stored", "stored before"]:
        """Store a vote; once this returns it is on the disk.

        Returns:
            Whether it is new. The same choice sent again, as after a lost reply, is stored once.

        Raises:
            RefusedError: The participant has chosen otherwise on this item before, is unknown, or the disk is full.
        """
        raise NotImplementedError

    def add_votes(self, votes: Sequence[Vote]) -> int:
        """Store imported or simulated votes, all of them or none; returns how many were new."""
        raise NotImplementedError

    def list_votes(self, study_id: str) -> list[Vote]:
        """List the votes of a study in the order in which they were stored."""
        raise NotImplementedError
