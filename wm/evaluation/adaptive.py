"""Compare adaptive N with fixed N on one bank of candidates: how many the rule takes, and what they are worth.

The bank's K candidates of an item are independent samples, so every rotation of their order is a fair replay: the rule
of :mod:`wm.dynamics.stopping` is run on each, and the item's figure is the mean over the K rotations. A fixed N is
replayed in the same rotations (its first N candidates), so that both see the same luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wm.dynamics.settings import Search
from wm.dynamics.stopping import is_enough, rounds
from wm.evaluation.bank import Bank
from wm.evaluation.metrics.images import Codes
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.rows import AdaptiveRow
from wm.evaluation.subset_means import average_subsets
from wm.evaluation.tables import BankKey, Samples, average_runs, summarise_runs


@dataclass(frozen=True)
class Replay:
    """Means over rotations: ``num_candidates`` used (B,), and ``metrics`` of the chosen one, name → (B,)."""

    num_candidates: Floats
    metrics: dict[str, Floats]


def replay_fixed(bank: Bank, count: int) -> Replay:
    """Choose the verifier's best of the first candidates of each rotation.

    Args:
        bank: Verified candidates.
        count: How many of them.

    Returns:
        The replay.
    """
    return _replay(bank, np.full(bank.codes.shape[:2], count))


def replay_adaptive(bank: Bank, min_gain_nats: float, min_candidates: int) -> Replay:
    """Choose among the candidates up to where the rule stops, the bank's K being the budget.

    Args:
        bank: Verified candidates.
        min_gain_nats: The rule stops when another candidate is expected to gain no more, nats an action token.
        min_candidates: Candidates of the first round.

    Returns:
        The replay.
    """
    assert bank.verifier is not None and bank.action_tokens is not None
    items, total = bank.codes.shape[:2]
    search = Search(num_candidates=total, min_gain_nats=min_gain_nats, min_candidates=min_candidates)
    ends = [round_.stop for round_ in rounds(search)]
    mean_BK = bank.verifier / bank.action_tokens[:, None]
    allowed_BK = bank.allowed
    stops_BK = np.empty((items, total), dtype=np.int64)
    # The rule is sequential in the candidates, so that it cannot be run on all items at once.
    for item in range(items):
        for first in range(total):
            order = [(first + step) % total for step in range(total)]
            stops_BK[item, first] = next(
                end
                for end in ends
                if end == total or _can_stop(order[:end], mean_BK[item], allowed_BK[item], min_gain_nats)
            )
    return _replay(bank, stops_BK)


def _can_stop(order: Sequence[int], mean_K: Floats, allowed_K: npt.NDArray[np.bool_], min_gain_nats: float) -> bool:
    fine = [mean_K[index] for index in order if allowed_K[index]]
    return is_enough(len(order), float(max(fine)) if fine else None, min_gain_nats)


def _replay(bank: Bank, stops_BK: Codes) -> Replay:
    """Choose in every rotation; ``stops_BK``: after how many candidates the one that begins at each of them stops."""
    ranking_BK = bank.ranking
    assert ranking_BK is not None
    total = stops_BK.shape[1]
    chosen_BK = np.empty_like(stops_BK)
    for first in range(total):
        order = (first + np.arange(total)) % total
        rotated_BK = ranking_BK[:, order].copy()
        # Beyond the stop nothing was sampled.
        rotated_BK[np.arange(total)[None, :] >= stops_BK[:, first, None]] = -np.inf
        chosen_BK[:, first] = order[rotated_BK.argmax(axis=1)]
    metrics = {
        name: np.take_along_axis(values, chosen_BK, axis=1).mean(axis=1) for name, values in bank.metrics.items()
    }
    return Replay(stops_BK.mean(axis=1), metrics)


def adaptive_rows(
    banks: Mapping[BankKey, Bank],
    min_gains_nats: Sequence[float],
    min_candidates: int,
    subsets: Sequence[str] = (),
) -> list[AdaptiveRow]:
    """Build rows for ``tables.json``: of each label fixed N from 1 to K, then each minimum gain, falling.

    Args:
        banks: The candidates; those without a verifier are left out.
        min_gains_nats: Minimum gains of the rule, nats an action token.
        min_candidates: Candidates of its first round.
        subsets: Subset of each item; without them a row has no figures by subset.

    Returns:
        The rows; ``fixed`` of a minimum gain is between whole numbers of candidates in a straight line.
    """
    verified = {
        key: bank for key, bank in banks.items() if bank.verifier is not None and bank.action_tokens is not None
    }
    rows: list[AdaptiveRow] = []
    for label in dict.fromkeys(label for label, _, _ in verified):
        own = {key: bank for key, bank in verified.items() if key[0] == label}
        counts = range(1, next(iter(own.values())).codes.shape[1] + 1)
        fixed = [
            _build_row(label, None, {key: replay_fixed(bank, count) for key, bank in own.items()}, subsets)
            for count in counts
        ]
        rows += fixed
        # With one candidate there is nothing to adapt.
        for min_gain_nats in sorted(min_gains_nats, reverse=True) if len(counts) > 1 else []:
            replays = {key: replay_adaptive(bank, min_gain_nats, min_candidates) for key, bank in own.items()}
            row = _build_row(label, min_gain_nats, replays, subsets)
            count_mean = row["metrics"]["draws"]["mean"]
            row["fixed"] = {
                name: float(np.interp(count_mean, counts, [other["metrics"][name]["mean"] for other in fixed]))
                for name in row["metrics"]
                if name != "draws"
            }
            rows.append(row)
    return rows


def _build_row(
    label: str, min_gain_nats: float | None, replays: Mapping[BankKey, Replay], subsets: Sequence[str]
) -> AdaptiveRow:
    samples: Samples = {}
    for (_, run, _), replay in replays.items():
        for name, values_B in {"draws": replay.num_candidates, **replay.metrics}.items():
            samples.setdefault(name, {}).setdefault(run, []).append(values_B)
    figures = {name: summarise_runs(name, runs, average_runs(runs)) for name, runs in samples.items()}
    # Spelt out: the checker of types knows no row that is spread over another.
    means = average_subsets(samples, subsets)
    return {
        "label": label,
        "margin": min_gain_nats,
        "metrics": figures,
        "by_subset": means["by_subset"],
        "by_subset_std": means["by_subset_std"],
        "macro": means["macro"],
        "macro_std": means["macro_std"],
    }
