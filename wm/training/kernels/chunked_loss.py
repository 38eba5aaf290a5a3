"""Compute cross-entropy over a large vocabulary without its logits in memory: loss and gradients, chunk by chunk.

The gradient of a token's negative log-likelihood with respect to its logits is softmax - one-hot: known in the
forward pass already, up to the factor that comes back through the loss. So a chunk's logits are computed, changed in
place into that gradient, multiplied with the head again, and freed (the idea of Liger-Kernel's fused linear
cross-entropy, arXiv 2410.10989). ``torch.nn.functional.linear_cross_entropy`` has weights by class and not by token;
with ``reduction="none"``, which allows them, it computes the logits again in the backward pass, and it takes no rows
of the head that are parameters of their own.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wm.models.vlm import UnifiedVLM
from wm.training.kernels.autocast import as_given, lowered_to
from wm.training.kernels.autograd import Context

CHUNK_LOGITS = 1 << 23
"""Logits of a chunk: 32 MB in float32, and enough rows (128 of a vocabulary of 65,536) for fast products."""


class Head(NamedTuple):
    """A linear head without bias, of which a few rows may be parameters of their own."""

    weight_VH: Tensor  # noqa: N815
    own_rows_Q: Tensor | slice | None = None  # noqa: N815
    """int64, or a slice: the vocabulary ids that ``own_QH`` replaces; none twice."""
    own_QH: Tensor | None = None  # noqa: N815


def weighted_nll(vlm: UnifiedVLM, hidden_MH: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of negative log-likelihoods, in float32 (float64 for a float64 model) from logits in the
    model's precision.

    Args:
        vlm: The model.
        hidden_MH: Hidden states that predict the targets.
        target_M: int64 vocabulary ids.
        weight_M: Of each target.

    Returns:
        The sum, and the unweighted negative log-likelihoods (M,) in nats, without gradient.
    """
    head = plain_head(vlm)
    if head is None:
        return _by_recomputing(vlm, hidden_MH, target_M, weight_M)
    hidden_MH = hidden_MH.to(lowered_to(hidden_MH.device) or hidden_MH.dtype)
    with as_given(hidden_MH.device):
        loss, nll_M = _ChunkedNll.apply(hidden_MH, *head, target_M, weight_M)  # type: ignore[no-untyped-call]
    return loss, nll_M


def plain_head(vlm: UnifiedVLM) -> Head | None:
    """Return the head's matrix, if vocabulary logits are that matrix times the hidden state and nothing else.

    None for a family with another head (Janus has two) and for a head under a LoRA adapter.
    """
    if type(vlm).head is not UnifiedVLM.head or "head" in vars(vlm):
        return None
    module = vlm.inner.lm_head
    # PEFT's trainable rows.
    tokens = getattr(module, "token_adapter", None)
    if tokens is None:
        return Head(module.weight) if _is_matrix(module) else None
    base, active = tokens.base_layer, tokens.active_adapters
    if not _is_matrix(base) or tokens.merged:
        return None
    if tokens.disable_adapters or not active:
        return Head(base.weight)
    ids: list[int] = tokens.token_indices[active[0]]
    # Codes are usually consecutive ids, for which a slice is a view and not a copy.
    span = slice(ids[0], ids[0] + len(ids))
    rows = span if ids == list(range(span.start, span.stop)) else torch.tensor(ids, device=base.weight.device)
    return Head(base.weight, rows, tokens.trainable_tokens_delta[active[0]])


