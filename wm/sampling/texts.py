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
from wm.sampling.decoding import decode_step
from wm.sampling.model_runner import ModelRunner, PrefixCache, RowCache, StepInput
from wm.sampling.noise import Sampling, expand_seeds, sample_tokens, stack_noise
from wm.sampling.runners import build_model_runner

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


class TextStep(NamedTuple):
    """What a step has sampled for each text of a batch."""

    tokens: list[TextToken | None]
    """None for texts that have ended."""
    ids: Tensor
    """int64 (R,): the same, ends for None."""


class TextBatch:
    """``num_candidates`` texts after each of some prefixes, as they grow; :func:`decode_texts` adds a token to each.

    Text k of a prefix is sampled with the noise of (its seed, k, position), so that neither the number of texts nor
    the batch changes it.

    Args:
        vlm: The model.
        runner: Runs this model as it is now.
        prefixes: Vocabulary ids, one or more each.
        num_candidates: Texts of each prefix.
        sampling: How a token is sampled; guidance is for images.
        seed: One for all prefixes, which then share their noise, or one a prefix.
        num_top: How many of the likeliest tokens are reported beside each.
        max_new_tokens: Tokens of a text before its end, at most.

    Raises:
        InputError: For settings and prefixes that cannot be used.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        runner: ModelRunner,
        prefixes: Sequence[Sequence[int]],
        *,
        num_candidates: int = 1,
        sampling: Sampling = GREEDY,
        seed: int | Sequence[int] = 0,
        num_top: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        check_max_new_tokens(max_new_tokens)
        if num_candidates < 1:
            raise InputError(f"num_candidates must be at least 1, got {num_candidates}")
        if num_top < 0:
            raise InputError(f"num_top must not be negative, got {num_top}")
        # Its prompts leave out the very text or image that a text describes.
        if sampling.is_guided:
            raise InputError("guidance is for images; texts are sampled without it")
        check_prefixes(prefixes, runner.vocabulary_size)
        self._vlm, self._runner, self._prefixes = vlm, runner, prefixes
        self._num_samples, self._sampling, self._num_top = num_candidates, sampling, num_top
        self.max_new_tokens = max_new_tokens
        self._noise_RS = stack_noise(expand_seeds(seed, len(prefixes)), range(num_candidates), max_new_tokens + 1)
        self.is_open = [True] * (len(prefixes) * num_candidates)
        """Whether each text has no end yet."""
        self._position = 0
        self._pending: StepInput | None = None
        self._cache: tuple[PrefixCache, RowCache] | None = None
        self._logits_RV = torch.zeros(0)

    @property
    def is_finished(self) -> bool:
        """Return whether all texts have their end."""
        return not any(self.is_open)

    def start(self, prefix: PrefixCache | None = None, last_PH: Tensor | None = None) -> None:
        """Read the prefixes and compute the logits of the first tokens; done once.

        Args:
            prefix: What the runner's ``prefill`` has returned for these prefixes, where it was needed before.
            last_PH: The hidden states with it.
        """
        if self._cache is not None:
            return
        # The texts of a prefix share its keys and values, and part with their first tokens.
        if prefix is None or last_PH is None:
            prefix, last_PH = self._runner.prefill(self._prefixes)
            check_finite(last_PH, "hidden states of the prompt", self._vlm)
        rows = self._runner.reserve(len(self.is_open), self.max_new_tokens)
        self.set_logits(self._runner.logits(last_PH.repeat_interleave(self._num_samples, dim=0)))
        self._cache = prefix, rows

    @property
    def pending(self) -> StepInput | None:
        """The last tokens, which the next pass reads; None before the first."""
        return self._pending

    def set_logits(self, logits_XV: Tensor) -> None:
        """Take the logits of the next tokens."""
        self._logits_RV = logits_XV

    def sample(self) -> TextStep:
        """Sample the next token of each text."""
        vlm = self._vlm
        logprobs_RV = torch.log_softmax(self._logits_RV, dim=-1, dtype=self._runner.exact)
        # Image codes and structure are never sampled, but share the normalisation.
        spoken_RV = logprobs_RV[:, vlm.text_rows]
        sampled_R = vlm.text_rows[sample_tokens(spoken_RV, self._noise_RS[:, self._position], self._sampling)]
        # A text with all its tokens is ended, and the end is scored as the model scores it.
        is_last = self._position == self.max_new_tokens
        token_R = torch.full_like(sampled_R, vlm.eos_id) if is_last else sampled_R
        logprob_R = logprobs_RV.gather(1, token_R[:, None])[:, 0].double()
        check_finite(logprob_R, "log-probabilities", vlm)
        tops = _list_likeliest(spoken_RV, vlm.text_rows, self._num_top)
        # The host waits here once a step, as a caller wants to know which texts have ended.
        rows = zip(token_R.tolist(), logprob_R.tolist(), tops, (token_R != sampled_R).tolist(), strict=True)
        # Ended texts keep their rows, so that a batch has one shape; what they sample is dropped.
        tokens = [TextToken(*row) if is_open else None for row, is_open in zip(rows, self.is_open, strict=True)]
        return TextStep(tokens, torch.where(torch.tensor(self.is_open, device=token_R.device), token_R, vlm.eos_id))

    def append(self, sample: TextStep) -> None:
        """Append the sampled tokens."""
        if self._cache is None:
            raise RuntimeError("start() reads the prefixes first")
        self.is_open = (sample.ids != self._vlm.eos_id).tolist()
        self._pending = StepInput(sample.ids, *self._cache, self._position)
        self._position += 1


@torch.no_grad()
def decode_texts(runner: ModelRunner, batches: Sequence[TextBatch]) -> list[list[TextToken | None]]:
    """Sample the next token of every text of every batch, in one pass for all that have begun.

    If this raises, all batches are as they were.

    Args:
        runner: That of all batches.
        batches: None of them has ended.

    Returns:
        For each batch, the token of each text, None for those that have ended.
    """
    # New batches read their prompts, which differ in length, one by one.
    for batch in batches:
        batch.start()
    return [step.tokens for step in decode_step(runner, batches, runner.logits)]


@torch.no_grad()
def generate_texts(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[Completion]:
    """Generate one text after each prefix, among ``vlm.text_rows``, up to end-of-sequence.

    Args:
        vlm: The model.
        prefixes: Vocabulary ids, one or more each; they may differ in length.
        sampling: How a token is sampled; greedy without it.
        seed: One for all prefixes, which then share their noise, or one a prefix.
        max_new_tokens: Tokens of a text before its end, at most. A text that reaches it is ended there, so that
            scoring the same text gives the same number.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        runner: Runs this model as it is now, to be used for many calls; built here without it.

    Returns:
        One completion a prefix. Its log-probability, in nats, is that of the model as it is, whatever the temperature:
        normalised over the complete vocabulary, the end token included.

    Raises:
        InputError: For settings and prefixes that cannot be, and for a model that gives non-finite numbers.
    """
    check_max_new_tokens(max_new_tokens)
    if not prefixes:
        return []
    # By row: a batch that was halved comes again, and replaces what was there.
    completions: dict[int, Completion] = {}
    seeds = expand_seeds(seed, len(prefixes))
    at_once = rows_at_once(max(map(len, prefixes)) + max_new_tokens, batch_size, positions_at_once(vlm))
    runner = runner or build_model_runner(vlm, rows=min(at_once, len(prefixes)))
    check_prefixes(prefixes, runner.vocabulary_size)
    # Batches by length, so that few prefixes are padded.
    order = sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))

    def complete(start: int, stop: int) -> None:
        rows = order[start:stop]
        batch = TextBatch(
            vlm,
            runner,
            [prefixes[row] for row in rows],
            sampling=sampling,
            seed=[seeds[row] for row in rows],
            max_new_tokens=max_new_tokens,
        )
        completions.update(zip(rows, complete_batch(runner, batch), strict=True))

    halving(complete, len(prefixes), at_once)
    return [completions[row] for row in range(len(prefixes))]


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Raise :class:`InputError` unless at least one token may come."""
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")


def complete_batch(runner: ModelRunner, batch: TextBatch) -> list[Completion]:
    """Generate all texts of a batch to their ends.

    Args:
        runner: Runs the model.
        batch: Begun or not.
    """
    tokens: list[list[TextToken]] = [[] for _ in batch.is_open]
    # Texts of one batch end at different steps; the longest decides.
    while not batch.is_finished:
        (step,) = decode_texts(runner, [batch])
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
    # A text may use fewer tokens than are wanted.
    logprobs_RT, indices_RT = spoken_RV.topk(min(count, len(rows)), dim=-1)
    pairs = zip(rows[indices_RT].tolist(), logprobs_RT.tolist(), strict=True)
    return [tuple(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]
