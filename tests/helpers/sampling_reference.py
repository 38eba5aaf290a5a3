"""The engine that went before: transformers' modules and a cache that grows by concatenation, one length at a time."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from wm.models.vlm import UnifiedVLM
from wm.sampling.noise import Sampling, invert_cdf, probabilities, uniform_noise


@torch.no_grad()
def sample_images(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    num_candidates: int,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Codebook ids int64 (B, K, N) on the CPU: ``num_candidates`` images after each prefix (vocabulary ids).

    ``seed``: one for all rows, or one a row. Rows with equal seeds share their noise. ``batch_size`` bounds
    the candidate rows that are decoded together. Prefixes may differ in length.
    """
    sampling = sampling or Sampling()
    seeds = [seed] * len(prefixes) if isinstance(seed, int) else list(seed)
    distinct = 1 if sampling.greedy else num_candidates
    codes_BKN = torch.zeros((len(prefixes), distinct, vlm.tokens_per_image), dtype=torch.int64)

    at_once = batch_size or 64
    for rows in _same_length(prefixes, max(1, at_once // distinct)):
        ids_BT = torch.tensor([list(prefixes[row]) for row in rows], device=vlm.device)
        for start in range(0, distinct, at_once):
            candidates = range(start, min(distinct, start + at_once))
            noise_RN = np.stack(
                [uniform_noise(seeds[row], k, vlm.tokens_per_image) for row in rows for k in candidates]
            )
            codes_RN = _decode_images(vlm, ids_BT, len(candidates), torch.from_numpy(noise_RN), sampling)
            chosen = codes_RN.view(len(rows), len(candidates), -1).cpu()
            codes_BKN[rows, candidates.start : candidates.stop] = chosen
    return codes_BKN.repeat(1, num_candidates // distinct, 1)


def _decode_images(
    vlm: UnifiedVLM, ids_BT: Tensor, num_candidates: int, noise_RN: Tensor, sampling: Sampling
) -> Tensor:
    cache = DynamicCache()
    hidden_RH = vlm.body(ids_BT, cache)[:, -1].repeat_interleave(num_candidates, dim=0)
    if num_candidates > 1:
        cache.batch_repeat_interleave(num_candidates)
    noise_RN = noise_RN.to(vlm.device)
    codes: list[Tensor] = []
    for position in range(vlm.tokens_per_image):
        if position:
            hidden_RH = vlm.body(vlm.image_rows[codes[-1]][:, None], cache)[:, -1]
        logits_RV = vlm.head(hidden_RH, vlm.image_rows)
        if sampling.greedy:
            codes.append(logits_RV.argmax(-1))
        else:
            codes.append(invert_cdf(probabilities(logits_RV, sampling), noise_RN[:, position]))
    return torch.stack(codes, dim=1)


def _same_length(prefixes: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of prefixes in batches of one length each: what shares a batch needs no padding."""
    groups: dict[int, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        groups.setdefault(len(prefix), []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