def _is_matrix(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.bias is None


def _by_recomputing(vlm: UnifiedVLM, hidden_MH: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the same for any head: a chunk's logits are computed again in the backward pass."""

    def chunk_nll(hidden_CH: Tensor, target_C: Tensor) -> Tensor:
        logits_CV = vlm.head(hidden_CH)
        wide = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
        return torch.nn.functional.cross_entropy(wide, target_C, reduction="none")

    rows = _rows_of_a_chunk(vlm.inner.lm_head.weight.shape[0])
    # Not reentrant: the hidden states need no gradient of their own where all below is frozen.
    parts = [
        checkpoint(chunk_nll, hidden_CH, target_C, use_reentrant=False, preserve_rng_state=False)
        for hidden_CH, target_C in zip(
            torch.split(hidden_MH, max(1, rows)), torch.split(target_M, max(1, rows)), strict=True
        )
    ]
    nll_M: Tensor = torch.cat(parts)
    return (nll_M * weight_M).sum(), nll_M.detach()


def _rows_of_a_chunk(vocabulary: int) -> int:
    return max(1, CHUNK_LOGITS // vocabulary)


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Context,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        own_rows_Q: Tensor | slice | None,
        own_QH: Tensor | None,
        target_M: Tensor,
        weight_M: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden_MH.dtype == torch.float64 else torch.float32
        dtype = hidden_MH.dtype
        head_VH = weight_VH.to(dtype)
        own = own_QH.to(dtype) if own_QH is not None else None
        needs_hidden, needs_head, _, needs_own = ctx.needs_input_grad[:4]
        hidden_grad_MH = torch.empty_like(hidden_MH) if needs_hidden else None
        head_grad_VH = torch.zeros_like(weight_VH, dtype=wide) if needs_head else None
        own_grad_QH = torch.zeros_like(own_QH, dtype=wide) if own_QH is not None and needs_own else None
        nll_M = torch.empty(len(target_M), dtype=wide, device=hidden_MH.device)
        rows = _rows_of_a_chunk(len(weight_VH))
        for start in range(0, len(target_M), rows):
            # 1. Logits of a chunk, and from them the likelihoods.
            span = slice(start, start + rows)
            hidden_CH, target_C1, weight_C1 = hidden_MH[span], target_M[span, None], weight_M[span, None].to(wide)
            logits_CV = hidden_CH @ head_VH.T
            if own is not None:
                logits_CV[:, own_rows_Q] = hidden_CH @ own.T
            logits_CV = logits_CV.to(wide)
            # The largest logit is taken off: exponents would overflow without.
            top_C1 = logits_CV.amax(1, keepdim=True)
            target_logit_C1 = logits_CV.gather(1, target_C1)
            exp_CV = logits_CV.sub_(top_C1).exp_()
            sum_C1 = exp_CV.sum(1, keepdim=True)
            nll_M[span] = (sum_C1.log() + top_C1 - target_logit_C1)[:, 0]
            if not (needs_hidden or needs_head or needs_own):
                continue
            # 2. In the same memory softmax - one-hot: the gradient of the logits.
            wide_grad_CV = exp_CV.mul_(weight_C1 / sum_C1).scatter_add_(1, target_C1, -weight_C1)
            grad_CV = wide_grad_CV.to(dtype)
            if own is not None:
                # Trained rows are a matrix of their own; the frozen ones must not get their share.
                own_grad_CQ = grad_CV[:, own_rows_Q].clone()
                grad_CV[:, own_rows_Q] = 0
            # 3. Gradients of the inputs, after which the chunk is freed.
            if hidden_grad_MH is not None:
                torch.mm(grad_CV, head_VH, out=hidden_grad_MH[span])
                if own is not None:
                    hidden_grad_MH[span].addmm_(own_grad_CQ, own)
            if head_grad_VH is not None:
                head_grad_VH += grad_CV.T @ hidden_CH
            if own_grad_QH is not None:
                own_grad_QH += own_grad_CQ.T @ hidden_CH
        ctx.save_for_backward(
            hidden_grad_MH,
            head_grad_VH.to(weight_VH.dtype) if head_grad_VH is not None else None,
            own_grad_QH.to(own_QH.dtype) if own_grad_QH is not None and own_QH is not None else None,
        )
        ctx.mark_non_differentiable(nll_M)
        return (nll_M * weight_M.to(wide)).sum(), nll_M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, own = (part * grad.to(part.dtype) if part is not None else None for part in ctx.saved_tensors)
        return hidden, head, None, own, None, None
