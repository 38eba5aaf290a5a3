"""Write what a rollout from one image gives: images, ``prediction.json``, the storyboard."""

from collections.abc import Sequence
from pathlib import Path

from wm.dynamics import Candidate, Observation, Prediction, Rollout
from wm.dynamics.observation import pixels_of
from wm.dynamics.rollout import Step
from wm.evaluation.report.storyboard import CHOSEN, KEPT, OTHER, Column, Shot, draw_storyboard
from wm.images import Pixels, encode_png
from wm.runs import write_json

_SHOWN = 4
"""Min images a step on the storyboard, if there are so many."""


class ImageWriter:
    """Decodes images of the rollout once each and writes them as PNG files below ``out``."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._known: dict[Observation, Pixels] = {}

    def read(self, image: Observation) -> Pixels:
        """Return the pixels of an image.

        Args:
            image: Codes are decoded.

        Returns:
            uint8 RGB (H, W, 3).
        """
        # Candidates repeat, in one step and from step to step.
        if image not in self._known:
            self._known[image] = pixels_of([image])[0]
        return self._known[image]

    def write(self, image: Observation, name: str) -> str:
        """Write an image as PNG.

        Args:
            image: Codes are decoded.
            name: File name below the folder.

        Returns:
            ``name``.
        """
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(self.read(image)))
        return name

    def write_source(self, source: Observation, source_HWC: Pixels) -> dict[str, object]:
        """Write the source as it was read, and as models of codes see it: what the codec loses is no mistake of theirs.

        Args:
            source: As the models are given it.
            source_HWC: uint8 RGB, as read.

        Returns:
            What a record says of it.
        """
        (self._out / "source.png").write_bytes(encode_png(source_HWC))
        if source.is_of_pixels:
            return {"image": "source.png"}
        decoded = self.write(source, "source-codes.png")
        return {"image": "source.png", "decoded": decoded, **describe_codes(source)}


def describe_codes(image: Observation) -> dict[str, object]:
    """Return the codes of an image as a record has them: none of one that was made as pixels.

    Args:
        image: Of either kind.
    """
    return {} if image.is_of_pixels else {"codes": list(image.codes)}


def write_rollout(rollout: Rollout, source_HWC: Pixels, out: Path, *, num_return: int) -> dict[str, int]:
    """Write the images, ``prediction.json`` and the storyboard of a rollout.

    Every candidate has its scores in ``prediction.json``; images are written of the ``num_return`` best distinct
    candidates of each sequence before a step, and of all that stay in the beam; of an editor all, as it has no codes
    that the others could be decoded from.

    Args:
        rollout: Steps, beam and candidates.
        source_HWC: uint8 RGB (H, W, 3), as read.
        out: Folder to write into.
        num_return: Distinct candidates with an image, 1 or more.

    Returns:
        Counts for ``run.json``: steps, draws, sequences; ``withheld`` where an editor gave no image.
    """
    writer = ImageWriter(out)
    source = writer.write_source(rollout.source, source_HWC)
    best = rollout.best.candidates
    images = [writer.write(candidate.observation, f"step-{number}.png") for number, candidate in enumerate(best, 1)]
    steps = [_describe_step(step, number, rollout, writer, num_return) for number, step in enumerate(rollout.steps)]
    record = {
        "source": source,
        "actions": [step.action for step in rollout.steps],
        "images": images,
        "sequences": [
            {
                "logprob": entry.logprob,
                "mean_logprob": entry.mean_logprob,
                "above_guard": entry.guarded,
                **_list_codes(entry.candidates),
            }
            for entry in rollout.trajectories
        ],
        "steps": steps,
    }
    write_json(out / "prediction.json", record)
    draw_storyboard(_build_columns(rollout, source_HWC, writer), out / "storyboard.png")
    # Equal candidates count each: every one was sampled.
    predictions = [prediction for step in rollout.steps for prediction in step.predictions]
    count, withheld = (sum(map(len, parts)) for parts in zip(*map(_split, predictions), strict=True))
    counts = {"steps": len(steps), "draws": count + withheld, "sequences": len(rollout.trajectories)}
    return counts | ({"withheld": withheld} if withheld else {})


def _split(prediction: Prediction) -> tuple[Sequence[object], Sequence[object]]:
    return prediction.candidates, prediction.failures


def _list_codes(candidates: Sequence[Candidate]) -> dict[str, object]:
    if any(candidate.observation.is_of_pixels for candidate in candidates):
        return {}
    return {"codes": [list(candidate.codes) for candidate in candidates]}


def _describe_step(
    step: Step, number: int, rollout: Rollout, writer: ImageWriter, num_return: int
) -> dict[str, object]:
    # What was expanded: the source at first, then every sequence of the beam before.
    before = (
        [rollout.source]
        if number == 0
        else [entry.candidates[-1].observation for entry in rollout.steps[number - 1].beam]
    )
    expansions = []
    for parent, (source, prediction) in enumerate(zip(before, step.predictions, strict=True)):
        # Two parents may give equal images: a rank belongs to one of them alone.
        beam_ranks = {
            entry.candidates[-1].observation: beam_rank
            for beam_rank, entry in enumerate(step.beam)
            if step.parents[beam_rank] == parent
        }
        candidates = []
        for rank, candidate in enumerate(prediction.distinct):
            image = candidate.observation
            beam_rank = beam_ranks.get(image)
            # The others can be decoded from their codes.
            has_image = rank < num_return or beam_rank is not None or image.is_of_pixels
            stem = f"candidates/step-{number + 1}-from-{parent}-rank-{rank}.png"
            file = writer.write(image, stem) if has_image else None
            candidates.append(_describe_candidate(candidate, prediction) | {"image": file, "kept_as": beam_rank})
        expansions.append(
            {
                "from": parent,
                **({} if source.is_of_pixels else {"source_codes": list(source.codes)}),
                "seed": prediction.candidates[0].seed if prediction.candidates else None,
                "draws": len(prediction.candidates) + len(prediction.failures),
                "rounds": prediction.rounds,
                "passes": prediction.passes,
                "candidates": candidates,
                **describe_failures(prediction),
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


def describe_failures(prediction: Prediction) -> dict[str, object]:
    """Return the candidates of which there is no image as a record has them, each with the reason.

    Args:
        prediction: Of any forward model; only an editor withholds images.
    """
    if not prediction.failures:
        return {}
    return {"withheld": [{"candidate": index, "reason": item.reason} for index, item in prediction.failures]}


def _describe_candidate(candidate: Candidate, prediction: Prediction) -> dict[str, object]:
    return {
        "index": candidate.index,
        "times": sum(other.observation == candidate.observation for other in prediction.candidates),
        "logprob": candidate.score.logprob,
        "mean_logprob": candidate.score.mean_logprob,
        "tokens": candidate.score.num_tokens,
        "unchanged_share": candidate.unchanged_share,
        **describe_codes(candidate.observation),
    }


def _build_columns(rollout: Rollout, source_HWC: Pixels, writer: ImageWriter) -> list[Column]:
    # An editor is given the image itself.
    source = [Shot(source_HWC, ["as given"])]
    if not rollout.source.is_of_pixels:
        source.append(Shot(writer.read(rollout.source), ["as tokens"]))
    columns = [Column("source", source)]
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
                Shot(writer.read(entry.candidates[-1].observation), lines, CHOSEN if entry.candidates == way else KEPT)
            )
        # The column is filled with what the beam did not keep, so that a reader sees the choice.
        shots += [
            Shot(writer.read(candidate.observation), [_format_score(candidate), _format_change(candidate)], OTHER)
            for candidate in _list_rest(step)[: max(0, _SHOWN - len(shots))]
        ]
        columns.append(Column(f"{number + 1}. {step.action}", shots))
    return columns


def _list_rest(step: Step) -> Sequence[Candidate]:
    """List the distinct candidates that the beam did not keep, best first."""
    beam = {entry.candidates[-1].observation for entry in step.beam}
    rest = {
        candidate.observation: candidate
        for prediction in step.predictions
        for candidate in prediction.distinct
        if candidate.observation not in beam
    }
    return sorted(rest.values(), key=lambda candidate: -candidate.score.logprob)


def _format_score(candidate: Candidate) -> str:
    return f"{candidate.score.mean_logprob:.3f} nats/token"


def _format_change(candidate: Candidate) -> str:
    return f"{candidate.unchanged_share:.0%} of {name_parts(candidate)} unchanged"


def name_parts(candidate: Candidate) -> str:
    """Return what an unchanged share is a share of.

    Args:
        candidate: An image of codes or of pixels.
    """
    return "blocks" if candidate.observation.is_of_pixels else "tokens"
