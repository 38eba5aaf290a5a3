"""Print what ``judge`` would ask, and its table."""

from collections.abc import Mapping, Sequence

from wm.evaluation.judge.figures import CRITERIA, MACRO, MICRO, MIN_COVERAGE, JudgeFigure, SystemFigures, copy_warning
from wm.evaluation.verification import JUDGED_K


def print_plan(
    num_items: int, num_questions: tuple[int, int], input_tokens: int, *, price: float, spent: float
) -> None:
    """Print how much there is to ask and what it costs.

    Args:
        num_items: Judgements that the figures are of.
        num_questions: Different questions among them, and those of these without an answer.
        input_tokens: Of the questions to ask.
        price: Upper bound, in the prices' currency.
        spent: On the replies that are there.
    """
    different, pending = num_questions
    print(
        f"judge: {num_items:,} judgements, {different:,} different questions, {pending:,} to ask: about "
        f"{input_tokens:,} input tokens, at most {price:.2f} in the prices' currency ({spent:.2f} spent so far)"
    )


def print_table(table: Sequence[SystemFigures]) -> None:
    """Print the means by subset, with n where something is missing, and what was not judged.

    Args:
        table: Figures of all systems.
    """
    # The paper's order: the final score first, then what it is the minimum of.
    columns = _columns(table)
    for criterion in CRITERIA:
        rows = [
            [
                f"{row['system']}, K = {row['num_candidates']}",
                *(_cell(row["figures"][criterion].get(name)) for name in columns),
            ]
            for row in table
        ]
        _print_rows([[criterion.replace("_", " "), *columns], *rows])
    # Another K than that of an evaluation's own tables.
    if any(row["num_candidates"] > 1 for row in table):
        print(f"{JUDGED_K}\n")
    # What a figure is not of is said beside it.
    for row in table:
        for problem, counts in (("without a prediction", row["missing"]), ("not judged", row["unjudged"])):
            if counts:
                print(f"  {row['system']}, K = {row['num_candidates']}: {problem}: {_join(counts)}")
    warning = copy_warning(table)
    if warning:
        print(f"warning: {warning}")


def _columns(table: Sequence[SystemFigures]) -> list[str]:
    # Subsets in the bench's order, averages last.
    names = dict.fromkeys(name for row in table for name in row["figures"]["final"])
    return [
        *(name for name in names if name not in (MACRO, MICRO)),
        *(name for name in (MACRO, MICRO) if name in names),
    ]


def _cell(figure: JudgeFigure | None) -> str:
    if figure is None:
        return "–"
    spread = "" if figure["std"] is None else f" ± {figure['std']:.2f}"
    # A mean over fewer items than the bench has says so, and is marked where it may mislead.
    part = "" if figure["judged"] == figure["expected"] else f" (n {figure['judged']:,}/{figure['expected']:,})"
    mark = " !" if figure["judged"] < MIN_COVERAGE * figure["expected"] else ""
    return f"{figure['mean']:.2f}{spread}{part}{mark}"


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    print("\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) + "\n")


def _join(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or '(no name)'} {count:,}" for name, count in counts.items())
