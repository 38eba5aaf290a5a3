"""Generate texts after prompts: complete, or token by token, those of several requests in one pass.

Shape suffixes: P prefixes, R = P x K rows (K texts of each prefix, neighbours), S steps, H hidden width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import halving, positions_at_once, rows_at_once
from wm.sampling.checks import check_finite, check_prefixes
from wm.sampling.model_runner import Decoder, Group
from wm.sampling.noise import Sampling, choose, noise_of, seeds_of

GREEDY = Sampling(greedy=True)


@dataclass(frozen=True)
class Completion:
    """A generated text: its tokens without the end, and the log-probability (nats) of them and the end."""

    ids: tuple[int, ...]
    logprob: float
    num_tokens: int


class TextToken(NamedTuple):
    """A token of a text, the end among them.

    Log-probabilities are the model's own, in nats over the complete vocabulary: sampling does not change them.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest ids that a text may use and their log-probabilities, likeliest first."""
    is_cut: bool
    """Whether this is an end that was forced because the text had all its tokens: another was sampled."""


class TextRun:
    """``num_samples`` texts after each of some prefixes, as they grow; :func:`advance_texts` adds a token to each.

    Text k of a prefix is sampled with the noise of (its seed, k, position), so that neither the number of texts nor
    the batch changes it.

    Args:
        prefixes: Vocabulary ids, one or more each.
        num_samples: Texts of each prefix.
        sampling: How a token is sampled; guidance is for images.
        seed: One for all prefixes, which then share their noise, or one a prefix.
        num_top: How many of the likeliest tokens are reported beside each.
        max_new_tokens: Tokens of a text before its end, at most.

    Raises:
        InputError: For settings that cannot be used.
    """

    def __init__(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        num_samples: int = 1,
        sampling: Sampling = GREEDY,
        seed: int | Sequence[int] = 0,
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        check_length(max_new_tokens)
        if num_samples < 1:
            raise InputError(f"num_samples must be at least 1, got {num_samples}")
        if num_top < 0:
            raise InputError(f"num_top must not be negative, got {num_top}")
        if sampling.is_guided:
            raise InputError("guidance is for images; texts are sampled without it")
        self.prefixes, self.num_samples, self.sampling, self.num_top = prefixes, num_samples, sampling, num_top
        self.max_new_tokens = max_new_tokens
        self.noise_RS = noise_of(seeds_of(seed, len(prefixes)), range(num_samples), max_new_tokens + 1)
        self.is_open = [True] * (len(prefixes) * num_samples)
        """Whether each text has no end yet."""
        self._step = 0
        self._group: Group | None = None
        """The last tokens, and what they follow."""

    @property
    def has_ended(self) -> bool:
        """Return whether all texts have their end."""
        return not any(self.is_open)

    def begin(self, vlm: UnifiedVLM, decoder: Decoder) -> Tensor:
        """Read the prefixes and return the hidden states (R, H) after them."""
        prefix, last_PH = decoder.prefill(self.prefixes)
        check_finite(last_PH, "hidden states of the prompt", vlm)
        self._cache = prefix, decoder.reserve(len(self.is_open), self.max_new_tokens)
        return last_PH.repeat_interleave(self.num_samples, dim=0)

    @property
    def pending(self) -> Group | None:
        """The tokens that the next pass reads; None before the first."""
        return self._group

    def sample(self, vlm: UnifiedVLM, logprobs_RV: Tensor) -> tuple[list[TextToken | None], Tensor]:
        """Sample the next token of each text.

        Returns:
            The tokens, None for texts that have ended; and all of them as int64 (R,), ends for None.
        """
        # Image codes and structure are never sampled, but share the normalisation.
        spoken_RV = logprobs_RV[:, vlm.text_rows]
        sampled_R = vlm.text_rows[choose(spoken_RV, self.noise_RS[:, self._step], self.sampling)]
        # A text with all its tokens is ended, and the end is scored as the model scores it.
        is_last = self._step == self.max_new_tokens
        token_R = torch.full_like(sampled_R, vlm.eos_id) if is_last else sampled_R
        logprob_R = logprobs_RV.gather(1, token_R[:, None])[:, 0].double()
        check_finite(logprob_R, "log-probabilities", vlm)
        tops = _list_likeliest(spoken_RV, vlm.text_rows, self.num_top)
        rows = zip(token_R.tolist(), logprob_R.tolist(), tops, (token_R != sampled_R).tolist(), strict=True)
        tokens = [TextToken(*row) if is_now else None for row, is_now in zip(rows, self.is_open, strict=True)]
        return tokens, torch.where(torch.tensor(self.is_open, device=token_R.device), token_R, vlm.eos_id)

    def accept(self, vlm: UnifiedVLM, token_R: Tensor) -> None:
        """Append the sampled tokens."""
        self.is_open = (token_R != vlm.eos_id).tolist()
        self._group = Group(token_R, *self._cache, self._step)
        self._step += 1


@torch.no_grad()
def advance_texts(vlm: UnifiedVLM, decoder: Decoder, runs: Sequence[TextRun]) -> list[list[TextToken | None]]:
    """Sample the next token of every text of every run, in one pass for all that have begun.

    If this raises, all runs are as they were.

    Args:
        vlm: The model.
        decoder: Of the model as it is now, the same in every call.
        runs: None of them has ended.

    Returns:
        For each run, the token of each text, None for those that have ended.
    """
    # 1. One pass over the weights for the last tokens of all runs that have begun.
    decoding = [(run, run.pending) for run in runs if run.pending is not None]
    hidden: dict[int, Tensor] = {}
    if decoding:
        stepped_XH = decoder.step_together([group for _, group in decoding if group is not None])
        parts = torch.split_with_sizes(stepped_XH, [len(run.is_open) for run, _ in decoding])
        hidden = {id(run): part_RH for (run, _), part_RH in zip(decoding, parts, strict=True)}
    # 2. New runs read their prompts, which differ in length, one by one.
    for run in runs:
        if run.pending is None:
            check_prefixes(run.prefixes, len(decoder.view.embedding))
            hidden[id(run)] = run.begin(vlm, decoder)
    # 3. All runs sample before any accepts: whatever raises leaves them as they were.
    samples = [
        run.sample(vlm, torch.log_softmax(decoder.logits(hidden[id(run)]), dim=-1, dtype=decoder.exact)) for run in runs
    ]
    for run, (_, token_R) in zip(runs, samples, strict=True):
        run.accept(vlm, token_R)
    return [tokens for tokens, _ in samples]


@torch.no_grad()
def generate_texts(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    decoder: Decoder | None = None,
) -> list[Completion]:
    """Generate the greedy text after each prefix, among ``vlm.text_rows``, up to end-of-sequence.

    Args:
        vlm: The model.
        prefixes: Vocabulary ids, one or more each; they may differ in length.
        max_new_tokens: Tokens of a text before its end, at most. A text that reaches it is ended there, so that
            scoring the same text gives the same number.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        decoder: Of this model as it is now, to be used for many calls; built here without it.

    Returns:
        One completion a prefix. Its log-probability, in nats, is normalised over the complete vocabulary and includes
        the end token.

    Raises:
        InputError: For settings and prefixes that cannot be, and for a model that gives non-finite numbers.
    """
    check_length(max_new_tokens)
    if not prefixes:
        return []
    completions: dict[int, Completion] = {}
    at_once = rows_at_once(max(map(len, prefixes)) + max_new_tokens, batch_size, positions_at_once(vlm))
    decoder = decoder or Decoder(vlm, rows=min(at_once, len(prefixes)))
    check_prefixes(prefixes, len(decoder.view.embedding))
    # Batches by length, so that few prefixes are padded.
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def complete(start: int, stop: int) -> None:
        rows = order[start:stop]
        run = TextRun([prefixes[row] for row in rows], max_new_tokens=max_new_tokens)
        completions.update(zip(rows, _complete_run(vlm, decoder, run), strict=True))

    halving(complete, len(prefixes), at_once)
    return [completions[row] for row in range(len(prefixes))]


def check_length(max_new_tokens: int) -> None:
    """Raise :class:`InputError` unless at least one token may come."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def _complete_run(vlm: UnifiedVLM, decoder: Decoder, run: TextRun) -> list[Completion]:
    tokens: list[list[TextToken]] = [[] for _ in run.is_open]
    while not run.has_ended:
        (step,) = advance_texts(vlm, decoder, [run])
        for row, token in zip(tokens, step, strict=True):
            if token is not None:
                row.append(token)
    return [
        Completion(tuple(token.id for token in row[:-1]), sum(token.logprob for token in row), len(row))
        for row in tokens
    ]


def _list_likeliest(spoken_RV: Tensor, rows: Tensor, count: int) -> list[tuple[tuple[int, float], ...]]:
    """List at most ``count`` ids of ``rows`` and their log-probabilities, likeliest first."""
    if not count:
        return [()] * len(spoken_RV)
    logprobs_RT, indices_RT = spoken_RV.topk(min(count, len(rows)), dim=-1)
    pairs = zip(rows[indices_RT].tolist(), logprobs_RT.tolist(), strict=True)
    return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
