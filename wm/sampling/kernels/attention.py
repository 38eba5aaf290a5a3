"""Attend from candidates to the prefix that they share and to their own tokens.

The queries of all candidates of a prefix are one matrix, so that its keys and values are read once. The two parts are
merged by the log of the sum of exponentials, here as one softmax over the scores side by side:
softmax([s_prefix, s_own]) weighs each part by exp(lse_part - lse_both).

Shape suffixes of :mod:`wm.sampling.cache`, and: S new tokens a row, F filled positions of a row, Q queries a group of
keys (heads / G).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend_causal(query_PSAD: Tensor, key_PSGD: Tensor, value_PSGD: Tensor) -> Tensor:
    """Attend from each token to itself and those before it: (P, S, A, D). Queries are scaled already. A: heads.

    Args:
        query_PSAD: Queries, scaled already.
        key_PSGD: Keys.
        value_PSGD: Values.
    """
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
    """Attend from each new token to all of its prefix and to its row's filled positions.

    Args:
        query_RSAD: Queries, scaled already.
        prefix_keys_PGTD: Keys of the prefixes, whose rows are neighbours: R is a multiple of P.
        prefix_values_PGTD: Their values.
        own_keys_RGFD: Keys of the rows' own tokens.
        own_values_RGFD: Their values.
        prefix_hidden_PT: True where a prefix is padding; None: nowhere.
        own_hidden: Bool, broadcastable to (R, S, F), true where a token must not look; None: it may see all F.

    Returns:
        (R, S, A, D).
    """
    num_rows, num_new, heads, width = query_RSAD.shape
    num_prefixes, groups, prefix_length = prefix_keys_PGTD.shape[:3]
    each, filled = num_rows // num_prefixes, own_keys_RGFD.shape[2]
    # 1. Scores of each row against its own tokens: one small product a row and group.
    query_RGSQD = query_RSAD.view(num_rows, num_new, groups, -1, width).transpose(1, 2)
    own = query_RGSQD.reshape(num_rows * groups, -1, width)
    own_scores = torch.bmm(own, own_keys_RGFD.flatten(0, 1).transpose(1, 2)).view(num_rows, groups, num_new, -1, filled)
    if own_hidden is not None:
        own_scores = own_scores.masked_fill(own_hidden[:, None, :, None], -torch.inf)
    # 2. Scores against the prefix: queries of all its candidates are one matrix, so its keys are read once.
    split = (num_prefixes, each, groups, num_new, heads // groups)
    stacked = query_RGSQD.reshape(*split, width).transpose(1, 2).reshape(num_prefixes * groups, -1, width)
    scores = torch.bmm(stacked, prefix_keys_PGTD.flatten(0, 1).transpose(1, 2))
    scores_PKGSQT = scores.view(num_prefixes, groups, each, num_new, -1, prefix_length).transpose(1, 2)
    if prefix_hidden_PT is not None:
        scores_PKGSQT = scores_PKGSQT.masked_fill(prefix_hidden_PT[:, None, None, None, None], -torch.inf)
    # 3. One softmax over both parts side by side, then each part mixes its own values.
    both = torch.cat((scores_PKGSQT, own_scores.view(*split, filled)), dim=-1)
    weights = _softmax(both)
    prefix_weights = weights[..., :prefix_length].transpose(1, 2).reshape(num_prefixes * groups, -1, prefix_length)
    mixed = torch.bmm(prefix_weights, prefix_values_PGTD.flatten(0, 1))
    mixed_PKGSQD = mixed.view(num_prefixes, groups, each, num_new, -1, width).transpose(1, 2)
    own_weights = weights[..., prefix_length:].reshape(num_rows * groups, -1, filled)
    own_mixed = torch.bmm(own_weights, own_values_RGFD.flatten(0, 1)).view(*split, width)
    mixed_RGSQD = (mixed_PKGSQD + own_mixed).reshape(num_rows, groups, num_new, -1, width)
    return mixed_RGSQD.transpose(1, 2).reshape(num_rows, num_new, heads, width)


def can_flash(query: Tensor) -> bool:
    """Return whether a GPU's fused kernel takes the query's device and type."""
    return query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16)


def attend_tails(
    query_RSAD: Tensor,
    key_RSAD: Tensor,
    value_RSAD: Tensor,
    prefix_keys_PATD: Tensor,
    prefix_values_PATD: Tensor,
) -> Tensor:
    """Compute :func:`attend_shared` (R, S, A, D) for rows that begin after their prefixes, by fused kernels.

    As many groups as heads, nothing padded. No scores are stored: either part is one kernel, and both are merged.

    Args:
        query_RSAD: Queries, scaled already.
        key_RSAD: Keys of the new tokens.
        value_RSAD: Their values.
        prefix_keys_PATD: Keys of the prefixes, whose rows are neighbours.
        prefix_values_PATD: Their values.
    """
    shape, num_prefixes = query_RSAD.shape, len(prefix_keys_PATD)
    own, own_lse = _flash(query_RSAD, key_RSAD, value_RSAD, is_causal=True)
    stacked = query_RSAD.reshape(num_prefixes, -1, *shape[2:])
    prefix = prefix_keys_PATD.transpose(1, 2), prefix_values_PATD.transpose(1, 2)
    shared, shared_lse = (part.reshape(shape[: part.ndim]) for part in _flash(stacked, *prefix, is_causal=False))
    # exp(lse_prefix) / (exp(lse_prefix) + exp(lse_own)), which cannot overflow as a sigmoid.
    share = torch.sigmoid(shared_lse - own_lse)[..., None]
    return torch.lerp(own.to(share.dtype), shared.to(share.dtype), share).to(own.dtype)


def _flash(query_BSAD: Tensor, key_BTAD: Tensor, value_BTAD: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return what is mixed, (B, S, A, D), and the log of the sum of exponentials, (B, S, A), float32 at least."""
    parts = [part.transpose(1, 2) for part in (query_BSAD, key_BTAD, value_BTAD)]
    # The kernels take any strides but the last.
    parts = [part if part.stride(-1) == 1 else part.contiguous() for part in parts]
    if query_BSAD.device.type == "cpu":
        outputs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, is_causal, scale=1.0)
    else:
        outputs = torch.ops.aten._scaled_dot_product_flash_attention(*parts, 0.0, is_causal, False, scale=1.0)
    return outputs[0].transpose(1, 2), outputs[1][:, :, : query_BSAD.shape[1]].transpose(1, 2)


