"""Texts after prompts: whole, or token by token.

Shape suffixes: P prefixes, R = P x K rows (K texts of each prefix, neighbours), S steps, H hidden width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, rows_at_once
from wm.sampling.checks import need_finite, need_prefixes
from wm.sampling.decoder import Decoder
from wm.sampling.noise import Sampling, choose, noise_of

GREEDY = Sampling(greedy=True)


@dataclass(frozen=True)
class Completion:
    """A generated text: its tokens without the end, and the log-probability (nats) of them and the end."""

    ids: tuple[int, ...]
    logprob: float
    num_tokens: int


class TextToken(NamedTuple):
    """A token of a text, the end among them. Log-probabilities are the model's own, in nats over the whole vocabulary:
    how a token is drawn does not change them."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest ids that a text may use and their log-probabilities, likeliest first."""
    is_cut: bool
    """Whether this is the end, put there because the text had all its tokens: the draw was another."""


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
    need_length(max_new_tokens)
    if not prefixes:
        return []
    completions: dict[int, Completion] = {}
    at_once = rows_at_once(max(map(len, prefixes)) + max_new_tokens, batch_size, positions_at_once(vlm))
    decoder = decoder or Decoder(vlm, rows=min(at_once, len(prefixes)))
    need_prefixes(prefixes, len(decoder.view.embedding))
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def complete(start: int, stop: int) -> None:
        rows = order[start:stop]
        steps = _steps(vlm, decoder, [prefixes[row] for row in rows], max_new_tokens)
        completions.update(zip(rows, _gathered(steps, len(rows)), strict=True))

    halving(complete, len(prefixes), at_once)
    return [completions[row] for row in range(len(prefixes))]


def text_steps(
    vlm: UnifiedVLM,
    prefix: Sequence[int],
    *,
    num_samples: int = 1,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    num_top: int = 0,
    max_new_tokens: int = 32,
    decoder: Decoder | None = None,
) -> Iterator[list[TextToken | None]]:
    """``num_samples`` texts after one prefix, a token of each with every step; None for a text that has ended.

    Work is done only while the next step is asked for: who stops asking stops the decoding. Text k draws with the noise
    of (``seed``, k, place), so that neither the number of texts nor company changes it. ``num_top``: how many of the
    likeliest tokens are told beside each. A text has at most ``max_new_tokens`` tokens before its end. Raises
    :class:`InputError` at once for settings that cannot be used.
    """
    need_length(max_new_tokens)
    if num_samples < 1:
        raise InputError(f"num_samples must be at least 1, got {num_samples}")
    if not 0 <= num_top <= len(vlm.text_rows):
        raise InputError(f"num_top = {num_top}: expected 0 to {len(vlm.text_rows)}, the tokens that a text may use")
    if sampling.is_guided:
        raise InputError("guidance is for images; texts are drawn without it")
    decoder = decoder or Decoder(vlm, rows=num_samples)
    need_prefixes([prefix], len(decoder.view.embedding))
    noise_RS = noise_of([seed], range(num_samples), max_new_tokens + 1)
    return _steps(vlm, decoder, [prefix], max_new_tokens, sampling=sampling, noise_RS=noise_RS, num_top=num_top)


def need_length(max_new_tokens: int) -> None:
    """:class:`InputError` unless at least one token may come."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


@torch.no_grad()
def _steps(
    vlm: UnifiedVLM,
    decoder: Decoder,
    prefixes: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampling: Sampling = GREEDY,
    noise_RS: Tensor | None = None,
    num_top: int = 0,
) -> Iterator[list[TextToken | None]]:
    """As many texts of each prefix as ``noise_RS`` has rows for it, one without."""
    noise_RS = torch.zeros(len(prefixes), max_new_tokens + 1) if noise_RS is None else noise_RS
    num_rows = len(noise_RS)
    prefix, last_PH = decoder.prefill(prefixes)
    need_finite(last_PH, "hidden states of the prompt", vlm)
    hidden_RH = last_PH.repeat_interleave(num_rows // len(prefixes), dim=0)
    cache = decoder.reserve(num_rows, max_new_tokens)
    is_open = [True] * num_rows
    for step in range(max_new_tokens + 1):
        logprobs_RV = torch.log_softmax(decoder.logits(hidden_RH), dim=-1, dtype=decoder.exact)
        spoken_RV = logprobs_RV[:, vlm.text_rows]
        drawn_R = vlm.text_rows[choose(spoken_RV, noise_RS[:, step], sampling)]
        token_R = drawn_R if step < max_new_tokens else torch.full_like(drawn_R, vlm.eos_id)
        chosen_R = logprobs_RV.gather(1, token_R[:, None])[:, 0].double()
        tops = _likeliest(spoken_RV, vlm.text_rows, num_top)
        rows = zip(token_R.tolist(), chosen_R.tolist(), tops, (token_R != drawn_R).tolist(), strict=True)
        yield [TextToken(*row) if is_now else None for row, is_now in zip(rows, is_open, strict=True)]
        is_now_R = torch.tensor(is_open, device=token_R.device)
        token_R = torch.where(is_now_R, token_R, vlm.eos_id)
        is_open = (token_R != vlm.eos_id).tolist()
        if not any(is_open):
            return
        hidden_RH = decoder.extend(token_R[:, None], prefix, cache, step, step + 1)[:, 0]


def _likeliest(spoken_RV: Tensor, rows: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    if not count:
        return [()] * len(spoken_RV)
    logprobs_RT, places_RT = spoken_RV.topk(count, dim=-1)
    pairs = zip(rows[places_RT].tolist(), logprobs_RT.tolist(), strict=True)
    return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]


def _gathered(steps: Iterator[list[TextToken | None]], num_rows: int) -> list[Completion]:
    tokens: list[list[TextToken]] = [[] for _ in range(num_rows)]
    for step in steps:
        for row, token in zip(tokens, step, strict=True):
            if token is not None:
                row.append(token)
    return [
        Completion(tuple(token.id for token in row[:-1]), sum(token.logprob for token in row), len(row))
        for row in tokens
    ]
