"""Evaluate a model in training that reads pixels: figures on held-out triplets, and its actions beside their images.

Not known here: when it is evaluated, and where the figures go.
"""

from jobs.train.sample_images import draw_image, wrap
from wm.dynamics.vlm_rows import generate_answers
from wm.dynamics.vlm_scorer import VLMScorer
from wm.errors import InputError
from wm.evaluation.pixel_gates import PixelGateSet, pixel_gate, read_pixel_gate_set
from wm.evaluation.report.storyboard import CHOSEN, OTHER, Column, Shot
from wm.models.pixels.chats import count_tokens
from wm.models.pixels.model import PixelModel
from wm.training import TrainRecipe
from wm.training.monitoring.evaluation import EvaluationResult, Sample

_MAX_NEW_TOKENS = 32


def check_pixel_evaluation(recipe: TrainRecipe) -> None:
    """Check, before any work, what the evaluation of a base that reads pixels needs.

    Args:
        recipe: The run.

    Raises:
        InputError: The held-out set cannot be used.
    """
    settings = recipe.eval
    held_out = read_pixel_gate_set(settings.triplets, limit=settings.limit)
    # The probe asks whether the true pair is preferred to a mixed one.
    if settings.every_steps and len(held_out) < 2:
        raise InputError(
            f"eval.triplets = {settings.triplets!r} has one triplet: the preference probe compares several"
        )


class PixelEvaluator:
    """The :class:`wm.training.monitoring.evaluation.Evaluator` of a recipe whose base reads pixels."""

    def __init__(self, recipe: TrainRecipe) -> None:
        self._recipe = recipe
        self._triplets: PixelGateSet
        self._sample_triplets: PixelGateSet

    def prepare(self, vlm: PixelModel) -> None:
        """Load the held-out triplets, and check that the model can read their actions.

        Args:
            vlm: The model.

        Raises:
            InputError: An action is empty or holds a special token.
        """
        settings = self._recipe.eval
        self._triplets = read_pixel_gate_set(settings.triplets, limit=settings.limit)
        self._sample_triplets = read_pixel_gate_set(settings.triplets, limit=settings.sample_rows)
        # Now and not at the first evaluation, after hours of training.
        for name, action in zip(self._triplets.ids, self._triplets.actions, strict=True):
            kind = f"{settings.triplets}: triplet {name}: action"
            count_tokens(vlm.processor.tokenizer, vlm.prefix, action, kind)

    def evaluate(self, vlm: PixelModel) -> EvaluationResult:
        """Compute the figures of :func:`wm.evaluation.pixel_gates.pixel_gate`.

        Args:
            vlm: The model as it is now.
        """
        # The adapter's layers are in the inner model; PEFT's wrapper has a forward pass of its own.
        scorer = VLMScorer(vlm.inner, vlm.processor)
        result = pixel_gate(scorer, self._triplets, batch_size=min(8, self._recipe.rows_per_pass))
        return EvaluationResult(result.figures(), result.has_collapsed)

    def sample(self, vlm: PixelModel) -> Sample:
        """Propose actions for a few triplets.

        Args:
            vlm: The model as it is now.
        """
        # Greedily: what changes from evaluation to evaluation is the model alone.
        triplets = self._sample_triplets
        sources, targets = triplets.sources(), triplets.targets()
        answers = [
            action.text
            for action in generate_answers(
                vlm.inner,
                vlm.processor,
                [vlm.prefix] * len(triplets),
                list(zip(sources, targets, strict=True)),
                max_new_tokens=_MAX_NEW_TOKENS,
            )
        ]
        pairs = list(zip(answers, triplets.actions, strict=True))
        parts = (
            ("source", sources, "predicted", answers, OTHER),
            ("target", targets, "true", triplets.actions, CHOSEN),
        )
        columns = [
            Column(
                title, [Shot(image, wrap(f"{word}: {text}"), frame) for image, text in zip(images, texts, strict=True)]
            )
            for title, images, word, texts, frame in parts
        ]
        return Sample(draw_image(columns), "\n".join(f"predicted: {text}   true: {action}" for text, action in pairs))
