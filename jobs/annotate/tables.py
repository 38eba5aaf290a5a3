"""Define the tables of ``annotate`` beside triplets and rejects: a row a video (``clips``), a row a proposed pair
(``pairs``), and the table that travels from decoders to annotators. Knows nothing of files.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict, get_args

import pyarrow as pa

from wm.records import Outcome

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
an image filter took the pair out before the codec saw it, or there is no codec. ``action`` is null where a filter took
the pair out before the IDM saw it. ``outcome``: ``ok`` (a triplet) or ``filtered``, ``reason`` by which filter.
``findings``: all thresholds that the pair is beyond, those of filters that only score among them."""

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
        ("node", pa.string()),
        ("measured_on", pa.string()),
    ]
)
"""Between the actors: a row a video, all videos of a shard in one block. Key-frames as PNG bytes with what was
measured of each (``difference`` and ``cut``: against the key-frame before), or why there are none (``outcome``).
``problem``: trouble of the machine, not of the video; it ends the run. ``failed_s``: spent on a video that failed.
``node``: Ray's id of the node that decoded it, null without Ray. ``measured_on``: who measured its motion
(:attr:`wm.video.Scan.measured_on`)."""

DecodeStage: TypeAlias = Literal["download", "scan", "fetch", "failed"]
DECODE_STAGES: tuple[DecodeStage, ...] = get_args(DecodeStage)
"""What the decoders time: ``{stage}_s`` are columns."""


class ListedVideo(TypedDict):
    """A row of a listing on its way to a decoder, with its shard's number and number of rows."""

    key: str
    uri: str
    class_label: str
    start_s: float | None
    end_s: float | None
    license: str
    shard: int
    shard_rows: int


class Decoding(TypedDict, total=False):
    """Columns of :data:`DECODED_SCHEMA` that a decoder adds; those that a video does not have are null in the table."""

    num_frames: int
    duration_s: float
    frame_s: float
    height_px: int
    width_px: int
    orientation: str
    sample_aspect_ratio: str
    reader: str
    fallback: str
    errors: int
    keyframes: list[int]
    times_s: list[float]
    motion: list[float]
    problem: str
    errno: int
    outcome: Outcome
    reason: str
    detail: str
    images: list[bytes]
    difference: list[float]
    cut: list[float]
    luma: list[float]
    sharpness: list[float]
    phash: list[int]
    download_s: float
    scan_s: float
    fetch_s: float
    failed_s: float
    node: str | None
    measured_on: str | None


class DecodedVideo(ListedVideo, Decoding):
    """A row of :data:`DECODED_SCHEMA`."""


class PairRow(TypedDict):
    """A row of :data:`PAIRS_SCHEMA`."""

    triplet_id: str
    key: str
    class_label: str
    source_frame: int
    target_frame: int
    motion: float
    difference: float | None
    cut: float | None
    luma: float | None
    sharpness: float | None
    source_hash: int | None
    target_hash: int | None
    repeat_bits: int | None
    changed_codes: int | None
    changed_share: float | None
    action: str | None
    action_logprob: float | None
    action_tokens: int | None
    outcome: Literal["ok", "filtered"]
    reason: str
    findings: list[str]


def stage_seconds(video: DecodedVideo, stage: DecodeStage) -> float:
    """Return the seconds that a stage took for a video, 0 where it had none.

    Args:
        video: Columns that are null or absent count as 0.
        stage: What was timed.
    """
    # By name, so that the types of the columns are checked.
    seconds = {
        "download": video.get("download_s"),
        "scan": video.get("scan_s"),
        "fetch": video.get("fetch_s"),
        "failed": video.get("failed_s"),
    }
    return seconds[stage] or 0.0


def clip_rows(videos: Sequence[DecodedVideo]) -> list[dict[str, object]]:
    """Build rows of :data:`CLIPS_SCHEMA` from decoded videos."""
    return [{name: value for name, value in video.items() if name in CLIPS_SCHEMA.names} for video in videos]


class ShardReport(TypedDict):
    """What an annotator returns of a shard, one row: its counts, or a ``problem`` that ends the run."""

    problem: str
    errno: int
    shard: int
    videos: int
    pairs: int
    triplets: int
    reasons: str
    """JSON: number of rejects by reason."""
    block_bytes: int
    """Size of the decoded shard, key-frames and numbers."""
    moved_bytes: int
    """So many of them came from another node."""


def to_batch(report: ShardReport) -> dict[str, list[object]]:
    """Convert a report to the batch of one row that Ray Data takes."""
    return {name: [value] for name, value in report.items()}


def report_problem(message: str, errno: int = 0) -> dict[str, list[object]]:
    """Build the batch that ends the run.

    Args:
        message: What is wrong.
        errno: Error number of the disk; 0: the input is at fault.
    """
    # A row of the same columns, as Ray Data takes no other; -1: no shard.
    report: ShardReport = {
        "problem": message,
        "errno": errno,
        "shard": -1,
        "videos": 0,
        "pairs": 0,
        "triplets": 0,
        "reasons": "{}",
        "block_bytes": 0,
        "moved_bytes": 0,
    }
    return to_batch(report)
