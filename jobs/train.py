"""Fine-tune an inverse or forward dynamics model on triplets: ``python -m jobs.train recipe.toml task=idm
key=value``.

The trained model (PEFT adapter or full folder) is ``out/model``, the loss curve ``out/metrics.jsonl``.
Started again after a kill, the same command goes on from the last checkpoint.
"""

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs import _ray
from jobs._train_worker import fit_worker
from wm.cli import cause_to_tell, progress_bar
from wm.cli import main as command_line
from wm.runs import Run, digest_of
from wm.training import METRICS, MODEL, DivergedError, TrainRecipe, World, fit
from wm.training.checkpoints import need_own, need_place, tidy
from wm.training.plan import Plan, check_data, order_of, plan
from wm.training.recipe import TOKENS

_RAY_NOTES = ".ray_train"
_POLL_S = 0.5

Fit = Callable[[TrainRecipe, str], dict[str, Any]]


def run(recipe: TrainRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Train, or with ``dry_run`` check everything and say what would be done; returns the run's record."""
    stage = Run(recipe.out, "train", recipe, _inputs(recipe))
    if stage.is_whole():
        print(f"{recipe.out} is whole: nothing to do (model in {Path(recipe.out) / MODEL})")
        return dict(json.loads((Path(recipe.out) / "run.json").read_text()))
    need_machine(recipe)
    if dry_run:
        found = plan(recipe)
        _print_plan(recipe, found)
        return found.as_dict()
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
    train = _fit_here if recipe.num_workers == 0 else _fit_on_ray
    with stage.timed("train"), _progress(Path(recipe.out) / METRICS, recipe.task, num_steps):
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
    _print_summary(recipe, summary, record["wall_s"])
    return record


def need_machine(recipe: TrainRecipe) -> None:
    """Raise :class:`InputError` if this machine has not the CPUs or GPUs that the recipe's workers ask for."""
    key = f"num_workers = {recipe.num_workers}" + (", use_gpu = true" if recipe.use_gpu else "")
    _ray.need(recipe.num_workers, recipe.num_ranks * recipe.use_gpu, key)


def _fit_here(recipe: TrainRecipe, digest: str) -> dict[str, Any]:
    """In this process, without Ray."""
    import torch

    device = torch.device("cuda" if recipe.use_gpu else "cpu")
    return fit(recipe, World(0, 1, device), digest=digest).as_dict()


def _fit_on_ray(recipe: TrainRecipe, digest: str) -> dict[str, Any]:
    """On Ray Train, which starts the workers again when one dies; checkpoints are the workers' own affair."""
    _ray.connect()
    import ray.train
    from ray.train.torch import TorchTrainer

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
        run_config=ray.train.RunConfig(
            name=_RAY_NOTES,
            storage_path=recipe.out,
            failure_config=ray.train.FailureConfig(max_failures=recipe.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        result = _ray.off_main_thread(trainer.fit)
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
    return inputs


@contextmanager
def _progress(metrics: Path, task: str, num_steps: int) -> Iterator[None]:
    """A progress bar that follows the lines rank 0 writes."""
    done = threading.Event()
    bar = progress_bar(num_steps, "step", f"train {task}")

    def show() -> None:
        line = _last_line(metrics)
        if line is not None and line["step"] != bar.n:
            bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
            bar.update(line["step"] - bar.n)

    def follow() -> None:
        while not done.wait(_POLL_S):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
        show()
    finally:
        done.set()
        thread.join()
        bar.close()


def _last_line(metrics: Path) -> dict[str, Any] | None:
    """The last whole line of the metrics file, or None."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 1024))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]
    return json.loads(whole[-1]) if whole else None


def _print_plan(recipe: TrainRecipe, found: Plan) -> None:
    print(f"train {recipe.task} on {recipe.base} into {recipe.out}")
    for part in found.sources:
        print(f"  {part['rows']:>9,} rows, weight {part['weight']:g}, {part['skipped']} skipped: {part['path']}")
    print(f"  {found.rows_per_epoch:>9,} rows an epoch")
    print(f"  {found.num_steps:>9,} steps of {recipe.global_batch} = {found.epochs:.2f} epochs")
    print(f"  {found.trained_parameters:>9,} of {found.total_parameters:,} parameters trained")
    print(
        f"  {found.tokens_per_batch:>9,} tokens a batch (mean), {found.completion_tokens_per_batch:,} "
        f"of them learned; rows of up to {found.longest_row} tokens"
    )
    print(
        f"  {recipe.num_workers:>9} workers x {recipe.micro_batch_size} rows x {recipe.accumulation_steps} "
        f"passes, {recipe.precision}, ZeRO-{recipe.zero_stage}"
    )


def _print_summary(recipe: TrainRecipe, summary: dict[str, Any], wall_s: float) -> None:
    resumed = f", gone on from step {summary['resumed_at_step']}" if summary["resumed_at_step"] else ""
    counts = summary["parameters"]
    print(
        f"train {recipe.task}: {summary['num_steps']:,} steps in {summary['steps_s']:.1f} s "
        f"({summary['samples_per_s']:.0f} triplets/s; {wall_s:.1f} s with start-up){resumed}\n"
        f"  loss {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}; "
        f"{counts['trained']:,} of {counts['total']:,} parameters trained\n"
        f"  model: {Path(recipe.out) / MODEL}   curve: {Path(recipe.out) / METRICS}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command_line(TrainRecipe, run, name="train", description=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
