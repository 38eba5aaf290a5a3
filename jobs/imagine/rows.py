"""Build the rows of triplets and rejects from verified predictions. Knows nothing of files."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.imagine.recipe import ImagineRecipe
from jobs.imagine.tries import Try
from wm.dynamics import Candidate, Observation, Prediction
from wm.dynamics.observation import codes_of, pixels_of
from wm.dynamics.pairs import ModelPair
from wm.images import encode_png, fit_square
from wm.models import ImageCodec, change_map
from wm.records import CodeColumns, RejectRow, TripletRow, reject_row, stable_id, triplet_row


@dataclass(frozen=True)
class Outcome:
    """A try, its source and what was predicted."""

    attempt: Try
    source: Observation
    prediction: Prediction

    @property
    def best(self) -> Candidate:
        """The best candidate of those that have an image."""
        return self.prediction.best

    def reason(self, recipe: ImagineRecipe) -> str:
        """Return why the try is a reject, or an empty text.

        Args:
            recipe: The filters.

        Returns:
            ``copy`` or ``unlikely``, or why an editor gave no image, such as ``safety_checker``.
        """
        # All candidates have failed, mostly for one reason.
        if not self.prediction.candidates:
            return self.prediction.failures[0][1].reason
        if self.best.unchanged_share > recipe.filters.max_unchanged:
            return "copy"
        return "unlikely" if self.best.score.mean_logprob < recipe.filters.min_score else ""

    def row_id(self, recipe: ImagineRecipe) -> str:
        """Return the id of its row, of a triplet or of a reject."""
        triplet_id = self.attempt.row["triplet_id"]
        return stable_id(recipe.dataset, recipe.split, triplet_id, self.attempt.action, str(self.attempt.seed))


def build_reject(recipe: ImagineRecipe, outcome: Outcome) -> RejectRow:
    """Build the row of a candidate that is not accepted.

    Args:
        recipe: Names of data set and split, and the filters.
        outcome: The candidate and its source.
    """
    row = outcome.attempt.row
    reject = reject_row(
        uri=f"{row['triplet_id']}: {outcome.attempt.action}",
        stage="imagine",
        outcome="filtered" if outcome.prediction.candidates else "failed",
        reason=outcome.reason(recipe),
        detail=_describe(outcome),
        dataset=recipe.dataset,
        split=recipe.split,
        class_label=row["class_label"],
    )
    # The id that its triplet would have had.
    reject["reject_id"] = outcome.row_id(recipe)
    return reject


def _describe(outcome: Outcome) -> str:
    if not outcome.prediction.candidates:
        return f"none of {len(outcome.prediction.failures)} candidates has an image"
    best = outcome.best
    parts = "blocks" if best.observation.is_of_pixels else "tokens"
    return f"{best.score.mean_logprob:.3f} nats/token, {best.unchanged_share:.3f} of the {parts} unchanged"


def build_triplets(recipe: ImagineRecipe, pair: ModelPair, accepted: list[Outcome]) -> list[TripletRow]:
    """Build the rows of accepted candidates.

    The codes are those that the forward model predicted, of its codec; of an editor's images those that the inverse
    model's codec encodes, and none where neither has a codec.

    Args:
        recipe: Names of data set and split.
        pair: The models.
        accepted: Any number of them.

    Returns:
        A row each, of origin ``fdm``.
    """
    if not accepted:
        return []
    # The stored image is what the codes decode to where there are codes: there is no other.
    pixels = pixels_of([outcome.best.observation for outcome in accepted])
    return [
        triplet_row(
            triplet_id=outcome.row_id(recipe),
            dataset=recipe.dataset,
            split=recipe.split,
            class_label=outcome.attempt.row["class_label"],
            source_image=outcome.attempt.row["source_image"],
            target_image={"bytes": encode_png(pixels_HWC), "path": None},
            **columns,
            action=outcome.attempt.action,
            action_logprob=outcome.best.score.logprob,
            action_tokens=outcome.best.score.num_tokens,
            origin="fdm",
            license=outcome.attempt.row["license"],
        )
        for outcome, pixels_HWC, columns in zip(accepted, pixels, _list_codes(pair, accepted), strict=True)
    ]


def _list_codes(pair: ModelPair, accepted: list[Outcome]) -> list[CodeColumns]:
    """List the columns of codes of each row: those of the pair's stored codec, or none."""
    codec = pair.stored_codec
    # Models that exchange pixels alone leave the columns empty, as wm annotate does without a codec.
    if codec is None:
        return [{} for _ in accepted]
    sources, targets = [outcome.source for outcome in accepted], [outcome.best.observation for outcome in accepted]
    source_BN, target_BN = (torch.tensor(codes_of(images, codec)) for images in (sources, targets))
    change_BN = _change(codec, source_BN, target_BN) if pair.codec else _measure_change(codec, sources, targets)
    # A predicted image has no features before quantisation; one that is there as pixels has.
    rows = zip(source_BN.tolist(), target_BN.tolist(), change_BN.tolist(), strict=True)
    return [
        {"codec": codec.codec_id, "source_codes": source, "target_codes": target, "change": change}
        for source, target, change in rows
    ]


def _measure_change(codec: ImageCodec, sources: list[Observation], targets: list[Observation]) -> Tensor:
    """Compute the squared L2 distance of the features (B, N) of images that are pixels, as ``wm annotate`` does."""
    rows = []
    for source, target in zip(pixels_of(sources), pixels_of(targets), strict=True):
        squares = (fit_square(pixels_HWC, codec.side_px)[None] for pixels_HWC in (source, target))
        (_, source_1ND), (_, target_1ND) = (codec.encode_with_features(square) for square in squares)
        rows.append(change_map(source_1ND, target_1ND)[0].float().cpu())
    return torch.stack(rows)


def _change(codec: ImageCodec, source_BN: Tensor, target_BN: Tensor) -> Tensor:
    """Compute the squared L2 distance of the codes' vectors (B, N)."""
    # A predicted image has no features before quantisation, and those of its decoded image would differ from the codes
    # that were predicted.
    vectors_VD = codec.vqgan.quantize.embedding.weight.detach().float().cpu()
    distance_BN: Tensor = (vectors_VD[source_BN] - vectors_VD[target_BN]).square().sum(-1)
    return distance_BN
