"""Judge the proposed pairs of the clips looked at as ``annotate`` does, by all filters that need no model.

Reads and writes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa

from jobs.annotate.filtering import filter_images
from jobs.annotate.pairs import Pair, propose_pairs
from jobs.annotate.tables import DECODED_SCHEMA, DecodedVideo, DecodeStage, stage_seconds
from jobs.look.reading import ShardRange, StoredClip
from jobs.look.recipe import LookRecipe

_READING: tuple[DecodeStage, ...] = ("scan", "fetch", "failed")
"""Work of a core on a video; a download waits for others."""


@dataclass
class Verdicts:
    """What one key-frame rule makes of the clips looked at.

    Attributes:
        videos: By row of the listing, failed ones too.
        pairs: Of each row, judged.
        repeats_known: Rows whose pairs are judged by the near-duplicate filter too: all earlier clips of their shard
            have been looked at.
    """

    videos: dict[int, DecodedVideo] = field(default_factory=dict)
    pairs: dict[int, list[Pair]] = field(default_factory=dict)
    repeats_known: set[int] = field(default_factory=set)

    def all_pairs(self) -> list[Pair]:
        """List the pairs in the order of the listing."""
        return [pair for row in sorted(self.pairs) for pair in self.pairs[row]]


def judge(
    listing: pa.Table, shards: Mapping[int, ShardRange], clips: Mapping[int, StoredClip], recipe: LookRecipe, rule: str
) -> Verdicts:
    """Judge the pairs that a key-frame rule proposes.

    Args:
        listing: A row a video.
        shards: The shard of each row.
        clips: What is stored of each clip, by row.
        recipe: Filters and thresholds.
        rule: Name of the rule.

    Returns:
        Videos, pairs and verdicts.
    """
    verdicts = Verdicts()
    read = {row: clip for row, clip in clips.items() if not clip["unfinished"]}
    # A shard's pairs are judged together, as an annotator does.
    by_shard: dict[ShardRange, list[int]] = {}
    for row in sorted(read):
        by_shard.setdefault(shards[row], []).append(row)
    for (number, start, num_rows), rows in by_shard.items():
        entries = listing.take(pa.array(rows)).to_pylist()
        more = {"shard": number, "shard_rows": num_rows}
        raw = [entry | more | read[row]["decodings"][rule] for row, entry in zip(rows, entries, strict=True)]
        # Through the table that annotate's actors exchange: its float32 decide what is below a threshold.
        names = [name for name in DECODED_SCHEMA.names if name != "images"]
        schema = pa.schema([DECODED_SCHEMA.field(name) for name in names])
        videos = cast(list[DecodedVideo], pa.Table.from_pylist(raw, schema=schema).to_pylist())
        verdicts.videos |= dict(zip(rows, videos, strict=True))
        # A repeat is one of an earlier pair: from the first clip that is missing on, it is not known.
        end = min(set(range(start, start + num_rows)) - set(rows), default=start + num_rows)
        early_rows = [row for row in rows if row < end]
        verdicts.repeats_known |= set(early_rows)
        _judge_pairs(verdicts, early_rows, recipe, with_repeats=True)
        _judge_pairs(verdicts, rows[len(early_rows) :], recipe, with_repeats=False)
    return verdicts


def _judge_pairs(verdicts: Verdicts, rows: list[int], recipe: LookRecipe, *, with_repeats: bool) -> None:
    filters = recipe.filters if with_repeats else recipe.filters.model_copy(update={"near_duplicate": "off"})
    # Off, so that it neither finds nor filters.
    pairs = {row: propose_pairs([verdicts.videos[row]]) for row in rows}
    filter_images([pair for row in rows for pair in pairs[row]], filters, recipe.keyframes.min_motion_px)
    verdicts.pairs |= pairs


@dataclass(frozen=True)
class Expectation:
    """What an annotation of all videos would give, as far as the clips looked at show.

    Attributes:
        pairs: Proposed.
        kept: Pairs that no filter takes out, but for those that need a model.
        frames: Frames.
        length_s: Seconds of video.
        reading_s: Seconds of one core of this machine for the motion pass and the key-frames.
    """

    pairs: float
    kept: float
    frames: float
    length_s: float
    reading_s: float


def expect(listing: pa.Table, verdicts: Verdicts) -> Expectation:
    """Extend what was looked at to all videos, each class by its own clips.

    Args:
        listing: A row a video.
        verdicts: At least one clip.
    """
    # Small classes have more than their share of the clips looked at: each clip counts for its share of its class.
    names, codes = np.unique(np.asarray(listing.column("class_label").to_pylist(), dtype=str), return_inverse=True)
    rows = sorted(verdicts.videos)
    listed_C = np.bincount(codes, minlength=len(names))
    looked_C = np.bincount(codes[rows], minlength=len(names))
    weight_R = listed_C[codes[rows]] / looked_C[codes[rows]]
    # Classes without a clip are taken for the mean of the others.
    weight_R *= listing.num_rows / weight_R.sum()
    sums = [0.0] * 5
    for row, weight in zip(rows, weight_R.tolist(), strict=True):
        video, pairs = verdicts.videos[row], verdicts.pairs[row]
        values = (
            len(pairs),
            sum(not pair.reason for pair in pairs),
            video["num_frames"] or 0,
            video["duration_s"] or 0.0,
            sum(stage_seconds(video, stage) for stage in _READING),
        )
        sums = [total + weight * value for total, value in zip(sums, values, strict=True)]
    return Expectation(*sums)
