"""Measure action sensitivity by the verifier, for forward models that give no likelihoods, such as image editors.

The verifier reads the true action from the prediction under it, and from one under another action with the same noise:
a model that ignores its action makes the same image, and the verifier sees no difference. What a verifier cannot see
counts as ignored. Predictions under the true action are those of the bank.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics import Sampling
from wm.dynamics.observation import Observation
from wm.dynamics.protocols import ForwardModel, InverseModel, SampleFailure
from wm.evaluation.bank import Bank
from wm.evaluation.bench import Entry
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.probe import pick_others
from wm.evaluation.sensitivity import EMPTY, LIKELIHOOD, OPPOSITE, OTHER_ACTIONS, SHUFFLED, VERIFIER, Gaps
from wm.models import ImageCodec
from wm.records import derive_seed
from wm.words import same_text

ITEMS_AT_ONCE = 32
"""Triplets whose images are in memory at a time."""
NO_EMPTY_PROMPT = "an image without an action is no prediction of it"

Arrays: TypeAlias = dict[str, npt.NDArray[np.generic]]


def list_other_actions(
    held_out: HeldOut, counterfactuals: Sequence[str | None] | None, *, seed: int
) -> dict[str, list[str | None]]:
    """List for each triplet the actions that the true one is compared with; the shuffled ones are the probe's.

    Args:
        held_out: The triplets.
        counterfactuals: Contradicting actions.
        seed: Of the probe.

    Returns:
        Other action → its text of each triplet, None where it has none.
    """
    words = [same_text(action) for action in held_out.actions]
    picks = pick_others(words, held_out.subsets, held_out.ids, seed=derive_seed(seed, "action"))
    shuffled = [held_out.actions[pick] if pick >= 0 else None for pick in picks.tolist()]
    opposite = [
        text if text is not None and same_text(text) != word else None
        for text, word in zip(counterfactuals or [None] * len(words), words, strict=True)
    ]
    return {SHUFFLED: shuffled, OPPOSITE: opposite}


def score_other_predictions(
    fdm: ForwardModel,
    verifier: InverseModel,
    held_out: HeldOut,
    codec: ImageCodec | None,
    others: Mapping[str, Sequence[str | None]],
    *,
    sampling: Sampling,
    seed: int,
    batch_size: int,
) -> tuple[dict[str, int], Arrays]:
    """Sample a prediction under each other action, and score the true action of it.

    Args:
        fdm: The forward model.
        verifier: The inverse model.
        held_out: The triplets.
        codec: Of models that read codes.
        others: As :func:`list_other_actions` returns them.
        sampling: How images are sampled.
        seed: Sampling seed of the run: a triplet's noise is that of the first candidate of its bank.
        batch_size: Rows of a pass.

    Returns:
        Images that were withheld, by reason; and arrays ``rows.OTHER``, numbers of triplets, and ``score.OTHER``,
        log p(true action | source, prediction under the other) in nats.
    """
    withheld: Counter[str] = Counter()
    arrays: Arrays = {}
    seeds = held_out.sampling_seeds(seed)
    # Each is shown what it reads: a code model's source is the set's own codes.
    before = held_out.observe("source", codec if fdm.kind == "codes" else None)
    shown = held_out.observe("source", codec if verifier.kind == "codes" else None)
    for other, actions in others.items():
        rows: list[int] = []
        scores: list[float] = []
        pending = [row for row, action in enumerate(actions) if action is not None]
        for begin in range(0, len(pending), ITEMS_AT_ONCE):
            part = pending[begin : begin + ITEMS_AT_ONCE]
            with torch.inference_mode():
                samples = fdm.sample(
                    [before[row] for row in part], [actions[row] or "" for row in part], candidates=range(1),
                    sampling=sampling, seeds=[seeds[row] for row in part], batch_size=batch_size,
                ).candidates  # fmt: skip
            images: list[tuple[int, Observation]] = []
            for row, (image,) in zip(part, samples, strict=True):
                # Left out of this comparison, and counted.
                if isinstance(image, SampleFailure):
                    withheld[image.reason] += 1
                else:
                    images.append((row, image))
            if images:
                kept = [row for row, _ in images]
                scored = verifier.score(
                    [shown[row] for row in kept], [image for _, image in images],
                    [held_out.actions[row] for row in kept], batch_size=batch_size,
                )  # fmt: skip
                rows += kept
                scores += [action.logprob for action in scored]
        arrays |= {f"rows.{other}": np.array(rows, np.int64), f"score.{other}": np.array(scores, np.float64)}
    return dict(withheld), arrays


def list_margins(bank: Bank, arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Gaps]:
    """Subtract the scores under other actions from those of the bank's first candidates.

    Args:
        bank: Predictions under the true actions, with the verifier's scores.
        arrays: Of :func:`score_other_predictions`.

    Returns:
        Other action → differences; one that no triplet has is absent.
    """
    if bank.verifier is None or bank.action_tokens is None:
        return {}
    true_B: Floats = bank.verifier[:, 0]
    gaps = {}
    for other in OTHER_ACTIONS:
        rows = arrays.get(f"rows.{other}")
        if rows is not None and len(rows):
            rows_P = rows.astype(np.int64)
            score_P = arrays[f"score.{other}"].astype(np.float64)
            gaps[other] = Gaps(rows_P, true_B[rows_P] - score_P, bank.action_tokens[rows_P])
    return gaps


def explain_absences(entries: Mapping[str, Entry], asked: Set[tuple[str, str]]) -> dict[tuple[str, str, str], str]:
    """Say of forward models why figures of their action sensitivity cannot be had.

    Args:
        entries: The models by name.
        asked: (name, ask) of all units.

    Returns:
        (label, likelihood or verifier, other action) → reason.
    """
    reasons: dict[tuple[str, str, str], str] = {}
    for name, entry in entries.items():
        if entry.role != "fdm":
            continue
        is_probed, is_measured = ((name, ask) in asked for ask in ("probe", "margin"))
        if is_measured:
            reasons[entry.label, VERIFIER, EMPTY] = NO_EMPTY_PROMPT
        # One kind of figure is enough: the other is named only where neither is there.
        elif not is_probed and entry.has_likelihoods:
            reasons |= {(entry.label, LIKELIHOOD, other): "probe = false" for other in OTHER_ACTIONS}
        elif not is_probed:
            reason = "action_margins = false" if entry.verifier else "it gives no likelihoods, and no IDM verifies it"
            reasons |= {(entry.label, VERIFIER, other): reason for other in OTHER_ACTIONS}
    return reasons
