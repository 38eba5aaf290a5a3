"""Print what ``score`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping, Sequence

from jobs.score.actions import ActionScores
from jobs.score.recipe import ScoreRecipe
from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.image_scoring import METRICS
from wm.evaluation.metrics.text_items import TEXT_ITEM_METRICS
from wm.evaluation.predicted_actions import ActionRow
from wm.evaluation.predictions import PredictionFacts
from wm.evaluation.report.summary import format_grid
from wm.evaluation.score_tables import ScoreRow
from wm.evaluation.verification import EVALUATED_K


def print_plan(
    recipe: ScoreRecipe,
    facts: Sequence[PredictionFacts],
    actions: Sequence[ActionRow],
    num_rows: int,
    absent: Mapping[str, str],
) -> None:
    """Print what would be scored.

    Args:
        recipe: As it was given.
        facts: The images.
        actions: The actions.
        num_rows: Triplets of the bench.
        absent: Metrics that cannot be had, and why.
    """
    print(f"score: would score {len(facts):,} images of {num_rows:,} triplets into {recipe.out}")
    for system in dict.fromkeys(row["system"] for row in facts):
        own = [row for row in facts if row["system"] == system]
        missing = num_rows - len({row["triplet_id"] for row in own})
        note = f", {missing:,} triplets have none" if missing else ""
        print(f"  {system}: {len(own):,} images{note}")
    for system in dict.fromkeys(row["system"] for row in actions):
        own_ids = {row["triplet_id"] for row in actions if row["system"] == system}
        print(f"  {system}: actions of {len(own_ids):,} triplets")
    _print_absent(absent)


def print_scores(
    rows: Sequence[ScoreRow],
    actions: ActionScores | None,
    subsets: Sequence[str],
    absent: Mapping[str, str],
    note: str,
) -> None:
    """Print a table a metric: a line a system, a column a subset, the mean over subsets, the mean over items.

    Args:
        rows: The rows of ``scores.json``.
        actions: Its part about actions.
        subsets: Names of the subsets, in order.
        absent: Metrics that cannot be had, and why.
        note: What a reader must know of the bench; may be empty.
    """
    for metric in METRICS:
        having = [row for row in rows if metric in row["metrics"]]
        if not having:
            continue
        header = [metric, *map(subset_title, subsets), "macro mean", "micro mean", "n"]
        print(format_grid(header, [_format_row(row, metric, subsets) for row in having]), end="\n\n")
    if any(row["choice"] == "idm" for row in rows):
        print(EVALUATED_K)
    _print_absent(absent)
    if actions:
        _print_actions(actions)
    # A mean over fewer items is never shown without saying so.
    for row in [*rows, *(actions["rows"] if actions else [])]:
        if row["num_missing"]:
            parts = ", ".join(f"{subset_title(name)} {count:,}" for name, count in row["missing_by_subset"].items())
            print(f"{_name_row(row)}: {row['num_missing']:,} triplets have no prediction ({parts})")
    if note:
        print(note)


def _print_actions(actions: ActionScores) -> None:
    """Print the text metrics of all systems: the paper's table 1, means over items."""
    names = [name for name in TEXT_ITEM_METRICS if any(name in row["metrics"] for row in actions["rows"])]
    rows = []
    for row in actions["rows"]:
        cells = [f"{row['metrics'][name]['micro_mean']:.3f}" if name in row["metrics"] else "–" for name in names]
        corpora = list(actions["corpus_bleu"].get(row["system"], {}).values())
        # Corpus BLEU is a figure of a run, not of an item: the mean over the runs.
        bleu = f"{sum(corpora) / len(corpora):.3f}" if corpora else "–"
        rows.append([row["system"], *cells, bleu, f"{row['num_items']:,}"])
    print(format_grid(["actions", *names, "bleu (corpus)", "n"], rows))
    for metric, text in actions["notes"].items():
        print(f"{metric}: {text}")
    print()


def _format_row(row: ScoreRow, metric: str, subsets: Sequence[str]) -> list[str]:
    figure = row["metrics"][metric]
    means = [*(figure["by_subset"].get(name) for name in subsets), figure["macro_mean"], figure["micro_mean"]]
    cells = ["–" if mean is None else f"{mean:.4f}" for mean in means]
    return [_name_row(row), *cells, f"{figure['num_items']:,}"]


def _name_row(row: ScoreRow) -> str:
    return {"none": row["system"], "greedy": f"{row['system']}, greedy"}.get(
        row["choice"], f"{row['system']}, K = {row['k']}"
    )


def _print_absent(absent: Mapping[str, str]) -> None:
    for metric, reason in absent.items():
        print(f"{metric}: absent, {reason}")
