"""Configure DeepSpeed's ZeRO stages, find what each stage holds of the trained parameters, and gather it again.

Stage 0 keeps everything on every rank, 1 shards the optimiser's state, 2 gradients too, 3 the weights as well
(Rajbhandari et al., arXiv 1910.02054). What a rank holds is described as parts of named parameters
(:class:`Part`), the same for all stages, so that a checkpoint written under one stage and number of ranks is loaded
under another.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wm.training.recipe import TrainRecipe
from wm.training.trained_models import TrainedModel

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import DeepSpeedOptimizer

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What a step of AdamW reads and writes of a trained parameter: its fp32 value and two moments."""

_BUCKET_ELEMENTS = 500_000_000
_UNSHARDED_ELEMENTS = 100_000
"""Stage 3 leaves smaller parameters (norms, adapters) unsharded: gathering them costs more than they take."""


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


def zero_config(recipe: TrainRecipe, num_trained: int) -> dict[str, int | bool]:
    """Build the ``zero_optimization`` part of :func:`deepspeed_config`.

    Args:
        recipe: The run, with a ZeRO stage that is a number.
        num_trained: Trained parameters.
    """
    # No larger than what is trained: DeepSpeed's defaults ask for 2 GB.
    bucket = min(_BUCKET_ELEMENTS, max(1, num_trained))
    zero: dict[str, int | bool] = {
        "stage": int(recipe.resources.zero_stage),
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": recipe.resources.use_gpu,
        "contiguous_gradients": recipe.resources.use_gpu,
    }
    if recipe.resources.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = _UNSHARDED_ELEMENTS
        zero["contiguous_gradients"] = True
    return zero


