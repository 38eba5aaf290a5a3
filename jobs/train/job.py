"""Fine-tune an inverse or forward dynamics model on triplets: ``wm train recipe.toml task=idm
key=value``.

The trained model (PEFT adapter or full folder) is ``out/model``, the loss curve ``out/metrics.jsonl``; watch it with
``tensorboard --logdir OUT/tensorboard``. With eval.triplets, eval.every_steps and eval.sample_every_steps the model
is evaluated on triplets that it does not train on: ``out/gates.jsonl``, ``out/samples``.
Started again after a kill, the same command resumes from the last checkpoint.
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.shared import ray_session
from jobs.shared.cluster_size import fit_to_cluster
from jobs.train.evaluator import build_evaluator, check_evaluation
from jobs.train.report import print_plan, print_summary, progress
from jobs.train.watch import POLL_S, watch
from jobs.train.worker import fit_worker
from wm.cli import cause_to_report
from wm.cli import main as command_line
from wm.errors import InputError, to_line
from wm.files.mirror import shown, uri_of
from wm.models import hub_hint, model_folder
from wm.models.card import write_card
from wm.runs import Run, digest_of, read_run
from wm.training import MODEL, DivergedError, RankInfo, TrainRecipe, fit
from wm.training.card import describe_training
from wm.training.checkpoint.identity import check_newest, check_writable
from wm.training.checkpoint.retention import prune
from wm.training.monitoring.evaluation import BEST, LAST
from wm.training.monitoring.mirrored_out import MirroredOut
from wm.training.pixels.batches import TrainingSet
from wm.training.planning.plan import Plan, check_data, order_of, plan
from wm.training.planning.schedule import schedule_warnings
from wm.training.recipe import TOKENS

_RAY_STATE = ".ray_train"
_NOT_TO_RESUME = ("*.safetensors", "checkpoint.json", "events.out.*", "step-*")
"""What the driver leaves in the bucket of a run that resumes: its workers fetch what they need."""


def run(recipe: TrainRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Train a model into ``out/model``.

    Args:
        recipe: What is trained on what, and how.
        dry_run: Check everything and print what would be done.

    Returns:
        The run's record; on a dry run the plan.

    Raises:
        InputError: The recipe, the data or the machine does not allow it.
        DivergedError: The loss became non-finite.
    """
    recipe = fit_to_cluster(recipe)
    if not model_folder(recipe.base).is_dir():  # of one in a bucket that is not there model_folder says so
        raise InputError(f"base = {recipe.base!r}: no such model folder{hub_hint(recipe.base)}")
    stage = Run(recipe.out, "train", recipe, _inputs(recipe))
    if stage.is_complete():
        print(f"{shown(recipe.out)} is complete: nothing to do (model in {shown(Path(recipe.out) / MODEL)})")
        return read_run(recipe.out) or {}
    check_evaluation(recipe)
    if dry_run:
        training_plan = _plan_with_machine(recipe)
        print_plan(recipe, training_plan)
        return training_plan.as_dict()
    # What fails at once is checked before the triplets are read, which may take minutes.
    check_machine(recipe)
    check_writable(recipe)
    with stage.timed("check"):
        tokens = check_data(recipe)
        num_steps = recipe.num_steps(order_of(recipe, tokens.facts))
        first = check_newest(recipe, tokens.facts)
    mirrored = MirroredOut(recipe.out)
    stage.start(leave=_NOT_TO_RESUME)
    _print_start(recipe, tokens, num_steps, first)
    # 0 workers: this process, for tests and notebooks.
    train = _fit_here if recipe.resources.num_workers == 0 else _fit_on_ray
    with stage.timed("train"), _shown_progress(recipe, num_steps):
        summary = train(recipe.with_absolute_paths(), recipe.digest())
    mirrored.settle()
    # What a report says of the run.
    counts = {
        "triplets": tokens.num_rows,
        "skipped": sum(part.num_skipped + sum(part.left_out.values()) for part in tokens.facts),
        "steps": num_steps,
    }
    _write_model_card(recipe, {"recipe": recipe.model_dump(mode="json"), "counts": counts, "summary": summary})
    record = stage.finish(counts, summary=summary)
    # Only a complete run gives up what a resumed one would need.
    prune(recipe)
    for folder in (_RAY_STATE, TOKENS):
        shutil.rmtree(Path(recipe.out) / folder, ignore_errors=True)
    (Path(recipe.out) / BEST).unlink(missing_ok=True)
    mirrored.clean_up(recipe)
    print_summary(recipe, summary, record["wall_s"])
    return record


def _print_start(recipe: TrainRecipe, tokens: TrainingSet, num_steps: int, first: int) -> None:
    """Print what is trained on what, and what of it is not."""
    resumed = f", resuming from step {first:,}" if first else ""
    print(f"train {recipe.task}: {tokens.num_rows:,} triplets, {num_steps:,} steps{resumed}")
    # Rows that cannot be learned are named with the reason: nothing is dropped in silence.
    for part in tokens.facts:
        for reason, count in part.left_out.items():
            print(f"  left out: {count:,} x {reason}, of {shown(part.source.path)}")
    for line in schedule_warnings(recipe, num_steps):
        print(f"warning: {line}")


