"""Greedy texts after prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, rows_at_once
from wm.sampling.checks import need_finite, need_prefixes
from wm.sampling.decoder import Decoder


@dataclass(frozen=True)
class Completion:
    """A generated text: its tokens without the end, and the log-probability (nats) of them and the end."""

    ids: tuple[int, ...]
    logprob: float
    num_tokens: int


@torch.no_grad()
def generate_texts(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    decoder: Decoder | None = None,
) -> list[Completion]:
    """The greedy text after each prefix, among ``vlm.text_rows``, up to end-of-sequence.

    The log-probability is normalised over the whole vocabulary and includes the end token; a text that
    reaches ``max_new_tokens`` is ended there, so that scoring the same text gives the same number.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not prefixes:
        return []
    completions: dict[int, Completion] = {}
    at_once = rows_at_once(max(map(len, prefixes)) + max_new_tokens, batch_size, positions_at_once(vlm))
    decoder = decoder or Decoder(vlm, rows=min(at_once, len(prefixes)))
    need_prefixes(prefixes, len(decoder.view.embedding))
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def complete(start: int, stop: int) -> None:
        rows = order[start:stop]
        found = _decode_texts(vlm, decoder, [prefixes[row] for row in rows], max_new_tokens)
        completions.update(zip(rows, found, strict=True))

    halving(complete, len(prefixes), at_once)
    return [completions[row] for row in range(len(prefixes))]


def _decode_texts(
    vlm: UnifiedVLM, decoder: Decoder, prefixes: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Completion]:
    prefix, hidden_BH = decoder.prefill(prefixes)
    need_finite(hidden_BH, "hidden states of the prompt", vlm)
    cache = decoder.reserve(len(prefixes), max_new_tokens)
    tokens_BS: list[Tensor] = []
    logprob_B = torch.zeros(len(prefixes), dtype=torch.float64, device=decoder.device)
    open_B = torch.ones(len(prefixes), dtype=torch.bool, device=decoder.device)
    for step in range(max_new_tokens + 1):
        logprobs_BV = torch.log_softmax(decoder.logits(hidden_BH), dim=-1, dtype=decoder.exact)
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
        hidden_BH = decoder.extend(token_B[:, None], prefix, cache, step, step + 1)[:, 0]
    texts = [row[: row.index(vlm.eos_id)] for row in torch.stack(tokens_BS, dim=1).tolist()]
    return [
        Completion(tuple(ids), logprob, len(ids) + 1) for ids, logprob in zip(texts, logprob_B.tolist(), strict=True)
    ]
