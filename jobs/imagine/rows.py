"""Build the rows of triplets and rejects from verified predictions. Knows nothing of files."""

from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.imagine.recipe import ImagineRecipe
from jobs.imagine.tries import Try
from wm.dynamics import Candidate
from wm.images import encode_png
from wm.models import ImageCodec
from wm.records import RejectRow, TripletRow, reject_row, stable_id, triplet_row


@dataclass(frozen=True)
class Outcome:
    """A try, the codes of its source, and the best candidate."""

    attempt: Try
    source_codes: list[int]
    best: Candidate

    def reason(self, recipe: ImagineRecipe) -> str:
        """Return why the candidate is a reject, ``copy`` or ``unlikely``, or an empty text."""
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
    best = outcome.best
    reject = reject_row(
        uri=f"{row['triplet_id']}: {outcome.attempt.action}",
        stage="imagine",
        outcome="filtered",
        reason=outcome.reason(recipe),
        detail=f"{best.score.mean_logprob:.3f} nats/token, {best.unchanged_share:.3f} of the tokens unchanged",
        dataset=recipe.dataset,
        split=recipe.split,
        class_label=row["class_label"],
    )
    # The id that its triplet would have had.
    reject["reject_id"] = outcome.row_id(recipe)
    return reject


def build_triplets(recipe: ImagineRecipe, codec: ImageCodec, accepted: list[Outcome]) -> list[TripletRow]:
    """Build the rows of accepted candidates.

    Args:
        recipe: Names of data set and split.
        codec: Decodes the candidates.
        accepted: Any number of them.

    Returns:
        A row each, of origin ``fdm``.
    """
    if not accepted:
        return []
    target_BN = torch.tensor([outcome.best.codes for outcome in accepted])
    # The stored image is what the codes decode to: there is no other.
    pixels_BHWC = codec.decode(target_BN)
    change_BN = _change(codec, torch.tensor([outcome.source_codes for outcome in accepted]), target_BN)
    return [
        triplet_row(
            triplet_id=outcome.row_id(recipe),
            dataset=recipe.dataset,
            split=recipe.split,
            class_label=outcome.attempt.row["class_label"],
            source_image=outcome.attempt.row["source_image"],
            target_image={"bytes": encode_png(pixels), "path": None},
            codec=codec.codec_id,
            source_codes=outcome.source_codes,
            target_codes=list(outcome.best.codes),
            change=change,
            action=outcome.attempt.action,
            action_logprob=outcome.best.score.logprob,
            action_tokens=outcome.best.score.num_tokens,
            origin="fdm",
            license=outcome.attempt.row["license"],
        )
        for outcome, pixels, change in zip(accepted, pixels_BHWC, change_BN.tolist(), strict=True)
    ]


def _change(codec: ImageCodec, source_BN: Tensor, target_BN: Tensor) -> Tensor:
    """Compute the squared L2 distance of the codes' vectors (B, N)."""
    # A predicted image has no features before quantisation, and those of its decoded image would differ from the codes
    # that were predicted.
    vectors_VD = codec.vqgan.quantize.embedding.weight.detach().float().cpu()
    distance_BN: Tensor = (vectors_VD[source_BN] - vectors_VD[target_BN]).square().sum(-1)
    return distance_BN
