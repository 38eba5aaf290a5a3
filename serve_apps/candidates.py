"""What became of the candidates of a request: figures, and the answer where none of them has an image."""

from collections import Counter
from collections.abc import Sequence

from serve_apps import metrics
from serve_apps.openai.errors import ApiError
from wm.dynamics import Prediction, SampleFailure


def no_image(failures: Sequence[tuple[int, SampleFailure]], subject: str) -> ApiError:
    """Build the answer where none of the candidates has an image, as OpenAI answers what its safety system withholds.

    Args:
        failures: Of all candidates.
        subject: The prediction or the step that has none, for the message.
    """
    # Each reason once, however many candidates it has cost.
    reasons = Counter(failure.reason for _, failure in failures)
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    details = "; ".join(dict.fromkeys(failure.detail for _, failure in failures))
    # OpenAI's own code, which clients know; NaN and the like are another matter.
    is_withheld = set(reasons) == {"safety_checker"}
    return ApiError(
        f"{subject} has no image: of {len(failures)} candidates {counts}: {details}; another seed may do better",
        kind="image_generation_user_error",
        code="moderation_blocked" if is_withheld else "no_image",
    )


def record_prediction(prediction: Prediction) -> None:
    """Measure the candidates of a prediction, and how sure the verifier is of the best.

    Args:
        prediction: Complete; it may have no candidate with an image.
    """
    distinct = prediction.distinct
    record_candidates(len(prediction.candidates), len(distinct))
    if distinct:
        metrics.record(metrics.UNCHANGED, prediction.best.unchanged_share)
    if len(distinct) > 1:
        best, second = (candidate.score.mean_logprob for candidate in distinct[:2])
        # How sure the verifier is: near 0 it has no opinion.
        metrics.record(metrics.MARGIN, best - second)


def record_candidates(num_sampled: int, num_distinct: int) -> None:
    """Measure how many candidates have an image, and how many of these differ.

    Args:
        num_sampled: Those with an image.
        num_distinct: Those that differ.
    """
    metrics.record(metrics.CANDIDATES, num_sampled)
    if num_sampled:
        metrics.record(metrics.DISTINCT, num_distinct / num_sampled)
