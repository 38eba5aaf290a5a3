"""The decoding engine: prefill once a source, candidates share the prefix, image logits alone are computed.

Noise is a function of (seed, candidate, position) and nothing else, so candidate k is the same whether it is
drawn alone, among more candidates, or beside other sources (up to the rounding of the hidden states, which
may differ with the size of a batch and matters only where a draw falls on the very boundary between two
codes). Shape suffixes: B sources, K candidates, R = B x K rows, N image tokens, V rows of the head, T prefix
tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache

from wm.config import Recipe
from wm.errors import InputError
from wm.models.protocol import UnifiedVLM

POSITIONS_AT_ONCE = 16_384
"""Default bound on rows x length in one forward pass or cache: 8.6 GB of bfloat16 cache for a 7B model."""


class Sampling(Recipe):
    """How an image token is drawn. The defaults draw from the model's distribution as it is."""

    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    top_k: int = Field(default=0, ge=0)
    """Only the k most probable codes; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the fewest most probable codes whose probabilities sum to this or more; 1: all."""
    greedy: bool = False
    """Always the most probable code; the three above then have no effect."""


@dataclass(frozen=True)
class Completion:
    """A generated text: its tokens without the end, and the log-probability (nats) of them and the end."""

    ids: tuple[int, ...]
    logprob: float
    num_tokens: int


def uniform_noise(seed: int, candidate: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """``length`` numbers in [0, 1): position i always gets the same one, whatever ``length`` is.

    Philox, a counter-based generator, with (seed, candidate) as its key.
    """
    if seed < 0 or candidate < 0:
        raise InputError(f"seed and candidate must not be negative, got {seed} and {candidate}")
    key = np.array([seed % 2**64, candidate], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)


def probabilities(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """float64 probabilities (R, V) after temperature, then top-k, then top-p; of equal logits the lower index
    stays.

    With ``greedy`` all mass is on the largest logit.
    """
    if sampling.greedy:
        best_R1 = logits_RV.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits_RV, dtype=torch.float64).scatter(-1, best_R1, 1.0)
    probs_RV = torch.softmax(logits_RV.to(torch.float64) / sampling.temperature, dim=-1)
    if not sampling.top_k and sampling.top_p == 1.0:
        return probs_RV
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        sorted_RV[:, sampling.top_k :] = 0
        sorted_RV = sorted_RV / sorted_RV.sum(-1, keepdim=True)
    if sampling.top_p < 1.0:
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        sorted_RV = sorted_RV.masked_fill(before_RV >= sampling.top_p, 0)
    kept_RV = torch.zeros_like(probs_RV).scatter(-1, order_RV, sorted_RV)
    return kept_RV / kept_RV.sum(-1, keepdim=True)


def draw(probs_RV: Tensor, noise_R: Tensor) -> Tensor:
    """int64 (R,): the first index whose cumulative probability exceeds the noise in [0, 1)."""
    cumulative_RV = probs_RV.cumsum(-1)
    # Rounding may leave the last sum below the noise, or the noise at 0 before codes of no mass.
    threshold_R1 = noise_R.to(probs_RV)[:, None] * cumulative_RV[:, -1:]
    index_R = (cumulative_RV <= threshold_R1).sum(-1)
    last_R = probs_RV.shape[-1] - 1 - (probs_RV > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index_R, last_R)


@torch.no_grad()
def sample_images(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    num_samples: int,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Codebook ids int64 (B, K, N) on the CPU: ``num_samples`` images after each prefix (vocabulary ids).

    ``seed``: one for all rows, or one a row. Rows with equal seeds share their noise. ``batch_size`` bounds
    the candidate rows that are decoded together. Prefixes may differ in length.
    """
    sampling = sampling or Sampling()
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    seeds = [seed] * len(prefixes) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prefixes):
        raise InputError(f"expected one seed or {len(prefixes)}, got {len(seeds)}")
    distinct = 1 if sampling.greedy else num_samples
    codes_BKN = torch.zeros((len(prefixes), distinct, vlm.tokens_per_image), dtype=torch.int64)
    length = max(map(len, prefixes), default=0) + vlm.tokens_per_image
    at_once = rows_at_once(length, batch_size)
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
    return codes_BKN.repeat(1, num_samples // distinct, 1)


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
            codes.append(draw(probabilities(logits_RV, sampling), noise_RN[:, position]))
    return torch.stack(codes, dim=1)


@torch.no_grad()
def generate_texts(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
) -> list[Completion]:
    """The greedy text after each prefix, among ``vlm.text_rows``, up to end-of-sequence.

    The log-probability is normalised over the whole vocabulary and includes the end token; a text that
    reaches ``max_new_tokens`` is ended there, so that scoring the same text gives the same number.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    completions: dict[int, Completion] = {}
    length = max(map(len, prefixes), default=0) + max_new_tokens
    for rows in _same_length(prefixes, rows_at_once(length, batch_size)):
        ids_BT = torch.tensor([list(prefixes[row]) for row in rows], device=vlm.device)
        completions.update(zip(rows, _decode_texts(vlm, ids_BT, max_new_tokens), strict=True))
    return [completions[row] for row in range(len(prefixes))]


def _decode_texts(vlm: UnifiedVLM, ids_BT: Tensor, max_new_tokens: int) -> list[Completion]:
    cache = DynamicCache()
    tokens_BS: list[Tensor] = []
    logprob_B = torch.zeros(len(ids_BT), dtype=torch.float64, device=ids_BT.device)
    open_B = torch.ones(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
    hidden_BH = vlm.body(ids_BT, cache)[:, -1]
    for step in range(max_new_tokens + 1):
        logprobs_BV = torch.log_softmax(vlm.head(hidden_BH).float(), dim=-1)
        token_B = vlm.text_rows[logprobs_BV[:, vlm.text_rows].argmax(-1)]
        if step == max_new_tokens:
            token_B = torch.full_like(token_B, vlm.eos_id)
        chosen_B = logprobs_BV.gather(1, token_B[:, None])[:, 0].double()
        logprob_B += torch.where(open_B, chosen_B, 0.0)
        token_B = torch.where(open_B, token_B, vlm.eos_id)
        tokens_BS.append(token_B)
        open_B &= token_B != vlm.eos_id
        if not open_B.any():
            break
        hidden_BH = vlm.body(token_B[:, None], cache)[:, -1]
    texts = [row[: row.index(vlm.eos_id)] for row in torch.stack(tokens_BS, dim=1).tolist()]
    return [
        Completion(tuple(ids), logprob, len(ids) + 1) for ids, logprob in zip(texts, logprob_B.tolist(), strict=True)
    ]


def rows_at_once(length: int, batch_size: int | None) -> int:
    """``batch_size``, or as many rows of ``length`` tokens as :data:`POSITIONS_AT_ONCE` holds; at least 1."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size if batch_size is not None else max(1, POSITIONS_AT_ONCE // max(1, length))


def _same_length(prefixes: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of prefixes in batches of one length each: what shares a batch needs no padding."""
    groups: dict[int, list[int]] = {}
    for row, prefix in enumerate(prefixes):
        groups.setdefault(len(prefix), []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
