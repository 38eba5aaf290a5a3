"""Give the models their key-frames: image codes and features by the codec, and what the inverse model is shown.

Not known here: which pairs are kept, and what becomes of them.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np

from jobs.annotate.pairs import Pair, even_chunks, halve_when_full
from wm.images import Pixels, decode_image, fit_square

if TYPE_CHECKING:
    from torch import Tensor

    from wm.dynamics.observation import Observation
    from wm.models import ImageCodec


class EncodedFrame(TypedDict):
    """One key-frame after the codec: its codes, and its features before they are quantised, float32 (N, D)."""

    codes: list[int]
    features: "Tensor"


FrameKey: TypeAlias = tuple[str, int]
"""A key-frame: its video's key and its row in the video's lists."""
Frames: TypeAlias = dict[FrameKey, EncodedFrame]
"""Encoded key-frames; none without a codec."""


def frame_keys(pair: Pair) -> tuple[FrameKey, FrameKey]:
    """Return the keys of a pair's source and target."""
    key = pair.video["key"]
    return (key, pair.source), (key, pair.target)


def encode_frames(codec: "ImageCodec", pairs: Sequence[Pair], batch_size: int) -> Frames:
    """Encode each key-frame once, though it may be in two pairs.

    Args:
        codec: Whose codes and features are stored.
        pairs: The pairs whose key-frames are encoded.
        batch_size: Images that the codec gets at once; halved where memory does not hold them.
    """
    # By key: neighbours share a key-frame.
    images = {key: pair.video["images"][key[1]] for pair in pairs for key in frame_keys(pair)}
    return dict(zip(images, _encode(codec, list(images.values()), batch_size), strict=True))


def _encode(codec: "ImageCodec", pngs: list[bytes], batch_size: int) -> Iterator[EncodedFrame]:
    for chunk in even_chunks(pngs, batch_size):
        # Bound as a default: the loop's next chunk must not replace it.
        pixels_BHWC = np.stack([fit_square(decode_image(png, "key-frame"), codec.side_px) for png in chunk])

        def encode(start: int, stop: int, pixels_BHWC: Pixels = pixels_BHWC) -> "tuple[Tensor, Tensor]":
            return codec.encode_with_features(pixels_BHWC[start:stop])

        for codes_BN, features_BND in halve_when_full(encode, len(chunk)):
            for codes, features_ND in zip(codes_BN.tolist(), features_BND, strict=True):
                yield {"codes": codes, "features": features_ND}


class Observer:
    """Show key-frames to an inverse model: as codes where it reads those of the codec, else as pixels.

    A key-frame is usually in two pairs that follow each other. The observations of the last pairs stay, so that what a
    model keeps with an observation (codes, vision features) serves both, and no more than a batch's pixels are held.
    """

    def __init__(self, codec: "ImageCodec | None") -> None:
        """Take the codec whose codes the model reads; None: it is shown pixels."""
        self._codec = codec
        self._recent: dict[FrameKey, Observation] = {}

    def observe(self, pairs: Sequence[Pair], frames: Frames) -> "tuple[list[Observation], list[Observation]]":
        """Return the sources and the targets of pairs.

        Args:
            pairs: Consecutive ones, as they were proposed.
            frames: Encoded key-frames, which are read where the model reads codes.
        """
        from wm.dynamics.observation import Observation

        observations: dict[FrameKey, Observation] = {}
        for pair in pairs:
            for key in frame_keys(pair):
                if key in observations:
                    continue
                # Codes are at hand; pixels are decoded once for both pairs of a key-frame.
                if self._codec is not None:
                    observations[key] = Observation.from_codes(frames[key]["codes"], self._codec)
                elif key in self._recent:
                    observations[key] = self._recent[key]
                else:
                    observations[key] = Observation.from_pixels(decode_image(pair.video["images"][key[1]], "key-frame"))
        # Older ones go, with whatever pixels and codes were kept beside them.
        self._recent = observations
        # Two lists, as models take them.
        keys = [frame_keys(pair) for pair in pairs]
        return [observations[source] for source, _ in keys], [observations[target] for _, target in keys]
