"""Print what ``ask`` would do and has done, and describe it on the card. Knows nothing of how it is done."""

from collections import Counter
from collections.abc import Mapping, Sequence

from jobs.ask.recipe import AskRecipe
from wm.evaluation.questions.figures import GroupRow, ModelRow, Share
from wm.evaluation.questions.formats import NUM_RELEASED
from wm.evaluation.questions.reading import QuestionSet
from wm.evaluation.questions.tables import AskTables


def print_complete(recipe: AskRecipe) -> None:
    """Print that nothing is left to do."""
    print(f"{recipe.out} is complete: nothing to do")


def print_plan(recipe: AskRecipe, questions: QuestionSet, num_models: int, num_shards: int) -> None:
    """Print what would be asked.

    Args:
        recipe: As it was given.
        questions: What was read.
        num_models: Models to ask.
        num_shards: Files of answers.
    """
    print(
        f"ask: would ask {num_models} models {len(questions.questions):,} questions of {recipe.data} in {num_shards} "
        f"shards into {recipe.out}"
    )
    _print_rejects(
        Counter(row["reason"] for row in questions.rejects),
        [f"{row['uri']}: {row['detail']}" for row in questions.rejects],
    )
    if questions.num_left_out:
        print(f"  left out by limit: {questions.num_left_out:,}")


def _print_rejects(reasons: Mapping[str, int], details: Sequence[str]) -> None:
    for reason, count in sorted(reasons.items()):
        print(f"  rejects, {reason}: {count:,}")
    # One in words: a hundred of a kind are no clearer.
    if details:
        print(f"    such as: {details[0]}")


def print_tables(recipe: AskRecipe, tables: AskTables) -> None:
    """Print accuracies of all models, then by group.

    Args:
        recipe: As it was given.
        tables: The content of ``tables.json``.
    """
    print("\n".join(_format_rows(tables)))
    for line in _list_notes(tables):
        print(line)
    print(f"asked {len(tables['rows'])} models {tables['num_questions']:,} questions: {recipe.out}/tables.json")


def _format_rows(tables: AskTables) -> list[str]:
    heads = ["model", "n", "accuracy %", "unparsed", "one option", "ranked (sum)", "ranked (mean)", "chance", "paper"]
    has_published = bool(tables["published_source"])
    rows = [heads if has_published else heads[:-1]]
    for row in tables["rows"]:
        rows.append(_main_cells(row, has_published=has_published))
    lines = _align(rows)
    # Kinds of questions below, where there are several.
    for row in tables["rows"]:
        for title, groups in (("group", row["by_group"]), ("source", row["by_source"])):
            if groups:
                cells = [_group_cells(name, group) for name, group in groups.items()]
                lines += ["", *_align([[f"{row['label']}, by {title}", "n", *heads[2:3], *heads[5:8]], *cells])]
    return lines


def _main_cells(row: ModelRow, *, has_published: bool) -> list[str]:
    # A single training run is named by its label alone.
    title = row["label"] + (f" (seed {row['run']})" if row["run"] else "")
    count = f"{row['num_questions'] - row['num_failed']:,}"
    cells = [title, count, _cell(row["accuracy"]), _cell(row["unparsed"], with_interval=False)]
    cells += [_cell(row["readings"].get("one_option")), _cell(row["ranking_sum"]), _cell(row["ranking_mean"])]
    cells += ["–" if row["chance"] is None else f"{100 * row['chance']:.1f}"]
    return [*cells, f"{row['published']:.1f}" if "published" in row else "–"] if has_published else cells


def _group_cells(name: str, group: GroupRow) -> list[str]:
    count = f"{group['accuracy']['n']:,}"
    # The accuracy by the recipe's reading alone: the other one is in tables.json.
    shares = [_cell(group["accuracy"]), _cell(group["ranking_sum"]), _cell(group["ranking_mean"])]
    return [f"  {name or '(none)'}", count, *shares, f"{100 * group['chance']:.1f}"]


def _cell(share: Share | None, *, with_interval: bool = True) -> str:
    if share is None:
        return "–"
    text = f"{100 * share['share']:.1f}"
    return f"{text} [{100 * share['ci_low']:.1f}, {100 * share['ci_high']:.1f}]" if with_interval else text


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    # Numbers are read from their right end.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def _list_notes(tables: AskTables) -> list[str]:
    """List what a reader of the figures must know: whose reading, what was not asked, why a number is missing."""
    rule = "the answer holds the reference or is held by it" if tables["style"] == "words" else "its first letter"
    readings = {"published": f"as the public script ({rule})", "one_option": "it must name exactly one option"}
    notes = [
        f"accuracy: greedy answers, read {readings[tables['reading']]}; unparsed ones are wrong. ranked: the option of "
        "the highest likelihood, by the sum or by the mean a token. [95 % interval, Wilson]"
    ]
    # What is left out of a figure is said beside it.
    for row in tables["rows"]:
        if row["num_failed"]:
            example = next(iter(row["failures"]))
            notes.append(f"{row['label']}: {row['num_failed']:,} questions could not be asked, such as: {example:.200}")
    if tables["num_rejects"]:
        notes.append(f"{tables['num_rejects']:,} entries are no usable questions: see rejects/")
    released = NUM_RELEASED.get(tables["benchmark"])
    if tables["published_source"]:
        notes.append(f"paper: {tables['published_source']}")
    elif released is not None and not tables["is_complete"]:
        notes.append(
            f"no published numbers: the published set has {released:,} questions, these are {tables['num_questions']:,}"
        )
    if tables["toy_models"]:
        notes.append(f"of the toy world, which knows no such questions: {', '.join(tables['toy_models'])}")
    return notes


def describe(tables: AskTables) -> list[str]:
    """Build the lines of the card: the table, the notes and the prompt.

    Args:
        tables: The content of ``tables.json``.

    Returns:
        Lines of Markdown.
    """
    # Indented, Markdown leaves the text and its columns as they are.
    prompt = [f"    {line}" for line in tables["prompt"].splitlines()]
    table = [f"    {line}".rstrip() for line in _format_rows(tables)]
    return [*table, "", *_list_notes(tables), "", "Prompt:", "", *prompt]
