"""Training: a LoRA step of ours against transformers' model with PEFT and full logits, its memory, and the data loader.

Both sides train the same random Chameleon (width 512, 4 layers, vocabulary 65,536) on the same row in the project's
prompt layout (two images of 512 codes and 12 action tokens) in float32, with the paper's adapters: rank 16, alpha 32,
dropout .05 on all seven linear layers. Theirs: transformers' ChameleonForConditionalGeneration, PEFT's layers as they
come, logits and their gradient at every position, transformers' own causal loss with -100 where nothing is learned;
without transformers' masking of image logits, which would cost it a copy more and forbid images. Ours: what jobs.train
does by default. Both step with torch's fused AdamW; CPU seconds of one thread, the least of the rounds, in turns.

Memory: bytes of tensors that a step makes, at their peak, each counted as it is made and freed. Saved activations:
bytes that the decoder keeps for its backward pass, by saved_tensors_hooks, each storage once, without parameters;
weights in bfloat16 and adapters in float32, as PEFT has them, and dropout's masks a byte an element, as on a GPU
(torch on a CPU keeps a number of the input's precision). Loader: rows a CPU second from the token cache through the
prefetching thread, over rows a CPU second of a nano model's bare step (forward, backward, AdamW; no DeepSpeed),
recognition weights included.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field

from jobs.benchmark.harness import check_out, spread, write_ratios
from jobs.benchmark.training_counts import peak_bytes, saved_bytes, with_masks_of_bytes
from jobs.benchmark.training_loader import LoaderShape, loader_work
from jobs.benchmark.training_models import Shape, module_of, our_step, ours, peft_step, with_peft
from wm.config import Recipe
from wm.models.adapters import quiet_peft
from wm.models.prompts import Task
from wm.paths import OutputPath
from wm.training import Lora

PACKAGES = ("wm", "torch", "transformers", "peft", "numpy")
TASKS: tuple[Task, ...] = ("fdm", "idm")
Work = Mapping[str, Callable[[], object]]


class BenchmarkRecipe(Recipe):
    """What to measure, and how often."""

    out: OutputPath
    """JSON file to write."""
    rounds: int = Field(default=5, ge=1)
    """Turns of each kind of work, after one to warm up; the least counts."""
    quick: bool = False
    """Tiny shapes, one round: shows that it works, measures nothing."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Measure and write ``recipe.out``; returns what was written."""
    check_out(recipe.out)
    rounds = 1 if recipe.quick else recipe.rounds
    if dry_run:
        print(f"benchmark training: would measure {rounds} rounds")
        return {}
    shape = Shape(32, 2, 2, 64, 16, tokens_per_image=9, action_tokens=3) if recipe.quick else Shape()
    loader = LoaderShape(rows=64, batch=8, batches=4) if recipe.quick else LoaderShape()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with quiet_peft():
            return _write(recipe, *_measure(shape, loader, rounds))
    finally:
        torch.set_num_threads(threads)


def _measure(
    shape: Shape, loader: LoaderShape, rounds: int
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, Any]]:
    seconds: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {"shape": vars(shape) | {"mlp_width": shape.mlp}, "lora": Lora().model_dump()}
    memory = {}
    for task in TASKS:
        steps, figures[f"{task}_rows"] = _steps(shape, task)
        figures[f"{task}_first_loss"] = {name: float(step()) for name, step in steps.items()}  # type: ignore[arg-type]
        seconds |= {f"{name}_{task}": values for name, values in turns(steps, rounds).items()}
        ratios[f"hf_step_over_ours_{task}"] = min(seconds[f"hf_{task}"]) / min(seconds[f"ours_{task}"])
        memory[task] = {name: peak_bytes(step) for name, step in steps.items()}
        ratios[f"hf_memory_over_ours_{task}"] = memory[task]["hf"] / memory[task]["ours"]
    ratios["hf_memory_over_ours"] = min(ratios[f"hf_memory_over_ours_{task}"] for task in TASKS)
    figures["peak_bytes"] = memory
    figures["saved_bytes"] = saved = {
        "bf16": _saved(shape, torch.bfloat16, Lora()),
        "bf16_no_dropout": _saved(shape, torch.bfloat16, Lora(dropout=0.0)),
        "fp32": _saved(shape, torch.float32, Lora()),
    }
    for kind, kept in saved.items():
        name = "peft_activations_over_ours" + ("" if kind == "bf16" else f"_{kind}")
        ratios[name] = kept["peft"] / kept["ours"]
    with loader_work(loader) as work:
        seconds |= turns(work, rounds)
    figures["loader"] = vars(loader)
    per_row = {name: min(seconds[name]) / loader.rows_of(name) for name in ("loader", "nano_step")}
    figures["rows_per_s"] = {name: 1 / value for name, value in per_row.items()}
    ratios["loader_over_step"] = per_row["nano_step"] / per_row["loader"]
    return ratios, seconds, figures


def turns(work: Work, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each kind of work in each round, after one to warm up; in a round all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            begin = time.process_time()
            function()
            if number:
                seconds[name].append(time.process_time() - begin)
    return seconds


def _steps(shape: Shape, task: Task) -> tuple[Work, dict[str, int]]:
    batch = shape.batch(task)
    theirs, own = with_peft(module_of(shape), Lora()), ours(module_of(shape), Lora(), shape)
    lengths = {"tokens": batch[0].numel(), "completion_tokens": int(batch[1].sum())}
    return {"hf": peft_step(theirs, batch), "ours": our_step(own, batch)}, lengths


def _saved(shape: Shape, dtype: torch.dtype, lora: Lora) -> dict[str, int]:
    """Bytes that the decoder keeps of an FDM row."""
    ids_BT = shape.batch("fdm")[0]
    theirs = with_peft(module_of(shape, dtype=dtype), lora)
    with_masks_of_bytes(theirs)
    own = ours(module_of(shape, dtype=dtype), lora, shape)
    models = {"peft": theirs.get_base_model(), "ours": own.inner}
    return {
        name: saved_bytes(lambda model=model: model.model(input_ids=ids_BT, use_cache=False), model)  # type: ignore[misc]
        for name, model in models.items()
    }


def _write(
    recipe: BenchmarkRecipe, ratios: dict[str, float], seconds: dict[str, list[float]], figures: dict[str, Any]
) -> dict[str, Any]:
    spreads = {name: spread(values) for name, values in seconds.items()}
    record = write_ratios(
        recipe.out,
        "training",
        PACKAGES,
        ratios=ratios,
        spreads=spreads,
        seconds=seconds,
        figures=figures,
        settings=recipe.model_dump(exclude={"out"}),
    )
    print(f"benchmark training: {len(seconds['loader'])} rounds, written to {recipe.out}")
    return record
