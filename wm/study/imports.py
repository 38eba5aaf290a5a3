"""Turn answers that come from outside into votes of a study: each row is a vote, or a reject with its reason.

Not known here: stores, and the forms of files.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wm.evaluation.votes.records import Vote
from wm.evaluation.votes.selection import SIMULATED
from wm.study.study import Study, StudyItem

IMPORTED = "imported"
_MAX_CODE_LETTERS = 64


class NoVoteError(Exception):
    """A row of a file is no vote.

    Attributes:
        reason: In a few words that rejects are counted by.
        detail: What was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Answer:
    """What somebody chose, before it is checked.

    Attributes:
        participant: Code of the person; empty: unknown.
        item_id: Item of the study.
        systems: In the order in which they were shown.
        best: The best one; None: not chosen.
        worst: The worst one; None: not chosen.
        seconds: Time of the choice, s; None: unknown.
        stored_at: When it was stored, ISO 8601; empty: unknown.
        origin: As it was exported; empty: unknown.
    """

    participant: str
    item_id: str
    systems: tuple[str, ...]
    best: str | None
    worst: str | None
    seconds: float | None
    stored_at: str
    origin: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a file: an answer, or why there is none.

    Attributes:
        place: Where it is, such as ``line 3``.
        answer: What was chosen; None with a reason.
        reason: Why there is no answer.
        detail: What was found in its place.
    """

    place: str
    answer: Answer | None = None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Imported:
    """What became of the rows of a file: rows = new votes + votes that were stored before + rejects.

    Attributes:
        votes: New ones.
        num_before: Rows whose very vote is stored already.
        rejects: Rows that are no vote.
    """

    votes: list[Vote] = field(default_factory=list)
    num_before: int = 0
    rejects: list[Row] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Return how many rows the file has."""
        return len(self.votes) + self.num_before + len(self.rejects)

    def count_reasons(self) -> dict[str, int]:
        """Count the rejects by their reasons."""
        return dict(sorted(Counter(row.reason for row in self.rejects).items()))


def check_rows(study: Study, rows: Iterable[Row], stored: Sequence[Vote], withdrawn: Collection[str] = ()) -> Imported:
    """Check answers against the study, each other, and the votes that are stored.

    Args:
        study: The study.
        rows: Of a file.
        stored: Votes of the study in the store; an answer that is there already is no reject, so that a file may be
            imported twice.
        withdrawn: Codes of participants who have withdrawn, whose votes never come back.

    Returns:
        What becomes of every row.
    """
    items = {item.item_id: item for item in study.items}
    before = {(vote.participant, vote.item_id): vote for vote in stored}
    first_places: dict[tuple[str, str], str] = {}
    votes: list[Vote] = []
    rejects: list[Row] = []
    num_before = 0
    for row in rows:
        checked = _check_row(study, row, items)
        if isinstance(checked, Row):
            rejects.append(checked)
            continue
        if checked.participant in withdrawn:
            rejects.append(Row(row.place, reason="withdrawn", detail=f"participant {checked.participant}"))
            continue
        key = checked.participant, checked.item_id
        # 1. Twice in the file: the first counts.
        if key in first_places:
            rejects.append(
                Row(row.place, reason="duplicate", detail=f"same participant and item as {first_places[key]}")
            )
            continue
        first_places[key] = row.place
        # 2. In the store: the same choice again, or another one, which does not replace it.
        earlier = before.get(key)
        if earlier is None:
            votes.append(checked)
        elif (earlier.best, earlier.worst) == (checked.best, checked.worst):
            num_before += 1
        else:
            rejects.append(Row(row.place, reason="other choice stored", detail=f"stored at {earlier.stored_at}"))
    return Imported(votes, num_before, rejects)


def _check_row(study: Study, row: Row, items: Mapping[str, StudyItem]) -> Vote | Row:
    """Check a row by itself: a vote, or a reject."""
    # What could not be read has its reason already.
    if row.answer is None:
        return row
    answer = row.answer
    try:
        item = _find_item(answer, items)
        _check_choice(answer)
        seconds = _check_time(answer.seconds)
    except NoVoteError as error:
        return Row(row.place, reason=error.reason, detail=error.detail)
    return Vote(
        study_id=study.study_id,
        participant=answer.participant,
        item_id=item.item_id,
        triplet_id=item.triplet_id,
        subset=item.subset,
        systems=answer.systems,
        best=answer.best,
        worst=answer.worst,
        seconds=seconds,
        stored_at=answer.stored_at,
        # What no person said stays known as such, wherever it has been meanwhile.
        origin=SIMULATED if answer.origin == SIMULATED else IMPORTED,
        is_check=item.is_check,
        # Known from the study, whatever the file says.
        passed_check=item.is_passed(answer.best, answer.worst) if item.is_check else None,
    )


def _find_item(answer: Answer, items: Mapping[str, StudyItem]) -> StudyItem:
    """Find the item of an answer, and check who answered and what was shown."""
    # Codes are shown in tables and files: no line break, no page of text.
    code = answer.participant
    if not code or len(code) > _MAX_CODE_LETTERS or not code.isprintable():
        raise NoVoteError("no participant", f"{code!r:.80}")
    item = items.get(answer.item_id)
    if item is None:
        raise NoVoteError("unknown item", f"{answer.item_id!r:.60}")
    if sorted(answer.systems) != sorted(item.candidates):
        raise NoVoteError("other systems", f"{list(answer.systems)!r:.100}")
    return item


def _check_choice(answer: Answer) -> None:
    choices = [system for system in (answer.best, answer.worst) if system is not None]
    if unknown := [system for system in choices if system not in answer.systems]:
        raise NoVoteError("unknown choice", f"{unknown[0]!r:.60}")
    # Of two systems somebody may see no difference.
    if not choices and len(answer.systems) != 2:
        raise NoVoteError("missing choice", "neither best nor worst")
    if len(choices) == 1:
        raise NoVoteError("missing choice", "no worst" if answer.worst is None else "no best")
    if choices and answer.best == answer.worst:
        raise NoVoteError("best is worst", f"{answer.best!r:.60}")


def _check_time(seconds: float | None) -> float:
    # 0 s in its place would be a vote that was too fast.
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise NoVoteError("no time", f"seconds {seconds!r}")
    return seconds
