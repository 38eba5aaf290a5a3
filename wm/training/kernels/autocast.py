"""Autocast to lower precision: where a CPU gains by it, what it asks for now, and how to do without for a while."""

from contextlib import AbstractContextManager, nullcontext

import torch


def lowered() -> torch.autocast:
    """Autocast to bfloat16 on a CPU whose oneDNN multiplies it; without effect on others, where bfloat16 falls back
    to plain loops that take dozens of times as long as float32 (a processor with AVX2 alone)."""
    # oneDNN itself knows whether the processor has the instructions.
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)


def lowered_to(device: torch.device) -> torch.dtype | None:
    """Return the precision that autocast asks for; None if it is off, as it always is where tensors have no numbers
    (meta)."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def as_given(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
