"""Define the work of each phase: what runs undisturbed, what runs while parts are killed, and what must be equal."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster.chaos.bucket import NAME as BUCKET
from cluster.chaos.machines import Machines, kill_one
from cluster.chaos.outcomes import digest_files, digest_rows, list_differences
from cluster.chaos.recipe import ChaosRecipe, Kind, Phase
from cluster.chaos.schedule import Disturber, plan_kills
from cluster.chaos.work import JobRun, run_here, submit_until_done

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ANNOTATE, TRAIN = "jobs.annotate", "jobs.train"
_ACTORS: dict[Phase, list[str]] = {
    "annotation": ["MapWorker"],
    "training": ["RayTrainWorker", "TrainController"],
    "serving": ["ServeReplica", "ProxyActor", "ServeController"],
}
"""Parts of the titles of processes that are workers."""


@dataclass
class PhaseReport:
    """What happened in a phase."""

    phase: Phase
    seconds: float = 0.0
    """From its first kill's clock to the end of the last work."""
    undisturbed_s: float = 0.0
    """What the same work took once, when nothing was killed."""
    kills: list[dict[str, object]] = field(default_factory=list)
    missed: int = 0
    """Planned kills for which there was nothing, or no time."""
    rounds: list[dict[str, object]] = field(default_factory=list)
    """Each time that the work was done, its submissions."""
    failures: dict[str, object] = field(default_factory=dict)
    """Of requests, when a server was disturbed."""
    differences: list[str] = field(default_factory=list)
    """Between disturbed and undisturbed results; empty where all is equal."""
    errors: list[str] = field(default_factory=list)
    """Kills that could not be carried out."""


def prepare_data(recipe: ChaosRecipe, out: Path) -> None:
    """Make clips and triplets of the nano world, unless they are there.

    Args:
        recipe: How many clips.
        out: Folder of the run.
    """
    counts = [f"videos={recipe.videos}", "train=64", "tune=0", "test=0", "resources.num_workers=0"]
    run_here(["-m", "jobs.tabletop", f"out={out}/world", *counts], out / "world.log")
    source = [f"root={out}/world/supervised", "file=data/tabletop/train.json", "codec=nano:base", "dataset=tabletop"]
    run_here(["-m", "jobs.ingest", *source, f"out={out}/triplets", "resources.num_workers=0"], out / "triplets.log")


def command_of(recipe: ChaosRecipe, phase: Phase, name: str) -> list[str]:
    """Build the arguments of Python for the work of a phase.

    Args:
        recipe: How much of it.
        phase: Annotation or training.
        name: Of the output's folder.
    """
    out = recipe.out
    output = f"s3://{BUCKET}/{name}" if recipe.bucket else f"{out}/{name}"
    if phase == "annotation":
        keys = [f"videos={out}/world/videos", "idm=nano:idm", f"out={output}", "dataset=tabletop"]
        # Small batches and shards: there is something to disturb all the time.
        more = ["max_new_tokens=12", "videos_per_shard=4", "keyframes.min_interval_frames=8"]
        more += ["resources.num_decoders=3", "resources.num_annotators=3", "resources.idm_batch_size=2"]
        return ["-m", ANNOTATE, *keys, *more]
    keys = ["task=idm", "base=nano:base", f"triplets={out}/triplets", f"out={output}", f"max_steps={recipe.steps}"]
    more = ["global_batch_size=8", "checkpoint.every_steps=10", "resources.num_workers=2", "resources.max_failures=2"]
    return ["-m", TRAIN, *keys, *more, "logging.trackers=[]"]


def digest_output(phase: Phase, folder: Path) -> dict[str, str]:
    """Compute digests of what a phase has written, by name.

    Args:
        phase: Annotation or training.
        folder: Its output.
    """
    # Rows whatever file they are in; weights to the last bit.
    return digest_rows(folder) if phase == "annotation" else digest_files(folder / "model")


def run_jobs(
    recipe: ChaosRecipe,
    phase: Phase,
    client: "JobSubmissionClient",
    machines: Machines,
    say: Callable[[str], None],
) -> PhaseReport:
    """Run a phase of submitted commands: once undisturbed, then as often as the time allows while parts are killed.

    Args:
        recipe: For how long.
        phase: Annotation or training.
        client: Of the cluster.
        machines: What is killed.
        say: Takes lines for the user.
    """
    out, limit_s = Path(recipe.out), 60 * recipe.limit_minutes
    report = PhaseReport(phase)

    def submit(name: str, disturber: Disturber | None) -> JobRun:
        # What a killed run of this script left would be complete at once.
        shutil.rmtree(out / name, ignore_errors=True)
        return submit_until_done(
            client,
            command_of(recipe, phase, name),
            is_disturbed=lambda: disturber is not None and not disturber.is_over,
            count_kills=lambda: 0 if disturber is None else len(disturber.kills),
            limit_s=limit_s,
        )

    def digest(name: str) -> dict[str, str]:
        bucket = machines.bucket
        return digest_output(phase, out / name if bucket is None else bucket.fetch(name, out / "reader"))

    # 1. What it should be.
    report.undisturbed_s = round(submit(f"{phase}-undisturbed", None).seconds, 1)
    undisturbed = digest(f"{phase}-undisturbed")
    say(f"{phase}: {report.undisturbed_s:g} s undisturbed")
    # 2. The same again and again, until the time is over; the last round ends in peace.
    strike = strike_of(phase, machines, drivers=lambda: machines.list_job_commands([_module_of(phase)]))
    with Disturber(plan_kills(recipe, phase), strike, recipe.phase_s) as disturber:
        while not disturber.is_over or not report.rounds:
            name = f"{phase}-{len(report.rounds) + 1}"
            run = submit(name, disturber)
            differences = list_differences(digest(name), undisturbed)
            report.differences += [f"{name}: {line}" for line in differences]
            report.rounds.append({"name": name, "attempts": [asdict(attempt) for attempt in run.attempts]})
            equal = "equal to the undisturbed one" if not differences else f"DIFFERS in {len(differences)}"
            say(f"{name}: {run.seconds:.0f} s, {len(run.attempts)} submissions, {equal}")
        report.seconds = round(disturber.elapsed_s, 1)
    note_kills(report, disturber)
    return report


def strike_of(
    phase: Phase, machines: Machines, *, drivers: Callable[[], Sequence[psutil.Process]]
) -> Callable[[Kind, float], str | None]:
    """Build what kills one of a kind.

    Args:
        phase: Whose actors are workers.
        machines: The nodes.
        drivers: Lists the processes of the phase's command.
    """

    def strike(kind: Kind, draw: float) -> str | None:
        if kind == "node":
            return machines.kill_node(draw)
        if kind == "bucket":
            return None if machines.bucket is None else machines.bucket.kill()
        if kind == "worker":
            return kill_one(machines.list_actors(_ACTORS[phase]), draw)
        if kind == "job":
            return kill_one(machines.list_actors(["JobSupervisor"]), draw)
        return kill_one(drivers(), draw)

    return strike


def note_kills(report: PhaseReport, disturber: Disturber) -> None:
    """Copy what a disturber has done into a phase's report.

    Args:
        report: Of the phase.
        disturber: That has ended.
    """
    report.kills = [asdict(kill) for kill in disturber.kills]
    report.missed = len(disturber.missed)
    report.errors = disturber.errors


def _module_of(phase: Phase) -> str:
    return ANNOTATE if phase == "annotation" else TRAIN
