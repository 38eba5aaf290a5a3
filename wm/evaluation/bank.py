"""Sample the candidates of a forward model for the held-out triplets, and score and verify each."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics import Observation, Sampling, verify_batch
from wm.dynamics.protocols import ForwardModel, InverseModel
from wm.dynamics.verify import NO_GUARD
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.images import Codes, JudgeMany, image_metrics
from wm.evaluation.metrics.stats import Floats
from wm.images import Pixels, decode_image
from wm.models import ImageCodec

ITEMS_AT_ONCE = 16
"""Triplets whose candidates are held as pixels at a time: 100 MB of 8 candidates at 512 px."""


@dataclass(frozen=True)
class Bank:
    """Candidates of one FDM, in the order of sampling."""

    codes: Codes  # codebook ids, (B, K, N); of an editor the candidate's number among ``images``, (B, K, 1)
    metrics: dict[str, Floats]  # name → (B, K)
    verifier: Floats | None  # log-likelihood of the action under each candidate, nats, (B, K)
    action_tokens: Floats | None = None  # tokens of the action, (B,)
    max_unchanged: float = NO_GUARD  # the copy guard: max share of unchanged image tokens
    images: tuple[bytes, ...] = ()  # of an editor, PNG: its distinct images
    withheld: Mapping[str, int] = field(default_factory=dict)  # of an editor: images that it did not give, by reason

    def decode(self, codes_MN: Codes, codec: ImageCodec | None) -> Sequence[Pixels]:
        """Return the pixels of candidates.

        Args:
            codes_MN: Some of :attr:`codes`.
            codec: Of codebook ids.
        """
        if codec is not None and not self.images:
            return [*codec.decode(codes_MN)]
        return [decode_image(self.images[number], "a candidate") for number in codes_MN[:, 0].tolist()]

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
    fdm: ForwardModel,
    verifier: InverseModel | None,
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
        fdm: A forward model of codes; an editor has a bank of its own (:mod:`wm.evaluation.editor_bank`).
        verifier: The inverse model that scores the candidates, if any; one that reads pixels is shown the true source.
        held_out: The triplets.
        codec: Of the candidates, which it decodes.
        judge_many: Scores decoded candidates, if there is a judge.
        num_candidates: Candidates of each triplet, K.
        sampling: How a code is sampled.
        seed: Sampling seed of the run.
        batch_size: Rows of a pass.
        num_draft_tokens: Sample speculatively, with so many codes of the source drafted a pass; 0: one code a pass.

    Returns:
        The candidates with their figures.

    Raises:
        InputError: A verifier does not fit.
    """
    # 1. Sample.
    with torch.inference_mode():
        samples = fdm.sample(
            held_out.observe("source", codec), held_out.actions, candidates=range(num_candidates), sampling=sampling,
            seeds=held_out.sampling_seeds(seed), num_draft_tokens=num_draft_tokens, batch_size=batch_size,
        ).candidates  # fmt: skip
    candidates = [[image for image in of_item if isinstance(image, Observation)] for of_item in samples]
    codes_BKN = np.array([[image.codes for image in of_item] for of_item in candidates], dtype=np.int64)
    # 2. Score each distinct candidate once: decoding and judging cost most, and candidates are often equal.
    items_M, codes_MN, index_BK = find_distinct(codes_BKN)
    metrics = image_metrics(held_out, codec, judge_many, items_M, codes_MN)
    # 3. Verify.
    verifier_BK = tokens_B = None
    if verifier is not None:
        verifier_BK, tokens_B = score_candidates(verifier, held_out, codec, candidates, batch_size)
    return Bank(codes_BKN, {name: value_M[index_BK] for name, value_M in metrics.items()}, verifier_BK, tokens_B)


def score_candidates(
    verifier: InverseModel,
    held_out: HeldOut,
    codec: ImageCodec | None,
    candidates: Sequence[Sequence[Observation]],
    batch_size: int,
) -> tuple[Floats, Floats]:
    """Score candidates by an inverse model.

    Args:
        verifier: The model.
        held_out: The triplets.
        codec: That of a verifier that reads codes.
        candidates: K of each triplet.
        batch_size: Rows of a pass.

    Returns:
        log p(action | source, candidate) in nats, (B, K), and the number of tokens of each action, (B,).
    """
    reads_codes = verifier.kind == "codes"
    # Pixels of all candidates of a set would not fit into memory; codes are few, and longer batches cost less.
    size = len(candidates) if reads_codes else ITEMS_AT_ONCE
    score_BK, tokens_B = np.zeros((len(candidates), len(candidates[0]))), np.zeros(len(candidates))
    sources = held_out.observe("source", codec if reads_codes else None)
    for begin in range(0, len(candidates), size):
        rows = slice(begin, begin + size)
        # Of pixels a copy is shown, so that what is decoded for it goes with the batch.
        images = [of_item if reads_codes else [copy(image) for image in of_item] for of_item in candidates[rows]]
        with torch.inference_mode():
            ranked = verify_batch(verifier, sources[rows], held_out.actions[rows], images, batch_size=batch_size)
        # Verification returns candidates by rank; the bank keeps the order of sampling.
        for item, of_item in enumerate(ranked, begin):
            tokens_B[item] = float(of_item[0].score.num_tokens)
            for candidate in of_item:
                score_BK[item, candidate.index] = candidate.score.logprob
    return score_BK, tokens_B


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
