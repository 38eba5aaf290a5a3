"""Write what a rollout from one image gives: images, ``prediction.json``, the storyboard."""

from collections.abc import Sequence
from pathlib import Path

import torch

from wm.dynamics import Candidate, Prediction, Rollout
from wm.dynamics.rollout import Step
from wm.evaluation.report.storyboard import CHOSEN, KEPT, OTHER, Column, Shot, draw_storyboard
from wm.images import Pixels, encode_png
from wm.models import ImageCodec
from wm.runs import write_json

_SHOWN = 4
"""Min images a step on the storyboard, if there are so many."""


class ImageWriter:
    """Decodes images of the rollout once each and writes them as PNG files below ``out``."""

    def __init__(self, codec: ImageCodec, out: Path) -> None:
        self._codec, self._out = codec, out
        self._known: dict[tuple[int, ...], Pixels] = {}

    def decode(self, codes_N: tuple[int, ...]) -> Pixels:
        """Decode codes to uint8 RGB (side, side, 3)."""
        # Candidates repeat, in one step and from step to step.
        if codes_N not in self._known:
            self._known[codes_N] = self._codec.decode(torch.tensor([codes_N]))[0]
        return self._known[codes_N]

    def write(self, codes_N: tuple[int, ...], name: str) -> str:
        """Decode an image and write it as PNG.

        Args:
            codes_N: Codes of the image.
            name: File name below the folder.

        Returns:
            ``name``.
        """
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(self.decode(codes_N)))
        return name


def write_rollout(
    rollout: Rollout, source_HWC: Pixels, codec: ImageCodec, out: Path, *, num_return: int
) -> dict[str, int]:
    """Write the images, ``prediction.json`` and the storyboard of a rollout.

    Every candidate has its scores in ``prediction.json``; images are written of the ``num_return`` best distinct
    candidates of each sequence before a step, and of all that stay in the beam.

    Args:
        rollout: Steps, beam and candidates.
        source_HWC: uint8 RGB (side, side, 3), as read.
        codec: Decodes the candidates.
        out: Folder to write into.
        num_return: Distinct candidates with an image, 1 or more.

    Returns:
        Counts for ``run.json``: steps, draws, sequences.
    """
    writer = ImageWriter(codec, out)
    (out / "source.png").write_bytes(encode_png(source_HWC))
    # As the models see it: what the codec loses is no mistake of theirs.
    writer.write(rollout.source.codes, "source-codes.png")
    best = rollout.best.candidates
    images = [writer.write(candidate.codes, f"step-{number}.png") for number, candidate in enumerate(best, 1)]
    steps = [_describe_step(step, number, rollout, writer, num_return) for number, step in enumerate(rollout.steps)]
    record = {
        "source": {"image": "source.png", "decoded": "source-codes.png", "codes": list(rollout.source.codes)},
        "actions": [step.action for step in rollout.steps],
        "images": images,
        "sequences": [
            {
                "logprob": entry.logprob,
                "mean_logprob": entry.mean_logprob,
                "above_guard": entry.guarded,
                "codes": [list(candidate.codes) for candidate in entry.candidates],
            }
            for entry in rollout.trajectories
        ],
        "steps": steps,
    }
    write_json(out / "prediction.json", record)
    draw_storyboard(_build_columns(rollout, source_HWC, writer), out / "storyboard.png")
    # Equal candidates count each: every one was sampled.
    count = sum(len(prediction.candidates) for step in rollout.steps for prediction in step.predictions)
    return {"steps": len(steps), "draws": count, "sequences": len(rollout.trajectories)}


