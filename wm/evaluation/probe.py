"""Run the preference probe: is the true trajectory likelier than a manipulated one? (paper section 2)."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.errors import InputError
from wm.evaluation.metrics.stats import Floats, pearson
from wm.records import derive_seed, row_seeds
from wm.words import same_text

COUNTERFACTUAL = "counterfactual_action"
NEGATIVES = ("random_action", "random_observation", "copy", "inverse", COUNTERFACTUAL)
NO_NEGATIVE = {
    "random_action": "no triplet has another action in its subset",
    "random_observation": "no triplet has another target in its subset",
    "copy": "no triplet's target differs from its source",
    "inverse": "no triplet's target differs from its source",
    COUNTERFACTUAL: "no triplet has one: make them with wm contradict, give them to wm evaluate as counterfactuals",
}
"""Why a comparison is absent."""
TIE_NATS = 1e-4
"""Log-likelihoods closer than this are equal: batches of other shapes differ by about 1e-5 on equal input."""

Indices = npt.NDArray[np.int64]


class Likelihoods(NamedTuple):
    """Log-likelihoods of B completions."""

    sums: Floats  # sum of log-probabilities in nats, (B,)
    tokens: Floats  # number of completion tokens, (B,)


Scorer: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Sequence[str]], Likelihoods]
"""``scorer(source_BN, target_BN, actions)``: log p(action | source, target) of an IDM, or
log p(target | source, action) of an FDM."""


class Pairs(NamedTuple):
    """One kind of negative of those rows that have one."""

    rows: Indices  # numbers of the rows, ascending, (P,)
    negative: Likelihoods  # of their negatives, (P,)


@dataclass(frozen=True)
class ProbeScores:
    """Log-likelihoods of all rows and of their negatives: what preferences are computed from."""

    reference: Likelihoods  # (B,)
    negatives: dict[str, Pairs]  # kind of negative → its pairs; a kind without a pair is absent

    def pairs(self, kind: str) -> tuple[Likelihoods, Likelihoods]:
        """Return the log-likelihoods of the references and of their negatives of a kind, pair by pair."""
        rows, negative = self.negatives[kind]
        return Likelihoods(self.reference.sums[rows], self.reference.tokens[rows]), negative


@dataclass(frozen=True)
class Preference:
    """Reference against one kind of negative."""

    share: float  # of the pairs, how many have the likelier reference, ties counting half
    share_per_token: float  # the same for means over tokens: differs where a random action has another length
    pearson_r: float | None  # of the two log-likelihoods; None if undefined
    pairs: int
    ties: int  # number of ties among the pairs


def probe(
    scorer: Scorer,
    source_BN: torch.Tensor,
    target_BN: torch.Tensor,
    actions: Sequence[str],
    subsets: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    counterfactuals: Sequence[str | None] | None = None,
    seed: int = 0,
) -> dict[str, Preference]:
    """Compare each trajectory with its negatives.

    Args:
        scorer: Log-likelihoods of the model.
        source_BN: See :func:`score_probe`, as for all others.
        target_BN: Codes of the targets.
        actions: Actions, B of them.
        subsets: Name of each row's subset.
        ids: Names of the rows.
        counterfactuals: Contradicting action of each row.
        seed: 0 or more.

    Returns:
        Kind of negative → comparison. A row without such a negative is left out, which ``pairs`` reports; a kind
        without a row is absent.

    Raises:
        InputError: On lengths that differ.
    """
    return compare_all(
        score_probe(scorer, source_BN, target_BN, actions, subsets, ids=ids, counterfactuals=counterfactuals, seed=seed)
    )


def score_probe(
    scorer: Scorer,
    source_BN: torch.Tensor,
    target_BN: torch.Tensor,
    actions: Sequence[str],
    subsets: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    counterfactuals: Sequence[str | None] | None = None,
    seed: int = 0,
) -> ProbeScores:
    """Score each trajectory and its negatives; those taken from other rows are of the same subset.

    Random action: another action of the subset that reads differently. Random observation: the target of
    another row, different from the true one. Copy: target := source. Inverse: source and target swapped; neither where
    the two are equal, which would be the truth itself.
    Counterfactual action: a given action that contradicts the true one.
    The same triples serve IDM and FDM; what is scored is the scorer's choice.

    Args:
        scorer: Log-likelihoods of the model.
        source_BN: Codes of the sources.
        target_BN: Codes of the targets.
        actions: Actions, B of them.
        subsets: Name of each row's subset.
        ids: Names of the rows; without, their numbers. The negatives depend on them and on ``seed``, whatever the order
            of the rows.
        counterfactuals: Contradicting action of each row, None where it has none; left out: none has. One that reads as
            the row's own action is no negative.
        seed: 0 or more.

    Returns:
        Log-likelihoods of the references and of the negatives of each kind.

    Raises:
        InputError: On lengths that differ.
    """
    rows, names = len(actions), [str(row) for row in range(len(actions))] if ids is None else ids
    others = [None] * rows if counterfactuals is None else counterfactuals
    if not rows or any(len(column) != rows for column in (source_BN, target_BN, subsets, names, others)):
        raise InputError(
            f"the probe needs as many sources, targets, actions and subsets and at least one; "
            f"got {len(source_BN)}, {len(target_BN)}, {rows} and {len(subsets)}"
        )
    # 1. Score the truth once for all kinds.
    reference = scorer(source_BN, target_BN, actions)
    # 2. Pick negatives, and score each kind on the rows that have one of it.
    picks = _pick_negatives((source_BN, target_BN), actions, subsets, names, others, seed=seed)
    negatives = {}
    for kind, of_kind in picks.items():
        pairs = np.flatnonzero(of_kind >= 0)
        if len(pairs):
            # Empty where there is none: those rows are not among the pairs.
            texts = [text or "" for text in others] if kind == COUNTERFACTUAL else actions
            triples = _build_negatives(kind, source_BN, target_BN, texts, pairs=pairs, picks=of_kind[pairs])
            negatives[kind] = Pairs(pairs, scorer(*triples))
    return ProbeScores(reference, negatives)


def _pick_negatives(
    observations: tuple[torch.Tensor, torch.Tensor],
    actions: Sequence[str],
    subsets: Sequence[str],
    ids: Sequence[str],
    counterfactuals: Sequence[str | None],
    *,
    seed: int,
) -> dict[str, Indices]:
    """Pick for each kind and row the row from which its negative is taken; -1 where it has none."""
    source_BN, target_BN = observations
    # Actions that differ in case or blanks alone are the same action.
    words = [same_text(text) for text in actions]
    # As bytes: a list of numbers would take ten times the memory.
    targets = [row.tobytes() for row in target_BN.cpu().numpy()]
    own_B = np.arange(len(actions))
    differs_B = (source_BN != target_BN).any(dim=1).cpu().numpy()
    # One that reads as the true action contradicts nothing.
    is_contradicted = [
        text is not None and same_text(text) != word for text, word in zip(counterfactuals, words, strict=True)
    ]
    picks = {
        "random_action": pick_others(words, subsets, ids, seed=derive_seed(seed, "action")),
        "random_observation": pick_others(targets, subsets, ids, seed=derive_seed(seed, "target")),
        "copy": np.where(differs_B, own_B, -1),
        "inverse": np.where(differs_B, own_B, -1),
        COUNTERFACTUAL: np.where(is_contradicted, own_B, -1),
    }
    return {kind: picks[kind] for kind in NEGATIVES}


def _build_negatives(
    kind: str,
    source_BN: torch.Tensor,
    target_BN: torch.Tensor,
    actions: Sequence[str],
    *,
    pairs: Indices,
    picks: Indices,
) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Build the negatives of the rows ``pairs``; ``picks``: the row from which each takes its action or target."""
    source, target = source_BN[pairs], target_BN[picks if kind == "random_observation" else pairs]
    texts = [actions[int(row)] for row in (picks if kind == "random_action" else pairs)]
    if kind == "copy":
        target = source
    elif kind == "inverse":
        source, target = target, source
    return source, target, texts


