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
from wm.evaluation.bench import Bench, Entry
from wm.evaluation.editor_bank import is_read
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.probe import pick_others
from wm.evaluation.sensitivity import (
    EMPTY,
    EMPTY_ARRAY,
    LIKELIHOOD,
    OPPOSITE,
    OTHER_ACTIONS,
    SHUFFLED,
    VERIFIER,
    Gaps,
    score_without_action,
)
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
    # Actions that differ in case or blanks alone are the same action.
    words = [same_text(action) for action in held_out.actions]
    picks = pick_others(words, held_out.subsets, held_out.ids, seed=derive_seed(seed, "action"))
    shuffled = [held_out.actions[pick] if pick >= 0 else None for pick in picks.tolist()]
    # One that reads as the true action contradicts nothing.
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
    num_draft_tokens: int = 0,
) -> tuple[dict[str, int], Arrays]:
    """Sample a prediction under each other action, and score the true action of it.

    Args:
        fdm: The forward model.
        verifier: The inverse model.
        held_out: The triplets.
        codec: Of models that read codes.
        others: As :func:`list_other_actions` returns them.
        sampling: How codes are sampled; an editor has settings of its own.
        seed: Sampling seed of the run: a triplet's noise is that of the first candidate of its bank.
        batch_size: Rows of a pass.
        num_draft_tokens: Codes drafted a pass, as for the bank.

    Returns:
        Images that there are not, by reason; and arrays ``rows.OTHER``, numbers of triplets, and ``score.OTHER``,
        log p(true action | source, prediction under the other) in nats.
    """
    withheld: Counter[str] = Counter()
    arrays: Arrays = {}
    seeds = held_out.sampling_seeds(seed)
    # Its own, as for the bank: an editor refuses settings of codes.
    if fdm.kind == "editor":
        sampling, num_draft_tokens = Sampling(), 0
    # Each is shown what it reads: a code model's source is the set's own codes.
    fdm_sources = held_out.observe("source", codec if fdm.kind == "codes" else None)
    idm_sources = held_out.observe("source", codec if verifier.kind == "codes" else None)
    for other, actions in others.items():
        scores: dict[int, float] = {}
        pending, num_cut = _list_read(fdm, actions)
        withheld["long_action"] += num_cut
        for begin in range(0, len(pending), ITEMS_AT_ONCE):
            part = pending[begin : begin + ITEMS_AT_ONCE]
            # 1. Sample with the noise of the bank's first candidate, which the difference cancels.
            with torch.inference_mode():
                samples = fdm.sample(
                    [fdm_sources[row] for row, _ in part], [action for _, action in part], candidates=range(1),
                    sampling=sampling, seeds=[seeds[row] for row, _ in part], num_draft_tokens=num_draft_tokens,
                    batch_size=batch_size,
                ).candidates  # fmt: skip
            # 2. A withheld image leaves its triplet out of this comparison, and is counted.
            withheld.update(image.reason for (image,) in samples if isinstance(image, SampleFailure))
            images = {
                row: image for (row, _), (image,) in zip(part, samples, strict=True) if isinstance(image, Observation)
            }
            # 3. Score the true action, whatever the image was made under.
            scores |= _score_images(verifier, idm_sources, held_out.actions, images, batch_size)
        arrays[f"rows.{other}"] = np.array(list(scores), np.int64)
        arrays[f"score.{other}"] = np.array(list(scores.values()), np.float64)
    return dict(+withheld), arrays


def _list_read(fdm: ForwardModel, actions: Sequence[str | None]) -> tuple[list[tuple[int, str]], int]:
    """List the actions that there are with their triplets' numbers, and count those that an editor would cut."""
    rows = [(row, action) for row, action in enumerate(actions) if action is not None]
    if fdm.kind != "editor":
        return rows, 0
    # What it would cut may be all that differs from the true action.
    cut = {action for _, action in rows if not is_read(fdm, action)}
    read = [(row, action) for row, action in rows if action not in cut]
    return read, len(rows) - len(read)


