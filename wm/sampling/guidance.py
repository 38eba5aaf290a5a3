"""Classifier-free guidance with two scales, as Chameleon's release does it.

Three rows a candidate: the whole prompt, the prompt without its text, and no condition at all; their logits are mixed
as in InstructPix2Pix (arXiv 2211.09800, equation 3; the release's ``InBatchInstructCFGLogitsProcessor``):
``none + image scale x (image - none) + text scale x (whole - image)``.
"""

from collections.abc import Sequence

from torch import Tensor

from wm.models.protocol import UnifiedVLM

CONDITIONS = 3


def guided_prefixes(vlm: UnifiedVLM, prefixes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The prefixes, then each without its text (its image tokens, ``bos``, and what opens and closes an image are
    left), then ``bos boi`` as often."""
    kept = {*vlm.image_rows.tolist(), vlm.bos_id, vlm.boi_id, vlm.eoi_id}
    whole = [list(prefix) for prefix in prefixes]
    images = [[token for token in prefix if token in kept] for prefix in prefixes]
    return [*whole, *images, *([vlm.bos_id, vlm.boi_id] for _ in prefixes)]


def mix(logits_CRV: Tensor, text_scale: float, image_scale: float) -> Tensor:
    """(R, V) of the logits of (whole, image, none), stacked."""
    whole_RV, image_RV, none_RV = logits_CRV.unbind(0)
    return none_RV + image_scale * (image_RV - none_RV) + text_scale * (whole_RV - image_RV)