def _describe_step(
    step: Step, number: int, rollout: Rollout, writer: ImageWriter, num_return: int
) -> dict[str, object]:
    # What was expanded: the source at first, then every sequence of the beam before.
    before = (
        [rollout.source.codes]
        if number == 0
        else [entry.candidates[-1].codes for entry in rollout.steps[number - 1].beam]
    )
    expansions = []
    for parent, (source_N, prediction) in enumerate(zip(before, step.predictions, strict=True)):
        # Two parents may give equal codes: a rank belongs to one of them alone.
        beam_ranks = {
            entry.candidates[-1].codes: beam_rank
            for beam_rank, entry in enumerate(step.beam)
            if step.parents[beam_rank] == parent
        }
        candidates = []
        for rank, candidate in enumerate(prediction.distinct):
            beam_rank = beam_ranks.get(candidate.codes)
            # The others can be decoded from their codes.
            has_image = rank < num_return or beam_rank is not None
            stem = f"candidates/step-{number + 1}-from-{parent}-rank-{rank}.png"
            image = writer.write(candidate.codes, stem) if has_image else None
            candidates.append(_describe_candidate(candidate, prediction) | {"image": image, "kept_as": beam_rank})
        expansions.append(
            {
                "from": parent,
                "source_codes": list(source_N),
                "seed": prediction.best.seed,
                "draws": len(prediction.candidates),
                "rounds": prediction.rounds,
                "passes": prediction.passes,
                "candidates": candidates,
            }
        )
    # Of the sequence that was best at the end, which need not have been the best here.
    best = rollout.best.candidates[number]
    return {
        "action": step.action,
        "image": f"step-{number + 1}.png",
        "logprob": best.score.logprob,
        "mean_logprob": best.score.mean_logprob,
        "unchanged_share": best.unchanged_share,
        "expansions": expansions,
    }


def _describe_candidate(candidate: Candidate, prediction: Prediction) -> dict[str, object]:
    return {
        "index": candidate.index,
        "times": sum(other.codes == candidate.codes for other in prediction.candidates),
        "logprob": candidate.score.logprob,
        "mean_logprob": candidate.score.mean_logprob,
        "tokens": candidate.score.num_tokens,
        "unchanged_share": candidate.unchanged_share,
        "codes": list(candidate.codes),
    }


def _build_columns(rollout: Rollout, source_HWC: Pixels, writer: ImageWriter) -> list[Column]:
    columns = [
        Column("source", [Shot(source_HWC, ["as given"]), Shot(writer.decode(rollout.source.codes), ["as tokens"])])
    ]
    for number, step in enumerate(rollout.steps):
        way = rollout.best.candidates[: number + 1]
        shots = []
        for rank, (entry, parent) in enumerate(zip(step.beam, step.parents, strict=True)):
            # With one sequence its sum says nothing more than its candidates do.
            total = [f"sum {entry.logprob:.2f} nats, from {parent + 1}"] if len(step.beam) > 1 else []
            lines = [
                f"{rank + 1}.  {_format_score(entry.candidates[-1])}",
                *total,
                _format_change(entry.candidates[-1]),
            ]
            shots.append(
                Shot(writer.decode(entry.candidates[-1].codes), lines, CHOSEN if entry.candidates == way else KEPT)
            )
        # The column is filled with what the beam did not keep, so that a reader sees the choice.
        shots += [
            Shot(writer.decode(candidate.codes), [_format_score(candidate), _format_change(candidate)], OTHER)
            for candidate in _list_rest(step)[: max(0, _SHOWN - len(shots))]
        ]
        columns.append(Column(f"{number + 1}. {step.action}", shots))
    return columns


def _list_rest(step: Step) -> Sequence[Candidate]:
    """List the distinct candidates that the beam did not keep, best first."""
    beam = {entry.candidates[-1].codes for entry in step.beam}
    rest = {
        candidate.codes: candidate
        for prediction in step.predictions
        for candidate in prediction.distinct
        if candidate.codes not in beam
    }
    return sorted(rest.values(), key=lambda candidate: -candidate.score.logprob)


def _format_score(candidate: Candidate) -> str:
    return f"{candidate.score.mean_logprob:.3f} nats/token"


def _format_change(candidate: Candidate) -> str:
    return f"{candidate.unchanged_share:.0%} of tokens unchanged"
