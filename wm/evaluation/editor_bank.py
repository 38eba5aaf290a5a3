"""Sample the candidates of an image editor for the held-out triplets: images without codes, some of which it withholds.

A few triplets at a time are in memory as pixels; what stays is each distinct image as PNG.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from wm.dynamics import Observation, Sampling
from wm.dynamics.observation import pixels_of
from wm.dynamics.protocols import ForwardModel, InverseModel, SampleFailure
from wm.errors import InputError
from wm.evaluation.bank import ITEMS_AT_ONCE, Bank, score_candidates
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.images import JudgeMany, edit_metrics
from wm.images import encode_png
from wm.models import ImageCodec

MAX_ROUNDS = 4
"""So many times as many images as are wanted are asked for at most, where an editor withholds some; ours."""


def sample_editor_bank(
    fdm: ForwardModel,
    verifier: InverseModel | None,
    held_out: HeldOut,
    codec: ImageCodec | None,
    judge_many: JudgeMany | None,
    *,
    num_candidates: int,
    seed: int,
    batch_size: int = 8,
) -> Bank:
    """Sample ``num_candidates`` images for each triplet, verify and score them, as for models of codes.

    An image that the editor withholds (its safety checker, black after NaN) is never scored: the next candidate of the
    triplet takes its place, and :attr:`Bank.withheld` counts it.

    Args:
        fdm: The editor.
        verifier: The inverse model that scores the candidates, if any.
        held_out: The triplets.
        codec: Of a verifier that reads codes: it encodes the candidates.
        judge_many: Scores the images too, if there is a judge.
        num_candidates: Candidates of each triplet, K.
        seed: Sampling seed of the run.
        batch_size: Rows of a pass.

    Returns:
        The candidates with their figures.

    Raises:
        InputError: The editor withholds nearly all images of a triplet.
    """
    images: dict[str, bytes] = {}
    withheld: Counter[str] = Counter()
    parts: list[Bank] = []
    for begin in range(0, len(held_out), ITEMS_AT_ONCE):
        part = held_out.take(range(begin, min(begin + ITEMS_AT_ONCE, len(held_out))))
        # 1. Sample.
        candidates = _sample(fdm, part, num_candidates, seed=seed, batch_size=batch_size, withheld=withheld)
        # 2. Score each distinct candidate once, as candidates of codes.
        pairs = list(dict.fromkeys((item, image) for item, of_item in enumerate(candidates) for image in of_item))
        pixels = pixels_of([image for _, image in pairs])
        # By its number in the complete set, which the judge knows.
        metrics = edit_metrics(held_out, judge_many, np.array([begin + item for item, _ in pairs]), pixels)
        # 3. Verify.
        verifier_BK = tokens_B = None
        if verifier is not None:
            verifier_BK, tokens_B = score_candidates(verifier, part, codec, candidates, batch_size)
        # 4. Keep what a later step reads, and no pixels: a digest distinguishes images.
        for (_, image), pixels_HWC in zip(pairs, pixels, strict=True):
            if image.text not in images:
                images[image.text] = encode_png(pixels_HWC)
        numbers = {text: number for number, text in enumerate(images)}
        rows = {pair: row for row, pair in enumerate(pairs)}
        index_BK = np.array([[rows[item, image] for image in of_item] for item, of_item in enumerate(candidates)])
        codes_BK1 = np.array([[[numbers[image.text]] for image in of_item] for of_item in candidates])
        figures = {name: value_M[index_BK] for name, value_M in metrics.items()}
        parts.append(Bank(codes_BK1, figures, verifier_BK, tokens_B))
    return replace(_join(parts), images=tuple(images.values()), withheld=dict(withheld))


def count_cut_actions(fdm: ForwardModel, held_out: HeldOut) -> int:
    """Count the triplets whose action an editor does not read to its end, as CLIP cuts long texts.

    Args:
        fdm: The editor.
        held_out: The triplets.
    """
    return sum(not is_read(fdm, action) for action in held_out.actions)


def is_read(fdm: ForwardModel, action: str) -> bool:
    """Return whether an editor reads an action to its end.

    Args:
        fdm: The editor.
        action: A text.
    """
    try:
        fdm.check_action(action)
    except InputError:
        return False
    return True


def _sample(
    fdm: ForwardModel,
    held_out: HeldOut,
    num_candidates: int,
    *,
    seed: int,
    batch_size: int,
    withheld: Counter[str],
) -> list[list[Observation]]:
    """Sample as many images of each triplet as are wanted; withheld ones are counted, and others asked for."""
    sources, seeds = held_out.observe("source", None), held_out.sampling_seeds(seed)
    candidates: list[list[Observation]] = [[] for _ in sources]
    reasons: list[Counter[str]] = [Counter() for _ in sources]
    begin = 0
    while missing := [item for item, images in enumerate(candidates) if len(images) < num_candidates]:
        if begin >= MAX_ROUNDS * num_candidates:
            item = missing[0]
            counts = ", ".join(f"{reason} {count}" for reason, count in reasons[item].items())
            raise InputError(
                f"triplet {held_out.ids[item]}: {fdm.model_id} gave {len(candidates[item])} of {num_candidates} images "
                f"in {begin} tries ({counts}); leave the triplet out, or change the editor's settings"
            )
        # A triplet's images are the first that are given, whatever the others need.
        count = max(num_candidates - len(candidates[item]) for item in missing)
        with torch.inference_mode():
            samples = fdm.sample(
                [sources[item] for item in missing], [held_out.actions[item] for item in missing],
                candidates=range(begin, begin + count), sampling=Sampling(), seeds=[seeds[item] for item in missing],
                batch_size=batch_size,
            ).candidates  # fmt: skip
        for item, of_item in zip(missing, samples, strict=True):
            for image in of_item:
                # What comes after the last one that is needed is not looked at.
                if len(candidates[item]) == num_candidates:
                    break
                if isinstance(image, SampleFailure):
                    reasons[item][image.reason] += 1
                else:
                    candidates[item].append(image)
        begin += count
    for counts_of_item in reasons:
        withheld.update(counts_of_item)
    return candidates


def _join(parts: Sequence[Bank]) -> Bank:
    """Join the banks of consecutive triplets."""
    first = parts[0]
    verifiers = [part.verifier for part in parts if part.verifier is not None]
    tokens = [part.action_tokens for part in parts if part.action_tokens is not None]
    return Bank(
        np.concatenate([part.codes for part in parts]),
        {name: np.concatenate([part.metrics[name] for part in parts]) for name in first.metrics},
        np.concatenate(verifiers) if verifiers else None,
        np.concatenate(tokens) if tokens else None,
    )
