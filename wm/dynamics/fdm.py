"""Sample observations from forward dynamics p(target | source, action), or score given ones (paper, 3.2)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wm.dynamics.idm import Codes
from wm.dynamics.scoring import check_equal_lengths, code_lists, completion_logprobs
from wm.models.prompts import flatten
from wm.models.vlm import UnifiedVLM
from wm.sampling.images import OnProgress, sample_images
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling
from wm.sampling.speculative import Speculation, speculate_images


def forward_prefix(fdm: UnifiedVLM, source_N: Sequence[int] | Tensor, action: str) -> tuple[int, ...]:
    """Build the vocabulary ids of everything before the target's first code.

    Args:
        fdm: The forward model.
        source_N: Codebook ids of the source image.
        action: The action's text.
    """
    # Plain numbers: prefixes are compared and grouped.
    source = source_N.tolist() if isinstance(source_N, Tensor) else source_N
    return tuple(flatten(fdm.layout("fdm", source=source, action=action)))


def sample_observations(
    fdm: UnifiedVLM,
    source_BN: Codes,
    actions: Sequence[str],
    *,
    num_candidates: int,
    first_candidate: int = 0,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    on_progress: OnProgress | None = None,
    runner: ModelRunner | None = None,
) -> Tensor:
    """Sample candidates of each (source, action).

    Candidate k of a row depends on (source, action, seed, k) alone; see :mod:`wm.sampling.images`.

    Args:
        fdm: The forward model.
        source_BN: Codebook ids of the source images.
        actions: One a row.
        num_candidates: Candidates of each row, K; greedy sampling gives K equal ones.
        first_candidate: Number of the first one: sampling in rounds gives the candidates of sampling at once.
        sampling: How a code is sampled.
        seed: One for all rows, which then share their noise, or one a row.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        on_progress: Called with the codes so far after each line of the image.
        runner: Runs ``fdm`` as it is now, to be used for many calls; built here without it.

    Returns:
        Codebook ids, int64 (B, K, N) on the CPU.
    """
    sources = code_lists("source", source_BN)
    check_equal_lengths(sources=len(sources), actions=len(actions))
    # Laid out before any pass: an action that cannot be read costs nothing.
    prefixes = [forward_prefix(fdm, source, action) for source, action in zip(sources, actions, strict=True)]
    return sample_images(
        fdm,
        prefixes,
        num_candidates=num_candidates,
        first_candidate=first_candidate,
        sampling=sampling,
        seed=seed,
        batch_size=batch_size,
        on_progress=on_progress,
        runner=runner,
    )


def speculate_observations(
    fdm: UnifiedVLM,
    source_BN: Codes,
    actions: Sequence[str],
    *,
    num_candidates: int,
    num_draft_tokens: int,
    first_candidate: int = 0,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> Speculation:
    """Sample the candidates of :func:`sample_observations` in fewer passes, each drafting ``num_draft_tokens`` codes.

    Codes of the source are the draft: it pays where an action leaves most of the image as it was and passes are few
    rows wide; ``wm benchmark sampling fdm=FOLDER triplets=FOLDER`` reports which number is best.

    Args:
        fdm: The forward model.
        source_BN: Codebook ids of the source images.
        actions: One a row.
        num_candidates: Candidates of each row, K.
        num_draft_tokens: Drafted codes a pass, 1 to N - 1.
        first_candidate: Number of the first one.
        sampling: How a code is sampled.
        seed: One for all rows, or one a row.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        runner: Runs ``fdm`` as it is now, to be used for many calls; built here without it.
    """
    sources = code_lists("source", source_BN)
    check_equal_lengths(sources=len(sources), actions=len(actions))
    # The drafts are the sources themselves: an action leaves most of them where they were.
    return speculate_images(
        fdm,
        [forward_prefix(fdm, source, action) for source, action in zip(sources, actions, strict=True)],
        torch.tensor(sources, dtype=torch.int64).view(len(sources), -1 if sources else fdm.tokens_per_image),
        num_candidates=num_candidates,
        num_draft_tokens=num_draft_tokens,
        first_candidate=first_candidate,
        sampling=sampling,
        seed=seed,
        batch_size=batch_size,
        runner=runner,
    )


def score_observations(
    fdm: UnifiedVLM,
    source_BN: Codes,
    actions: Sequence[str],
    target_BN: Codes,
    *,
    batch_size: int | None = None,
    runner: ModelRunner | None = None,
) -> list[float]:
    """Score each target: log p(target b | source b, actions[b]) in nats, summed over the image's tokens.

    Normalised over the image codes: the distribution that :func:`sample_observations` samples from at
    temperature 1.

    Args:
        fdm: The forward model.
        source_BN: Codebook ids of the source images.
        actions: One a row.
        target_BN: Codebook ids of the target images.
        batch_size: Bound on the rows of a pass; what memory holds without it.
        runner: Runs ``fdm`` as it is now, to be used for many calls; built here without it.
    """
    sources, targets = code_lists("source", source_BN), code_lists("target", target_BN)
    check_equal_lengths(sources=len(sources), actions=len(actions), targets=len(targets))
    segments = [
        fdm.layout("fdm", source=source, action=action, target=target)
        for source, action, target in zip(sources, actions, targets, strict=True)
    ]
    # Image codes alone, as they are sampled: text has no share of the probability.
    scores = completion_logprobs(fdm, segments, rows=fdm.image_rows, batch_size=batch_size, runner=runner)
    return [logprob for logprob, _ in scores]
