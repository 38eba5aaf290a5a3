"""Print what training does: a progress bar, evaluations as they come, tables at the end.

It reads the files that the first worker writes, wherever that runs, and knows nothing of the training itself.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wm.cli import progress_bar
from wm.files.mirror import shown
from wm.training import METRICS, MODEL, TrainRecipe
from wm.training.checkpoint.retention import FAILED
from wm.training.monitoring.evaluation import EVALUATIONS, LAST, EvaluationLine
from wm.training.monitoring.records import StepLine
from wm.training.planning.plan import Plan
from wm.training.planning.state_memory import StateMemory

_POLL_S = 0.5
_TABLE_ROWS = 8
_COLUMNS = ("step", "epoch", "loss", "lr", "grad norm", "samples/s", "tokens/s", "MFU", "peak GiB")


@contextmanager
def progress(
    out: Path, task: str, num_steps: int, *, refresh: Callable[[], None] = lambda: None, poll_s: float = _POLL_S
) -> Iterator[None]:
    """Show a bar that follows ``metrics.jsonl``; evaluations and failed checkpoints are printed above it.

    Args:
        out: Folder of the run, or one with its figures.
        task: ``idm`` or ``fdm``, for the bar's title.
        num_steps: Steps of the training.
        refresh: Called before the folder is looked at.
        poll_s: Seconds between two looks.
    """
    stop = threading.Event()
    refresh()
    bar = progress_bar(num_steps, "step", f"train {task}")
    # What a resumed run finds there was printed before.
    printed_steps = {line["step"] for line in _lines(out / EVALUATIONS)}
    failures = {""}

    def show() -> None:
        refresh()
        line = last_line(out / METRICS)
        if line is not None and line["step"] != bar.n:
            bar.set_postfix(loss=f"{line['loss']:.3f}", refresh=False)
            bar.update(line["step"] - bar.n)
        for evaluation in _lines(out / EVALUATIONS):
            if evaluation["step"] not in printed_steps:
                printed_steps.add(evaluation["step"])
                for text in evaluation_lines(evaluation):
                    bar.write(text)
        failure = (out / FAILED).read_text().strip() if (out / FAILED).is_file() else ""
        if failure not in failures:
            failures.add(failure)
            bar.write(f"warning: {failure}")

    def follow() -> None:
        while not stop.wait(poll_s):
            show()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        # What was written since the last poll.
        show()
        bar.close()


def evaluation_lines(evaluation: EvaluationLine) -> list[str]:
    """Format an evaluation, with a warning if the model has collapsed or ignores its action."""
    parts = [
        f"evaluation at step {evaluation['step']:,}: {evaluation['nats']:.4f} nats a token",
        f"prefers the truth {evaluation['preference']:.0%}",
    ]
    # Only a forward model can copy its source.
    if "copies" in evaluation:
        parts.append(f"copies {evaluation['copies']:.0%}")
    elif "unchanged_share" in evaluation:
        parts.append("copies unknown (no held-out target differs from its source)")
    if "unchanged_share" in evaluation:
        parts.append(
            f"leaves {evaluation['unchanged_share']:.0%} of the tokens "
            f"(the truth {evaluation['true_unchanged_share']:.0%})"
        )
    if "sensitivity.shuffled" in evaluation:
        parts.append(f"true action {evaluation['sensitivity.shuffled']:+.4f} nats an image token over a shuffled one")
    lines = [", ".join(parts)]
    # Lines of a run that an earlier version began have no such flag.
    if evaluation.get("ignores_action"):
        lines.append(
            f"warning: at step {evaluation['step']:,} the model ignores its action: the true image is no likelier "
            "under the true action than under another triplet's"
        )
    if evaluation["has_collapsed"]:
        lines.append(
            f"warning: at step {evaluation['step']:,} the model returns {evaluation['copies']:.0%} of the held-out "
            "sources unchanged: it has collapsed into copying"
        )
    return lines


def print_plan(recipe: TrainRecipe, plan: Plan) -> None:
    """Print what a dry run found out.

    Args:
        recipe: Of the run.
        plan: Sizes, schedule, memory, and what does not fit.
    """
    print(f"train {recipe.task} on {shown(recipe.base)} into {shown(recipe.out)}")
    # 1. Rows, by source.
    for part in plan.sources:
        left_out = "".join(f", {count:,} x {reason}" for reason, count in part["left_out"].items())
        print(
            f"  {part['rows']:>11,} rows, mix_weight {part['mix_weight']:g} ({part['epoch_share']:.1%} of an epoch), "
            f"{part['skipped']} skipped{left_out}: {shown(part['path'])}"
        )
    # 2. Length of the run and its schedule.
    print(f"  {plan.rows_per_epoch:>11,} rows an epoch")
    print(f"  {plan.num_steps:>11,} steps of {recipe.global_batch_size} = {plan.epochs:.2f} epochs")
    num_warmup_steps = min(plan.warmup_steps, plan.num_steps)
    print(
        f"  {num_warmup_steps:>11,} of them warm the learning rate up to {recipe.optim.lr * plan.peak_share:.3g}"
        + ("" if plan.peak_share == 1 else f", {plan.peak_share:.1%} of optim.lr = {recipe.optim.lr:g}")
    )
    print(
        f"  {plan.tokens_per_batch:>11,} tokens a batch (mean), {plan.completion_tokens_per_batch:,} of them "
        f"learned; {plan.num_steps * plan.tokens_per_batch:,} in all; rows of up to {plan.longest_row}"
    )
    # 3. Model, workers and memory.
    print(f"  {plan.trained_parameters:>11,} of {plan.total_parameters:,} parameters trained")
    print(
        f"  {recipe.resources.num_workers:>11} workers x {recipe.rows_per_pass} rows x {recipe.accumulation_steps} "
        f"passes, {recipe.precision}, ZeRO-{plan.zero_stage}"
        + (", layers computed again in the backward pass" if plan.recomputes else "")
    )
    parts = {name: count for name, count in plan.memory.as_dict().items() if name not in ("peak", "minimum") and count}
    if isinstance(plan.memory, StateMemory):
        print(
            f"  {_bytes(plan.memory.minimum):>11} of memory a worker at least; what the layers keep for the backward "
            "pass is not estimated: a vision tower's passes depend on the images"
        )
    else:
        print(f"  {_bytes(plan.memory.peak):>11} of memory a worker at most, when its rows are the longest:")
    for name, count in parts.items():
        print(f"  {_bytes(count):>11} {_PARTS[name]}")
    # 4. What is wrong with it.
    for line in plan.does_not_fit:
        print(f"will not fit: {line}")
    for line in plan.warnings:
        print(f"warning: {line}")


_PARTS = {
    "weights": "frozen weights",
    "trained": "trained weights",
    "optimizer": "optimiser: moments, fp32 copy",
    "gradients": "gradients",
    "communication": "buffers of the exchange between workers",
    "activations": "activations kept for the backward pass",
    "logits": "head and loss",
}


def _bytes(count: int) -> str:
    if count >= 1 << 30:
        return f"{count / (1 << 30):,.2f} GiB"
    return f"{count / (1 << 20):,.1f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):,.1f} KiB"


def print_summary(recipe: TrainRecipe, summary: Mapping[str, Any], wall_s: float) -> None:
    """Print tables, times, and where things are.

    Args:
        recipe: Of the run.
        summary: Of the training, as in ``run.json``.
        wall_s: Of the complete run.
    """
    out = Path(recipe.out)
    # The curve, as a table.
    for text in table_of(_lines(out / METRICS)):
        print(text)
    resumed = f", resumed from step {summary['resumed_at_step']}" if summary["resumed_at_step"] else ""
    counts = summary["parameters"]
    print(
        f"train {recipe.task}: {summary['num_steps']:,} steps in {summary['steps_s']:.1f} s "
        f"({summary['samples_per_s']:.0f} triplets/s; {wall_s:.1f} s with start-up){resumed}\n"
        f"  loss {summary['first_loss']:.4f} -> {summary['last_loss']:.4f}; "
        f"{counts['trained']:,} of {counts['total']:,} parameters trained"
    )
    # The last evaluation, and the best one.
    if "evaluation" in summary:
        print(f"  {evaluation_lines(summary['evaluation'])[0]}")
    if "collapsed_at" in summary:
        steps = ", ".join(f"{step:,}" for step in summary["collapsed_at"])
        print(f"  warning: collapsed into copying at the evaluations of steps {steps}")
    # At the first steps every model does: what counts is the last evaluation.
    if summary.get("evaluation", {}).get("ignores_action"):
        print(f"  warning: {recipe.task} ignores its action at the last evaluation: see sensitivity.shuffled")
    if "best" in summary:
        step, metric = summary["best"]["step"], recipe.eval.metric_for_best_model
        print(f"  best by {metric}: step {step:,} ({summary['best'][metric]:.4f}); the last: {shown(out / LAST)}")
    # A run that could not store checkpoints still ends well, but its user should know.
    failed = summary["checkpoints"].get("failed", 0)
    if failed:
        print(f"  warning: {failed} checkpoints could not be written; {summary['checkpoints']['last_failure']}")
    print(f"  model: {shown(out / MODEL)}   curve: {shown(out / METRICS)}")


def table_of(lines: Sequence[StepLine], count: int = _TABLE_ROWS) -> list[str]:
    """Format lines of ``metrics.jsonl`` as a table, with the last one's losses by source and by change below.

    Args:
        lines: Parsed lines; only those that end a window are used.
        count: Rows at most, evenly spread, the last among them.

    Returns:
        Lines of text; empty if no window has ended.
    """
    # Only the last line of a window has its figures.
    ends = [line for line in lines if "tokens_per_s" in line]
    if not ends:
        return []
    numbers = sorted({round((number + 1) * len(ends) / count) for number in range(count)} - {0})
    # Evenly spread over the run, the last line among them.
    rows = [_COLUMNS, *(_row(ends[number - 1]) for number in numbers)]
    # Without columns that have no value, such as MFU where the peak is not known.
    columns = [column for column in range(len(_COLUMNS)) if any(row[column] for row in rows[1:])]
    widths = {column: max(len(row[column]) for row in rows) for column in columns}
    table = ["  " + "  ".join(row[column].rjust(widths[column]) for column in columns) for row in rows]
    last = ends[-1]
    groups = {"source": last["loss_by_source"], "change, min to max": last["loss_by_change"]}
    for title, means in groups.items():
        if len(means) > 1:
            table.append(f"  loss by {title}: " + ", ".join(f"{key} {mean:.4f}" for key, mean in means.items()))
    return table


def _row(line: StepLine) -> tuple[str, ...]:
    return (
        f"{line['step']:,}",
        f"{line['epoch']:.2f}",
        f"{line['loss']:.4f}",
        f"{line['lr']:.2e}",
        f"{line['grad_norm']:.3f}",
        f"{line['samples_per_s']:,.0f}",
        f"{line['tokens_per_s']:,.0f}",
        f"{line['mfu']:.1%}" if "mfu" in line else "",
        f"{line['memory_peak_bytes'] / 2**30:.2f}",
    )


def last_line(path: Path) -> StepLine | None:
    """Load the last complete line of a file of JSON objects, or None."""
    lines = _complete_lines(path, 16_384)
    return json.loads(lines[-1]) if lines else None


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in _complete_lines(path)]


def _complete_lines(path: Path, last_bytes: int | None = None) -> list[bytes]:
    """Read the lines that have been written to their end, of the last so many bytes of the file."""
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last_bytes))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [line for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]
