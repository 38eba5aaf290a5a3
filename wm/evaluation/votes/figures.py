"""Define the figures of a study as ``table.json`` holds them, and read them. Knows no vote."""

from pathlib import Path
from typing import Final, TypedDict, cast

from wm.errors import InputError
from wm.evaluation.votes.selection import Kind
from wm.runs import parse_json

TABLE_FILE: Final = "table.json"
FORMAT: Final = 1


class VoteFigure(TypedDict):
    """A system's votes in a row of table 5. Absent figures are None."""

    mean: float | None
    ci_low: float | None  # 95 % interval over items and people
    ci_high: float | None
    votes: int
    expected: int  # votes if every participant that counts had voted on every item
    difference: float | None  # to the reference, over votes on items that show both
    difference_low: float | None
    difference_high: float | None
    p: float | None  # Wilcoxon's signed-rank test over votes, which the mark goes by
    p_exact: float | None
    p_pratt: float | None
    n: int  # differences other than 0
    zeros: int
    is_different: bool
    item_p: float | None  # the same test over items, votes averaged first
    item_p_exact: float | None
    item_p_pratt: float | None
    item_n: int
    item_zeros: int


class WinFigures(TypedDict):
    """Win rates: row → column → share of units; None on the diagonal and where no unit has both."""

    wins: dict[str, dict[str, float | None]]
    ties: dict[str, dict[str, float | None]]
    counts: dict[str, dict[str, int]]


class CorrelationFigure(TypedDict):
    """Spearman's rank correlation."""

    rho: float | None
    p: float | None
    n: int


class SameBestFigure(TypedDict):
    """Items on which people and judge name the same best."""

    share: float | None
    n: int
    ties: int
    chance: float


class JudgeFigures(TypedDict):
    """What a judge's scores say of the same items."""

    model: str
    missing: dict[str, int]  # system → items of the study without a score
    wins: WinFigures
    correlation_items: CorrelationFigure
    correlation_votes: CorrelationFigure
    same_best: SameBestFigure


class AlphaFigure(TypedDict):
    """Krippendorff's alpha, or why there is none."""

    value: float | None
    absent: str


class AgreementFigures(TypedDict):
    """How far participants agree."""

    best_nominal: AlphaFigure
    score_ordinal: AlphaFigure
    score_interval: AlphaFigure
    same_best: float | None
    num_pairs: int
    chance: float


class PositionFigures(TypedDict):
    """How often each position was chosen."""

    counts: list[int]
    p: float | None
    other: int


class TimeFigures(TypedDict):
    """Quartiles of the time of a vote, s."""

    lower_s: float
    median_s: float
    upper_s: float
    fast_s: float
    num_fast: int


class ParticipantFigures(TypedDict):
    """What one participant did."""

    name: str
    num_votes: int
    expected: int
    num_checks: int
    failed_checks: int
    median_s: float | None
    fast_votes: int
    left_out: str  # why the votes do not count; empty where they do


class StudyFigures(TypedDict):
    """The content of ``table.json``."""

    format: int
    title: str
    study_id: str
    kind: Kind
    systems: list[str]
    reference: str
    rows: list[str]  # subsets, then All
    num_votes: int
    items: dict[str, int]  # subset → items
    table: dict[str, dict[str, VoteFigure]]  # row → system
    wins_by_item: WinFigures
    wins_by_vote: WinFigures
    judge: JudgeFigures | None
    agreement: AgreementFigures
    best_positions: PositionFigures
    worst_positions: PositionFigures
    times: TimeFigures
    participants: list[ParticipantFigures]
    num_planned: int
    num_withdrawn: int
    failed_checks: str  # what was done with participants who failed a check: keep or leave_out
    incomplete: str
    left_out: dict[str, int]  # reason → votes
    method: list[str]


def read_study_figures(folder: str | Path) -> StudyFigures:
    """Read the figures of a study's report.

    Args:
        folder: Output folder of ``wm study report``.

    Returns:
        The figures.

    Raises:
        InputError: The file is missing, damaged, or of another version.
    """
    path = Path(folder) / TABLE_FILE
    if not path.is_file():
        raise InputError(f"{path} is missing, though its stage is complete")
    values = parse_json(path.read_bytes(), str(path))
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path} is of another version of wm, or damaged: expected format {FORMAT}")
    missing = sorted(set(StudyFigures.__annotations__) - set(values))
    if missing:
        raise InputError(f"{path} is damaged: it lacks {missing[0]!r}")
    return cast(StudyFigures, values)
