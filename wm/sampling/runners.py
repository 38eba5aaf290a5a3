"""Choose the runner that can run a model."""

import logging
from functools import cache

import torch

from wm.models.vlm import UnifiedVLM
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.model_runner import ModelRunner, Stepping
from wm.sampling.transformers_runner import TransformersRunner
from wm.sampling.weights_view import find_unsupported

logger = logging.getLogger(__name__)


def build_model_runner(
    vlm: UnifiedVLM,
    *,
    rows: int = 8,
    merge: bool = True,
    beside: ModelRunner | None = None,
    stepping: Stepping = "auto",
    kernels: bool = True,
) -> ModelRunner:
    """Build the fastest runner that computes what the model computes.

    Where the fast one cannot, transformers' own forward runs, and the log says why, once for each reason.

    Args:
        vlm: The model, with the adapters that are active now.
        rows: How many token rows a pass usually has (a hint).
        merge: Merge adapters into copies of the weights that they change; without, low-rank ones are applied beside
            the weights, and nothing else is copied.
        beside: A runner whose packed copies are used where the weights are the very same tensors, as those of models
            over one base are.
        stepping: How images are decoded; what fails is replaced by the next simpler way, with a warning in the log.
        kernels: Whether Triton's kernels may be used on a GPU.

    Raises:
        InputError: For a model that neither runner can run.
    """
    # Rather slow than wrong: what the fast runner does not know, it would leave out.
    reason = find_unsupported(vlm)
    runner: ModelRunner
    if reason is not None:
        _log_fallback(reason)
        runner = TransformersRunner(vlm)
    else:
        # Copies of weights are shared between fast runners alone; the other makes none.
        beside = beside if isinstance(beside, LlamaRunner) else None
        runner = LlamaRunner(vlm, rows=rows, merge=merge, beside=beside, stepping=stepping, kernels=kernels)
    if runner.device.type == "cuda" and runner.dtype is torch.bfloat16:
        _warn_of_slow_type(torch.cuda.get_device_name(runner.device), torch.cuda.get_device_capability(runner.device))
    return runner


@cache
def _warn_of_slow_type(card: str, capability: tuple[int, int]) -> None:
    # Cards before Ampere have no units for bfloat16 (CUDA C++ Programming Guide, table of compute capabilities).
    if capability < (8, 0):
        logger.warning("%s has no units for bfloat16 and emulates it: right, but slow; dtype=float16 is quicker", card)


@cache
def _log_fallback(reason: str) -> None:
    logger.warning(
        "sampling by transformers' own forward, one code a pass and without shared prefixes, which is slower: %s",
        reason,
    )
