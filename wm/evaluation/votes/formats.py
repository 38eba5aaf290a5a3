"""Write the figures of a study as Markdown, CSV and text for a terminal. Computes nothing."""

from collections.abc import Sequence

from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.paper.figures.style import write_csv
from wm.evaluation.report.summary import format_grid, format_p
from wm.evaluation.votes.figures import AlphaFigure, StudyFigures, VoteFigure
from wm.evaluation.votes.means import ALL

SIMULATED_MARK = "simulated votes"
"""Mark of what no person said."""
DASH = "–"
_NAMED = 10
"""Participants that are named in one sentence."""

CSV_COLUMNS = ("kind", "row", "system", "reference", *VoteFigure.__annotations__)
"""Columns of ``table.csv``: one line a row and system, numbers in full."""


def headline(figures: StudyFigures) -> str:
    """Return the title, marked where the votes are simulated."""
    mark = f" ({SIMULATED_MARK})" if figures["kind"] == "simulated" else ""
    return f"{figures['title']}{mark}"


def row_title(row: str) -> str:
    """Return what tables show for a subset, or for the row of all."""
    return ALL if row == ALL else subset_title(row)


def format_number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Format a number; a dash where there is none, and no sign before 0.

    Args:
        value: The number.
        digits: After the point.
        signed: Whether a plus is written.
    """
    if value is None:
        return DASH
    # Of -0.001 two digits are 0.00, which has no sign.
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}"


def format_mean(figure: VoteFigure) -> str:
    """Format a mean with its mark."""
    return format_number(figure["mean"]) + ("†" if figure["is_different"] else "")


def format_interval(low: float | None, high: float | None) -> str:
    """Format an interval, empty where there is none.

    Args:
        low: Lower end.
        high: Upper end.
    """
    return "" if low is None or high is None else f"[{format_number(low)}, {format_number(high)}]"


def to_markdown(figures: StudyFigures) -> str:
    """Write all of a report but its charts as Markdown.

    Args:
        figures: Of the study.

    Returns:
        Markdown of GitHub's flavour.
    """
    systems = [escape_markdown(system) for system in figures["systems"]]
    lines = [f"# {escape_markdown(headline(figures))}", ""]
    lines += [f"{escape_markdown(text)}\n" for text in describe(figures)]
    # 1. The paper's table 5.
    lines += [f"| mean vote | {' | '.join(systems)} |", f"| --- |{' ---: |' * len(systems)}"]
    for row in figures["rows"]:
        cells = [_markdown_cell(figures["table"][row][system]) for system in figures["systems"]]
        lines.append(f"| {escape_markdown(row_title(row))} | {' | '.join(cells)} |")
    # 2. The tests behind its marks.
    lines += ["", f"## Tests against {escape_markdown(figures['reference'])}", ""]
    lines += ["| | | difference | p | exact p | Pratt's p | n | zeros | p over items | items |"]
    lines += ["| --- | --- |" + " ---: |" * 8]
    lines += [f"| {' | '.join(map(escape_markdown, cells))} |" for cells in list_tests(figures)]
    lines += ["", "## Win rates", ""]
    for title, rows in list_win_tables(figures):
        lines += [f"{escape_markdown(title)}\n", f"| | {' | '.join(systems)} |", f"| --- |{' ---: |' * len(systems)}"]
        lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
        lines.append("")
    lines += ["## How it was voted", "", *(f"- {escape_markdown(text)}" for text in list_findings(figures))]
    return "\n".join([*lines, "", *(f"{escape_markdown(text)}\n" for text in figures["method"])]).rstrip() + "\n"


def _markdown_cell(figure: VoteFigure) -> str:
    interval = format_interval(figure["ci_low"], figure["ci_high"])
    partial = f" (n {figure['votes']:,} of {figure['expected']:,})" if figure["votes"] < figure["expected"] else ""
    text = format_mean(figure) + partial
    return escape_markdown(text) + (f"<br><sub>{escape_markdown(interval)}</sub>" if interval else "")


def escape_markdown(text: str) -> str:
    """Escape a text for a cell of Markdown.

    Args:
        text: Anything, such as a title that somebody chose.
    """
    for sign in "\\|*_<>[]`~$&#":
        text = text.replace(sign, f"\\{sign}")
    # A line break would end the row.
    return " ".join(text.split())


def to_csv(figures: StudyFigures) -> str:
    """Write a line a row and system with all numbers of its votes and tests.

    Args:
        figures: Of the study.

    Returns:
        CSV with :data:`CSV_COLUMNS`; an absent number is empty.
    """
    lines = []
    for row in figures["rows"]:
        for system in figures["systems"]:
            figure = figures["table"][row][system]
            values = [int(value) if isinstance(value, bool) else value for value in figure.values()]
            lines.append((figures["kind"], row, system, figures["reference"], *values))
    return write_csv(CSV_COLUMNS, lines)


def describe(figures: StudyFigures) -> list[str]:
    """Say in a few sentences what the report is of, what simulated votes are first.

    Args:
        figures: Of the study.

    Returns:
        Paragraphs.
    """
    people = figures["participants"]
    counted = [person for person in people if not person["left_out"] and person["num_votes"]]
    votes, items = figures["num_votes"], sum(figures["items"].values())
    texts = []
    if figures["kind"] == "simulated":
        texts.append("Simulated votes: no person was asked. The figures show that the study works, and nothing else.")
    texts.append(f"{votes:,} votes of {len(counted):,} participants on {items:,} items.")
    best = max(figures["systems"], key=lambda system: figures["table"][ALL][system]["mean"] or -2.0)
    mean = figures["table"][ALL][best]["mean"]
    if mean is not None:
        marked = [name for name in figures["systems"] if figures["table"][ALL][name]["is_different"]]
        against = f"differ from {figures['reference']} by the test over votes"
        texts.append(
            f"Best by the mean vote: {best} ({format_number(mean, signed=True)}). "
            + (f"{', '.join(marked)} {against}." if marked else f"No system is shown to {against}.")
        )
    return texts


def list_tests(figures: StudyFigures) -> list[list[str]]:
    """List the tests of all rows and systems but the reference as texts.

    Args:
        figures: Of the study.

    Returns:
        Row, system, difference with its interval, p, exact p, Pratt's p, n, zeros, p over items, items.
    """
    rows = []
    for row in figures["rows"]:
        for system in figures["systems"]:
            figure = figures["table"][row][system]
            if system == figures["reference"]:
                continue
            difference = format_number(figure["difference"], signed=True)
            interval = format_interval(figure["difference_low"], figure["difference_high"])
            texts = [format_p(figure[name]) for name in ("p", "p_exact", "p_pratt")]
            rows.append(
                [
                    row_title(row), system, f"{difference} {interval}".strip(), *texts, f"{figure['n']:,}",
                    f"{figure['zeros']:,}", format_p(figure["item_p"]),
                    f"{figure['item_n'] + figure['item_zeros']:,}",
                ]
            )  # fmt: skip
    return rows


def list_win_tables(figures: StudyFigures) -> list[tuple[str, list[list[str]]]]:
    """List the tables of win rates as texts: by item, by vote, and the judge's where there is one.

    Args:
        figures: Of the study.

    Returns:
        Title and rows of each, a row beginning with its system; ties in brackets.
    """
    judge = figures["judge"]
    tables = [
        ("People, by item (ties in brackets)", figures["wins_by_item"]),
        ("People, by vote (ties: neither is best or worst)", figures["wins_by_vote"]),
        *([(f"{judge['model']}, by item", judge["wins"])] if judge is not None else []),
    ]
    return [
        (
            title,
            [
                [row, *("" if row == column else _format_win(wins["wins"][row][column], wins["ties"][row][column])
                        for column in figures["systems"])]
                for row in figures["systems"]
            ],
        )
        for title, wins in tables
    ]  # fmt: skip


def _format_win(wins: float | None, ties: float | None) -> str:
    if wins is None:
        return DASH
    return f"{wins:.3f}" + (f" ({ties:.3f})" if ties else "")


def list_findings(figures: StudyFigures) -> list[str]:
    """Say how far people agree with each other and with the judge, and how the votes were given.

    Args:
        figures: Of the study.

    Returns:
        Sentences.
    """
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
    fast = [f"{person['name']} {person['fast_votes']:,}" for person in figures["participants"] if person["fast_votes"]]
    return f" ({_join(fast)})" if fast else ""


def _list_participation(figures: StudyFigures) -> list[str]:
    """Say who is incomplete and who failed a check, and what was done about it."""
    people = figures["participants"]
    done = {"keep": "their votes count", "leave_out": "their votes are left out"}
    planned = f" of {figures['num_planned']:,} planned" if figures["num_planned"] else ""
    texts = [f"{len(people):,} participants joined{planned}."]
    incomplete = [
        f"{person['name']} {person['num_votes']:,} of {person['expected']:,}"
        for person in people
        if person["num_votes"] < person["expected"]
    ]
    if incomplete:
        texts.append(f"Incomplete: {_join(incomplete)}; {done[figures['incomplete']]}.")
    checks = sum(person["num_checks"] for person in people)
    failed = [f"{person['name']} {person['failed_checks']:,}" for person in people if person["failed_checks"]]
    if checks:
        failures = sum(person["failed_checks"] for person in people)
        names = f" ({_join(failed)}; {done[figures['failed_checks']]})" if failed else ""
        texts.append(f"Attention checks: {checks - failures:,} passed, {failures:,} failed{names}.")
    else:
        texts.append("No attention check was answered.")
    texts += [f"{count:,} votes are left out: {reason}." for reason, count in figures["left_out"].items()]
    return texts


def _alpha_text(alpha: AlphaFigure) -> str:
    return f"{DASH} ({alpha['absent']})" if alpha["value"] is None else format_number(alpha["value"])


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def to_text(figures: StudyFigures) -> str:
    """Write table 5 and what else is to be read first for a terminal.

    Args:
        figures: Of the study.

    Returns:
        Text.
    """
    rows = [
        [row_title(row), *(format_mean(figures["table"][row][system]) for system in figures["systems"])]
        for row in figures["rows"]
    ]
    return "\n".join(
        [
            headline(figures), "", *describe(figures), "",
            format_grid(["mean vote", *figures["systems"]], rows), "",
            f"†: differs from {figures['reference']} (Wilcoxon's signed-rank test, p < .05)", "",
            *list_findings(figures),
        ]
    )  # fmt: skip
