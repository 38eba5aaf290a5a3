"""Say in sentences what the votes of a study show, and how they were given. Computes nothing."""

from collections.abc import Sequence

from wm.evaluation.report.summary import format_p
from wm.evaluation.votes.figures import AlphaFigure, ParticipantFigures, StudyFigures
from wm.evaluation.votes.means import ALL
from wm.evaluation.votes.numbers import DASH, format_number

_NAMED = 10
"""Participants that are named in one sentence."""


def describe(figures: StudyFigures) -> list[str]:
    """Say in a few sentences what the report is of, what simulated votes are first.

    Args:
        figures: Of the study.

    Returns:
        Paragraphs.
    """
    # Who joined and did not vote is no participant of the figures.
    people = figures["participants"]
    counted = [person for person in people if not person["left_out"] and person["num_votes"]]
    votes, items = figures["num_votes"], sum(figures["items"].values())
    texts = []
    if figures["kind"] == "simulated":
        texts.append("Simulated votes: no person was asked. The figures show that the study works, and nothing else.")
    texts.append(f"{_count(votes, 'vote')} of {_count(len(counted), 'participant')} on {_count(items, 'item')}.")
    # A mean that is absent is below all others, 0 among them.
    means = {system: figures["table"][ALL][system]["mean"] for system in figures["systems"]}
    best = max(means, key=lambda system: -2.0 if (own := means[system]) is None else own)
    mean = means[best]
    if mean is not None:
        marked = [name for name in figures["systems"] if figures["table"][ALL][name]["is_different"]]
        against = f"differ from {figures['reference']} by the test over votes"
        texts.append(
            f"Best by the mean vote: {best} ({format_number(mean, signed=True)}). "
            + (f"{', '.join(marked)} {against}." if marked else f"No system is shown to {against}.")
        )
    return texts


def list_findings(figures: StudyFigures) -> list[str]:
    """Say how far people agree with each other and with the judge, and how the votes were given.

    Args:
        figures: Of the study.

    Returns:
        Sentences.
    """
    # 1. How far people agree, with each other and with the judge.
    agreement, times = figures["agreement"], figures["times"]
    texts = [
        f"Krippendorff's alpha: {_alpha_text(agreement['best_nominal'])} on the best system (nominal), "
        f"{_alpha_text(agreement['score_ordinal'])} on -1, 0, +1 (ordinal), "
        f"{_alpha_text(agreement['score_interval'])} (interval)."
    ]
    if agreement["same_best"] is not None:
        texts.append(
            f"Two participants name the same best system of an item in {agreement['same_best']:.1%} of "
            f"{agreement['num_pairs']:,} pairs (by chance {agreement['chance']:.1%})."
        )
    texts += _list_judge(figures)
    # 2. How the votes were given.
    for choice, positions in (("Best", figures["best_positions"]), ("Worst", figures["worst_positions"])):
        counts = ", ".join(f"{count:,}" for count in positions["counts"])
        other = f"; {positions['other']:,} votes on other numbers of systems" if positions["other"] else ""
        texts.append(f"{choice} was position 1, 2, …: {counts} times (chi-square p {format_p(positions['p'])}){other}.")
    texts.append(
        f"A vote took {times['median_s']:.0f} s (median; quartiles {times['lower_s']:.0f} and {times['upper_s']:.0f}); "
        f"{times['num_fast']:,} took less than {times['fast_s']:g} s{_name_fast(figures)}."
    )
    return [*texts, *_list_participation(figures)]


def _list_judge(figures: StudyFigures) -> list[str]:
    judge = figures["judge"]
    if judge is None:
        return []
    texts = []
    # Over items first: its p is the one to trust.
    for title, correlation in (
        ("mean votes of items and systems", judge["correlation_items"]),
        ("single votes, whose p takes them for independent", judge["correlation_votes"]),
    ):
        rho = DASH if correlation["rho"] is None else f"{correlation['rho']:.2f}"
        p = format_p(correlation["p"])
        texts.append(f"Spearman between votes and {judge['model']}: {rho} (p {p}, n {correlation['n']:,}; {title}).")
    same = judge["same_best"]
    if same["share"] is not None:
        texts.append(
            f"People and {judge['model']} name the same best system on {same['share']:.1%} of {same['n']:,} items (by "
            f"chance {same['chance']:.1%}); on {same['ties']:,} more one of them names several."
        )
    if judge["missing"]:
        missing = ", ".join(f"{system} {count:,}" for system, count in judge["missing"].items())
        texts.append(f"Items that {judge['model']} has not scored: {missing}.")
    return texts


def _name_fast(figures: StudyFigures) -> str:
    # Of the votes that are counted: the times of others are in no figure.
    people = [person for person in figures["participants"] if person["fast_votes"] and not person["left_out"]]
    fast = [f"{person['name']} {person['fast_votes']:,}" for person in people]
    return f" ({_join(fast)})" if fast else ""


def _list_participation(figures: StudyFigures) -> list[str]:
    """Say who is incomplete and who failed a check, and what was done about it."""
    people = figures["participants"]
    planned = f" of {figures['num_planned']:,} planned" if figures["num_planned"] else ""
    texts = [f"{_count(len(people), 'participant')} joined{planned}."]
    if figures["num_withdrawn"]:
        texts.append(f"{figures['num_withdrawn']:,} more have withdrawn: their votes are in no figure.")
    incomplete = [person for person in people if person["num_votes"] < person["expected"]]
    if incomplete:
        names = [f"{person['name']} {person['num_votes']:,} of {person['expected']:,}" for person in incomplete]
        texts.append(f"Incomplete: {_join(names)}; {_describe_effect(figures['incomplete'], incomplete)}.")
    # A study without checks says so: nobody has failed one.
    checks = sum(person["num_checks"] for person in people)
    failed = [person for person in people if person["failed_checks"]]
    if checks:
        failures = sum(person["failed_checks"] for person in failed)
        names = [f"{person['name']} {person['failed_checks']:,}" for person in failed]
        effect = f" ({_join(names)}; {_describe_effect(figures['failed_checks'], failed)})" if failed else ""
        texts.append(f"Attention checks: {checks - failures:,} passed, {failures:,} failed{effect}.")
    else:
        texts.append("No attention check was answered.")
    texts += [f"{count:,} votes are left out: {reason}." for reason, count in figures["left_out"].items()]
    return texts


def _describe_effect(rule: str, people: Sequence[ParticipantFigures]) -> str:
    """Say what was decided about people, whatever it was; the other rule may have left some of them out."""
    if rule == "leave_out":
        return "their votes are left out"
    others = [person["name"] for person in people if person["left_out"]]
    return "their votes count" + (f", but for {_join(others)}, left out for another reason" if others else "")


def _alpha_text(alpha: AlphaFigure) -> str:
    return f"{DASH} ({alpha['absent']})" if alpha["value"] is None else format_number(alpha["value"])


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