def attend_step(
    query_RAD: Tensor,
    prefix_keys_GTD: Tensor,
    prefix_values_GTD: Tensor,
    own_keys_RGFD: Tensor,
    own_values_RGFD: Tensor,
) -> Tensor:
    """Compute :func:`attend_shared`, as (R, A x D), for one new token a row, one prefix, as many groups as heads.

    The same products with a third of the calls, which at a few rows take as long as the products do. On a CPU they are
    also quicker than torch's fused kernel, whose own products are of one row each (1,060 prefix and 64 to 1,000 own
    tokens of 8 rows, 4 heads: 0.68 to 0.84 of its time).

    Args:
        query_RAD: Queries, scaled already.
        prefix_keys_GTD: Keys of the one prefix.
        prefix_values_GTD: Their values.
        own_keys_RGFD: Keys of the rows' own tokens, the new one among them.
        own_values_RGFD: Their values.
    """
    num_rows, heads, width = query_RAD.shape
    filled, prefix_length = own_keys_RGFD.shape[2], prefix_keys_GTD.shape[1]
    prefix_scores = torch.bmm(query_RAD.transpose(0, 1), prefix_keys_GTD.transpose(1, 2))
    # Keys first: the same numbers by another of the library's kernels, up to a quarter quicker.
    own_scores = torch.bmm(own_keys_RGFD.flatten(0, 1), query_RAD.reshape(-1, 1, width).transpose(1, 2))
    both = torch.cat((prefix_scores.transpose(0, 1), own_scores.view(num_rows, heads, filled)), dim=-1)
    weights = _softmax(both)
    prefix_weights, own_weights = weights[..., :prefix_length], weights[..., prefix_length:]
    mixed = torch.bmm(own_weights.reshape(-1, 1, filled), own_values_RGFD.flatten(0, 1)).view(num_rows, heads, width)
    # Added in place: the sum of both parts is the softmax over all positions.
    mixed += torch.bmm(prefix_weights.transpose(0, 1), prefix_values_GTD).transpose(0, 1)
    return mixed.view(num_rows, -1)


def _softmax(scores: Tensor) -> Tensor:
    """Normalise scores in float32 at least; the result has their type."""
    if scores.dtype in (torch.float32, torch.float64):
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
