"""DeepSpeed's stages: the dictionary of a recipe, where each stage keeps what is trained, gathering it again.

Stage 0 keeps everything on every rank, 1 shards the optimiser's state, 2 gradients too, 3 the weights as well
(Rajbhandari et al., arXiv 1910.02054). What a rank holds is told as parts of named parameters (:class:`Part`), the same
for all stages, so that a checkpoint written under one stage and number of ranks is read under another.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wm.models.vlm import UnifiedVLM
from wm.training.recipe import TrainRecipe

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What a step of AdamW reads and writes of a trained parameter: its fp32 value and two moments."""

_BUCKET_ELEMENTS = 500_000_000
_WHOLE_ELEMENTS = 100_000
"""Stage 3 leaves smaller parameters (norms, adapters) whole on every rank: gathering them costs more than they take."""


@dataclass(frozen=True)
class Part:
    """A run of consecutive elements of one trained parameter that this rank's optimiser works on."""

    name: str
    start: int
    """First element within the flattened parameter."""
    values: Mapping[str, Tensor]
    """By kind (:data:`KINDS`), 1-D views of the optimiser's own fp32 tensors: written to, they change it."""

    @property
    def count(self) -> int:
        """Return the number of elements."""
        return self.values["weight"].numel()


def deepspeed_config(recipe: TrainRecipe, num_trained: int) -> dict[str, Any]:
    """Build the DeepSpeed dictionary of a recipe whose ``zero_stage`` is settled: there is no second file.

    Communication buffers are no larger than the ``num_trained`` parameters: the defaults ask for 2 GB.
    """
    bucket = min(_BUCKET_ELEMENTS, max(1, num_trained))
    zero: dict[str, Any] = {
        "stage": recipe.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": recipe.use_gpu,
        "contiguous_gradients": recipe.use_gpu,
    }
    if recipe.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = _WHOLE_ELEMENTS
        zero["contiguous_gradients"] = True
    return {
        "train_micro_batch_size_per_gpu": recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.accumulation_steps,
        # Without ZeRO and in fp32 the norm would be clipped but not told: wm.training.step does it then.
        "gradient_clipping": recipe.grad_clip if recipe.zero_stage or recipe.precision == "bf16" else 0.0,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def deepspeed_ready(device: torch.device) -> Any:
    """Import DeepSpeed, ready for its ``initialize``; the process group must exist."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.comm
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_cpu:
        # Otherwise DeepSpeed compiles a shared-memory operator when it starts: most of a minute, and a
        # compiler.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


@contextmanager
def loading(recipe: TrainRecipe, device: torch.device) -> Iterator[None]:
    """Shard models that are loaded inside while they are read, if the stage is 3: none is ever complete on a rank."""
    if recipe.zero_stage != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    deepspeed_ready(device)
    config = HfDeepSpeedConfig(deepspeed_config(recipe, _BUCKET_ELEMENTS))  # transformers keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del config


def share_head(owner: nn.Module, vlm: UnifiedVLM) -> None:
    """Gather under stage 3 the head's matrix while ``owner`` runs: the loss reads it without calling the head."""
    from deepspeed.runtime.zero import register_external_parameter

    head = getattr(getattr(vlm, "inner", None), "lm_head", None)
    for parameter in head.parameters() if head is not None else ():
        if hasattr(parameter, "ds_id"):
            register_external_parameter(owner, parameter)


def parts_of(engine: Any, names: Mapping[nn.Parameter, str], *, every_rank: bool = False) -> list[Part]:
    """List what this rank's optimiser holds of the named trained parameters, in their order.

    Together the ranks hold each element once; what all hold alike (stage 0) is told of rank 0 alone, or of
    ``every_rank``. Moments that do not exist before the first step are made, as zeros.
    """
    optimizer = engine.optimizer
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return [part for parameter, name in names.items() for part in _sharded_part(optimizer, parameter, name)]
    if stage > 0:
        return [part for parameter, name in names.items() for part in _partition_part(optimizer, parameter, name)]
    if dist.get_rank() != 0 and not every_rank:
        return []
    masters = _masters(optimizer)
    return [
        Part(name, 0, _values(optimizer, masters.get(parameter, parameter), 0, parameter.numel()))
        for parameter, name in names.items()
    ]


@torch.no_grad()
def start_afresh(engine: Any) -> None:
    """Undo the step without gradients that stage 0 in bfloat16 makes to have its state: it counts, and decays."""
    if engine.zero_optimization_stage() == 0:
        for parameter, master in _masters(engine.optimizer).items():
            master.copy_(parameter)
    set_steps(engine, 0)


def set_steps(engine: Any, steps: int) -> None:
    """Tell AdamW how many steps it has done."""
    for state in _states(engine.optimizer).values():
        state["step"].fill_(float(steps))


@torch.no_grad()
def push_weights(engine: Any) -> None:
    """Give the model the weights that stand in the optimiser, after these were written. All ranks call it."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    elif engine.zero_optimization_stage() > 0:
        optimizer.update_lp_params()
    else:
        for parameter, master in _masters(optimizer).items():
            parameter.copy_(master)


@torch.no_grad()
def gathered(module: nn.Module, keep: bool, *, trained_only: bool) -> dict[str, Tensor]:
    """Gather unsharded weights by name, on the host: on ranks that ``keep`` them, on others nothing. All ranks call it.

    One parameter at a time is whole on a device. ``trained_only``: those with gradients, else all, and buffers that are
    saved.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if trained_only and not parameter.requires_grad:
            continue
        with _whole(parameter):
            if keep:
                weights[name] = parameter.detach().to("cpu", copy=True)
    if keep and not trained_only:
        saved = module.state_dict().keys()
        weights |= {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in saved}
    return weights


def _whole(parameter: nn.Parameter) -> Any:
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter])


def _sharded_part(optimizer: Any, parameter: Any, name: str) -> Iterator[Part]:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = optimizer._get_param_partition_rank(parameter) * size
    count = min(size, parameter.ds_numel - start)  # the last ranks' shards are padded, or nothing but padding
    if count > 0:
        yield Part(name, start, _values(optimizer, optimizer.fp32_partitioned_groups_flat[group], offset, count))


def _partition_part(optimizer: Any, parameter: Any, name: str) -> Iterator[Part]:
    mapping = parameter._hp_mapping
    if mapping is not None:  # else the parameter lies in the partitions of other ranks
        group, where = mapping.param_group_index, mapping.hp_fragment_address
        flat = optimizer.single_partition_of_fp32_groups[group]
        yield Part(name, mapping.lp_fragment_address.start, _values(optimizer, flat, where.start, where.numel))


def _masters(optimizer: Any) -> dict[nn.Parameter, Tensor]:
    """Map each parameter of stage 0 in bfloat16 to its fp32 copy. Empty in fp32, where there is none."""
    groups = zip(getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []), strict=True)
    return {low: high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}


def _states(optimizer: Any) -> dict[Tensor, dict[str, Tensor]]:
    """Return AdamW's own state, by the tensor that it works on."""
    states: dict[Tensor, dict[str, Tensor]] = getattr(optimizer, "optimizer", optimizer).state
    return states


def _values(optimizer: Any, flat: Tensor, offset: int, count: int) -> dict[str, Tensor]:
    state = _states(optimizer)[flat]
    if not state:
        state |= {"step": torch.zeros((), device=flat.device), "exp_avg": torch.zeros_like(flat.detach())}
        state["exp_avg_sq"] = torch.zeros_like(flat.detach())
    tensors = {"weight": flat.detach(), **state}
    return {kind: tensors[kind].view(-1)[offset : offset + count] for kind in KINDS}
