"""Ask one model about the held-out triplets: candidates with their scores, actions, likelihoods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics import (
    Decoder,
    Sampling,
    propose_actions,
    sample_observations,
    score_actions,
    score_observations,
    speculate_observations,
    verify_batch,
)
from wm.dynamics.verify import NO_GUARD
from wm.dynamics.vlm_scorer import VLMScorer
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.probe import Likelihoods, Scorer
from wm.images import Pixels
from wm.judging import Judge, JudgeScore
from wm.models import ImageCodec, UnifiedVLM

JUDGE_METRICS = ("final", "editing_success", "minimal_editing", "right", "copied")
IMAGE_METRICS = ("l1", "unchanged_tokens")
Codes = npt.NDArray[np.int64]

JudgeMany: TypeAlias = Callable[[Codes, Pixels], list[JudgeScore]]
"""``judge_many(items_M, predicted_MHWC)``: one score for each prediction; ``items_M``: rows of the held-out
set."""
ActionCheck: TypeAlias = Callable[[Pixels, Pixels, str], bool]
"""``action_is_right(source_HWC, target_HWC, text)``: does the action, done in the source, give the target?"""


@dataclass(frozen=True)
class Bank:
    """Candidates of one FDM: codebook ids (B, K, N), metric → (B, K), and the verifier's log-likelihood of
    the action under each (B, K), or None, with the tokens of the action (B,). ``max_unchanged``: the copy guard."""

    codes: Codes
    metrics: dict[str, Floats]
    verifier: Floats | None
    action_tokens: Floats | None = None
    max_unchanged: float = NO_GUARD

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


def judge_each(judge: Judge, held_out: HeldOut) -> JudgeMany:
    """Build a judge of many images from a judge of one."""

    def judge_many(items_M: Codes, predicted_MHWC: Pixels) -> list[JudgeScore]:
        return [
            judge(held_out.source_pixels[item], held_out.target_pixels[item], predicted, held_out.actions[item])
            for item, predicted in zip(items_M.tolist(), predicted_MHWC, strict=True)
        ]

    return judge_many


def sample_bank(
    fdm: UnifiedVLM,
    verifier: UnifiedVLM | None,
    held_out: HeldOut,
    codec: ImageCodec,
    judge_many: JudgeMany | None,
    *,
    num_candidates: int,
    sampling: Sampling,
    seed: int,
    batch_size: int = 32,
    num_draft_tokens: int = 0,
    decoder: Decoder | None = None,
    verifier_decoder: Decoder | None = None,
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
        decoder: That of ``fdm`` as it is now; built here without it.
        verifier_decoder: That of ``verifier`` as it is now; built here without it.

    Returns:
        The candidates with their figures.
    """
    sources, actions = held_out.source_codes, held_out.actions
    settings: dict[str, Any] = {"num_samples": num_candidates, "sampling": sampling}
    settings["seed"] = held_out.sampling_seeds(seed)
    settings |= {"batch_size": batch_size, "decoder": decoder}
    with torch.inference_mode():
        if num_draft_tokens:
            codes = speculate_observations(fdm, sources, actions, num_draft_tokens=num_draft_tokens, **settings).codes
        else:
            codes = sample_observations(fdm, sources, actions, **settings)
    codes_BKN = codes.cpu().numpy().astype(np.int64)
    # Decoding and judging cost most, and candidates of one item are often equal.
    items_M, codes_MN, index_BK = distinct_candidates(codes_BKN)
    metrics = image_metrics(held_out, codec, judge_many, items_M, codes_MN)
    verifier_BK = tokens_B = None
    if verifier is not None:
        verifier_BK, tokens_B = verifier_scores(
            verifier, held_out, codes_BKN, batch_size=batch_size, decoder=verifier_decoder
        )
    return Bank(codes_BKN, {name: value_M[index_BK] for name, value_M in metrics.items()}, verifier_BK, tokens_B)


def verifier_scores(
    verifier: UnifiedVLM,
    held_out: HeldOut,
    codes_BKN: Codes,
    *,
    batch_size: int = 32,
    decoder: Decoder | None = None,
) -> tuple[Floats, Floats]:
    """Compute log p(action | source, candidate) in nats, (B, K), and the number of tokens of each action, (B,)."""
    with torch.inference_mode():
        ranked = verify_batch(
            verifier,
            held_out.source_codes,
            held_out.actions,
            torch.from_numpy(codes_BKN),
            batch_size=batch_size,
            decoder=decoder,
        )
    score_BK = np.zeros(codes_BKN.shape[:2])
    # Verification returns candidates by rank; the bank keeps the order of sampling.
    for item, candidates in enumerate(ranked):
        for candidate in candidates:
            score_BK[item, candidate.index] = candidate.score.logprob
    return score_BK, np.array([float(candidates[0].score.num_tokens) for candidates in ranked])


def distinct_candidates(codes_BKN: Codes) -> tuple[Codes, Codes, Codes]:
    """Reduce candidates to the distinct ones of each item.

    Args:
        codes_BKN: Codebook ids.

    Returns:
        The item of each distinct candidate (M,), its codes (M, N), and the index among them of each of (B, K).
    """
    items, candidates, _ = codes_BKN.shape
    # The item is a column of its own, so that equal codes of two items stay two.
    numbered = np.concatenate(
        [
            np.repeat(np.arange(items), candidates)[:, None],
            codes_BKN.reshape(items * candidates, -1),
        ],
        axis=1,
    )
    distinct, index = np.unique(numbered, axis=0, return_inverse=True)
    return distinct[:, 0], distinct[:, 1:], index.reshape(items, candidates)


