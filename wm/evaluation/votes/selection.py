"""Choose the votes that figures count: of people or simulated ones, without attention checks, of which participants.

Whatever is left out is counted and named. Not known here: figures.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final, Literal, TypeAlias

from wm.errors import InputError
from wm.evaluation.votes.records import Vote

Kind: TypeAlias = Literal["people", "simulated"]
Rule: TypeAlias = Literal["keep", "leave_out"]
SIMULATED: Final = "simulated"
"""Origin of votes that no person gave, and their kind."""
KINDS: Final[tuple[Kind, ...]] = ("people", "simulated")


@dataclass(frozen=True)
class Participation:
    """What one participant did.

    Attributes:
        name: Such as ``P3``, by the order of joining: a code would let a reader of the report vote in its place.
        num_votes: Votes on items that count.
        expected: Items that count.
        num_checks: Attention checks that were answered.
        failed_checks: Those answered otherwise than is known to be right.
        median_s: Median time of a vote, s; None without a vote.
        fast_votes: Votes given in less time than it takes to look.
        left_out: Why the participant's votes do not count; empty where they do.
    """

    name: str
    num_votes: int
    expected: int
    num_checks: int
    failed_checks: int
    median_s: float | None
    fast_votes: int
    left_out: str = ""

    @property
    def is_complete(self) -> bool:
        """Return whether all items were voted on."""
        return self.num_votes >= self.expected


@dataclass(frozen=True)
class CountedVotes:
    """The votes that figures are of.

    Attributes:
        votes: Without attention checks, of participants that count, who are called by :attr:`Participation.name`.
        kind: Whether people gave them.
        participants: All of that kind, in the order of joining, those that are left out too.
        left_out: Reason → how many votes do not count for it.
    """

    votes: tuple[Vote, ...]
    kind: Kind
    participants: tuple[Participation, ...]
    left_out: Mapping[str, int]


def choose_kind(votes: Iterable[Vote], kind: Kind | None) -> Kind:
    """Return the kind of votes that a report is of.

    Args:
        votes: All of a study.
        kind: As asked for; None: the only one there is.

    Raises:
        InputError: There is no vote of the kind, or there are both and none was asked for.
    """
    # Counted, so that a message can say how many of each there are.
    sizes = dict.fromkeys(KINDS, 0)
    for vote in votes:
        sizes[kind_of(vote)] += 1
    # What was asked for need only be there.
    present = [name for name in KINDS if sizes[name]]
    if kind is not None:
        if not sizes[kind]:
            raise InputError(f"kind = {kind!r}: the study has no such vote ({_join(sizes)})")
        return kind
    if not present:
        raise InputError("the study has no vote yet; wm study serve asks people for them")
    # A mean over both would be no figure of anybody.
    if len(present) > 1:
        raise InputError(
            f"the study holds votes of people and simulated ones ({_join(sizes)}), which no figure mixes; give "
            "kind=people or kind=simulated"
        )
    return present[0]


def kind_of(vote: Vote) -> Kind:
    """Return whether a person gave a vote."""
    return "simulated" if vote.origin == SIMULATED else "people"


def select_votes(
    votes: Sequence[Vote],
    item_ids: Sequence[str],
    joined: Mapping[str, str] | None = None,
    *,
    kind: Kind | None = None,
    failed_checks: Rule = "keep",
    incomplete: Rule = "keep",
    fast_s: float = 0.0,
    shows_all: bool = True,
) -> CountedVotes:
    """Choose the votes that count.

    Args:
        votes: All votes of a study.
        item_ids: Items of the study that count, without attention checks.
        joined: Code → origin of all participants in the order of joining, those without a vote too; None: those with
            one.
        kind: Whose votes; None: the only ones there are.
        failed_checks: What is done with participants who failed an attention check.
        incomplete: What is done with participants who have not voted on all items.
        fast_s: Votes given in less time, s, are counted as too fast; they stay.
        shows_all: Whether every participant is asked about all items; False: each about items of their own.

    Returns:
        The votes, and what every participant did.

    Raises:
        InputError: There is no vote that counts, both kinds are there and none was asked for, or a vote is of an item
            that the study does not have.
    """
    chosen_kind = choose_kind(votes, kind)
    known_ids = set(item_ids)
    by_code = _group(votes, known_ids, joined or {}, chosen_kind)
    # Each participant is kept or left out with all votes: half a person's taste would be another one's.
    counted: list[Vote] = []
    participants: list[Participation] = []
    left_out: dict[str, int] = defaultdict(int)
    for number, cast_votes in enumerate(by_code.values(), start=1):
        person = _describe(f"P{number}", cast_votes, len(known_ids if shows_all else cast_votes), fast_s)
        reason = _find_reason(person, failed_checks, incomplete)
        participants.append(replace(person, left_out=reason))
        scored = [replace(vote, participant=person.name) for vote in cast_votes if not vote.is_check]
        if reason:
            left_out[reason] += len(scored)
        else:
            counted += scored
    # No figure is better than one over nothing.
    if not counted:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "no item was voted on"
        raise InputError(f"no vote is left to count: {reasons}")
    return CountedVotes(tuple(counted), chosen_kind, tuple(participants), dict(left_out))


def _group(
    votes: Sequence[Vote], item_ids: Collection[str], joined: Mapping[str, str], kind: Kind
) -> dict[str, list[Vote]]:
    """Group the votes of a kind by participants in the order of joining, those without a vote too."""
    by_code: dict[str, list[Vote]] = {
        code: [] for code, origin in joined.items() if (origin == SIMULATED) == (kind == SIMULATED)
    }
    for vote in votes:
        if kind_of(vote) != kind:
            continue
        # A store may hold several studies, of which this vote would be another's.
        if not vote.is_check and vote.item_id not in item_ids:
            raise InputError(f"a vote is on item {vote.item_id!r:.40}, which the study does not have")
        by_code.setdefault(vote.participant, []).append(vote)
    return by_code


def _describe(name: str, votes: Sequence[Vote], expected: int, fast_s: float) -> Participation:
    scored = [vote for vote in votes if not vote.is_check]
    # Checks are answered like items, and count apart.
    checks = [vote for vote in votes if vote.is_check]
    return Participation(
        name=name,
        num_votes=len(scored),
        expected=expected,
        num_checks=len(checks),
        failed_checks=sum(vote.passed_check is False for vote in checks),
        median_s=median(vote.seconds for vote in scored) if scored else None,
        fast_votes=sum(vote.seconds < fast_s for vote in scored),
    )


def _find_reason(person: Participation, failed_checks: Rule, incomplete: Rule) -> str:
    """Say why a participant's votes do not count; empty where they do."""
    # The graver reason first, where both apply.
    if failed_checks == "leave_out" and person.failed_checks:
        return "failed an attention check"
    if incomplete == "leave_out" and not person.is_complete:
        return "incomplete"
    return ""


def _join(sizes: Mapping[Kind, int]) -> str:
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())
