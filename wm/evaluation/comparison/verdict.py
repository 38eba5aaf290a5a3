"""Say in plain words which of two systems is better in a metric, on which subsets, and how sure that is."""

from collections.abc import Sequence

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.comparison.figures import ALPHA, Comparison, Scope
from wm.evaluation.comparison.measures import Measure
from wm.evaluation.report.summary import format_p

METHOD = (
    "Intervals: 95 %, paired bootstrap over the items that both have (BCa), training seeds taken as they are; of the "
    "macro average items are resampled within each subset.",
    "p: Wilcoxon's signed-rank test over items, two-sided. On subsets it is corrected for their number (Holm).",
    "Surely better: the interval excludes 0, p is below .05 (on a subset: corrected), and no paired training seed "
    "says the opposite. Metrics are not corrected for one another: of twenty, one may differ by chance.",
)
"""How to read a comparison, a sentence a line."""


def describe(comparison: Comparison, names: tuple[str, str]) -> str:
    """Say what a comparison shows, in one line.

    Args:
        comparison: One metric.
        names: Of the first and of the second system.

    Returns:
        Such as ``C-FDM is better by 0.41 [0.12, 0.70], 248 items, 3 training seeds; surely on AG``.
    """
    scope, measure = comparison.headline, comparison.measure
    facts = f"{_count(comparison.micro.num_items, 'item')}, {_describe_runs(comparison)}"
    average = "macro average, " if comparison.macro is not None else ""
    if comparison.micro.num_items < 2:
        return f"one item says nothing: difference {measure.text(scope.difference, signed=True)}"
    if scope.difference == 0 and scope.low == scope.high:
        return f"equal on every item, {facts}"
    # Whichever is ahead is named, so that no reader has to turn a sign.
    leader = names[0] if _gain(scope, measure) > 0 else names[1]
    by = _describe_gain(scope, measure)
    if comparison.is_sure:
        text = f"{leader} is better by {by}, {average}{facts}"
    elif scope.difference == 0:
        text = f"undecided: difference {by}, {average}{facts}"
    else:
        text = f"undecided: {leader} is ahead by {by}, {average}{facts}{_explain_doubt(comparison)}"
    subsets = _describe_subsets(comparison, names, leader)
    return f"{text}; {subsets}" if subsets else text


def _gain(scope: Scope, measure: Measure) -> float:
    """Return by how much the first is better; negative: worse."""
    return -scope.difference if measure.lower_is_better else scope.difference


def _describe_gain(scope: Scope, measure: Measure) -> str:
    """Format a difference as the leader's gain, with the interval turned likewise."""
    text = measure.text(abs(scope.difference))
    if scope.low is None or scope.high is None:
        return f"{text} (no interval: a subset has one item)"
    low, high = (scope.low, scope.high) if scope.difference >= 0 else (-scope.high, -scope.low)
    return f"{text} [{measure.text(low)}, {measure.text(high)}]"


def _explain_doubt(comparison: Comparison) -> str:
    """Say what speaks against a difference that one of interval, test and runs would call sure."""
    p = comparison.micro.p
    if not comparison.headline.excludes_zero:
        # Ranks leave the size of a few large differences out of account, the mean does not.
        return f" (though p {format_p(p)}: more items differ this way)" if p is not None and p < ALPHA else ""
    if comparison.num_agreeing < len(comparison.gaps):
        return f" (so in {comparison.num_agreeing} of {len(comparison.gaps)} training seeds)"
    return f" (p {format_p(comparison.micro.p)} over all items)"


def _describe_runs(comparison: Comparison) -> str:
    first, second = (len(runs) for runs in comparison.runs)
    # The spread of paired runs, where there is one.
    if comparison.std is not None:
        return f"{_count(first, 'training seed')} (± {comparison.measure.text(comparison.std)})"
    return _count(first, "training seed") if first == second else f"{first} and {_count(second, 'training seed')}"


def _describe_subsets(comparison: Comparison, names: tuple[str, str], leader: str) -> str:
    """Say on which subsets the leader is surely better, on which the other one, and on which neither."""
    # One subset would say what the line says already.
    if len(comparison.subsets) < 2:
        return ""
    # In this order: the leader's, the other one's, and what neither has for sure.
    groups: dict[str, list[str]] = {leader: [], names[1] if leader == names[0] else names[0]: [], "": []}
    for name, scope in comparison.subsets.items():
        winner = names[0] if _gain(scope, comparison.measure) > 0 else names[1]
        groups[winner if scope.is_sure else ""].append(subset_title(name))
    (_, own_names), (other, other_names), (_, open_names) = groups.items()
    parts = [f"surely on {_join(own_names)}"] if own_names else []
    parts += [f"{other} surely on {_join(other_names)}"] if other_names else []
    if open_names:
        parts.append(f"on {_join(open_names)} undecided" if own_names or other_names else "undecided on every subset")
    return ", ".join(parts)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