def _score_images(
    verifier: InverseModel,
    sources: Sequence[Observation],
    actions: Sequence[str],
    images: Mapping[int, Observation],
    batch_size: int,
) -> dict[int, float]:
    """Return the true action's log-likelihood of each image, by the number of its triplet."""
    if not images:
        return {}
    scored = verifier.score(
        [sources[row] for row in images], list(images.values()), [actions[row] for row in images],
        batch_size=batch_size,
    )  # fmt: skip
    return {row: action.logprob for row, action in zip(images, scored, strict=True)}


def measure_margins(bench: Bench, name: str, seed: int) -> tuple[dict[str, object], Arrays]:
    """Run :func:`score_other_predictions` for an entry of an evaluation.

    Args:
        bench: The models and the held-out set.
        name: Of the entry, which a verifier is named for.
        seed: Sampling seed, and that of the probe's negatives.

    Returns:
        Facts and arrays of the unit's file.
    """
    counterfactuals = bench.counterfactuals.actions if bench.counterfactuals else None
    withheld, arrays = score_other_predictions(
        bench.load_forward(name), bench.load_inverse(bench.entries[name].verifier), bench.held_out,
        bench.codec, list_other_actions(bench.held_out, counterfactuals, seed=seed),
        sampling=bench.sampling, seed=seed, batch_size=bench.batch_size, num_draft_tokens=bench.num_draft_tokens,
    )  # fmt: skip
    return {"withheld": withheld} if withheld else {}, arrays


def score_empty(bench: Bench, name: str) -> Arrays:
    """Score the targets without an action, for the file of a probe's unit; nothing for an inverse model.

    Args:
        bench: The models and the held-out set.
        name: Of the entry.
    """
    if bench.entries[name].role == "idm":
        return {}
    held_out, role = bench.held_out, bench.load_role(name)
    sums_B = score_without_action(
        role.model, held_out.source_codes, held_out.actions, held_out.target_codes,
        batch_size=bench.batch_size, runner=role.runner,
    )  # fmt: skip
    return {EMPTY_ARRAY: sums_B}


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
    # The first candidate alone: the others have other noise.
    true_B: Floats = bank.verifier[:, 0]
    gaps = {}
    for other in OTHER_ACTIONS:
        rows = arrays.get(f"rows.{other}")
        if rows is not None and len(rows):
            rows_P = rows.astype(np.int64)
            score_P = arrays[f"score.{other}"].astype(np.float64)
            gaps[other] = Gaps(rows_P, true_B[rows_P] - score_P, bank.action_tokens[rows_P])
    return gaps


def explain_absences(entries: Mapping[str, Entry], units: Set[tuple[str, str]]) -> dict[tuple[str, str, str], str]:
    """Say of forward models why figures of their action sensitivity cannot be had.

    Args:
        entries: The models by name.
        units: (name, ask) of each.

    Returns:
        (label, likelihood or verifier, other action) → reason.
    """
    # Only forward models have an action to heed.
    reasons: dict[tuple[str, str, str], str] = {}
    for name, entry in entries.items():
        if entry.role != "fdm":
            continue
        is_probed, is_measured = ((name, ask) in units for ask in ("probe", "margin"))
        if is_measured:
            reasons[entry.label, VERIFIER, EMPTY] = NO_EMPTY_PROMPT
        # One kind of figure is enough: the other is named only where neither is there.
        elif not is_probed and entry.has_likelihoods:
            reasons |= {(entry.label, LIKELIHOOD, other): "probe = false" for other in OTHER_ACTIONS}
        elif not is_probed:
            reason = "action_margins = false" if entry.verifier else "it gives no likelihoods, and no IDM verifies it"
            reasons |= {(entry.label, VERIFIER, other): reason for other in OTHER_ACTIONS}
    return reasons
