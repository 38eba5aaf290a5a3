"""What training asks of held-out triplets: the gate's figures, and predictions as pictures."""

import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch

from wm.dynamics import propose_actions, sample_observations
from wm.errors import InputError
from wm.evaluation.gates import GateSet, gate, read_gate_set
from wm.evaluation.report.storyboard import CHOSEN, OTHER, Column, Shot, draw_storyboard
from wm.images import Pixels, decode_image
from wm.models import ImageCodec, UnifiedVLM, load_codec
from wm.records import row_seeds
from wm.sampling import Decoder, Sampling
from wm.training import TrainRecipe
from wm.training.monitoring.evaluation import Gated, Sample
from wm.training.monitoring.trackers import need_packages

_DRAWN = 2
"""Samples beside the greedy prediction."""
_LETTERS, _LINES = 26, 3


def check_watch(recipe: TrainRecipe) -> None:
    """Raise :class:`InputError`, before any work, for packages that ``log_to`` needs, and a held-out set or a codec
    that gates and samples cannot use."""
    need_packages(recipe.log_to)
    if not (recipe.gate_every or recipe.sample_every):
        return
    codec = load_codec(recipe.base)
    held_out = read_gate_set(recipe.held_out, codec, limit=recipe.gate_limit)
    if recipe.gate_every and len(held_out) < 2:
        raise InputError(f"held_out = {recipe.held_out!r} has one triplet: the preference probe compares several")
    if recipe.sample_every and not codec.has_decoder:
        raise InputError(
            f"sample_every = {recipe.sample_every}: the codec of {recipe.base} has no decoder to draw predictions with"
        )


class HeldOutWatcher:
    """:class:`wm.training.monitoring.evaluation.Watcher` of a recipe."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self._recipe = recipe
        self._gate_set: GateSet
        self._shown: GateSet
        self._codec: ImageCodec

    def prepare(self, vlm: UnifiedVLM) -> None:
        """Read the held-out triplets, and the codec where pictures are to be drawn."""
        recipe = self._recipe
        self._gate_set = read_gate_set(recipe.held_out, vlm, limit=recipe.gate_limit)
        self._shown = read_gate_set(recipe.held_out, vlm, limit=recipe.sample_rows)
        if recipe.sample_every:
            self._codec = load_codec(recipe.base, vlm.device)

    def gate(self, vlm: UnifiedVLM) -> Gated:
        """See :func:`wm.evaluation.gates.gate`."""
        found = gate(vlm, self._recipe.task, self._gate_set)
        return Gated(found.figures(), found.has_collapsed)

    def sample(self, vlm: UnifiedVLM) -> Sample:
        """An FDM's greedy prediction and :data:`_DRAWN` samples between source and target, or an IDM's action."""
        return self._observations(vlm) if self._recipe.task == "fdm" else self._actions(vlm)

    def _observations(self, vlm: UnifiedVLM) -> Sample:
        shown, decoder = self._shown, Decoder(vlm)
        parts_BKN = [
            sample_observations(
                vlm,
                shown.source_BN,
                shown.actions,
                num_samples=count,
                sampling=Sampling(greedy=greedy),
                seed=row_seeds(0, shown.ids),
                decoder=decoder,
            )
            for count, greedy in ((1, True), (_DRAWN, False))
        ]
        drawn_KBN = torch.cat(parts_BKN, dim=1).transpose(0, 1)
        names = ["greedy", *(f"sample {number + 1}" for number in range(_DRAWN))]
        columns = [self._column("source", shown.source_BN, [_folded(action) for action in shown.actions])]
        lines = []
        for name, drawn_BN in zip(names, drawn_KBN, strict=True):
            same_B = (drawn_BN == shown.source_BN).double().mean(dim=1).tolist()
            right_B = (drawn_BN == shown.target_BN).double().mean(dim=1).tolist()
            below = [
                [f"{same:.0%} as source", f"{right:.0%} as target"] for same, right in zip(same_B, right_B, strict=True)
            ]
            columns.append(self._column(name, drawn_BN, below))
            lines += [
                f"{action}: {name}: {', '.join(words)}" for action, words in zip(shown.actions, below, strict=True)
            ]
        columns.append(self._column("target", shown.target_BN, [[]] * len(shown), frame=CHOSEN))
        return Sample(_drawn(columns), "\n".join(sorted(lines)))

    def _actions(self, vlm: UnifiedVLM) -> Sample:
        shown = self._shown
        said = [found.text for found in propose_actions(vlm, shown.source_BN, shown.target_BN)]
        pairs = list(zip(said, shown.actions, strict=True))
        columns = [
            self._column("source", shown.source_BN, [_folded(f"says: {text}") for text in said]),
            self._column("target", shown.target_BN, [_folded(f"true: {action}") for action in shown.actions]),
        ]
        return Sample(_drawn(columns), "\n".join(f"says: {text}   true: {action}" for text, action in pairs))

    def _column(self, title: str, codes_BN: torch.Tensor, below: list[list[str]], frame: str = OTHER) -> Column:
        pictures = self._codec.decode(codes_BN.numpy().astype(np.uint16))
        shots = [Shot(pixels, lines, frame) for pixels, lines in zip(pictures, below, strict=True)]
        return Column(title, shots)


def _folded(text: str) -> list[str]:
    """At most so many lines as there is room for below a picture."""
    return textwrap.wrap(text, _LETTERS, max_lines=_LINES, placeholder=" …") or [""]


def _drawn(columns: list[Column]) -> Pixels:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.png"
        draw_storyboard(columns, path)
        return decode_image(path.read_bytes(), path.name)
