"""Evaluate a model on held-out triplets as codes: preference probe, likelihood of the truth, copying of sources, and
whether a forward model heeds its action.

No image is decoded. Training does so every so many steps, :mod:`jobs.gate` to compare the model of a later round with
the one before.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch

from wm.dynamics import sample_observations
from wm.errors import InputError
from wm.evaluation.counterfactuals import match_counterfactuals, read_counterfactual_column
from wm.evaluation.heldout import SubsetColumn, spread_rows
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.probe import COUNTERFACTUAL, Preference, compare_all, score_probe
from wm.evaluation.scorers import fdm_scorer, idm_scorer
from wm.evaluation.sensitivity import SHUFFLED, GapSummary, list_gaps, score_without_action, summarise_all
from wm.models import ImageCodec, UnifiedVLM
from wm.sampling import Sampling, build_model_runner
from wm.tables import read_table, triplets_folder
from wm.words import same_text

Role: TypeAlias = Literal["idm", "fdm"]
GateMetric: TypeAlias = Literal["nats", "preference", "sensitivity.shuffled"]
COLLAPSED_COPIES = 0.5
"""A forward model that hands back so large a share of the sources unchanged has collapsed into copying."""


@dataclass(frozen=True)
class GateSet:
    """B held-out triplets as codes."""

    # Codes are int64, (B, N).
    source_BN: torch.Tensor  # noqa: N815
    target_BN: torch.Tensor  # noqa: N815
    actions: list[str]
    subsets: list[str]
    ids: list[str]
    counterfactuals: list[str | None] | None = None  # contradicting actions, from the table's column of that name

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def has_other_actions(self) -> bool:
        """Return whether a triplet has another action in its subset, which a shuffled one is taken from."""
        return len(set(self.subsets)) < len({*zip(self.subsets, map(same_text, self.actions), strict=True)})


@dataclass(frozen=True)
class Gate:
    """Figures of one model; the shares are of an FDM's greedy predictions, None of an IDM."""

    # Of each triplet the negative log-likelihood of its completion, nats a token: an IDM's action, an FDM's target.
    nats_B: Floats  # noqa: N815
    preference: dict[str, Preference]  # kind of negative → comparison
    unchanged_share: float | None = None  # mean share of image tokens left as they are
    copies: float | None = None  # share of predictions that leave all, among triplets whose target differs
    true_unchanged_share: float | None = None  # of the true targets
    tokens_B: Floats | None = None  # noqa: N815  # of a model that reads pixels: tokens of each action
    sensitivity: dict[str, GapSummary] = field(default_factory=dict)  # of an FDM: other action → the true one's lead

    @property
    def ignores_action(self) -> bool:
        """Return whether a forward model's target is no likelier under the true action than under a shuffled one."""
        return SHUFFLED in self.sensitivity and self.sensitivity[SHUFFLED].verdict == "ignores"

    @property
    def has_collapsed(self) -> bool:
        """Return whether the model copies its source at least as often as :data:`COLLAPSED_COPIES`."""
        return self.copies is not None and self.copies >= COLLAPSED_COPIES

    def figures(self) -> dict[str, float]:
        """Return the figures flat, for logs: ``nats`` (mean), ``prefers.KIND`` (share), and of an FDM the shares and
        ``sensitivity.OTHER`` (nats an image token)."""
        by_name = {"nats": float(self.nats_B.mean()), "preference": self.value("preference")}
        by_name |= {f"prefers.{kind}": preference.share for kind, preference in self.preference.items()}
        by_name |= {f"sensitivity.{other}": summary.mean for other, summary in self.sensitivity.items()}
        shares = ("unchanged_share", "copies", "true_unchanged_share")
        return by_name | {name: value for name in shares if (value := getattr(self, name)) is not None}

    def value(self, metric: GateMetric) -> float:
        """Return mean ``nats`` (lower is better), the mean share over the kinds of negatives, or the lead of the true
        action over a shuffled one (higher is better).

        Raises:
            InputError: The sensitivity of an inverse model, or on triplets without a second action in any subset.
        """
        if metric == "nats":
            return float(self.nats_B.mean())
        if metric == "sensitivity.shuffled":
            if SHUFFLED not in self.sensitivity:
                raise InputError(
                    "metric = 'sensitivity.shuffled' is of a forward model, on triplets with two actions in a subset"
                )
            return self.sensitivity[SHUFFLED].mean
        return float(np.mean([preference.share for preference in self.preference.values()]))


