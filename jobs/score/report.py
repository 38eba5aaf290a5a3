"""Print what ``score`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping, Sequence

from jobs.score.recipe import ScoreRecipe
from wm.evaluation.aurora_bench import subset_title
from wm.evaluation.image_scoring import METRICS
from wm.evaluation.predictions import PredictionFacts
from wm.evaluation.report.summary import format_grid
from wm.evaluation.score_tables import ScoreRow


def print_plan(recipe: ScoreRecipe, facts: Sequence[PredictionFacts], num_rows: int, absent: Mapping[str, str]) -> None:
    """Print what would be scored.

    Args:
        recipe: As it was given.
        facts: The images.
        num_rows: Triplets of the bench.
        absent: Metrics that cannot be had, and why.
    """
    print(f"score: would score {len(facts):,} images of {num_rows:,} triplets into {recipe.out}")
    for system in dict.fromkeys(row["system"] for row in facts):
        own = [row for row in facts if row["system"] == system]
        missing = num_rows - len({row["triplet_id"] for row in own})
        note = f", {missing:,} triplets have none" if missing else ""
        print(f"  {system}: {len(own):,} images{note}")
    _print_absent(absent)


def print_scores(rows: Sequence[ScoreRow], subsets: Sequence[str], absent: Mapping[str, str], note: str) -> None:
    """Print a table a metric: a line a system, a column a subset, the mean over subsets, the mean over items.

    Args:
        rows: The rows of ``scores.json``.
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
    _print_absent(absent)
    # A mean over fewer items is never shown without saying so.
    for row in rows:
        if row["num_missing"]:
            parts = ", ".join(f"{subset_title(name)} {count:,}" for name, count in row["missing_by_subset"].items())
            print(f"{_name_row(row)}: {row['num_missing']:,} triplets have no prediction ({parts})")
    if note:
        print(note)


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
