"""Choose the best annotated triplets: stratified top-K over classes (Algorithm 1). Writes ids, never images."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from wm.cli import main as cli_main
from wm.config import Recipe
from wm.datasets.selection import COLUMNS, SELECTION_SCHEMA, Score, select_top_k
from wm.records import read_table, write_table
from wm.runs import Run, digest_of, read_run


class SelectRecipe(Recipe):
    """Which triplets, how many."""

    triplets: str
    """Folder of annotated triplets (jobs.annotate writes it)."""
    out: str
    """Folder for the selection: out/selection holds triplet_id, score, rank and order."""
    k: int = Field(ge=1)
    """How many to choose (the paper: 7,000 of each video set). Fewer stand in the result if there are fewer."""
    score: Score = "mean"
    """Rank by the mean log-likelihood per action token, or by its sum."""
    min_score: float | None = None
    """Leave out rows whose score is below this, in nats."""


def run(recipe: SelectRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Select, write ``out/selection`` and ``out/run.json``; returns the run's record."""
    stage = Run(recipe.out, "select", recipe, {"triplets": digest_of(recipe.triplets)})
    whole = stage.is_whole()
    table = read_table(recipe.triplets, columns=COLUMNS)
    with stage.timed("select_s"):
        chosen = select_top_k(table, recipe.k, recipe.score, recipe.min_score)
    if dry_run or whole:
        print(
            f"select: {'already whole in' if whole else 'would choose'} {recipe.out}: "
            f"{chosen.num_rows:,} of {table.num_rows:,} triplets"
        )
        return (read_run(recipe.out) or {}) if whole else {}
    stage.start()
    with stage.timed("select_s"):
        write_table(chosen.to_pylist(), Path(recipe.out) / "selection" / "part-00000.parquet", SELECTION_SCHEMA)
    record = stage.finish({"triplets": table.num_rows, "chosen": chosen.num_rows, "by_class": _by_class(table, chosen)})
    print(f"select: {chosen.num_rows:,} of {table.num_rows:,} triplets → {recipe.out}/selection")
    for label, counts in record["counts"]["by_class"].items():
        print(
            f"  {label or '(no class)':<24} {counts['chosen']:>7,} of {counts['triplets']:>7,}"
            f"   score {counts['lowest']:.3f} to {counts['highest']:.3f}"
        )
    return record


def _by_class(table: pa.Table, chosen: pa.Table) -> dict[str, dict[str, Any]]:
    available = Counter(label or "" for label in table.column("class_label").to_pylist())
    scores: dict[str, list[float]] = {}
    for row in chosen.select(["class_label", "score"]).to_pylist():
        scores.setdefault(row["class_label"], []).append(row["score"])
    return {
        label: {
            "triplets": available[label],
            "chosen": len(values),
            "lowest": min(values),
            "highest": max(values),
        }
        for label, values in sorted(scores.items())
    }


def main() -> int:
    """Command line."""
    return cli_main(SelectRecipe, run, name="select", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