def read_gate_set(
    folder: str | Path, reader: ImageCodec | UnifiedVLM, *, limit: int = 0, subset: SubsetColumn = "dataset"
) -> GateSet:
    """Read triplets as codes.

    Args:
        folder: Folder of triplets, or of a stage that has them below ``triplets``.
        reader: A model or codec whose codes the triplets must have.
        limit: Use so many triplets, spread evenly over the set; 0: all.
        subset: Column that separates subsets.

    Returns:
        The triplets.

    Raises:
        InputError: For no triplet, and for codes that are missing or of another codec.
    """
    table = read_table(
        triplets_folder(folder), columns=["triplet_id", "codec", "source_codes", "target_codes", "action", subset]
    )
    if not table.num_rows:
        raise InputError(f"no triplet in {folder}")
    # Spread evenly: the first rows may all be of one class.
    rows = table.take(spread_rows(table.num_rows, limit or None)).to_pylist()
    for row in rows:
        # Codes of another codec are numbers in range, and would give figures without meaning.
        if row["codec"] != reader.codec_id or len(row["source_codes"] or ()) != reader.tokens_per_image:
            state = f"holds codes of codec {row['codec']}" if row["codec"] else "has triplets without image codes"
            raise InputError(
                f"{folder} {state}, the model reads codec {reader.codec_id}; make them "
                "by wm encode or wm ingest with codec=MODEL"
            )
    source_BN, target_BN = (torch.tensor([row[name] for row in rows]) for name in ("source_codes", "target_codes"))
    ids, actions = [row["triplet_id"] or "" for row in rows], [row["action"] for row in rows]
    # A few of many triplets may all be without one, which is no mistake here.
    opposites = read_counterfactual_column(folder)
    has_opposites = any(triplet_id in opposites for triplet_id in ids)
    return GateSet(
        source_BN,
        target_BN,
        actions=actions,
        subsets=[row[subset] or "" for row in rows],
        ids=ids,
        counterfactuals=match_counterfactuals(opposites, ids, actions, str(folder)).actions if has_opposites else None,
    )


@torch.inference_mode()
def gate(vlm: UnifiedVLM, role: Role, held_out: GateSet, *, batch_size: int | None = None, seed: int = 0) -> Gate:
    """Evaluate a model on held-out triplets.

    Args:
        vlm: An inverse or forward model.
        role: Which of the two it is.
        held_out: The triplets, B of them.
        batch_size: Rows of a forward pass; None: as the memory allows.
        seed: Seed of the probe's random negatives.

    Returns:
        Likelihoods, preferences and, of a forward model, how much it copies and whether it heeds its action.
    """
    # One runner for all questions: its buffers and graphs are reused.
    runner = build_model_runner(vlm)

    scorer = (fdm_scorer if role == "fdm" else idm_scorer)(vlm, batch_size=batch_size, runner=runner)
    source_BN, target_BN = held_out.source_BN, held_out.target_BN
    scores = score_probe(
        scorer, source_BN, target_BN, held_out.actions, held_out.subsets,
        ids=held_out.ids, counterfactuals=held_out.counterfactuals if role == "fdm" else None, seed=seed,
    )  # fmt: skip
    # The mean over kinds is of the same four on every bench; the opposite action is for the sensitivity alone.
    preference = {kind: share for kind, share in compare_all(scores).items() if kind != COUNTERFACTUAL}
    nats_B = -scores.reference.sums / scores.reference.tokens
    if role == "idm":
        return Gate(nats_B, preference)
    greedy_B1N = sample_observations(
        vlm, source_BN, held_out.actions, num_candidates=1, sampling=Sampling(greedy=True),
        batch_size=batch_size, runner=runner,
    )  # fmt: skip
    empty_B = score_without_action(vlm, source_BN, held_out.actions, target_BN, batch_size=batch_size, runner=runner)
    # A target equal to its source is rightly copied: it says nothing of a collapse.
    same_BN, truly_BN = greedy_B1N[:, 0] == source_BN, target_BN == source_BN
    moved_B = ~truly_BN.all(dim=1)
    copied_B = same_BN.all(dim=1)[moved_B]
    return Gate(
        nats_B,
        preference,
        unchanged_share=float(same_BN.double().mean()),
        copies=float(copied_B.double().mean()) if len(copied_B) else None,
        true_unchanged_share=float(truly_BN.double().mean()),
        sensitivity=summarise_all(list_gaps(scores, empty_B)),
    )
