"""Check whether a run fits its devices and disks, before it starts."""

import os
import shutil
from pathlib import Path

import torch

from wm.files.uris import is_remote
from wm.training.planning.memory import StepMemory
from wm.training.planning.state_memory import StateMemory
from wm.training.recipe import TrainRecipe

GIB = 1 << 30
RESERVED_BYTES = 3 * GIB // 2
"""Of a GPU, what is no tensor: CUDA's context, work spaces of libraries, holes between tensors."""
_STATE_BYTES = 12
"""Of a checkpoint, a trained parameter: its fp32 value and AdamW's moments."""


def device_bytes(recipe: TrainRecipe) -> int | None:
    """Return the memory of one device: ``resources.device_gib``, else that of the GPU here, or a rank's share of this
    machine's memory where no GPU is used. None: a GPU that is elsewhere."""
    resources = recipe.resources
    if resources.device_gib:
        return int(resources.device_gib * GIB)
    if not resources.use_gpu:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // recipe.num_ranks
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def usable_bytes(recipe: TrainRecipe) -> int | None:
    """Return what tensors may take of :func:`device_bytes`."""
    total = device_bytes(recipe)
    return total - RESERVED_BYTES * recipe.resources.use_gpu if total is not None else None


def memory_complaints(recipe: TrainRecipe, memory: StepMemory) -> list[str]:
    """Return one line if the step does not fit the device, with the largest micro-batch that would; else none.

    Args:
        recipe: The run.
        memory: Of one step, in bytes.
    """
    usable = usable_bytes(recipe)
    if usable is None or memory.peak <= usable:
        return []
    kind = "GPU" if recipe.resources.use_gpu else "worker's share of the memory"
    line = f"a step needs {memory.peak / GIB:.1f} GiB, a {kind} has room for {max(usable, 0) / GIB:.1f} GiB of tensors"
    fitting = _largest_micro_batch(recipe, memory, usable)
    if fitting:
        return [f"{line}: micro_batch_size = {fitting} would fit"]
    lowest = _peak_at(recipe, memory, 1)
    return [f"{line}: not even micro_batch_size = 1 would fit ({lowest / GIB:.1f} GiB)"]


def state_complaints(recipe: TrainRecipe, memory: StateMemory) -> list[str]:
    """Return one line if the device has not the room for what a step needs beside its activations; else none.

    Args:
        recipe: The run.
        memory: Of a rank, in bytes.
    """
    usable = usable_bytes(recipe)
    if usable is None or memory.minimum <= usable:
        return []
    kind = "GPU" if recipe.resources.use_gpu else "worker's share of the memory"
    return [
        f"weights, optimiser and gradients alone need {memory.minimum / GIB:.1f} GiB, a {kind} has room for "
        f"{max(usable, 0) / GIB:.1f} GiB of tensors"
    ]


def disk_complaints(recipe: TrainRecipe, cached_bytes: int, num_trained: int) -> list[str]:
    """List the folders without room for what the run writes.

    Args:
        recipe: The run.
        cached_bytes: Of the rows that are not in the cache yet.
        num_trained: Trained parameters, of which two checkpoints are counted.

    Returns:
        A line each.
    """
    # Two folders may be on one disk: their needs add up.
    needs: dict[Path, dict[str, int]] = {}
    needs.setdefault(_existing(recipe.token_root), {})["tokens"] = cached_bytes
    # A bucket has the room.
    if not is_remote(recipe.checkpoint_root):
        needs.setdefault(_existing(Path(recipe.out)), {})["two checkpoints"] = 2 * _STATE_BYTES * num_trained
    lines = []
    for folder, parts in needs.items():
        # Checkpoints of two moments exist for a while: the old one goes when the new one is complete.
        free = shutil.disk_usage(folder).free
        if sum(parts.values()) > free:
            text = " and ".join(f"{name} of {count / GIB:.1f} GiB" for name, count in parts.items() if count)
            lines.append(f"{text} come to {folder}, where {free / GIB:.1f} GiB are free")
    return lines


def _largest_micro_batch(recipe: TrainRecipe, memory: StepMemory, usable: int) -> int:
    """Return the largest that fits; 0: none."""
    # Only divisors keep the passes of a step equal.
    share = recipe.global_batch_size // recipe.num_ranks
    sizes = [size for size in range(1, recipe.rows_per_pass) if share % size == 0]
    return max((size for size in sizes if _peak_at(recipe, memory, size) <= usable), default=0)


def _peak_at(recipe: TrainRecipe, memory: StepMemory, size: int) -> int:
    """Scale the peak: all that the passes take grows with the rows, but for gradients."""
    fixed = memory.weights + memory.trained + memory.optimizer + memory.gradients + memory.communication
    return fixed + (memory.peak - fixed) * size // recipe.rows_per_pass


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest existing one above it."""
    folder = folder.absolute()
    return next(candidate for candidate in (folder, *folder.parents) if candidate.is_dir())
