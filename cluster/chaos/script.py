"""Run a cluster of several Ray nodes on this machine under load and kill parts of it at random, with a seed: workers,
the processes of commands, what watches over submitted jobs, nodes; while videos are annotated, then a model is trained,
then a server answers.

Checked: annotated rows equal those of an undisturbed run, the trained adapter is equal to the last bit, no answer of
the server is wrong; requests that failed are counted and named. Exit status 0 where all of that holds, 2 where not.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.chaos.bucket import CACHES, BucketServer, cache_of, served_bucket
from cluster.chaos.machines import Machines
from cluster.chaos.phases import PhaseReport, prepare_data, run_jobs
from cluster.chaos.recipe import ChaosRecipe
from cluster.chaos.report import build_plan, build_record, is_passed, write_report
from cluster.chaos.serving import run_serving
from cluster.local_nodes import local_nodes
from wm.cli import main as command_line
from wm.errors import InputError

_ROOT = Path(__file__).resolve().parents[2]
_PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_MIDDLEWARES = "serve_apps.middleware.proxy:build_middlewares"


def run(recipe: ChaosRecipe, *, dry_run: bool = False) -> list[PhaseReport]:
    """Run all phases and write the report.

    Args:
        recipe: For how long, and what.
        dry_run: Print the planned kills alone.

    Returns:
        What happened, by phase; empty on a dry run.

    Raises:
        InputError: Something differs, or work that nothing disturbs any more does not end.
    """
    if dry_run:
        print("\n".join(build_plan(recipe)))
        return []
    out = Path(recipe.out).absolute()
    recipe = recipe.model_copy(update={"out": str(out)})
    out.mkdir(parents=True, exist_ok=True)
    # Copies of objects of an earlier run's bucket.
    for name in (CACHES, "reader"):
        shutil.rmtree(out / name, ignore_errors=True)
    # Before the cluster starts, whose processes inherit them.
    os.environ.setdefault(_PROXY_VARIABLE, _MIDDLEWARES)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    phases: list[PhaseReport] = []
    try:
        with served_bucket(out, recipe.bucket) as bucket:
            _say("preparing clips and triplets")
            prepare_data(recipe)
            _run_phases(recipe, phases, bucket)
    finally:
        # What was found before something got stuck is worth as much.
        record = build_record(recipe, phases, sys.argv[1:])
        lines = write_report(out, record, phases)
    print("\n".join(lines))
    if not is_passed(recipe, phases):
        raise InputError(f"results differ from undisturbed ones; {out} has them and the report")
    return phases


def _run_phases(recipe: ChaosRecipe, phases: list[PhaseReport], bucket: BucketServer | None) -> None:
    """Start the cluster and append the report of each phase as it ends."""
    out, cpus = Path(recipe.out), recipe.cpus_per_node

    def variables_of(number: int) -> dict[str, str]:
        return {} if bucket is None else {"WM_CACHE": cache_of(out, f"node-{number}")}

    with local_nodes(recipe.nodes, cpus_per_node=cpus, dashboard=True, variables_of=variables_of) as cluster:
        from ray.job_submission import JobSubmissionClient

        machines = Machines(cluster, cpus, bucket, variables_of)
        client = JobSubmissionClient(f"http://{cluster.webui_url}")
        for phase in recipe.phases:
            if phase == "serving":
                phases.append(run_serving(recipe, machines, _say))
            else:
                phases.append(run_jobs(recipe, phase, client, machines, _say))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return command_line(
        ChaosRecipe, run, name="chaos", prog="python -m cluster.chaos", description=__doc__ or "", argv=argv
    )
