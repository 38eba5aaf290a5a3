"""Score predicted images, a batch at a time: distances of pixels, similarities of CLIP and DINO, captions of BLIP.

Not known here: which systems there are, how batches are cut and where they run.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.feature_cache import FeatureCache
from wm.evaluation.metrics.distances import full_l1, square_l1
from wm.evaluation.metrics.encoders import BlipCaptioner, ClipEncoder, DinoEncoder, Vectors
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.predictions import PredictionFacts, pixels_digest, read_image_bytes
from wm.images import Pixels, decode_image, fit_square
from wm.models import ImageCodec

METRICS = ("l1", "l1_square", "clip_i", "clip_t_target", "clip_t_prediction", "dino")
"""Columns of :data:`VALUE_SCHEMA` that are metrics."""
SQUARE_SIDE_PX = 512
"""Side of the squares of ``l1_square`` where the prediction shows the full frame."""

VALUE_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("system", pa.string()),
        ("run", pa.int32()),
        ("sampling_seed", pa.int32()),
        ("decoding", pa.string()),
        ("candidates", pa.list_(pa.int32())),
        ("chosen_at", pa.list_(pa.int32())),
        ("pixels_sha256", pa.string()),
        *((name, pa.float64()) for name in METRICS),
        ("caption", pa.string()),
        ("target_caption", pa.string()),
    ]
)
"""One row = the metrics of one row of a prediction set; null where a metric's model is absent.

