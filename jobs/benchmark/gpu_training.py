"""The GPU benchmark's training part: a forward model's LoRA step at several micro-batches."""

import statistics
from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.gpu_work import Measures, seconds_of
from jobs.benchmark.sampling_models import ShapeModel
from wm.training.adapters import Lora, prepare
from wm.training.loss import completion_loss

MICRO_BATCHES = (1, 2, 4, 8)


class Trained:
    """What loss and adapters need of a model, around a benchmark's one."""

    base_id = "random weights"

    def __init__(self, model: ShapeModel) -> None:
        self.module: Any = model.module

    @property
    def _inner(self) -> Any:
        get_base = getattr(self.module, "get_base_model", None)
        return self.module if get_base is None else get_base()

    def body(self, ids_BT: Tensor) -> Tensor:
        """Hidden states (B, T, H)."""
        hidden: Tensor = self._inner.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits over the whole vocabulary."""
        logits: Tensor = self._inner.lm_head(hidden)
        return logits


def training_figures(record: Measures, model: ShapeModel, repeats: int) -> None:
    """Return samples a second and the share of the device's product rate (MFU, by the products that a step needs:
    those of the forward pass and as many for the gradients of activations; what checkpointing does again does not
    count)."""
    vlm: Any = Trained(model)
    with torch.enable_grad():
        prepare(vlm, Lora(), seed=0)
        trained = [parameter for parameter in vlm.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        for checkpointing in (True, False):
            _checkpoint(vlm.module.get_base_model(), checkpointing)
            for size in MICRO_BATCHES:
                name = f"training_b{size}_{'checkpointed' if checkpointing else 'kept'}"

                def steps(size: int = size) -> dict[str, Any]:
                    return _steps(record, vlm, model, optimizer, size=size, repeats=repeats)

                if record.measure(name, steps) is None:
                    optimizer.zero_grad(set_to_none=True)
                    break  # larger ones will not fit either


def _checkpoint(module: Any, on: bool) -> None:
    """Activation checkpointing by its newer name where transformers has that."""
    kind = "activation" if hasattr(module, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(module, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(module, f"{kind}_checkpointing_disable")()


def _steps(
    record: Measures, vlm: Any, model: ShapeModel, optimizer: torch.optim.Optimizer, *, size: int, repeats: int
) -> dict[str, Any]:
    shape = model.shape
    length = shape.prefix + shape.target
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(4, 4 + shape.codes, (size, length), generator=generator).to(model.device)
    is_completion_BT = (torch.arange(length, device=model.device) >= shape.prefix).expand(size, -1)
    weight_BT = torch.ones((size, length), device=model.device)

    def step() -> None:
        loss = completion_loss(vlm, ids_BT, is_completion_BT, weight_BT, float(is_completion_BT.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds_of(step, record.device, 1)
    times = seconds_of(step, record.device, repeats)
    median = statistics.median(times)
    found: dict[str, Any] = {"s": median, "all_s": times, "samples_per_s": size / median}
    if "ceilings" in record.figures:
        found["mfu"] = step_flops(model, size) / median / record.figures["ceilings"]["product_flops"]
    return found


def step_flops(model: ShapeModel, size: int) -> int:
    """Products of a LoRA step: forward, and the gradients of activations, with frozen weights (adapters left out)."""
    shape = model.shape
    length = shape.prefix + shape.target - 1
    weights = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.mlp)
    attended = shape.layers * 2 * shape.width * length * (length + 1) // 2
    head = shape.target * shape.width * shape.vocabulary
    return 2 * 2 * size * (length * weights + attended + head)
