"""An image that passes between models: as codes of a codec, as pixels, or as both.

Two models of one codec exchange codes, and nothing goes through pixels; any other two exchange pixels. The form that is
missing is computed when it is asked for, in one batch for many images, and kept.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Self, TypeAlias

import numpy as np
from PIL import Image

from wm.errors import InputError
from wm.images import Pixels, fit_square
from wm.judging import unchanged_share as share_of_tokens
from wm.models.codec.codec import ImageCodec

CodesRow: TypeAlias = tuple[int, ...]
"""Codebook ids of an image, row by row."""

BLOCK_PX = 16
"""Side of the blocks in which images without common codes are compared: that of a token of the paper's codecs."""
BLOCK_TOLERANCE = 4.0
"""Mean absolute difference of 8-bit values up to which a block is unchanged; ours. An autoencoder's round trip leaves
about 2 of natural images, a moved object tens."""
_AT_ONCE = 32


class Observation:
    """An image, which equals another if it was made of the same codes, or of the same pixels.

    Make one by :meth:`from_codes` or :meth:`from_pixels`; read many by :func:`codes_of` and :func:`pixels_of`.
    """

    __slots__ = ("_codec", "_codes_by_codec", "_key", "_pixels_HWC")

    def __init__(
        self, key: Hashable, codes_by_codec: dict[str, CodesRow], codec: ImageCodec | None, pixels_HWC: Pixels | None
    ) -> None:
        self._key = key
        self._codes_by_codec = codes_by_codec
        self._codec = codec
        self._pixels_HWC = pixels_HWC

    @classmethod
    def from_codes(cls, codes: Sequence[int], codec: ImageCodec | str) -> Self:
        """Make an observation of codes.

        Args:
            codes: Codebook ids (N,).
            codec: Theirs; its id alone suffices where no model reads pixels.
        """
        row = tuple(int(code) for code in codes)
        codec_id = codec if isinstance(codec, str) else codec.codec_id
        return cls((codec_id, row), {codec_id: row}, None if isinstance(codec, str) else codec, None)

    @classmethod
    def from_pixels(cls, pixels_HWC: Pixels, codes_by_codec: Mapping[str, CodesRow] | None = None) -> Self:
        """Make an observation of pixels.

        Args:
            pixels_HWC: uint8 RGB of any size, which must not be changed afterwards.
            codes_by_codec: Its codes by the id of their codec, where they are known: it is not encoded again.

        Raises:
            InputError: It is another array.
        """
        array = np.asarray(pixels_HWC)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise InputError(f"image: expected uint8 pixels (H, W, 3), got {array.dtype} {array.shape}")
        # A digest: candidates are compared and looked up, and an image may have millions of pixels.
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return cls(("pixels", array.shape, digest), dict(codes_by_codec or {}), None, array)

    def __eq__(self, other: object) -> bool:
        """Return whether both were made of the same codes of one codec, or of the same pixels."""
        return isinstance(other, Observation) and self._key == other._key

    def __hash__(self) -> int:
        """Return a hash that equal observations share; of codes another one in every process."""
        return hash(self._key)

    def __repr__(self) -> str:
        """Return the kind and the beginning of the content."""
        return f"Observation({str(self._key)[:60]})"

    @property
    def codes(self) -> CodesRow:
        """Codes that it was made of.

        Raises:
            InputError: It was made of pixels.
        """
        if self.is_of_pixels:
            raise InputError("this observation was made of pixels: it has codes only of a codec that encodes it")
        return next(iter(self._codes_by_codec.values()))

    @property
    def is_of_pixels(self) -> bool:
        """Whether it was made of pixels, and not of codes."""
        return isinstance(self._key, tuple) and self._key[0] == "pixels"

    @property
    def codec_id(self) -> str:
        """Identity of the codec of :attr:`codes`; empty where it was made of pixels."""
        return "" if self.is_of_pixels else next(iter(self._codes_by_codec))

    @property
    def text(self) -> str:
        """What seeds are derived from, the same in every process: codes joined by commas, or a digest of pixels."""
        # The text of codes as it always was: rollouts of the same seed stay the same.
        if self.is_of_pixels:
            return ",".join(map(str, self._key)) if isinstance(self._key, tuple) else ""
        return ",".join(map(str, self.codes))


def observe_codes(codes_BN: Iterable[Sequence[int]], codec: ImageCodec | str) -> list[Observation]:
    """Make an observation of each row of codes.

    Args:
        codes_BN: Codebook ids; tensors and arrays are given as lists.
        codec: Theirs, or its id.
    """
    return [Observation.from_codes(codes_N, codec) for codes_N in codes_BN]


