"""Evaluate a model that reads pixels on held-out triplets: likelihood of the true actions, preference probe.

The counterpart of :mod:`wm.evaluation.gates`, whose models read codes. No image is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wm.dynamics.vlm_scorer import VLMScorer
from wm.errors import InputError
from wm.evaluation.gates import Gate
from wm.evaluation.probe import Likelihoods, probe
from wm.evaluation.subsets import SubsetColumn, spread_rows
from wm.images import Pixels, decode_image
from wm.tables import read_table, triplets_folder


@dataclass(frozen=True)
class PixelGateSet:
    """B held-out triplets as images, of any sizes."""

    images: list[Pixels]
    """Each distinct one once."""
    source_B1: torch.Tensor  # noqa: N815
    """int64: number of the source among the images."""
    target_B1: torch.Tensor  # noqa: N815
    actions: list[str]
    subsets: list[str]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.actions)

    def sources(self) -> list[Pixels]:
        """Return the source of each triplet."""
        return [self.images[number] for number in self.source_B1[:, 0].tolist()]

    def targets(self) -> list[Pixels]:
        """Return the target of each triplet."""
        return [self.images[number] for number in self.target_B1[:, 0].tolist()]


def read_pixel_gate_set(folder: str | Path, *, limit: int = 0, subset: SubsetColumn = "dataset") -> PixelGateSet:
    """Read triplets with their images.

    Args:
        folder: Folder of triplets, or of a stage that has them below ``triplets``.
        limit: Use so many triplets, spread evenly over the set; 0: all.
        subset: Column that separates subsets.

    Returns:
        The triplets.

    Raises:
        InputError: For no triplet, and for images that are missing or damaged.
    """
    columns = ["triplet_id", "source_image", "target_image", "action", subset]
    table = read_table(triplets_folder(folder), columns=columns)
    if not table.num_rows:
        raise InputError(f"no triplet in {folder}")
    # Spread evenly: the first rows may all be of one class.
    rows = table.take(spread_rows(table.num_rows, limit or None)).to_pylist()
    # Counted before anything is decoded: a table may have none at all.
    names = ("source_image", "target_image")
    num_missing = sum(any(not (row[name] or {}).get("bytes") for name in names) for row in rows)
    if num_missing:
        raise InputError(f"{folder}: {num_missing} of {len(rows)} triplets have no source_image or no target_image")
    # Equal files are one image: the probe compares images by their numbers.
    numbers: dict[bytes, int] = {}
    images: list[Pixels] = []
    sides: dict[str, list[list[int]]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            data = row[name]["bytes"]
            if data not in numbers:
                numbers[data] = len(images)
                images.append(decode_image(data, f"{name} of triplet {row['triplet_id']} in {folder}"))
            sides[name].append([numbers[data]])
    return PixelGateSet(
        images,
        torch.tensor(sides["source_image"]),
        torch.tensor(sides["target_image"]),
        actions=[row["action"] or "" for row in rows],
        subsets=[row[subset] or "" for row in rows],
        ids=[row["triplet_id"] or "" for row in rows],
    )


def pixel_gate(vlm: VLMScorer, held_out: PixelGateSet, *, batch_size: int = 8, seed: int = 0) -> Gate:
    """Evaluate an inverse model that reads pixels on held-out triplets.

    Args:
        vlm: The model.
        held_out: The triplets, B of them.
        batch_size: Rows of a forward pass.
        seed: Seed of the probe's random negatives.

    Returns:
        Likelihoods and preferences.
    """

    # The probe distinguishes images by their codes: here by their numbers.
    def score(source_B1: torch.Tensor, target_B1: torch.Tensor, actions: Sequence[str]) -> Likelihoods:
        sources, targets = ([held_out.images[row] for row in side[:, 0].tolist()] for side in (source_B1, target_B1))
        scored = vlm.score_actions(sources, targets, actions, batch_size=batch_size)
        return Likelihoods(
            np.array([action.logprob for action in scored]), np.array([float(action.num_tokens) for action in scored])
        )

    # The likelihood of the truth, and then of the truth against what it is not.
    truth = score(held_out.source_B1, held_out.target_B1, held_out.actions)
    preference = probe(
        score, held_out.source_B1, held_out.target_B1, held_out.actions, held_out.subsets, ids=held_out.ids, seed=seed
    )
    return Gate(-truth.sums / truth.tokens, preference, tokens_B=truth.tokens)
