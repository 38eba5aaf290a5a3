"""Where the nano base's training may round to bfloat16: only where the CPU multiplies it faster than float32."""

import torch


def lowered() -> torch.autocast:
    """Autocast to bfloat16 on a CPU whose oneDNN multiplies it; without effect on others, where bfloat16 falls back
    to plain loops that take dozens of times as long as float32 (a processor with AVX2 alone)."""
    fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.autocast("cpu", torch.bfloat16, enabled=fast)