def image_metrics(
    held_out: HeldOut, codec: ImageCodec, judge_many: JudgeMany | None, items_M: Codes, codes_MN: Codes
) -> dict[str, Floats]:
    """Score predicted codes: metric → (M,), the image metrics, and with a judge its figures."""
    source_MN = held_out.source_codes.numpy()[items_M]
    unchanged_M: Floats = (codes_MN == source_MN).mean(axis=1)
    return pixel_metrics(held_out, judge_many, items_M, codec.decode(codes_MN)) | {"unchanged_tokens": unchanged_M}


def pixel_metrics(
    held_out: HeldOut, judge_many: JudgeMany | None, items_M: Codes, predicted_MHWC: Pixels
) -> dict[str, Floats]:
    """Score predicted images against their targets.

    Args:
        held_out: The triplets.
        judge_many: Scores the images too, if there is a judge.
        items_M: Row of the held-out set that each image is of.
        predicted_MHWC: uint8 RGB at the codec's size.

    Returns:
        Metric → (M,). ``l1``: mean absolute difference to the target over pixels, 0 to 1; and the judge's figures.
    """
    gaps = [
        np.abs(held_out.target_pixels[item].astype(np.int16) - predicted).mean() / 255.0
        for item, predicted in zip(items_M.tolist(), predicted_MHWC, strict=True)
    ]
    metrics = {"l1": np.array(gaps, dtype=np.float64)}
    if judge_many is not None:
        scores = judge_many(items_M, predicted_MHWC)
        for name in JUDGE_METRICS:
            metrics[name] = np.array([float(getattr(score, name)) for score in scores])
    return metrics


def copy_metrics(held_out: HeldOut, judge_many: JudgeMany | None) -> dict[str, Floats]:
    """Score the source as the prediction: metric → (B,)."""
    items = np.arange(len(held_out))
    return pixel_metrics(held_out, judge_many, items, held_out.source_pixels) | {
        "unchanged_tokens": np.ones(len(held_out))
    }


def ceiling_metrics(held_out: HeldOut, codec: ImageCodec, judge_many: JudgeMany | None) -> dict[str, Floats]:
    """Score the true target through the codec, which predictions of codes beat by luck alone: metric → (B,)."""
    return image_metrics(held_out, codec, judge_many, np.arange(len(held_out)), held_out.target_codes.numpy())


def propose(
    idm: UnifiedVLM,
    held_out: HeldOut,
    action_is_right: ActionCheck | None,
    *,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    decoder: Decoder | None = None,
) -> tuple[list[str], list[float], Floats | None]:
    """Propose the greedy action of an IDM for each triplet.

    Args:
        idm: The inverse model.
        held_out: The triplets, B of them.
        action_is_right: Checks an action in the true images, if a world can.
        max_new_tokens: Max length of an action.
        batch_size: Rows of a pass.
        decoder: That of ``idm`` as it is now; built here without it.

    Returns:
        The texts, their mean log-probability a token in nats, and 1.0 or 0.0 for right or wrong (B,), or None.
    """
    with torch.inference_mode():
        proposed = propose_actions(
            idm,
            held_out.source_codes,
            held_out.target_codes,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            decoder=decoder,
        )
    texts = [answer.text for answer in proposed]
    right_B = None
    if action_is_right is not None:
        checked = [
            action_is_right(source, target, text)
            for source, target, text in zip(held_out.source_pixels, held_out.target_pixels, texts, strict=True)
        ]
        right_B = np.array(checked, dtype=np.float64)
    return texts, [answer.mean_logprob for answer in proposed], right_B


def idm_scorer(idm: UnifiedVLM, *, batch_size: int = 32, decoder: Decoder | None = None) -> Scorer:
    """Build the probe's scorer: log p(action | source, target) and the action's tokens."""

    def scorer(source_BN: torch.Tensor, target_BN: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        with torch.inference_mode():
            scored = score_actions(idm, source_BN, target_BN, actions, batch_size=batch_size, decoder=decoder)
        return Likelihoods(
            np.array([action.logprob for action in scored]), np.array([float(action.num_tokens) for action in scored])
        )

    return scorer


def pixel_scorer(vlm: VLMScorer, held_out: HeldOut, *, batch_size: int = 8) -> Scorer:
    """Build a scorer as :func:`idm_scorer` of a model that reads true images.

    The probe distinguishes images by their codes; of images with equal codes the first of the set is read for all.
    """
    images: dict[tuple[int, ...], Pixels] = {}
    for codes_BN, pixels_BHWC in (
        (held_out.source_codes, held_out.source_pixels),
        (held_out.target_codes, held_out.target_pixels),
    ):
        for codes, pixels in zip(codes_BN.tolist(), pixels_BHWC, strict=True):
            images.setdefault(tuple(codes), pixels)

    def scorer(source_BN: torch.Tensor, target_BN: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        sources, targets = ([images[tuple(row)] for row in side.tolist()] for side in (source_BN, target_BN))
        scored = vlm.score_actions(sources, targets, actions, batch_size=batch_size)
        return Likelihoods(
            np.array([action.logprob for action in scored]), np.array([float(action.num_tokens) for action in scored])
        )

    return scorer


def fdm_scorer(fdm: UnifiedVLM, *, batch_size: int = 32, decoder: Decoder | None = None) -> Scorer:
    """Build the probe's scorer: log p(target | source, action) and the image's tokens."""

    def scorer(source_BN: torch.Tensor, target_BN: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        with torch.inference_mode():
            sums = score_observations(fdm, source_BN, actions, target_BN, batch_size=batch_size, decoder=decoder)
        return Likelihoods(np.array(sums), np.full(len(actions), float(target_BN.shape[1])))

    return scorer
