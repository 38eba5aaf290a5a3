"""Measure training: our LoRA step against transformers' model with PEFT and full logits, its memory, the data loader.

Both sides train the same random Chameleon (width 512, 4 layers, vocabulary 65,536) on the same row in the project's
prompt layout (two images of 512 codes and 12 action tokens) in float32, with the paper's adapters: rank 16, alpha 32,
dropout .05 on all seven linear layers. Theirs: transformers' ChameleonForConditionalGeneration, PEFT's layers as they
come, logits and their gradient at every position, transformers' own causal loss with -100 where nothing is learned;
without transformers' masking of image logits, which would cost it a copy more and forbid images. Ours: what wm train
does by default. Both step with torch's fused AdamW; CPU seconds of one thread, the min of the rounds, in turns.

Memory: bytes of tensors that a step makes, at their peak, each counted as it is made and freed. Saved activations:
bytes that the decoder keeps for its backward pass, by saved_tensors_hooks, each storage once, without parameters;
weights in bfloat16 and adapters in float32, as PEFT has them, and dropout's masks a byte an element, as on a GPU
(torch on a CPU keeps a number of the input's precision). Loader: rows a CPU second from the token cache through the
prefetching thread, over rows a CPU second of a nano model's bare step (forward, backward, AdamW; no DeepSpeed),
recognition weights included.
"""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor

from jobs.benchmark.harness import (
    CommonRecipe,
    Figures,
    Seconds,
    check_out,
    print_ratios,
    spread,
    torch_threads,
    turns,
    write_record,
)
from jobs.benchmark.training_counts import peak_bytes, saved_bytes, use_byte_masks
from jobs.benchmark.training_loader import LoaderShape, loader_work
from jobs.benchmark.training_models import Shape, add_peft, build_module, build_ours, our_step, peft_step
from wm.models.adapters import quiet_peft
from wm.models.prompts import Task
from wm.training import Lora

PACKAGES = ("wm", "torch", "transformers", "peft", "numpy")
TASKS: tuple[Task, ...] = ("fdm", "idm")


class BenchmarkRecipe(CommonRecipe):
    """How often to measure."""

    rounds: int = Field(default=5, ge=1)
    """Turns of each kind of work, after one to warm up; the min counts."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: What is measured, and where the record goes.
        dry_run: Print what would be measured; the record is empty.
    """
    check_out(recipe.out)
    rounds = 1 if recipe.quick else recipe.rounds
    if dry_run:
        print(f"benchmark training: would measure {rounds} rounds")
        return {}
    # Quick: sizes that only check the code.
    shape = Shape(32, 2, 2, 64, 16, tokens_per_image=9, action_tokens=3) if recipe.quick else Shape()
    loader = LoaderShape(rows=64, batch=8, batches=4) if recipe.quick else LoaderShape()
    with torch_threads(1), quiet_peft():
        ratios, seconds, figures = _measure(shape, loader, rounds)
    spreads = {name: spread(values) for name, values in seconds.items()}
    parts = {"spread": spreads, "seconds": seconds, "figures": figures, "settings": recipe.settings()}
    record = write_record(recipe.out, "training", PACKAGES, ratios=ratios, **parts)
    print_ratios(ratios, spreads)
    print(f"benchmark training: {rounds} rounds, written to {recipe.out}")
    return record


def _measure(shape: Shape, loader: LoaderShape, rounds: int) -> tuple[dict[str, float], Seconds, Figures]:
    seconds: Seconds = {}
    ratios: dict[str, float] = {}
    figures: Figures = {"shape": vars(shape) | {"mlp_width": shape.mlp}, "lora": Lora().model_dump()}
    # 1. A step of either side: loss, seconds, and bytes at the peak.
    memory = {}
    for task in TASKS:
        steps, figures[f"{task}_rows"] = _build_steps(shape, task)
        figures[f"{task}_first_loss"] = {name: float(step()) for name, step in steps.items()}
        seconds |= {f"{name}_{task}": values for name, values in turns(steps, rounds).items()}
        ratios[f"hf_step_over_ours_{task}"] = min(seconds[f"hf_{task}"]) / min(seconds[f"ours_{task}"])
        # After the turns: all caches and buffers that stay exist by then.
        memory[task] = {name: peak_bytes(step) for name, step in steps.items()}
        ratios[f"hf_memory_over_ours_{task}"] = memory[task]["hf"] / memory[task]["ours"]
    ratios["hf_memory_over_ours"] = min(ratios[f"hf_memory_over_ours_{task}"] for task in TASKS)
    figures["peak_bytes"] = memory
    # 2. Bytes that are kept from forward to backward.
    figures["saved_bytes"] = saved = {
        "bf16": _count_saved(shape, torch.bfloat16, Lora()),
        "bf16_no_dropout": _count_saved(shape, torch.bfloat16, Lora(dropout=0.0)),
        "fp32": _count_saved(shape, torch.float32, Lora()),
    }
    for kind, sizes in saved.items():
        name = "peft_activations_over_ours" + ("" if kind == "bf16" else f"_{kind}")
        ratios[name] = sizes["peft"] / sizes["ours"]
    # 3. The loader against the step that it feeds.
    with loader_work(loader) as work:
        seconds |= turns(work, rounds)
    figures["loader"] = vars(loader)
    # Both go through other numbers of rows: seconds a row can be compared.
    row_s = {name: min(seconds[name]) / loader.rows_of(name) for name in ("loader", "nano_step")}
    figures["rows_per_s"] = {name: 1 / value for name, value in row_s.items()}
    ratios["loader_over_step"] = row_s["nano_step"] / row_s["loader"]
    return ratios, seconds, figures


def _build_steps(shape: Shape, task: Task) -> tuple[Mapping[str, Callable[[], Tensor]], dict[str, int]]:
    batch = shape.batch(task)
    # Two modules with the same weights, since either side changes its own.
    theirs, ours = add_peft(build_module(shape), Lora()), build_ours(build_module(shape), Lora(), shape)
    lengths = {"tokens": batch[0].numel(), "completion_tokens": int(batch[1].sum())}
    return {"hf": peft_step(theirs, batch), "ours": our_step(ours, batch)}, lengths


def _count_saved(shape: Shape, dtype: torch.dtype, lora: Lora) -> dict[str, int]:
    """Count the bytes that the decoder keeps of a row of the forward model."""
    # The forward model has the longer completion, an image.
    ids_BT = shape.batch("fdm")[0]
    theirs = add_peft(build_module(shape, dtype), lora)
    # As a GPU keeps them: on a CPU torch's dropout keeps floats.
    use_byte_masks(theirs)
    ours = build_ours(build_module(shape, dtype), lora, shape)
    models = {"peft": theirs.get_base_model(), "ours": ours.inner}
    return {
        name: saved_bytes(lambda model=model: model.model(input_ids=ids_BT, use_cache=False), model)  # type: ignore[misc]
        for name, model in models.items()
    }
