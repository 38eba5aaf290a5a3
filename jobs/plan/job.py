"""Plan an annotation before paying for it: hours, bottleneck and cost on a cluster.

The work comes from a list of videos (videos=, read as jobs.annotate reads it) or from hours= and mean_length_s=; the
rates from what python -m jobs.benchmark measured (rates=FILE.json, or rates=["keyframes.json", "annotate.json"]); the
cluster from nodes (in a recipe: one [[nodes]] table a kind of machine). from_run=DIR takes frame rate, key-frames,
pairs and stored size from a finished annotation, such as one of the first 1,000 videos, or from a
look. Time to start the cluster and to download videos is not in it.
"""

from pathlib import Path
from typing import Any

from jobs.plan.recipe import PlanRecipe
from jobs.plan.report import print_plan
from jobs.plan.work import read_rates, work_of
from wm.cli import main as cli_main
from wm.datasets.planning import Node, as_numbers, estimate, rates_from, stage_seconds, with_one_more
from wm.files.mirror import publish
from wm.runs import write_json


def run(recipe: PlanRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Print the plan, write it to ``recipe.out`` if that is given; returns it.

    Args:
        recipe: Videos, rates and cluster.
        dry_run: Print the plan, write nothing.

    Returns:
        The plan as JSON values.
    """
    # 1. Seconds of each stage on one core or annotator.
    rates = rates_from(read_rates(recipe.rates), recipe.keyframes.motion, recipe.shape)
    work, bytes_per_triplet, notes, passed_over = work_of(recipe)
    seconds = stage_seconds(work, rates)
    # 2. Wall clock on the cluster, and with one more machine of each kind.
    nodes = [Node(**node.model_dump()) for node in recipe.nodes]
    settings = recipe.resources.model_dump()
    expected = estimate(seconds, nodes, **settings)
    more = {node.name: estimate(seconds, with_one_more(nodes, node.name), **settings) for node in nodes}
    # 3. The plan, with all that it was made from.
    plan = {
        "work": {name: round(value) for name, value in vars(work).items()},
        "notes": notes,
        "passed_over": passed_over,
        "rates": vars(rates),
        "stage_hours": {stage: round(value / 3600, 6) for stage, value in seconds.items()},
        **as_numbers(expected),
        "storage_gb": round(work.triplets * bytes_per_triplet / 1e9, 3),
        "one_more": {name: {"hours": round(result.hours, 6), "cost": result.cost} for name, result in more.items()},
        "recipe": recipe.model_dump(mode="json"),
    }
    print_plan(plan)
    if recipe.out and not dry_run:
        path = Path(recipe.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
        publish(path)
        print(f"plan → {path}")
    return plan


def main() -> int:
    """Run the command line."""
    return cli_main(PlanRecipe, run, name="plan", description=__doc__ or "")
