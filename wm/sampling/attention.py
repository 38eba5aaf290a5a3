"""Attention of candidates to the prefix that they share and to their own tokens.

The queries of all candidates of a prefix are one matrix, so that its keys and values are read once. The two parts are
merged by the log of the sum of exponentials, here as one softmax over the scores side by side:
softmax([s_prefix, s_own]) weighs each part by exp(lse_part - lse_both).

Shape suffixes of :mod:`wm.sampling.cache`, and: S new tokens a row, F filled places of a row, Q queries a group of
keys (heads / G).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

FLASH_FROM = 2048
"""Own places of all rows together from which, on a CPU, the fused kernel is the faster way to read them."""


def attend_causal(query_PSAD: Tensor, key_PSGD: Tensor, value_PSGD: Tensor) -> Tensor:
    """(P, S, A, D): each token to itself and those before it; queries are scaled already. A: heads."""
    heads, groups = query_PSAD.shape[2], key_PSGD.shape[2]
    mixed_PASD = F.scaled_dot_product_attention(
        query_PSAD.transpose(1, 2),
        key_PSGD.transpose(1, 2),
        value_PSGD.transpose(1, 2),
        is_causal=True,
        scale=1.0,
        enable_gqa=heads != groups,
    )
    return mixed_PASD.transpose(1, 2)


def attend_shared(
    query_RSAD: Tensor,
    prefix_keys_PGTD: Tensor,
    prefix_values_PGTD: Tensor,
    own_keys_RGFD: Tensor,
    own_values_RGFD: Tensor,
    *,
    prefix_hidden_PT: Tensor | None,
    own_hidden: Tensor | None,
) -> Tensor:
    """(R, S, A, D): of each new token to all of its prefix and to its row's filled places.

    Queries are scaled already. ``prefix_hidden_PT``: true where a prefix is padding. ``own_hidden``: bool,
    broadcastable to (R, S, F), true where a token must not look; None: every token may see all F places.
    """
    num_rows, num_new, heads, width = query_RSAD.shape
    num_prefixes, groups, prefix_length = prefix_keys_PGTD.shape[:3]
    each, filled = num_rows // num_prefixes, own_keys_RGFD.shape[2]
    query_RGSQD = query_RSAD.view(num_rows, num_new, groups, -1, width).transpose(1, 2)
    own = query_RGSQD.reshape(num_rows * groups, -1, width)
    own_scores = torch.bmm(own, own_keys_RGFD.flatten(0, 1).transpose(1, 2)).view(num_rows, groups, num_new, -1, filled)
    if own_hidden is not None:
        own_scores = own_scores.masked_fill(own_hidden[:, None, :, None], -torch.inf)
    split = (num_prefixes, each, groups, num_new, heads // groups)
    stacked = query_RGSQD.reshape(*split, width).transpose(1, 2).reshape(num_prefixes * groups, -1, width)
    scores = torch.bmm(stacked, prefix_keys_PGTD.flatten(0, 1).transpose(1, 2))
    scores_PKGSQT = scores.view(num_prefixes, groups, each, num_new, -1, prefix_length).transpose(1, 2)
    if prefix_hidden_PT is not None:
        scores_PKGSQT = scores_PKGSQT.masked_fill(prefix_hidden_PT[:, None, None, None, None], -torch.inf)
    both = torch.cat((scores_PKGSQT, own_scores.view(*split, filled)), dim=-1)
    weights = _softmax(both)
    prefix_weights = weights[..., :prefix_length].transpose(1, 2).reshape(num_prefixes * groups, -1, prefix_length)
    mixed = torch.bmm(prefix_weights, prefix_values_PGTD.flatten(0, 1))
    mixed_PKGSQD = mixed.view(num_prefixes, groups, each, num_new, -1, width).transpose(1, 2)
    own_weights = weights[..., prefix_length:].reshape(num_rows * groups, -1, filled)
    own_mixed = torch.bmm(own_weights, own_values_RGFD.flatten(0, 1)).view(*split, width)
    mixed_RGSQD = (mixed_PKGSQD + own_mixed).reshape(num_rows, groups, num_new, -1, width)
    return mixed_RGSQD.transpose(1, 2).reshape(num_rows, num_new, heads, width)


def attend_step(
    query_RAD: Tensor,
    prefix_keys_GTD: Tensor,
    prefix_values_GTD: Tensor,
    own_keys_RGFD: Tensor,
    own_values_RGFD: Tensor,
) -> Tensor:
    """(R, A x D): :func:`attend_shared` of one new token a row, one prefix and as many groups as heads.

    The same products with a third of the calls, which at a few rows take as long as the products do.
    """
    num_rows, heads, width = query_RAD.shape
    filled, prefix_length = own_keys_RGFD.shape[2], prefix_keys_GTD.shape[1]
    prefix_scores = torch.bmm(query_RAD.transpose(0, 1), prefix_keys_GTD.transpose(1, 2))
    if num_rows * filled >= FLASH_FROM and query_RAD.device.type == "cpu":
        return _merge(query_RAD, prefix_scores, prefix_values_GTD, own_keys_RGFD, own_values_RGFD)
    own_scores = torch.bmm(query_RAD.reshape(-1, 1, width), own_keys_RGFD.flatten(0, 1).transpose(1, 2))
    both = torch.cat((prefix_scores.transpose(0, 1), own_scores.view(num_rows, heads, filled)), dim=-1)
    weights = _softmax(both)
    prefix_weights, own_weights = weights[..., :prefix_length], weights[..., prefix_length:]
    mixed = torch.bmm(own_weights.reshape(-1, 1, filled), own_values_RGFD.flatten(0, 1)).view(num_rows, heads, width)
    mixed += torch.bmm(prefix_weights.transpose(0, 1), prefix_values_GTD).transpose(0, 1)
    return mixed.view(num_rows, -1)


def _merge(
    query_RAD: Tensor,
    prefix_scores_GRT: Tensor,
    prefix_values_GTD: Tensor,
    own_keys_RGFD: Tensor,
    own_values_RGFD: Tensor,
) -> Tensor:
    """(R, A x D): the own part by torch's fused kernel, which reads keys and values once and keeps no scores; the two
    parts weighed by exp(lse_part - lse_both)."""
    own_RA1D, own_lse_RA1 = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_RAD[:, :, None], own_keys_RGFD, own_values_RGFD, scale=1.0
    )
    prefix_lse_GR1 = prefix_scores_GRT.to(own_lse_RA1.dtype).logsumexp(dim=-1, keepdim=True)
    own_lse_GR1 = own_lse_RA1.view(len(query_RAD), -1).T[..., None]
    both_lse_GR1 = torch.logaddexp(prefix_lse_GR1, own_lse_GR1)
    dtype = prefix_values_GTD.dtype  # the kernel's lse is float32 at least
    prefix_GRD = torch.bmm((prefix_scores_GRT - both_lse_GR1).exp_().to(dtype), prefix_values_GTD)
    own_share_GR1 = (own_lse_GR1 - both_lse_GR1).exp_().to(dtype)
    mixed_GRD = torch.addcmul(prefix_GRD, own_RA1D[:, :, 0].transpose(0, 1), own_share_GR1)
    return mixed_GRD.transpose(0, 1).reshape(len(query_RAD), -1)


def _softmax(scores: Tensor) -> Tensor:
    """In float32 at least."""
    if scores.dtype in (torch.float32, torch.float64):
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
