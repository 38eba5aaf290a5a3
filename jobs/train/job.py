"""Fine-tune an inverse or forward dynamics model on triplets: ``python -m jobs.train recipe.toml task=idm
key=value``.

The trained model (PEFT adapter or full folder) is ``out/model``, the loss curve ``out/metrics.jsonl``; look on with
``tensorboard --logdir OUT/tensorboard``. With held_out, gate_every and sample_every the model is asked about triplets
that it does not train on: ``out/gates.jsonl``, ``out/samples``.
Started again after a kill, the same command goes on from the last checkpoint.
"""

import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.shared import ray_session
from jobs.train.evaluator import HeldOutWatcher, check_watch
from jobs.train.report import print_plan, print_summary, progress
from jobs.train.worker import fit_worker
from wm.cli import cause_to_tell
from wm.cli import main as command_line
from wm.errors import InputError
from wm.runs import Run, digest_of
from wm.training import MODEL, DivergedError, TrainRecipe, World, fit
from wm.training.checkpoint.checkpoints import need_own, need_place, tidy
from wm.training.monitoring.evaluation import BEST
from wm.training.planning.plan import Plan, check_data, order_of, plan
from wm.training.planning.schedule import schedule_warnings
from wm.training.recipe import TOKENS

_RAY_NOTES = ".ray_train"

Fit = Callable[[TrainRecipe, str], dict[str, Any]]


def run(recipe: TrainRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Train, or with ``dry_run`` check everything and say what would be done; returns the run's record."""
    stage = Run(recipe.out, "train", recipe, _inputs(recipe))
    if stage.is_whole():
        print(f"{recipe.out} is whole: nothing to do (model in {Path(recipe.out) / MODEL})")
        return dict(json.loads((Path(recipe.out) / "run.json").read_text()))
    check_watch(recipe)
    if dry_run:
        found = _planned(recipe)
        print_plan(recipe, found)
        return found.as_dict()
    need_machine(recipe)
    need_place(recipe)
    with stage.timed("check"):
        tokens = check_data(recipe)
        num_steps = recipe.num_steps(order_of(recipe, tokens.facts))
        need_own(recipe, tokens.facts)
    stage.start()
    print(f"train {recipe.task}: {tokens.num_rows:,} triplets, {num_steps:,} steps")
    for part in tokens.facts:
        for reason, count in part.left_out.items():
            print(f"  left out: {count:,} x {reason}, of {part.source.path}")
    for line in schedule_warnings(recipe, num_steps):
        print(f"warning: {line}")
    train = _fit_here if recipe.num_workers == 0 else _fit_on_ray
    with stage.timed("train"), progress(Path(recipe.out), recipe.task, num_steps):
        summary = train(recipe.with_absolute_paths(), recipe.digest())
    counts = {
        "triplets": tokens.num_rows,
        "skipped": sum(part.num_skipped + sum(part.left_out.values()) for part in tokens.facts),
        "steps": num_steps,
    }
    record = stage.finish(counts, summary=summary)
    tidy(recipe)
    for folder in (_RAY_NOTES, TOKENS):
        shutil.rmtree(Path(recipe.out) / folder, ignore_errors=True)
    (Path(recipe.out) / BEST).unlink(missing_ok=True)
    print_summary(recipe, summary, record["wall_s"])
    return record


def _planned(recipe: TrainRecipe) -> Plan:
    """The plan; the machine that lacks workers or GPUs is told of like all else that does not fit."""
    found = plan(recipe)
    try:
        need_machine(recipe)
    except InputError as error:
        return replace(found, does_not_fit=[*found.does_not_fit, str(error)])
    return found


def need_machine(recipe: TrainRecipe) -> None:
    """Raise :class:`InputError` if this machine has not the CPUs or GPUs that the recipe's workers ask for."""
    key = f"num_workers = {recipe.num_workers}" + (", use_gpu = true" if recipe.use_gpu else "")
    ray_session.need(recipe.num_workers, recipe.num_ranks * recipe.use_gpu, key)


def _fit_here(recipe: TrainRecipe, digest: str) -> dict[str, Any]:
    """In this process, without Ray."""
    import torch

    device = torch.device("cuda" if recipe.use_gpu else "cpu")
    return fit(recipe, World(0, 1, device), digest=digest, watcher=HeldOutWatcher(recipe)).as_dict()


def _fit_on_ray(recipe: TrainRecipe, digest: str) -> dict[str, Any]:
    """On Ray Train, which starts the workers again when one dies; checkpoints are the workers' own affair."""
    ray_session.connect()
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.train.torch_backend import LoopbackTorchConfig

    notes = Path(recipe.out) / _RAY_NOTES  # a former session's say that it is running, or has failed
    shutil.rmtree(notes, ignore_errors=True)
    trainer = TorchTrainer(
        fit_worker,
        train_loop_config={"recipe": recipe.model_dump(), "digest": digest},
        scaling_config=ray.train.ScalingConfig(
            num_workers=recipe.num_workers,
            use_gpu=recipe.use_gpu,
            resources_per_worker={"CPU": 1} | ({"GPU": 1} if recipe.use_gpu else {}),
        ),
        torch_config=LoopbackTorchConfig() if ray_session.is_private() else TorchConfig(),
        run_config=ray.train.RunConfig(
            name=_RAY_NOTES,
            storage_path=recipe.out,
            failure_config=ray.train.FailureConfig(max_failures=recipe.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        result = ray_session.off_main_thread(trainer.fit)
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            told = cause_to_tell(failure)
            if told is not None:
                raise told from error
        raise
    summary: dict[str, Any] = result.return_value
    if "diverged" in summary:
        raise DivergedError(summary["diverged"])
    return summary


def _inputs(recipe: TrainRecipe) -> dict[str, str]:
    inputs = {"base": digest_of(recipe.base)}
    for number, source in enumerate(recipe.triplets):
        inputs[f"triplets{number}"] = digest_of(source.path)
        if source.selection:
            inputs[f"selection{number}"] = digest_of(source.selection)
    if recipe.gate_every or recipe.sample_every:
        inputs["held_out"] = digest_of(recipe.held_out)
    return inputs


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command_line(TrainRecipe, run, name="train", description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