def _write_model_card(recipe: TrainRecipe, record: dict[str, Any]) -> None:
    """Write the card of ``out/model``, and of ``out/last`` where the best model is kept beside it."""
    for name in (MODEL, LAST):
        folder = Path(recipe.out) / name
        if not folder.is_dir():
            continue
        own = record if name == MODEL else {**record, "summary": {**record["summary"], "best": None}}
        # A training of days does not fail by its card: wm card writes it later.
        try:
            write_card(folder, describe_training(folder, own))
        except (OSError, ValueError) as error:
            print(f"warning: no card of {shown(folder)}: {to_line(error)}; wm card model={shown(folder)} writes it")


@contextmanager
def _shown_progress(recipe: TrainRecipe, num_steps: int) -> Iterator[None]:
    """Show how far the training is: from the files of the first worker, or, where that may be on another node, from
    the bucket that it publishes them to."""
    out = Path(recipe.out)
    if uri_of(out) is None or recipe.resources.num_workers == 0 or ray_session.is_private():
        with progress(out, recipe.task, num_steps):
            yield
        return
    with watch(out) as (folder, refresh), progress(folder, recipe.task, num_steps, refresh=refresh, poll_s=POLL_S):
        yield


def _plan_with_machine(recipe: TrainRecipe) -> Plan:
    """Plan the training; what the machine lacks is listed with all else that does not fit."""
    training_plan = plan(recipe)
    try:
        check_machine(recipe)
    except InputError as error:
        return replace(training_plan, does_not_fit=[*training_plan.does_not_fit, str(error)])
    return training_plan


def check_machine(recipe: TrainRecipe) -> None:
    """Raise :class:`InputError` if this machine has not the CPUs or GPUs that the recipe's workers ask for."""
    key = f"resources.num_workers = {recipe.resources.num_workers}" + (
        ", resources.use_gpu = true" if recipe.resources.use_gpu else ""
    )
    ray_session.check_available(recipe.resources.num_workers, recipe.num_ranks * recipe.resources.use_gpu, key)


def _fit_here(recipe: TrainRecipe, digest: str) -> dict[str, Any]:
    """Train in this process, without Ray."""
    import torch

    device = torch.device("cuda" if recipe.resources.use_gpu else "cpu")
    return fit(recipe, RankInfo(0, 1, device), digest=digest, evaluator=build_evaluator(recipe)).as_dict()


def _fit_on_ray(recipe: TrainRecipe, digest: str) -> dict[str, Any]:
    """Train on Ray Train, which restarts workers that die; they keep their checkpoints themselves."""
    ray_session.connect()
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.train.torch_backend import LoopbackTorchConfig

    # Ray keeps its state where all nodes look for it, or, if they share nothing, where it alone does.
    is_mirrored = uri_of(recipe.out) is not None
    state_root = tempfile.mkdtemp(prefix="wm-train-") if is_mirrored else recipe.out
    # That of an earlier session says that it is running, or has failed.
    shutil.rmtree(Path(state_root) / _RAY_STATE, ignore_errors=True)
    trainer = TorchTrainer(
        fit_worker,
        # As JSON, in which folders of buckets and of the package have names that mean the same on every node.
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "digest": digest,
            "names_node": not ray_session.is_private(),
        },
        # Workers keep their checkpoints themselves: Ray restarts them and stores nothing.
        scaling_config=ray.train.ScalingConfig(
            num_workers=recipe.resources.num_workers,
            use_gpu=recipe.resources.use_gpu,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if recipe.resources.use_gpu else {}),
        ),
        torch_config=LoopbackTorchConfig() if ray_session.is_private() else TorchConfig(),
        run_config=ray.train.RunConfig(
            name=_RAY_STATE,
            storage_path=state_root,
            failure_config=ray.train.FailureConfig(max_failures=recipe.resources.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        result = ray_session.off_main_thread(trainer.fit)
    except ray.train.WorkerGroupError as error:
        # A mistake of the recipe is reported in one line, without Ray's trace of workers.
        for failure in error.worker_failures.values():
            cause = cause_to_report(failure)
            if cause is not None:
                raise cause from error
        raise
    finally:
        if is_mirrored:
            shutil.rmtree(state_root, ignore_errors=True)
    summary: dict[str, Any] = result.return_value
    # Returned by the worker, so that Ray does not try again.
    if "diverged" in summary:
        raise DivergedError(summary["diverged"])
    return summary


def _inputs(recipe: TrainRecipe) -> dict[str, str]:
    inputs = {"base": digest_of(recipe.base)}
    # By number: two sources may have the same path with different selections.
    for number, source in enumerate(recipe.triplets):
        inputs[f"triplets{number}"] = digest_of(source.path)
        if source.selection:
            inputs[f"selection{number}"] = digest_of(source.selection)
    if recipe.eval.is_on:
        inputs["held_out"] = digest_of(recipe.eval.triplets)
    return inputs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return command_line(TrainRecipe, run, name="train", description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