def pick_others(values: Sequence[Hashable], subsets: Sequence[str], ids: Sequence[str], *, seed: int) -> Indices:
    """Pick for each row a row of the same subset with another value, uniformly.

    Args:
        values: What must differ, one a row.
        subsets: Rows with equal ones may be picked for each other.
        ids: Names of the rows. The pick depends on them and on ``seed``, not on the order of the rows.
        seed: 0 or more.

    Returns:
        Index of the row picked for each; -1 where the subset holds no other value.
    """
    members: dict[str, list[int]] = {}
    # Of each value of a subset: how many members with another value are before its first, second, … member.
    others_before: dict[tuple[str, Hashable], list[int]] = {}
    for row in sorted(range(len(values)), key=lambda row: ids[row]):
        of_subset = members.setdefault(subsets[row], [])
        of_value = others_before.setdefault((subsets[row], values[row]), [])
        of_value.append(len(of_subset) - len(of_value))
        of_subset.append(row)
    picks = np.full(len(values), -1, dtype=np.int64)
    for row, row_seed in enumerate(row_seeds(seed, ids)):
        of_subset, of_value = members[subsets[row]], others_before[subsets[row], values[row]]
        num_others = len(of_subset) - len(of_value)
        if num_others:
            # A 63-bit hash modulo a number of rows is uniform to 1 part in 10^12.
            number = row_seed % num_others
            # The member that has so many others before it, found by bisection: sets have 100,000 rows.
            picks[row] = of_subset[number + bisect_right(of_value, number)]
    return picks


def compare_all(scores: ProbeScores) -> dict[str, Preference]:
    """Compute the preference for the reference over each kind of negative: kind → comparison."""
    return {kind: _compare(*scores.pairs(kind)) for kind in scores.negatives}


def preferences_by_pair(reference: Likelihoods, negative: Likelihoods) -> Floats:
    """Compute for each pair whether the reference is likelier.

    Args:
        reference: Of P pairs.
        negative: Of the same pairs.

    Returns:
        1, 0, or 0.5 for a tie, (P,); their mean is the share.
    """
    return _compute_wins(reference.sums - negative.sums)


def _compare(reference: Likelihoods, negative: Likelihoods) -> Preference:
    # By token too: a longer action has a lower sum, whatever the model prefers.
    gap = reference.sums - negative.sums
    gap_per_token = reference.sums / reference.tokens - negative.sums / negative.tokens
    return Preference(
        share=float(_compute_wins(gap).mean()),
        share_per_token=float(_compute_wins(gap_per_token).mean()),
        pearson_r=pearson(reference.sums, negative.sums),
        pairs=len(gap),
        ties=int((np.abs(gap) <= TIE_NATS).sum()),
    )


def _compute_wins(gap_P: Floats) -> Floats:
    # A tie is half a preference: a model that sees no difference is at chance.
    wins_P: Floats = np.where(np.abs(gap_P) <= TIE_NATS, 0.5, gap_P > 0).astype(np.float64)
    return wins_P
