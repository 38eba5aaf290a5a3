"""Define what a store keeps beside votes, check choices, and convert votes from and to rows of its tables.

Not known here: files, SQL.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime

from wm.evaluation.votes.records import Vote
from wm.study.database import RefusedError

VOTE_COLUMNS = [field.name for field in fields(Vote)]


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


def now_utc() -> str:
    """Return the present time in UTC as ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_choice(vote: Vote) -> None:
    """Check that a vote is a choice; names of systems are not repeated, as the sentence is shown on the page.

    Raises:
        RefusedError: It is none, such as a best that is the worst.
    """
    if len(set(vote.systems)) != len(vote.systems) or len(vote.systems) < 2:
        raise RefusedError("A choice needs two or more different models.")
    # NaN would go through every comparison, and into every mean.
    if not (math.isfinite(vote.seconds) and vote.seconds >= 0):
        raise RefusedError("The time of a choice must be a number of seconds, 0 or more.")
    # Of two images one may say that they do not differ; among more, the best and the worst do.
    if vote.best is None and vote.worst is None and len(vote.systems) == 2:
        return
    if vote.best not in vote.systems or vote.worst not in vote.systems:
        raise RefusedError("Please choose a best and a worst model among those shown.")
    if vote.best == vote.worst:
        raise RefusedError("Please choose two different models as the best and the worst.")


def to_row(vote: Vote) -> list[object]:
    """Return the values of a vote in the order of :data:`VOTE_COLUMNS`; one without a time gets the present one."""
    # SQLite stores truth values as 0 and 1 by itself; a tuple needs a text.
    values = {name: getattr(vote, name) for name in VOTE_COLUMNS}
    values |= {"systems": json.dumps(vote.systems, ensure_ascii=False), "stored_at": vote.stored_at or now_utc()}
    return list(values.values())


def to_vote(row: Sequence[object]) -> Vote:
    """Return the vote of a row with the columns :data:`VOTE_COLUMNS`."""
    # SQLite has neither lists nor truth values.
    values = dict(zip(VOTE_COLUMNS, row, strict=True))
    passed = values["passed_check"]
    values |= {
        "systems": tuple(json.loads(str(values["systems"]))),
        "is_check": bool(values["is_check"]),
        "passed_check": None if passed is None else bool(passed),
    }
    return Vote(**values)  # type: ignore[arg-type]  # columns are named and typed as the record's fields
