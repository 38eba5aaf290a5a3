"""Sample the candidates of a forward model for the held-out triplets, and score and verify each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics import (
    CodeInverse,
    Role,
    Sampling,
    observe_codes,
    sample_observations,
    speculate_observations,
    verify_batch,
)
from wm.dynamics.verify import NO_GUARD
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.images import Codes, JudgeMany, image_metrics
from wm.evaluation.metrics.stats import Floats
from wm.models import ImageCodec


@dataclass(frozen=True)
class Bank:
    """Candidates of one FDM, in the order of sampling."""

    codes: Codes  # codebook ids, (B, K, N)
    metrics: dict[str, Floats]  # name → (B, K)
    verifier: Floats | None  # log-likelihood of the action under each candidate, nats, (B, K)
    action_tokens: Floats | None = None  # tokens of the action, (B,)
    max_unchanged: float = NO_GUARD  # the copy guard: max share of unchanged image tokens

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return which candidates pass the copy guard, (B, K)."""
        passing: npt.NDArray[np.bool_] = self.metrics["unchanged_tokens"] <= self.max_unchanged
        return passing

    @property
    def ranking(self) -> Floats | None:
        """Return what the choice maximises, (B, K): the verifier's log-likelihood.

        Candidates above the guard come below all others of their item, in their own order (as
        :func:`wm.dynamics.verify.rank_candidates`).
        """
        if self.verifier is None or bool(self.allowed.all()):
            return self.verifier
        # Lowered by more than the range of all scores, so that no allowed candidate can come below.
        span = float(self.verifier.max() - self.verifier.min()) + 1.0
        return np.where(self.allowed, self.verifier, self.verifier - span)

    @property
    def best(self) -> Floats:
        """Return what the oracle best-of-N maximises: the judge's final score, or closeness in L1 without a judge."""
        return self.metrics["final"] if "final" in self.metrics else -self.metrics["l1"]


def sample_bank(
    fdm: Role,
    verifier: Role | None,
    held_out: HeldOut,
    codec: ImageCodec,
    judge_many: JudgeMany | None,
    *,
    num_candidates: int,
    sampling: Sampling,
    seed: int,
    batch_size: int = 32,
    num_draft_tokens: int = 0,
) -> Bank:
    """Sample ``num_candidates`` observations for each triplet, verify and score them; equal ones are scored once.

    Every triplet has noise of its own, made of ``seed`` and its id: K candidates of B triplets are K x B independent
    samples, and two models that are given the same triplet and seed see the same noise, which their difference cancels.

    Args:
        fdm: The forward model.
        verifier: The inverse model that scores the candidates, if any.
        held_out: The triplets.
        codec: Decodes the candidates.
        judge_many: Scores decoded candidates, if there is a judge.
        num_candidates: Candidates of each triplet, K.
        sampling: How a code is sampled.
        seed: Sampling seed of the run.
        batch_size: Rows of a pass.
        num_draft_tokens: Sample speculatively, with so many codes of the source drafted a pass; 0: one code a pass.

    Returns:
        The candidates with their figures.
    """
    # 1. Sample.
    sources, actions = held_out.source_codes, held_out.actions
    settings: dict[str, Any] = {
        "num_candidates": num_candidates,
        "sampling": sampling,
        "seed": held_out.sampling_seeds(seed),
        "batch_size": batch_size,
        "runner": fdm.runner,
    }
    with torch.inference_mode():
        if num_draft_tokens:
            codes = speculate_observations(
                fdm.model, sources, actions, num_draft_tokens=num_draft_tokens, **settings
            ).codes
        else:
            codes = sample_observations(fdm.model, sources, actions, **settings)
    codes_BKN = codes.cpu().numpy().astype(np.int64)
    # 2. Score each distinct candidate once: decoding and judging cost most, and candidates are often equal.
    items_M, codes_MN, index_BK = find_distinct(codes_BKN)
    metrics = image_metrics(held_out, codec, judge_many, items_M, codes_MN)
    # 3. Verify.
    verifier_BK = tokens_B = None
    if verifier is not None:
        verifier_BK, tokens_B = _score_candidates(verifier, held_out, codes_BKN, batch_size)
    return Bank(codes_BKN, {name: value_M[index_BK] for name, value_M in metrics.items()}, verifier_BK, tokens_B)


def _score_candidates(verifier: Role, held_out: HeldOut, codes_BKN: Codes, batch_size: int) -> tuple[Floats, Floats]:
    """Compute log p(action | source, candidate) in nats, (B, K), and the number of tokens of each action, (B,)."""
    codec_id = verifier.model.codec_id
    with torch.inference_mode():
        ranked = verify_batch(
            CodeInverse(verifier), observe_codes(held_out.source_codes.tolist(), codec_id), held_out.actions,
            [observe_codes(codes_KN, codec_id) for codes_KN in codes_BKN.tolist()], batch_size=batch_size,
        )  # fmt: skip
    score_BK = np.zeros(codes_BKN.shape[:2])
    # Verification returns candidates by rank; the bank keeps the order of sampling.
    for item, candidates in enumerate(ranked):
        for candidate in candidates:
            score_BK[item, candidate.index] = candidate.score.logprob
    return score_BK, np.array([float(candidates[0].score.num_tokens) for candidates in ranked])


def find_distinct(codes_BKN: Codes) -> tuple[Codes, Codes, Codes]:
    """Find the distinct candidates of each item.

    Args:
        codes_BKN: Codebook ids.

    Returns:
        The item of each distinct candidate (M,), its codes (M, N), and the index among them of each of (B, K).
    """
    items, candidates, _ = codes_BKN.shape
    # The item is a column of its own, so that equal codes of two items stay two.
    item_column = np.repeat(np.arange(items), candidates)[:, None]
    numbered = np.concatenate([item_column, codes_BKN.reshape(items * candidates, -1)], axis=1)
    distinct, index = np.unique(numbered, axis=0, return_inverse=True)
    return distinct[:, 0], distinct[:, 1:], index.reshape(items, candidates)