def codes_of(observations: Sequence[Observation], codec: ImageCodec) -> list[CodesRow]:
    """Return the codes of every observation; those that have none of this codec are encoded, each of equal ones once.

    Args:
        observations: Images.
        codec: Whose codes are wanted; other sizes are fitted to its square.

    Raises:
        InputError: Codes of another codec cannot be decoded.
    """
    # Equal observations may be different objects, any of which may have them.
    codes_by_item = {
        item: item._codes_by_codec[codec.codec_id] for item in observations if codec.codec_id in item._codes_by_codec
    }
    missing = [item for item in dict.fromkeys(observations) if item not in codes_by_item]
    pixels = pixels_of(missing)
    for begin in range(0, len(missing), _AT_ONCE):
        batch = missing[begin : begin + _AT_ONCE]
        squares_BHWC = np.stack([fit_square(image, codec.side_px) for image in pixels[begin : begin + _AT_ONCE]])
        codes_by_item |= zip(batch, map(tuple, codec.encode(squares_BHWC).tolist()), strict=True)
    return [item._codes_by_codec.setdefault(codec.codec_id, codes_by_item[item]) for item in observations]


def pixels_of(observations: Sequence[Observation]) -> list[Pixels]:
    """Return the pixels of every observation, uint8 (H, W, 3); codes are decoded, each of equal ones once.

    Args:
        observations: Images.

    Raises:
        InputError: An observation has codes alone, and its codec is not at hand or has no decoder.
    """
    # Equal observations may be different objects, any of which may have been decoded, or know its codec.
    decoded = {item: item._pixels_HWC for item in observations if item._pixels_HWC is not None}
    codecs = {item.codec_id: item._codec for item in observations if item._codec is not None}
    # By codec: those of one are decoded in one batch.
    missing: dict[str, list[Observation]] = defaultdict(list)
    for item in dict.fromkeys(observations):
        if item not in decoded:
            missing[item.codec_id].append(item)
    for codec_id, items in missing.items():
        codec = codecs.get(codec_id)
        if codec is None:
            raise InputError(f"images are codes of codec {codec_id}, which is not at hand to decode them")
        codec.check_decoder()
        for begin in range(0, len(items), _AT_ONCE):
            batch = items[begin : begin + _AT_ONCE]
            decoded |= zip(batch, codec.decode(np.array([item.codes for item in batch])), strict=True)
    # Kept: the same image is asked for by the verifier, by the writer of files and by the next step.
    for item in observations:
        if item._pixels_HWC is None:
            item._pixels_HWC = decoded[item]
    return [decoded[item] for item in observations]


def unchanged_share(source: Observation, candidate: Observation) -> float:
    """Compute how much of its source a candidate leaves unchanged.

    Of images with codes of one codec the share of equal tokens, as :func:`wm.judging.unchanged_share`; of others the
    share of blocks of :data:`BLOCK_PX` pixels that differ by at most :data:`BLOCK_TOLERANCE` on average, the source
    being scaled to the candidate's size.

    Args:
        source: The image before.
        candidate: The predicted one.

    Returns:
        0 to 1 (1: a copy).

    Raises:
        InputError: As :func:`pixels_of`.
    """
    # Tokens where both have them: what the paper's codecs give, and what the guard's threshold was chosen for.
    source_codes = source._codes_by_codec.get(candidate.codec_id)
    if source_codes is not None:
        return share_of_tokens(source_codes, candidate.codes)
    source_HWC, candidate_HWC = pixels_of([source, candidate])
    height, width = candidate_HWC.shape[:2]
    if source_HWC.shape != candidate_HWC.shape:
        scaled = Image.fromarray(source_HWC).resize((width, height), Image.Resampling.LANCZOS)
        source_HWC = np.array(scaled)
    # In whole numbers: exact, and a third of the time of floats, for which servers have all requests wait.
    difference_HWC = np.maximum(source_HWC, candidate_HWC) - np.minimum(source_HWC, candidate_HWC)
    # Sums of blocks, those at the right and lower edge being smaller.
    rows, columns = range(0, height, BLOCK_PX), range(0, width, BLOCK_PX)
    sums = np.add.reduceat(np.add.reduceat(difference_HWC, rows, axis=0, dtype=np.int64), columns, axis=1).sum(axis=2)
    sizes = 3 * np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return float((sums <= BLOCK_TOLERANCE * sizes).mean())
