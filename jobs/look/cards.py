"""Turn judged clips into what the page shows, and into the counts of the run. Writes nothing."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.annotate.counts import count_shard
from jobs.annotate.tables import DecodedVideo
from jobs.look.reading import StoredClip
from jobs.look.recipe import LookRecipe
from jobs.look.verdicts import Expectation, Verdicts
from wm.datasets.filters import FILTER_OF, mode_of
from wm.video import choose_keyframes
from wm.viewer.clips import ClipCard, FailedClip, PairCard, RuleCard, TimedCurve

IMAGE_REASONS = ("static", "hard_cut", "dark_frame", "blurred_frame", "near_duplicate")
"""Findings that need no model."""

THRESHOLDS = {
    "static": "static_difference",
    "hard_cut": "cut_ratio",
    "dark_frame": "dark_luma",
    "blurred_frame": "blurred_sharpness",
    "near_duplicate": "near_duplicate_bits",
}


def build_cards(
    listing: pa.Table, clips: Mapping[int, StoredClip], verdicts: Mapping[str, Verdicts], recipe: LookRecipe
) -> tuple[list[ClipCard], list[FailedClip]]:
    """Build the page's clips, and the list of those that could not be read.

    Args:
        listing: A row a video.
        clips: What is stored of each clip.
        verdicts: By key-frame rule.
        recipe: Filters.

    Returns:
        Both in the order of the listing.
    """
    cards: list[ClipCard] = []
    failures: list[FailedClip] = []
    rows = sorted(clips)
    for row, entry in zip(rows, listing.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
        clip, video = clips[row], verdicts[recipe.keyframes.rule].videos.get(row)
        key, label = entry["key"], entry["class_label"]
        if video is None:
            detail = f"not read within the {recipe.budget_s:g} s of budget_s; run the command again, or give more"
            failures.append({"key": key, "class_label": label, "reason": "not_finished", "detail": detail})
        elif clip["curve"] is None:
            reason, detail = video["reason"], video["detail"]
            failures.append({"key": key, "class_label": label, "reason": reason, "detail": detail})
        else:
            cards.append(
                {
                    "key": key,
                    "uri": entry["uri"],
                    "class_label": label,
                    "facts": _list_facts(video, clip["curve"], clip),
                    "curve": clip["curve"],
                    "sheet": clip["sheet"],
                    "rules": {rule: _build_rule(verdicts[rule], row, recipe) for rule in verdicts},
                }
            )
    return cards, failures


def _list_facts(video: DecodedVideo, curve: TimedCurve, clip: StoredClip) -> list[tuple[str, str]]:
    facts = [
        ("", f"{video['duration_s']:,.2f} s"),
        ("", f"{video['num_frames']:,} frames"),
        ("", f"{1 / video['frame_s']:.4g} fps"),
        ("", f"{video['width_px']} × {video['height_px']}"),
    ]
    # What is out of the ordinary is worth a word.
    if curve["slow_ms"] > 1.5 * max(curve["fast_ms"], 0.0) + 1:
        facts.append(("steps", f"{curve['fast_ms']:.4g} to {curve['slow_ms']:.4g} ms a frame"))
    if video["start_s"] is not None or video["end_s"] is not None:
        end = "the end" if video["end_s"] is None else f"{video['end_s']:g} s"
        facts.append(("segment", f"{video['start_s'] or 0:g} s to {end}"))
    if video["orientation"]:
        facts.append(("laid upright by", video["orientation"]))
    if video["sample_aspect_ratio"] != "1:1":
        facts.append(("stored pixels", video["sample_aspect_ratio"]))
    if video["errors"]:
        facts.append(("damaged packets", f"{video['errors']:,}"))
    if clip["sheet"] is not None:
        facts.append(("annotate stores", "{} × {}".format(*clip["sheet"]["stored_px"])))
    return facts


def _build_rule(verdicts: Verdicts, row: int, recipe: LookRecipe) -> RuleCard:
    # Numbers are rounded for the page only; the tables hold them in full.
    video = verdicts.videos[row]
    keyframes = zip(video["keyframes"], video["times_s"], strict=True)
    pairs: list[PairCard] = [
        {
            "numbers": pair.numbers(recipe.filters),
            "findings": pair.findings,
            "reason": pair.reason,
            "repeats_known": row in verdicts.repeats_known,
        }
        for pair in verdicts.pairs[row]
    ]
    return {
        "keyframes": [
            {"frame": frame, "time_s": round(time_s, 4), "motion": round(video["motion"][frame], 4)}
            for frame, time_s in keyframes
        ],
        "pairs": pairs,
        "reader": video["reader"],
        "note": video["detail"] or "",
    }


def count_rule(verdicts: Verdicts, recipe: LookRecipe) -> dict[str, Any]:
    """Count what a rule makes of the clips.

    Args:
        verdicts: Videos and pairs.
        recipe: Filters.

    Returns:
        The counts of ``annotate`` that need no model, ``kept`` pairs, and of each finding its pairs and among how many
        it was looked for.
    """
    # By annotate's own counting, as far as there is something to count.
    pairs = verdicts.all_pairs()
    videos = [verdicts.videos[row] for row in sorted(verdicts.videos)]
    rows = [pair.row(recipe.dataset, recipe.filters) for pair in pairs]
    counts = count_shard(videos, {"triplets": [], "rejects": [], "pairs": rows}, {})
    # Repeats are known of fewer pairs than the rest.
    names = (
        "videos",
        "decoded",
        "frames",
        "video_s",
        "paired",
        "keyframes",
        "keyframes_of_paired",
        "pairs",
        "readers",
        "measured_on",
    )
    num_known = sum(len(verdicts.pairs[row]) for row in verdicts.repeats_known)
    findings = Counter(name for pair in pairs for name in pair.findings)
    failed = Counter(video["reason"] for video in videos if video["outcome"] == "failed")
    return {
        **{name: counts[name] for name in names},  # type: ignore[literal-required]
        "failed": failed.total(),
        "failed_by_reason": dict(sorted(failed.items())),
        "kept": sum(not pair.reason for pair in pairs),
        "too_little_motion": sum(pair.reason == "too_little_motion" for pair in pairs),
        "findings": {name: findings[name] for name in IMAGE_REASONS},
        "judged": {name: num_known if name == "near_duplicate" else len(pairs) for name in IMAGE_REASONS},
    }


def count_alternatives(verdicts: Verdicts, recipe: LookRecipe) -> list[dict[str, object]] | None:
    """Count pairs a clip at other numbers of key-frames, by rule; the curves are there, so this is cheap.

    Args:
        verdicts: Videos with their curves.
        recipe: Its own number of key-frames is among those compared.

    Returns:
        Rows of ``max_keyframes`` and ``pairs`` by rule; None with farneback, which measures only what one choice needs,
        and where no clip was read.
    """
    videos = [video for video in verdicts.videos.values() if video["num_frames"]]
    if recipe.keyframes.motion != "dis" or not videos:
        return None
    # Every clip that was read counts, those without a pair too.
    rows: list[dict[str, object]] = []
    for max_keyframes in sorted({4, 6, 8, 12, recipe.keyframes.max_keyframes}):
        limits = {"max_keyframes": max_keyframes, "min_interval_frames": recipe.keyframes.min_interval_frames}
        pairs = {
            rule: sum(len(choose_keyframes(video["motion"], rule=rule, **limits)) - 1 for video in videos) / len(videos)
            for rule in recipe.rules()
        }
        rows.append({"max_keyframes": max_keyframes, "pairs": pairs})
    return rows


def describe_filters(recipe: LookRecipe) -> list[dict[str, object]]:
    """Describe each filter that needs no model: reason, key, mode, threshold."""
    return [
        {
            "reason": reason,
            "key": f"filters.{FILTER_OF[reason]}",
            "mode": mode_of(reason, recipe.filters),
            "threshold_key": f"filters.{THRESHOLDS[reason]}",
            "threshold": getattr(recipe.filters, THRESHOLDS[reason]),
        }
        for reason in IMAGE_REASONS
    ]


def build_page_data(
    listing: pa.Table,
    recipe: LookRecipe,
    *,
    counts: Mapping[str, Mapping[str, Any]],
    expectations: Mapping[str, Expectation],
    failures: list[FailedClip],
    alternatives: list[dict[str, object]] | None,
    more: Mapping[str, object],
) -> dict[str, object]:
    """Build what the head of the page shows.

    Args:
        listing: A row a video.
        recipe: Settings.
        counts: Of each rule.
        expectations: Of each rule.
        failures: Clips that could not be read.
        alternatives: Pairs a clip with other settings.
        more: Further values for the page.
    """
    keyframes = recipe.keyframes
    return {
        "listed": listing.num_rows,
        "rule": keyframes.rule,
        "rules": recipe.rules(),
        "counts": counts,
        "expectations": {rule: vars(values) for rule, values in expectations.items()},
        "filters": describe_filters(recipe),
        "alternatives": alternatives,
        "min_motion_px": keyframes.min_motion_px,
        "settings": {f"keyframes.{name}": value for name, value in keyframes.model_dump().items() if name != "rule"},
        "failures": failures,
        **more,
    }
