"""Encode pairs of images as the columns of triplets. Knows no file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wm.images import Pixels, fit_square
from wm.records import CodeColumns

if TYPE_CHECKING:
    from wm.models import ImageCodec


def encode_pairs(codec: "ImageCodec", sources: Sequence[Pixels], targets: Sequence[Pixels]) -> list[CodeColumns]:
    """Encode pairs of images of any size.

    Args:
        codec: Makes the codes.
        sources: uint8 RGB (height, width, 3).
        targets: The same, as many.

    Returns:
        The columns that a codec fills, one dict a pair.
    """
    if not sources:
        return []
    from wm.models import change_map

    # One batch a side: the codec's batches have one size, so that codes do not depend on the neighbours.
    (source_BN, source_features), (target_BN, target_features) = (
        codec.encode_with_features(np.stack([fit_square(image, codec.side_px) for image in images]))
        for images in (sources, targets)
    )
    columns = (source_BN, target_BN, change_map(source_features, target_features))
    return [
        {
            "codec": codec.codec_id,
            "source_codes": source_N.tolist(),
            "target_codes": target_N.tolist(),
            "change": change_N.tolist(),
        }
        for source_N, target_N, change_N in zip(*columns, strict=True)
    ]
