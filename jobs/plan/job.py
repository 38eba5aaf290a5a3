"""Plan an annotation before paying for it: hours, bottleneck and cost on a cluster.

The work comes from a list of videos (videos=, read as wm annotate reads it) or from hours= and mean_length_s=; the
rates from what wm benchmark measured (rates=FILE.json, or rates=["keyframes.json", "annotate.json"]), best by
wm benchmark probe on the cluster itself, which also says what a video gives and how busy the nodes are; the cluster
from nodes (in a recipe: one [[nodes]] table a kind of machine). from_run=DIR takes frame rate, key-frames, pairs and
stored size from a finished annotation, such as one of the first 1,000 videos, or from a look.

Clusters of the same mix with 1 to 10,000 nodes follow (figure=FILE.svg draws them), and what does not grow with them:
the driver's time and memory, the bucket's requests and their price, and which of these breaks first. Time to start the
cluster is not in it.
"""

from pathlib import Path
from typing import Any

from jobs.plan.device import choose_device
from jobs.plan.figure import check_figure, draw_sizes
from jobs.plan.recipe import PlanRecipe
from jobs.plan.report import print_plan
from jobs.plan.scale import build_store, simulate_run, to_json
from jobs.plan.work import read_probe, read_rates, work_of
from wm.cli import main as cli_main
from wm.datasets.planning import Node, as_numbers, estimate, rates_from, stage_seconds, with_one_more
from wm.datasets.sweep import estimate_sizes, list_sizes
from wm.files.mirror import publish
from wm.runs import write_json

DEFAULT_EFFICIENCY = 0.9


def run(recipe: PlanRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Print the plan, write it to ``recipe.out`` if that is given; returns it.

    Args:
        recipe: Videos, rates and cluster.
        dry_run: Print the plan, write nothing.

    Returns:
        The plan as JSON values.
    """
    check_figure(recipe.figure)
    # 1. Seconds of each stage on one core or annotator.
    measured = read_rates(recipe.rates)
    rates = rates_from(measured, recipe.keyframes.motion, recipe.shape, on_gpu=recipe.keyframes.device == "cuda")
    work, bytes_per_triplet, notes, passed_over = work_of(recipe)
    # 2. Wall clock on the cluster, and with one more machine of each kind.
    nodes = [Node(**node.model_dump()) for node in recipe.nodes]
    settings = _settings(recipe)
    if recipe.keyframes.device == "auto" and recipe.keyframes.motion == "farneback":
        rates, note = choose_device(
            recipe, measured, rates, lambda rates: estimate(stage_seconds(work, rates), nodes, **settings)
        )
        notes.append(note)
    seconds = stage_seconds(work, rates)
    expected = estimate(seconds, nodes, **settings)
    more = {node.name: estimate(seconds, with_one_more(nodes, node.name), **settings) for node in nodes}
    # 3. What does not grow with the cluster, and clusters of all sizes.
    habit, loads = simulate_run(recipe.scale, work.videos)
    sizes = estimate_sizes(seconds, list_sizes(nodes, recipe.max_nodes), loads, build_store(recipe.scale), **settings)
    # 4. The plan, with all that it was made from.
    plan = {
        "work": {name: round(value) for name, value in vars(work).items()},
        "notes": notes,
        "passed_over": passed_over,
        "rates": {stage: rate for stage, rate in vars(rates).items() if stage in seconds},
        "stage_hours": {stage: round(value / 3600, 6) for stage, value in seconds.items()},
        **as_numbers(expected),
        "storage_gb": round(work.triplets * bytes_per_triplet / 1e9, 3),
        "one_more": {name: {"hours": round(result.hours, 6), "cost": result.cost} for name, result in more.items()},
        "sizes": [vars(row) for row in sizes],
        "scale": to_json(recipe.scale, habit, loads, expected.hours),
        "recipe": recipe.model_dump(mode="json"),
    }
    print_plan(plan)
    if recipe.out and not dry_run:
        path = Path(recipe.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plan)
        publish(path)
        print(f"plan → {path}")
    if recipe.figure and not dry_run:
        draw_sizes(sizes, Path(recipe.figure), f"{work.videos:,} videos, {work.length_s / 3600:,.0f} h")
        publish(recipe.figure)
        print(f"figure → {recipe.figure}")
    return plan


def _settings(recipe: PlanRecipe) -> dict[str, Any]:
    """Return how the cluster is used; the efficiency that nobody gave is a probe's, or the usual one."""
    settings = recipe.resources.model_dump()
    if settings["efficiency"] is None:
        probe = read_probe(recipe.rates)
        measured = probe.efficiency if probe is not None else None
        settings["efficiency"] = measured or DEFAULT_EFFICIENCY
    return settings


def main() -> int:
    """Run the command line."""
    return cli_main(PlanRecipe, run, name="plan", description=__doc__ or "")
