"""Evaluate a model in training on held-out triplets: figures, and predictions as images.

Not known here: when it is evaluated, and where the figures go.
"""

import numpy as np
import torch

from jobs.train.pixel_evaluator import PixelEvaluator, check_pixel_evaluation
from jobs.train.sample_images import draw_image, wrap
from wm.dynamics import propose_actions, sample_observations
from wm.errors import InputError
from wm.evaluation.gates import GateSet, gate, read_gate_set
from wm.evaluation.report.storyboard import CHOSEN, OTHER, Column, Shot
from wm.models import ImageCodec, UnifiedVLM, load_codec
from wm.models.kinds import reads_pixels
from wm.records import row_seeds
from wm.sampling import Sampling, build_model_runner
from wm.training import TrainRecipe
from wm.training.monitoring.evaluation import AnyEvaluator, EvaluationResult, Sample
from wm.training.monitoring.trackers import check_trackers
from wm.training.pixels.checks import check_pixel_recipe

_NUM_SAMPLES = 2
"""Samples beside the greedy prediction."""


def check_evaluation(recipe: TrainRecipe) -> None:
    """Check, before any work, what evaluation and trackers need.

    Raises:
        InputError: A package of ``logging.trackers`` is missing, or the held-out set or the codec cannot be used.
    """
    check_trackers(recipe.logging.trackers)
    # Before any image is read.
    if reads_pixels(recipe.base):
        check_pixel_recipe(recipe)
    settings = recipe.eval
    if not settings.is_on:
        return
    # Read as the worker will read them, so that nothing fails after hours of training.
    if reads_pixels(recipe.base):
        check_pixel_evaluation(recipe)
        return
    codec = load_codec(recipe.base)
    held_out = read_gate_set(settings.triplets, codec, limit=settings.limit)
    # The probe asks whether the true pair is preferred to a mixed one.
    if settings.every_steps and len(held_out) < 2:
        raise InputError(
            f"eval.triplets = {settings.triplets!r} has one triplet: the preference probe compares several"
        )
    # Hours of training would end without a value to choose by.
    if settings.metric_for_best_model == "sensitivity.shuffled" and not held_out.has_other_actions:
        raise InputError(
            f"eval.metric_for_best_model = 'sensitivity.shuffled': no subset of {settings.triplets} has two different "
            "actions"
        )
    if settings.sample_every_steps and not codec.has_decoder:
        raise InputError(
            f"eval.sample_every_steps = {settings.sample_every_steps}: the codec of {recipe.base} has no decoder for "
            "images of predictions"
        )


def build_evaluator(recipe: TrainRecipe) -> AnyEvaluator:
    """Build the evaluator of a recipe, by how its base reads images.

    Args:
        recipe: The run.
    """
    return PixelEvaluator(recipe) if reads_pixels(recipe.base) else HeldOutEvaluator(recipe)


class HeldOutEvaluator:
    """The :class:`wm.training.monitoring.evaluation.Evaluator` of a recipe."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self._recipe = recipe
        self._triplets: GateSet
        self._sample_triplets: GateSet
        self._codec: ImageCodec

    def prepare(self, vlm: UnifiedVLM) -> None:
        """Load the held-out triplets, and the codec where images are to be made.

        Args:
            vlm: The model as it is now.
        """
        settings = self._recipe.eval
        self._triplets = read_gate_set(settings.triplets, vlm, limit=settings.limit)
        self._sample_triplets = read_gate_set(settings.triplets, vlm, limit=settings.sample_rows)
        if settings.sample_every_steps:
            self._codec = load_codec(self._recipe.base, vlm.device)

    def evaluate(self, vlm: UnifiedVLM) -> EvaluationResult:
        """Compute the figures of :func:`wm.evaluation.gates.gate`, and whether the model has collapsed into copying or
        ignores its action.

        Args:
            vlm: The model as it is now.
        """
        result = gate(vlm, self._recipe.task, self._triplets)
        return EvaluationResult(result.figures(), result.has_collapsed, result.ignores_action)

    def sample(self, vlm: UnifiedVLM) -> Sample:
        """Predict for a few triplets: images between source and target for an FDM, or an IDM's actions.

        Args:
            vlm: The model as it is now.
        """
        return self._sample_observations(vlm) if self._recipe.task == "fdm" else self._propose_actions(vlm)

    def _sample_observations(self, vlm: UnifiedVLM) -> Sample:
        triplets, runner = self._sample_triplets, build_model_runner(vlm)
        # The same seeds at every evaluation: images differ by the model alone.
        parts_BKN = [
            sample_observations(
                vlm,
                triplets.source_BN,
                triplets.actions,
                num_candidates=count,
                sampling=Sampling(greedy=greedy),
                seed=row_seeds(0, triplets.ids),
                runner=runner,
            )
            for count, greedy in ((1, True), (_NUM_SAMPLES, False))
        ]
        # Columns: source, the greedy prediction, samples, target.
        predicted_KBN = torch.cat(parts_BKN, dim=1).transpose(0, 1)
        names = ["greedy", *(f"sample {number + 1}" for number in range(_NUM_SAMPLES))]
        columns = [self._column("source", triplets.source_BN, [wrap(action) for action in triplets.actions])]
        lines = []
        for name, predicted_BN in zip(names, predicted_KBN, strict=True):
            # Per image, which shares of its tokens equal those of source and target.
            same_B = (predicted_BN == triplets.source_BN).double().mean(dim=1).tolist()
            right_B = (predicted_BN == triplets.target_BN).double().mean(dim=1).tolist()
            below = [
                [f"{same:.0%} as source", f"{right:.0%} as target"] for same, right in zip(same_B, right_B, strict=True)
            ]
            columns.append(self._column(name, predicted_BN, below))
            lines += [
                f"{action}: {name}: {', '.join(words)}" for action, words in zip(triplets.actions, below, strict=True)
            ]
        columns.append(self._column("target", triplets.target_BN, [[]] * len(triplets), frame=CHOSEN))
        # Sorted: lines of one action follow one another.
        return Sample(draw_image(columns), "\n".join(sorted(lines)))

    def _propose_actions(self, vlm: UnifiedVLM) -> Sample:
        triplets = self._sample_triplets
        answers = [action.text for action in propose_actions(vlm, triplets.source_BN, triplets.target_BN)]
        pairs = list(zip(answers, triplets.actions, strict=True))
        columns = [
            self._column("source", triplets.source_BN, [wrap(f"predicted: {text}") for text in answers]),
            self._column("target", triplets.target_BN, [wrap(f"true: {action}") for action in triplets.actions]),
        ]
        return Sample(draw_image(columns), "\n".join(f"predicted: {text}   true: {action}" for text, action in pairs))

    def _column(self, title: str, codes_BN: torch.Tensor, below: list[list[str]], frame: str = OTHER) -> Column:
        images = self._codec.decode(codes_BN.numpy().astype(np.uint16))
        shots = [Shot(pixels, lines, frame) for pixels, lines in zip(images, below, strict=True)]
        return Column(title, shots)