``l1``: over the full target, the prediction resized to its size. ``l1_square``: over centre squares. ``clip_i`` and
``dino``: cosine of prediction and target. ``clip_t_*``: cosine of the prediction and a caption, of the target or of
itself."""

Values: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class ImageModels:
    """The models that metrics need, each None where it was not given."""

    clip: ClipEncoder | None = None
    dino: DinoEncoder | None = None
    blip: BlipCaptioner | None = None
    codec: ImageCodec | None = None  # what the targets of the codec's ceiling go through


@dataclass(frozen=True)
class ScoreBatch:
    """Images of one column of one file, and the triplets that they are predictions of."""

    number: int
    file: str
    column: str  # image of a prediction set; source_image (Copy) or target_image (through the codec) of the bench
    facts: list[PredictionFacts]
    chunk: list[BenchRow]  # rows of the bench that hold the images' triplets: the same for all batches of these rows
    through_codec: bool = False


@dataclass(frozen=True)
class ImageFeatures:
    """What the models gave for the images of a batch, a row an image; None where a model is absent."""

    clip: Vectors | None
    dino: Vectors | None
    captions: list[str] | None
    caption_vectors: Vectors | None  # CLIP's of the captions

    def take(self, rows: Sequence[int]) -> "ImageFeatures":
        """Return the features of some images, in their order."""
        clip, dino, vectors = (None if part is None else part[rows] for part in self._vectors())
        captions = None if self.captions is None else [self.captions[row] for row in rows]
        return ImageFeatures(clip, dino, captions, vectors)

    def _vectors(self) -> tuple[Vectors | None, Vectors | None, Vectors | None]:
        return self.clip, self.dino, self.caption_vectors


def score_batch(batch: ScoreBatch, models: ImageModels, cache: FeatureCache) -> list[Values]:
    """Score the images of a batch.

    Args:
        batch: The images.
        models: For the metrics.
        cache: What the models gave before.

    Returns:
        Rows of :data:`VALUE_SCHEMA`, in the order of the batch.

    Raises:
        InputError: An image cannot be read.
    """
    images = _read_predictions(batch, models)
    # All targets of the chunk at once, whichever are asked for: every batch of it finds their features stored.
    targets = read_targets(tuple(batch.chunk))
    rows_of = {row.triplet_id: index for index, row in enumerate(batch.chunk)}
    targets_of = [rows_of[facts["triplet_id"]] for facts in batch.facts]
    pairs = [*zip(images, [targets[index] for index in targets_of], batch.facts, strict=True)]
    metrics: dict[str, Floats | None] = {"l1": np.array([full_l1(image, target) for image, target, _ in pairs])}
    # Squares are compared at their own size, which is today's figure of wm evaluate.
    sides_px = [image.shape[0] if facts["view"] == "square" else SQUARE_SIDE_PX for image, _, facts in pairs]
    metrics["l1_square"] = np.array(
        [square_l1(image, target, side_px) for (image, target, _), side_px in zip(pairs, sides_px, strict=True)]
    )
    own, true = compute_features(images, models, cache), compute_features(targets, models, cache).take(targets_of)
    metrics["clip_i"] = _cosine(own.clip, true.clip)
    metrics["clip_t_target"] = _cosine(own.clip, true.caption_vectors)
    metrics["clip_t_prediction"] = _cosine(own.clip, own.caption_vectors)
    metrics["dino"] = _cosine(own.dino, true.dino)
    return [
        {
            **{name: value for name, value in facts.items() if name in VALUE_SCHEMA.names},
            "pixels_sha256": pixels_digest(image),
            **{name: float(values[index]) for name, values in metrics.items() if values is not None},
            "caption": own.captions[index] if own.captions is not None else None,
            "target_caption": true.captions[index] if true.captions is not None else None,
        }
        for index, (image, _, facts) in enumerate(pairs)
    ]


@lru_cache(maxsize=1)
def read_targets(rows: tuple[BenchRow, ...]) -> list[Pixels]:
    """Read the targets of triplets; the last ones stay, as several batches in turn are of one chunk.

    Raises:
        InputError: A file is damaged, or an image cannot be read.
    """
    images: dict[tuple[str, int], Pixels] = {}
    for file in dict.fromkeys(row.file for row in rows):
        of_file = {row.row: row for row in rows if row.file == file}
        for number, data in zip(sorted(of_file), read_image_bytes(file, sorted(of_file), "target_image"), strict=True):
            images[file, number] = decode_image(data, f"target_image of triplet {of_file[number].triplet_id}")
    return [images[row.file, row.row] for row in rows]


def _read_predictions(batch: ScoreBatch, models: ImageModels) -> list[Pixels]:
    # Ascending, as row groups are read one after another.
    numbers = sorted({facts["row"] for facts in batch.facts})
    encoded = dict(zip(numbers, read_image_bytes(batch.file, numbers, batch.column), strict=True))
    images = [
        decode_image(encoded[facts["row"]], f"{batch.column} of triplet {facts['triplet_id']} in {batch.file}")
        for facts in batch.facts
    ]
    if not batch.through_codec or models.codec is None:
        return images
    squares = np.stack([fit_square(image, models.codec.side_px) for image in images])
    return [*models.codec.decode(models.codec.encode(squares))]


def compute_features(images: Sequence[Pixels], models: ImageModels, cache: FeatureCache) -> ImageFeatures:
    """Load or compute what the models give for images; equal images are one.

    Args:
        images: uint8 RGB of any size.
        models: Those that are there.
        cache: Where the results are stored.

    Returns:
        Vectors and captions, a row an image.
    """
    digests = [pixels_digest(image) for image in images]
    distinct = dict(zip(digests, images, strict=True))
    # Sorted, so that a batch of the same images in another order is the same file.
    hashes = sorted(distinct)
    rows = [hashes.index(digest) for digest in digests]
    pixels = [distinct[digest] for digest in hashes]
    clip, dino, blip = models.clip, models.dino, models.blip
    clip_vectors = dino_vectors = captions = caption_vectors = None
    if clip is not None:
        clip_vectors = cache.vectors(clip.digest, hashes, lambda: clip.embed_images(pixels))
    if dino is not None:
        dino_vectors = cache.vectors(dino.digest, hashes, lambda: dino.embed_images(pixels))
    if blip is not None:
        captions = texts = cache.texts(blip.digest, hashes, lambda: blip.caption(pixels))
        if clip is not None:
            text_hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
            caption_vectors = cache.vectors(f"{clip.digest}-text", text_hashes, lambda: clip.embed_texts(texts))
    return ImageFeatures(clip_vectors, dino_vectors, captions, caption_vectors).take(rows)


def _cosine(first_ND: Vectors | None, second_ND: Vectors | None) -> Floats | None:
    if first_ND is None or second_ND is None:
        return None
    # Of unit vectors; in float64 and a row at a time, so that no matrix product's order shows.
    products: Floats = (first_ND.astype(np.float64) * second_ND.astype(np.float64)).sum(axis=1)
    return products
