"""Log-probabilities of given completions, shared by both directions of the dynamics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.prompts import pack
from wm.models.protocol import Segment, UnifiedVLM
from wm.sampling.batches import rows_at_once

LOGITS_AT_ONCE = 1024
"""Bound on the positions whose logits exist at the same time: 1024 x 65,536 float32 are 268 MB."""


@torch.no_grad()
def completion_logprobs(
    vlm: UnifiedVLM,
    segments_list: Sequence[Sequence[Segment]],
    *,
    rows: Tensor | None = None,
    batch_size: int | None = None,
) -> list[tuple[float, int]]:
    """(sum of the completion's log-probabilities in nats, number of its tokens) of each sequence.

    Normalised over ``rows`` of the vocabulary, which must then hold every completion token, or over all of
    it.
    """
    results: list[tuple[float, int]] = [(0.0, 0)] * len(segments_list)
    # Long ones together: less padding. Neither order nor company changes a result, attention being causal.
    order = sorted(range(len(segments_list)), key=lambda row: sum(len(part.ids) for part in segments_list[row]))
    longest = max((sum(len(part.ids) for part in segments) for segments in segments_list), default=0)
    at_once = rows_at_once(longest, batch_size)
    for start in range(0, len(order), at_once):
        batch = order[start : start + at_once]
        ids_BT, is_completion_BT, _ = pack([segments_list[row] for row in batch], vlm.pad_id)
        row_P, position_P = is_completion_BT[:, 1:].nonzero(as_tuple=True)
        hidden_PH = vlm.body(ids_BT.to(vlm.device))[row_P.to(vlm.device), position_P.to(vlm.device)]
        logprob_P = token_logprobs(vlm, hidden_PH, ids_BT[row_P, position_P + 1].to(vlm.device), rows).cpu()
        sums_B = torch.zeros(len(batch), dtype=torch.float64).index_add(0, row_P, logprob_P)
        counts_B = torch.bincount(row_P, minlength=len(batch))
        for place, row in enumerate(batch):
            results[row] = (float(sums_B[place]), int(counts_B[place]))
    return results


def token_logprobs(vlm: UnifiedVLM, hidden_PH: Tensor, targets_P: Tensor, rows: Tensor | None = None) -> Tensor:
    """float64 (P,): log-probability of each target vocabulary id, the log-softmax taken in float32."""
    if rows is not None:
        place_V = torch.full((int(rows.max()) + 1,), -1, dtype=torch.int64, device=rows.device)
        place_V[rows] = torch.arange(len(rows), device=rows.device)
        targets_P = place_V[targets_P]
    parts = []
    for hidden, targets in zip(
        torch.split(hidden_PH, LOGITS_AT_ONCE), torch.split(targets_P, LOGITS_AT_ONCE), strict=True
    ):
        logprobs = torch.log_softmax(vlm.head(hidden, rows).float(), dim=-1)
        parts.append(logprobs.gather(1, targets[:, None])[:, 0].double())
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=hidden_PH.device)


def code_lists(name: str, codes: Tensor | npt.NDArray[Any] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Codes (B, N) as lists; :class:`InputError` for another number of dimensions."""
    tensor = as_codes(codes)
    if tensor.ndim != 2:
        raise InputError(f"{name}: expected codes (B, N), got shape {tuple(tensor.shape)}")
    rows: list[list[int]] = tensor.to(torch.int64).tolist()
    return rows


def as_codes(codes: Any) -> Tensor:
    """A tensor of codes from a tensor, an array, or nested lists (of either)."""
    return codes if isinstance(codes, Tensor) else torch.as_tensor(np.asarray(codes))


def need_equal(**lengths: int) -> None:
    """Raise :class:`InputError` unless all lengths are the same."""
    if len(set(lengths.values())) > 1:
        raise InputError("expected as many of each, got " + ", ".join(f"{n} {name}" for name, n in lengths.items()))
