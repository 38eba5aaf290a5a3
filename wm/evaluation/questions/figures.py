"""Compute accuracies of answers, with intervals, by group, and what chance would give."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

from wm.evaluation.questions.parsing import READINGS, Reading


class Share(TypedDict):
    """A share of answers with its 95 % interval (Wilson, Journal of the American Statistical Association 22, 1927)."""

    share: float
    ci_low: float
    ci_high: float
    n: int


class GroupRow(TypedDict):
    """Figures of the questions of one group."""

    accuracy: Share
    ranking_sum: Share
    ranking_mean: Share
    chance: float


class AnswerRow(TypedDict):
    """A model's answer to one question, as far as figures need it; rows of ``ANSWER_SCHEMA`` hold all of it."""

    question_id: str
    group: str
    source: str
    num_options: int
    failure: str | None
    is_right: dict[Reading, bool]
    is_parsed: dict[Reading, bool]
    is_ranked_sum: bool
    is_ranked_mean: bool


class ModelRow(TypedDict):
    """Figures of one model.

    ``accuracy`` is by the recipe's reading; answers that were not parsed are wrong. ``readings`` has both readings.
    ``ranking_sum``: the option whose sum of log-probabilities is highest is right; ``ranking_mean``: by the mean a
    token. ``chance``: what a choice among the options by lot would give, on average.
    """

    name: str
    label: str
    run: int
    num_questions: int
    num_failed: int
    failures: dict[str, int]
    accuracy: Share | None
    unparsed: Share | None
    readings: dict[Reading, Share]
    ranking_sum: Share | None
    ranking_mean: Share | None
    chance: float | None
    by_group: dict[str, GroupRow]
    by_source: dict[str, GroupRow]
    published: NotRequired[float]


def wilson_share(num_right: int, count: int) -> Share:
    """Compute a share and Wilson's score interval, without continuity correction, by scipy.

    Args:
        num_right: Of the items.
        count: Items, at least one.
    """
    from scipy.stats import binomtest

    # Small sets and shares near 0: a normal interval would leave [0, 1].
    interval = binomtest(num_right, count).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "share": num_right / count,
        "ci_low": float(interval.low),
        "ci_high": float(interval.high),
        "n": count,
    }


def compute_figures(rows: Sequence[AnswerRow], *, name: str, label: str, run: int, reading: Reading) -> ModelRow:
    """Compute the figures of one model.

    Args:
        rows: Its answers, one a question.
        name: Of the model in the recipe.
        label: Its name in tables.
        run: Its training seed.
        reading: Which reading is the accuracy.

    Returns:
        Figures over the questions that could be asked; how many could not is counted.
    """
    answered = [row for row in rows if row["failure"] is None]
    # By their words: a reader wants to know what to change.
    failures: dict[str, int] = {}
    for row in rows:
        if row["failure"] is not None:
            failures[row["failure"]] = failures.get(row["failure"], 0) + 1
    # Of no answer there is no share.
    if not answered:
        return {
            "name": name, "label": label, "run": run, "num_questions": len(rows), "num_failed": len(rows),
            "failures": failures, "accuracy": None, "unparsed": None, "readings": {}, "ranking_sum": None,
            "ranking_mean": None, "chance": None, "by_group": {}, "by_source": {},
        }  # fmt: skip
    # Both readings are in the table, whichever is the accuracy.
    total = _compute_group(answered, reading)
    return {
        "name": name,
        "label": label,
        "run": run,
        "num_questions": len(rows),
        "num_failed": len(rows) - len(answered),
        "failures": failures,
        "accuracy": total["accuracy"],
        "unparsed": wilson_share(sum(not row["is_parsed"][reading] for row in answered), len(answered)),
        "readings": {
            other: wilson_share(sum(row["is_right"][other] for row in answered), len(answered)) for other in READINGS
        },
        "ranking_sum": total["ranking_sum"],
        "ranking_mean": total["ranking_mean"],
        "chance": total["chance"],
        "by_group": _compute_by("group", answered, reading),
        "by_source": _compute_by("source", answered, reading),
    }


def _compute_group(rows: Sequence[AnswerRow], reading: Reading) -> GroupRow:
    count = len(rows)
    # Chance is a mean over the questions, as they have different numbers of options.
    return {
        "accuracy": wilson_share(sum(row["is_right"][reading] for row in rows), count),
        "ranking_sum": wilson_share(sum(row["is_ranked_sum"] for row in rows), count),
        "ranking_mean": wilson_share(sum(row["is_ranked_mean"] for row in rows), count),
        "chance": sum(1 / row["num_options"] for row in rows) / count,
    }


def _compute_by(key: str, rows: Sequence[AnswerRow], reading: Reading) -> dict[str, GroupRow]:
    by_value: dict[str, list[AnswerRow]] = {}
    for row in rows:
        by_value.setdefault(row["group"] if key == "group" else row["source"], []).append(row)
    # One group is all of them, whose figures are above.
    if len(by_value) < 2:
        return {}
    return {value: _compute_group(by_value[value], reading) for value in sorted(by_value)}
