"""Define the tables of ``annotate`` beside triplets and rejects: a row a video (``clips``), a row a proposed pair
(``pairs``), and the table that travels from decoders to annotators. Knows nothing of files.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

CLIPS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("class_label", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("num_frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("frame_s", pa.float64()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("orientation", pa.string()),
        ("sample_aspect_ratio", pa.string()),
        ("reader", pa.string()),
        ("fallback", pa.string()),
        ("errors", pa.int32()),
        ("keyframes", pa.list_(pa.int32())),
        ("times_s", pa.list_(pa.float64())),
        ("motion", pa.list_(pa.float32())),
    ]
)
"""One row a video, failed ones too (their numbers are null). ``motion``: the complete curve, px/frame at full size, one
number a frame. ``keyframes``: chosen frames, ``times_s`` theirs in the file's own clock. ``frame_s``: mean seconds
between two frames. ``height_px, width_px``: upright, in square pixels. ``orientation``: what laid the stored frames
upright, as ffmpeg's filters, empty where nothing did. ``sample_aspect_ratio``: of the stored frames, ``1:1`` where
their pixels are square. ``errors``: packets that could not be decoded. ``reader``: who read the frames;
``fallback``: why decord, asked first, did not."""

PAIRS_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("key", pa.string()),
        ("class_label", pa.string()),
        ("source_frame", pa.int32()),
        ("target_frame", pa.int32()),
        ("motion", pa.float32()),
        ("difference", pa.float32()),
        ("cut", pa.float32()),
        ("luma", pa.float32()),
        ("sharpness", pa.float32()),
        ("source_hash", pa.uint64()),
        ("target_hash", pa.uint64()),
        ("repeat_bits", pa.int32()),
        ("changed_codes", pa.int32()),
        ("changed_share", pa.float32()),
        ("action", pa.string()),
        ("action_logprob", pa.float64()),
        ("action_tokens", pa.int32()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("findings", pa.list_(pa.string())),
    ]
)
"""One row a proposed pair, kept or not. ``difference, cut, luma, sharpness``: what the filters look at
(:mod:`wm.datasets.filters`, :mod:`wm.video.facts`), null where a filter is off; ``luma`` and ``sharpness`` are the
lower of the two frames'. ``*_hash``: perceptual hashes. ``repeat_bits``: bits to the nearest earlier pair of the
shard. ``changed_codes``: image codes that differ between source and target, ``changed_share`` of all codes; null where
an image filter took the pair out before the codec saw it. ``action`` is null where a filter took the pair out before
the IDM saw it. ``outcome``: ``ok`` (a
triplet) or ``filtered``, ``reason`` by which filter. ``findings``: all thresholds that the pair is beyond, those of
filters that only score among them."""

DECODED_SCHEMA = pa.schema(
    [
        *CLIPS_SCHEMA,
        ("license", pa.string()),
        ("shard", pa.int64()),
        ("shard_rows", pa.int64()),
        ("problem", pa.string()),
        ("errno", pa.int64()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("images", pa.list_(pa.binary())),
        ("difference", pa.list_(pa.float32())),
        ("cut", pa.list_(pa.float32())),
        ("luma", pa.list_(pa.float32())),
        ("sharpness", pa.list_(pa.float32())),
        ("phash", pa.list_(pa.uint64())),
        ("download_s", pa.float64()),
        ("scan_s", pa.float64()),
        ("fetch_s", pa.float64()),
        ("failed_s", pa.float64()),
    ]
)
"""Between the actors: a row a video, all videos of a shard in one block. Key-frames as PNG bytes with what was
measured of each (``difference`` and ``cut``: against the key-frame before), or why there are none (``outcome``).
``problem``: trouble of the machine, not of the video; it ends the run. ``failed_s``: spent on a video that failed."""

DECODE_STAGES = ("download", "scan", "fetch", "failed")
"""What the decoders time: ``{stage}_s`` are columns."""


def clip_rows(videos: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Build rows of :data:`CLIPS_SCHEMA` from rows of :data:`DECODED_SCHEMA`."""
    return [{name: video[name] for name in CLIPS_SCHEMA.names} for video in videos]
