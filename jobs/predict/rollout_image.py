"""What a rollout from one image leaves behind: pictures, ``prediction.json``, the storyboard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wm.dynamics import Candidate, Prediction, Rollout
from wm.dynamics.rollout import Step
from wm.evaluation.report.storyboard import CHOSEN, KEPT, OTHER, Column, Shot, draw_storyboard
from wm.images import Pixels, encode_png
from wm.models import ImageCodec
from wm.runs import write_json

_SHOWN = 4
"""Pictures a step on the storyboard, at least, if there are so many."""


class Pictures:
    """Decodes images of the rollout once each and writes them as PNG files below ``out``."""

    def __init__(self, codec: ImageCodec, out: Path) -> None:
        self._codec, self._out = codec, out
        self._known: dict[tuple[int, ...], Pixels] = {}

    def of(self, codes_N: tuple[int, ...]) -> Pixels:
        """uint8 RGB (side, side, 3)."""
        if codes_N not in self._known:
            self._known[codes_N] = self._codec.decode(torch.tensor([codes_N]))[0]
        return self._known[codes_N]

    def write(self, codes_N: tuple[int, ...], name: str) -> str:
        """Write ``name`` below the folder; returns it."""
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(self.of(codes_N)))
        return name


def write_rollout(rollout: Rollout, source_HWC: Pixels, codec: ImageCodec, out: Path, *, top: int) -> dict[str, int]:
    """Write everything; returns the counts for ``run.json``.

    Of each sequence kept before a step the ``top`` best distinct candidates, and all that were kept, have pictures;
    scores are there of all.
    """
    pictures = Pictures(codec, out)
    (out / "source.png").write_bytes(encode_png(source_HWC))
    pictures.write(rollout.source, "source-codes.png")
    best = rollout.best.candidates
    chosen = [pictures.write(one.codes, f"step-{number}.png") for number, one in enumerate(best, 1)]
    steps = [_step(step, number, rollout, pictures, top) for number, step in enumerate(rollout.steps)]
    record = {
        "source": {"image": "source.png", "decoded": "source-codes.png", "codes": list(rollout.source)},
        "actions": [step.action for step in rollout.steps],
        "images": chosen,
        "sequences": [
            {
                "logprob": entry.logprob,
                "mean_logprob": entry.mean_logprob,
                "above_guard": entry.guarded,
                "codes": [list(one.codes) for one in entry.candidates],
            }
            for entry in rollout.trajectories
        ],
        "steps": steps,
    }
    write_json(out / "prediction.json", record)
    draw_storyboard(_columns(rollout, source_HWC, pictures), out / "storyboard.png")
    draws = sum(len(found.candidates) for step in rollout.steps for found in step.predictions)
    return {"steps": len(steps), "draws": draws, "sequences": len(rollout.trajectories)}


def _step(step: Step, number: int, rollout: Rollout, pictures: Pictures, top: int) -> dict[str, Any]:
    before = (
        [rollout.source] if number == 0 else [entry.candidates[-1].codes for entry in rollout.steps[number - 1].beam]
    )
    expansions = []
    for parent, (source_N, found) in enumerate(zip(before, step.predictions, strict=True)):
        kept = {
            entry.candidates[-1].codes: place for place, entry in enumerate(step.beam) if step.parents[place] == parent
        }
        candidates = []
        for rank, one in enumerate(found.distinct):
            place = kept.get(one.codes)
            shown = rank < top or place is not None
            stem = f"candidates/step-{number + 1}-from-{parent}-rank-{rank}.png"
            image = pictures.write(one.codes, stem) if shown else None
            candidates.append(_candidate(one, found) | {"image": image, "kept_as": place})
        expansions.append(
            {
                "from": parent,
                "source_codes": list(source_N),
                "seed": found.best.seed,
                "draws": len(found.candidates),
                "rounds": found.rounds,
                "passes": found.passes,
                "candidates": candidates,
            }
        )
    chosen = rollout.best.candidates[number]
    return {
        "action": step.action,
        "image": f"step-{number + 1}.png",
        "logprob": chosen.score.logprob,
        "mean_logprob": chosen.score.mean_logprob,
        "unchanged_share": chosen.unchanged_share,
        "expansions": expansions,
    }


def _candidate(one: Candidate, found: Prediction) -> dict[str, Any]:
    return {
        "index": one.index,
        "times": sum(other.codes == one.codes for other in found.candidates),
        "logprob": one.score.logprob,
        "mean_logprob": one.score.mean_logprob,
        "tokens": one.score.num_tokens,
        "unchanged_share": one.unchanged_share,
        "codes": list(one.codes),
    }


def _columns(rollout: Rollout, source_HWC: Pixels, pictures: Pictures) -> list[Column]:
    columns = [Column("source", [Shot(source_HWC, ["as given"]), Shot(pictures.of(rollout.source), ["as tokens"])])]
    for number, step in enumerate(rollout.steps):
        way = rollout.best.candidates[: number + 1]
        shots = []
        for place, (entry, parent) in enumerate(zip(step.beam, step.parents, strict=True)):
            total = [f"sum {entry.logprob:.2f} nats, from {parent + 1}"] if len(step.beam) > 1 else []
            lines = [f"{place + 1}.  {_score(entry.candidates[-1])}", *total, _changed(entry.candidates[-1])]
            shots.append(
                Shot(pictures.of(entry.candidates[-1].codes), lines, CHOSEN if entry.candidates == way else KEPT)
            )
        shots += [
            Shot(pictures.of(one.codes), [_score(one), _changed(one)], OTHER)
            for one in _left(step)[: max(0, _SHOWN - len(shots))]
        ]
        columns.append(Column(f"{number + 1}. {step.action}", shots))
    return columns


def _left(step: Step) -> Sequence[Candidate]:
    """Distinct candidates that the beam did not keep, best first."""
    kept = {entry.candidates[-1].codes for entry in step.beam}
    left = {one.codes: one for found in step.predictions for one in found.distinct if one.codes not in kept}
    return sorted(left.values(), key=lambda one: -one.score.logprob)


def _score(one: Candidate) -> str:
    return f"{one.score.mean_logprob:.3f} nats/token"


def _changed(one: Candidate) -> str:
    return f"{one.unchanged_share:.0%} of tokens unchanged"