def deepspeed_config(recipe: TrainRecipe, num_trained: int) -> dict[str, object]:
    """Build the DeepSpeed dictionary of a recipe: there is no second file.

    Args:
        recipe: The run, with a ZeRO stage that is a number.
        num_trained: Trained parameters.

    Returns:
        The dictionary.
    """
    return {
        "train_micro_batch_size_per_gpu": recipe.rows_per_pass,
        "gradient_accumulation_steps": recipe.accumulation_steps,
        # Without ZeRO and in fp32 the norm would be clipped but not reported: wm.training.step does it then.
        "gradient_clipping": recipe.optim.max_grad_norm
        if recipe.resources.zero_stage or recipe.precision == "bf16"
        else 0.0,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "zero_optimization": zero_config(recipe, num_trained),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed and prepare it for its ``initialize``; the process group must exist."""
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
    module: ModuleType = deepspeed
    return module


@contextmanager
def loading(recipe: TrainRecipe, device: torch.device) -> Iterator[None]:
    """Shard models that are loaded inside, if the stage is 3: none is ever complete on a rank.

    Args:
        recipe: Gives the stage.
        device: Of this rank.
    """
    if recipe.resources.zero_stage != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    import_deepspeed(device)
    # Bound to a name until the end: transformers keeps a weak reference.
    config = HfDeepSpeedConfig(deepspeed_config(recipe, _BUCKET_ELEMENTS))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del config


def share_head(owner: nn.Module, vlm: TrainedModel) -> None:
    """Register the head's matrix for gathering (stage 3): the loss reads it without calling the head.

    Args:
        owner: Module that runs when the head is read.
        vlm: The model.
    """
    from deepspeed.runtime.zero import register_external_parameter

    head = getattr(getattr(vlm, "inner", None), "lm_head", None)
    for parameter in head.parameters() if head is not None else ():
        if hasattr(parameter, "ds_id"):
            register_external_parameter(owner, parameter)


def parts_of(engine: "DeepSpeedEngine", names: Mapping[nn.Parameter, str], *, every_rank: bool = False) -> list[Part]:
    """List what this rank's optimiser holds of the trained parameters. Moments that do not exist before the first step
    are made, as zeros.

    Args:
        engine: DeepSpeed's.
        names: Of the trained parameters.
        every_rank: List on every rank what all hold alike (stage 0), not on rank 0 alone.

    Returns:
        Parts in the order of ``names``; together the ranks hold each element once.
    """
    optimizer = engine.optimizer
    stage = engine.zero_optimization_stage()
    # Where the fp32 values and moments are stored differs by stage.
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
def undo_initial_step(engine: "DeepSpeedEngine") -> None:
    """Undo the step without gradients that stage 0 in bfloat16 makes to have its state: it counts, and decays."""
    if engine.zero_optimization_stage() == 0:
        for parameter, master in _masters(engine.optimizer).items():
            master.copy_(parameter)
    set_steps(engine, 0)


def set_steps(engine: "DeepSpeedEngine", steps: int) -> None:
    """Set AdamW's count of steps.

    Args:
        engine: DeepSpeed's.
        steps: Steps done.
    """
    for state in _states(engine.optimizer).values():
        state["step"].fill_(float(steps))


@torch.no_grad()
def push_weights(engine: "DeepSpeedEngine") -> None:
    """Copy the optimiser's weights into the model, after they were written. All ranks call it."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer._partition_all_parameters()
        # From the shards to the weights of the model, which are gathered from then on.
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
def gather_weights(module: nn.Module, keep: bool, *, trained_only: bool) -> dict[str, Tensor]:
    """Gather unsharded weights on the host, one parameter at a time. All ranks call it.

    Args:
        module: The model.
        keep: Whether this rank wants them.
        trained_only: Only those with gradients, else all, and buffers that are saved.

    Returns:
        Weights by name; empty on ranks that do not keep them.
    """
    weights: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if trained_only and not parameter.requires_grad:
            continue
        # One parameter at a time: the complete model need not fit on a device.
        with _unsharded(parameter):
            if keep:
                weights[name] = parameter.detach().to("cpu", copy=True)
    # Buffers are never sharded.
    if keep and not trained_only:
        saved = module.state_dict().keys()
        weights |= {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in saved}
    return weights


def _unsharded(parameter: nn.Parameter) -> AbstractContextManager[object]:
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    parameters: AbstractContextManager[object] = GatheredParameters([parameter])
    return parameters


def _sharded_part(optimizer: "DeepSpeedOptimizer", parameter: Any, name: str) -> Iterator[Part]:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = optimizer._get_param_partition_rank(parameter) * size
    # The shards of the last ranks are padded, or nothing but padding.
    count = min(size, parameter.ds_numel - start)
    if count > 0:
        yield Part(name, start, _values(optimizer, optimizer.fp32_partitioned_groups_flat[group], offset, count))


def _partition_part(optimizer: "DeepSpeedOptimizer", parameter: Any, name: str) -> Iterator[Part]:
    mapping = parameter._hp_mapping
    # Without a mapping, other ranks hold all of the parameter.
    if mapping is not None:
        group, fragment = mapping.param_group_index, mapping.hp_fragment_address
        flat = optimizer.single_partition_of_fp32_groups[group]
        yield Part(name, mapping.lp_fragment_address.start, _values(optimizer, flat, fragment.start, fragment.numel))


def _masters(optimizer: "DeepSpeedOptimizer") -> dict[nn.Parameter, Tensor]:
    """Map each parameter of stage 0 in bfloat16 to its fp32 copy; empty in fp32, where there is none."""
    groups = zip(getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []), strict=True)
    return {low: high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}


def _states(optimizer: "DeepSpeedOptimizer") -> dict[Tensor, dict[str, Tensor]]:
    """Return AdamW's own state, by the tensor that it updates."""
    states: dict[Tensor, dict[str, Tensor]] = getattr(optimizer, "optimizer", optimizer).state
    return states


def _values(optimizer: "DeepSpeedOptimizer", flat: Tensor, offset: int, count: int) -> dict[str, Tensor]:
    state = _states(optimizer)[flat]
    if not state:
        # AdamW makes its state in the first step; a checkpoint is loaded before that.
        state |= {"step": torch.zeros((), device=flat.device), "exp_avg": torch.zeros_like(flat.detach())}
        state["exp_avg_sq"] = torch.zeros_like(flat.detach())
    tensors = {"weight": flat.detach(), **state}
    return {kind: tensors[kind].view(-1)[offset : offset + count] for kind in KINDS}
