"""Define the work of each phase: what runs undisturbed, what runs while parts are killed, and what must be equal."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster.chaos.bucket import CACHES
from cluster.chaos.bucket import NAME as BUCKET
from cluster.chaos.machines import Machines, kill_one
from cluster.chaos.outcomes import digest_files, digest_rows, list_differences
from cluster.chaos.progress import look_at_annotation, look_at_training
from cluster.chaos.recipe import ChaosRecipe, Kind, Phase
from cluster.chaos.schedule import Disturber, plan_kills
from cluster.chaos.work import JobRun, run_here, submit_until_done

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ANNOTATE, TRAIN = "jobs.annotate", "jobs.train"
CHECKPOINT_STEPS = 10
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
    """Fields of :class:`cluster.chaos.schedule.Kill`, how far the work had come among them."""
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


def prepare_data(recipe: ChaosRecipe) -> None:
    """Make clips and triplets of the nano world where the work finds them.

    Args:
        recipe: How many clips.
    """
    out, root = Path(recipe.out), root_of(recipe)
    counts = [f"videos={recipe.videos}", "train=64", "tune=0", "test=0", "resources.num_workers=0"]
    run_here(["-m", "jobs.tabletop", f"out={root}/world", *counts], out / "world.log")
    source = [f"root={root}/world/supervised", "file=data/tabletop/train.json", "codec=nano:base", "dataset=tabletop"]
    run_here(["-m", "jobs.ingest", *source, f"out={root}/triplets", "resources.num_workers=0"], out / "triplets.log")


def root_of(recipe: ChaosRecipe) -> str:
    """Return where the work reads and writes: a bucket, which is all that its nodes share, or a folder."""
    return f"s3://{BUCKET}" if recipe.bucket else recipe.out


def command_of(recipe: ChaosRecipe, phase: Phase, name: str) -> list[str]:
    """Build the arguments of Python for the work of a phase.

    Args:
        recipe: How much of it.
        phase: Annotation or training.
        name: Of the output's folder.
    """
    root = root_of(recipe)
    output = f"{root}/{name}"
    if phase == "annotation":
        keys = [f"videos={root}/world/videos", "idm=nano:idm", f"out={output}", "dataset=tabletop"]
        # Small batches and shards: there is something to disturb all the time.
        more = ["max_new_tokens=12", "videos_per_shard=4", "keyframes.min_interval_frames=8"]
        more += ["resources.num_decoders=3", "resources.num_annotators=3", "resources.idm_batch_size=2"]
        return ["-m", ANNOTATE, *keys, *more]
    keys = ["task=idm", "base=nano:base", f"triplets={root}/triplets", f"out={output}", f"max_steps={recipe.steps}"]
    # A checkpoint every few seconds, and figures of every step: a kill says which step it hit.
    more = ["global_batch_size=8", f"checkpoint.every_steps={CHECKPOINT_STEPS}", "logging.every_steps=1"]
    more += ["resources.num_workers=2", "resources.max_failures=2", "logging.trackers=[]"]
    return ["-m", TRAIN, *keys, *more]


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

    def look() -> dict[str, float]:
        return look_at(phase, out, f"{phase}-{len(report.rounds) + 1}", machines)

    # 1. What it should be.
    report.undisturbed_s = round(submit(f"{phase}-undisturbed", None).seconds, 1)
    undisturbed = digest(f"{phase}-undisturbed")
    say(f"{phase}: {report.undisturbed_s:g} s undisturbed")
    # 2. The same again and again, until the time is over; the last round ends in peace.
    strike = strike_of(phase, machines, drivers=lambda: machines.list_job_commands([_module_of(phase)]))
    with Disturber(plan_kills(recipe, phase), strike, recipe.phase_s, look) as disturber:
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


def look_at(phase: Phase, out: Path, name: str, machines: Machines) -> dict[str, float]:
    """Look how far a phase's work has come.

    Args:
        phase: Annotation or training.
        out: Folder of the run.
        name: Of the work's output.
        machines: The nodes and their bucket.
    """
    from wm.training import METRICS

    if machines.bucket is None:
        folder = out / name
        # Not rglob, which fails where a temporary folder is gone before it is read.
        names = [os.path.relpath(Path(root, name), folder) for root, _, files in os.walk(folder) for name in files]
        figures = [folder / METRICS]
    else:
        names = machines.bucket.list_names(f"{name}/")
        # Figures of the last steps are on the node of the first worker alone.
        figures = list(out.glob(f"{CACHES}/*/wm-buckets/s3/{BUCKET}/{name}/{METRICS}"))
    return look_at_annotation(names) if phase == "annotation" else look_at_training(names, figures)


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
    kills = [asdict(kill) for kill in disturber.kills]
    report.kills = [kill | kill.pop("progress") for kill in kills]
    report.missed = len(disturber.missed)
    report.errors = disturber.errors


def _module_of(phase: Phase) -> str:
    return ANNOTATE if phase == "annotation" else TRAIN
