"""Measure training on a GPU: a forward model's LoRA step at several micro-batches."""

import torch
from torch import nn

from jobs.benchmark.gpu_record import Record, time_runs
from jobs.benchmark.harness import Figures
from jobs.benchmark.models import FIRST_CODE
from jobs.benchmark.sampling_models import ShapeModel
from wm.training.adapters import Lora, prepare
from wm.training.loss import completion_loss

MICRO_BATCHES = (1, 2, 4, 8)


def measure_training(record: Record, model: ShapeModel, repeats: int) -> None:
    """Measure samples a second, with activations checkpointed and kept, and the share of the device's product rate.

    That share (MFU) is of the products that a step needs: those of the forward pass and as many for the gradients of
    activations; what checkpointing does again does not count.

    Args:
        record: Gets the measurements.
        model: Gets adapters; it is of no use for another part afterwards.
        repeats: Runs of each.
    """
    with torch.enable_grad():
        prepare(model, Lora(), seed=0)
        parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        # First what needs less memory, so that a failure leaves figures.
        for checkpointing in (True, False):
            _set_checkpointing(model.inner, checkpointing)
            for size in MICRO_BATCHES:
                name = f"training_b{size}_{'checkpointed' if checkpointing else 'kept'}"

                def run(size: int = size) -> Figures:
                    return _measure_step(record, model, optimizer, size=size, repeats=repeats)

                if record.measure(name, run) is None:
                    optimizer.zero_grad(set_to_none=True)
                    break  # larger ones will not fit either


def _set_checkpointing(module: nn.Module, on: bool) -> None:
    """Switch activation checkpointing, by its newer name where transformers has that."""
    kind = "activation" if hasattr(module, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(module, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(module, f"{kind}_checkpointing_disable")()


def _measure_step(
    record: Record, model: ShapeModel, optimizer: torch.optim.Optimizer, *, size: int, repeats: int
) -> Figures:
    shape = model.shape
    length = shape.prefix + shape.target
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(FIRST_CODE, shape.first_text, (size, length), generator=generator).to(model.device)
    is_completion_BT = (torch.arange(length, device=model.device) >= shape.prefix).expand(size, -1)
    weight_BT = torch.ones((size, length), device=model.device)

    def step() -> None:
        loss = completion_loss(model, ids_BT, is_completion_BT, weight_BT, float(is_completion_BT.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    time_runs(step, record.device, 1)
    times = time_runs(step, record.device, repeats)
    figures: Figures = {**times, "samples_per_s": size / times["s"]}
    product_flops = record.number("ceilings", "product_flops")
    if product_flops:
        figures["mfu"] = step_flops(model, size) / times["s"] / product_flops
    return figures


def step_flops(model: ShapeModel, size: int) -> int:
    """Count the FLOPs of a LoRA step with frozen weights: forward, and gradients of activations; adapters left out.

    Args:
        model: Whose shape counts.
        size: Rows of the micro-batch.

    Returns:
        FLOPs; a multiplication with its addition is two.
    """
    shape = model.shape
    length = shape.prefix + shape.target - 1
    # Numbers of all matrices of the layers.
    weights = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.mlp)
    attended = shape.layers * 2 * shape.width * length * (length + 1) // 2
    head = shape.target * shape.width * shape.vocabulary
    return 2 * 2 * size * (length * weights + attended + head)
