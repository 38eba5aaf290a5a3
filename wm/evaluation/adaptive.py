"""Compare adaptive N with fixed N on one bank of candidates: how many the rule takes, and what they are worth.

The bank's K candidates of an item are independent samples, so every rotation of their order is a fair replay: the rule
of :mod:`wm.dynamics.stopping` is run on each, and the item's figure is the mean over the K rotations. A fixed N is
replayed in the same rotations (its first N candidates), so that both see the same luck.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wm.dynamics.settings import Search
from wm.dynamics.stopping import is_enough, rounds
from wm.evaluation.metrics.images import Bank
from wm.evaluation.metrics.stats import Floats, figure
from wm.evaluation.tables import TOPS

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Replay:
    """Means over rotations. ``draws`` (B,); ``metrics``: name → (B,)."""

    draws: Floats
    metrics: dict[str, Floats]


def replay_fixed(bank: Bank, count: int) -> Replay:
    """Choose the verifier's best of the first ``count`` candidates of each rotation; the bank must be verified."""
    items, total = bank.codes.shape[:2]
    stops_BK = np.full((items, total), count)
    return _replay(bank, stops_BK)


def replay_adaptive(bank: Bank, min_gain_nats: float, min_candidates: int) -> Replay:
    """Choose among the candidates up to where the rule stops, the bank's K being the budget."""
    assert bank.verifier is not None and bank.action_tokens is not None
    items, total = bank.codes.shape[:2]
    ends = [
        round_.stop
        for round_ in rounds(Search(num_candidates=total, min_gain_nats=min_gain_nats, min_candidates=min_candidates))
    ]
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


def _replay(bank: Bank, stops_BK: Places) -> Replay:
    """``stops_BK``: after how many draws the rotation that begins at each candidate stops."""
    assert bank.ranking is not None
    total = stops_BK.shape[1]
    chosen_BK = np.empty_like(stops_BK)
    for first in range(total):
        order = (first + np.arange(total)) % total
        rotated_BK = bank.ranking[:, order].copy()
        # Beyond the stop nothing was sampled.
        rotated_BK[np.arange(total)[None, :] >= stops_BK[:, first, None]] = -np.inf
        chosen_BK[:, first] = order[rotated_BK.argmax(axis=1)]
    metrics = {
        name: np.take_along_axis(values, chosen_BK, axis=1).mean(axis=1) for name, values in bank.metrics.items()
    }
    return Replay(stops_BK.mean(axis=1), metrics)


def adaptive_rows(
    banks: Mapping[tuple[str, int, int], Bank], min_gains_nats: Sequence[float], min_candidates: int
) -> list[dict[str, Any]]:
    """Build rows for ``tables.json``: of each label fixed N from 1 to K, then each minimum gain, falling.

    Each has ``metrics``, ``draws`` among them, and ``margin``: the minimum gain, None for fixed N. Rows of a minimum
    gain have ``fixed``: what fixed N gives for as many draws on average, between whole numbers in a straight line, by
    metric. Banks without a verifier are left out.
    """
    verified = {
        key: bank for key, bank in banks.items() if bank.verifier is not None and bank.action_tokens is not None
    }
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(label for label, _, _ in verified):
        own = {key: bank for key, bank in verified.items() if key[0] == label}
        total = next(iter(own.values())).codes.shape[1]
        fixed = [_build_row(label, None, {key: replay_fixed(bank, count) for key, bank in own.items()})
                 for count in range(1, total + 1)]  # fmt: skip
        rows += fixed
        for min_gain_nats in sorted(min_gains_nats, reverse=True) if total > 1 else []:
            row = _build_row(
                label,
                min_gain_nats,
                {key: replay_adaptive(bank, min_gain_nats, min_candidates) for key, bank in own.items()},
            )
            count_mean = row["metrics"]["draws"]["mean"]
            row["fixed"] = {
                name: float(
                    np.interp(
                        count_mean, range(1, total + 1), [fixed_row["metrics"][name]["mean"] for fixed_row in fixed]
                    )
                )
                for name in row["metrics"]
                if name != "draws"
            }
            rows.append(row)
    return rows


def _build_row(
    label: str, min_gain_nats: float | None, replays: Mapping[tuple[str, int, int], Replay]
) -> dict[str, Any]:
    values: dict[str, dict[int, list[Floats]]] = {}
    for (_, run, _), replay in replays.items():
        for name, of_items in {"draws": replay.draws, **replay.metrics}.items():
            values.setdefault(name, {}).setdefault(run, []).append(of_items)
    figures = {
        name: figure(
            {run: [float(seed.mean()) for seed in seeds] for run, seeds in runs.items()},
            np.mean([np.mean(seeds, axis=0) for seeds in runs.values()], axis=0),
            top=TOPS.get(name),
        ).to_dict()
        for name, runs in values.items()
    }
    return {"label": label, "margin": min_gain_nats, "metrics": figures}
