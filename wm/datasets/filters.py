"""Decide which proposed pairs are kept: filters over numbers that were measured once, each off, score or on.

``score`` measures and keeps the pair; the numbers are in the annotation's ``pairs`` table, so another threshold
needs no new run. A pair that a filter takes out is *filtered*: nothing about it failed.
"""

import re
from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from pydantic import Field

from wm.config import Recipe
from wm.words import split_at_blanks

Mode: TypeAlias = Literal["off", "score", "on"]

_LETTER = re.compile(r"[^\W\d_]")
_MAX_REPEATS = 4


class Filters(Recipe):
    """Each filter is off (not measured), score (measured, nothing left out) or on; with its threshold. The codes, the
    action and its likelihood are known anyway: there off only means that nothing is counted."""

    static: Mode = "score"
    """Pairs whose two frames look the same."""
    static_difference: float = Field(default=1.5, ge=0)
    """Mean absolute difference of the two frames at 64 x 64, in grey levels of 255, below which a pair is static."""
    cut: Mode = "score"
    """Pairs with a hard cut between their frames: they show two scenes, no action."""
    cut_ratio: float = Field(default=3.0, gt=0)
    """A frame that differs from the one before so many times more than its neighbours do begins a new shot."""
    dark: Mode = "score"
    """Pairs with a black frame."""
    dark_luma: float = Field(default=16.0, ge=0, le=255)
    """Mean brightness (0 to 255) below which a frame is black."""
    blurred: Mode = "score"
    """Pairs with a blurred or empty frame."""
    blurred_sharpness: float = Field(default=15.0, ge=0)
    """Variance of the Laplacian at a short side of 256 px below which a frame is blurred."""
    near_duplicate: Mode = "score"
    """Pairs that repeat an earlier pair among the videos annotated together (by perceptual hash of both frames)."""
    near_duplicate_bits: int = Field(default=4, ge=0, le=64)
    """Bits of 64 by which source and target may each differ from the earlier pair's."""
    unchanged: Mode = "on"
    """Pairs whose frames have the same image codes: as triplets they teach a model to copy its source. Measured before
    the IDM sees the pair, on the codes that training learns from."""
    min_changed_codes: int = Field(default=1, ge=1)
    """Image codes that must differ between source and target; a pair with fewer is unchanged."""
    action: Mode = "on"
    """Actions that are no phrase: without a letter, one word over and over, cut off at max_new_tokens. One without
    any text can never be a triplet and is always filtered."""
    likelihood: Mode = "score"
    """Pairs whose action the IDM does not believe in."""
    min_likelihood: float = -3.0
    """Mean log-likelihood per action token, in nats, below which a pair is left out."""


FILTER_OF = {
    "static": "static",
    "hard_cut": "cut",
    "dark_frame": "dark",
    "blurred_frame": "blurred",
    "near_duplicate": "near_duplicate",
    "unchanged_codes": "unchanged",
    "unparsed_action": "action",
    "unlikely_action": "likelihood",
}
"""Reason → the filter that finds it."""


class PairNumbers(TypedDict):
    """What the image filters compare, None where it was not measured.

    ``repeat_bits``: bits to the nearest earlier pair; ``difference``: of the two frames, in grey levels; ``cut``: cut
    score between them; ``luma``, ``sharpness``: the lower of the two frames'.
    """

    repeat_bits: int | None
    difference: float | None
    cut: float | None
    luma: float | None
    sharpness: float | None


def image_findings(pair: PairNumbers, filters: Filters) -> list[str]:
    """List the thresholds that a pair's images are beyond, of the filters that are not off.

    Args:
        pair: Its numbers.
        filters: Modes and thresholds.
    """
    # Every threshold is looked at, so that a filter that only scores is counted too.
    bits = pair["repeat_bits"]
    beyond = {
        "static": _below(pair["difference"], filters.static_difference),
        "hard_cut": _reaches(pair["cut"], filters.cut_ratio),
        "dark_frame": _below(pair["luma"], filters.dark_luma),
        "blurred_frame": _below(pair["sharpness"], filters.blurred_sharpness),
        "near_duplicate": bits is not None and bits <= filters.near_duplicate_bits,
    }
    return [reason for reason, is_beyond in beyond.items() if is_beyond and mode_of(reason, filters) != "off"]


def code_findings(changed_codes: int, filters: Filters) -> list[str]:
    """List the thresholds that a pair's image codes are beyond, of the filters that are not off.

    Args:
        changed_codes: Number of positions at which source and target have different codes.
        filters: Modes and thresholds.

    Returns:
        ``["unchanged_codes"]`` or ``[]``.
    """
    is_unchanged = changed_codes < filters.min_changed_codes and filters.unchanged != "off"
    return ["unchanged_codes"] if is_unchanged else []


def action_findings(text: str, mean_logprob: float, finished: bool, filters: Filters) -> list[str]:
    """List the thresholds that a pair's action is beyond, of the filters that are not off.

    Args:
        text: The action.
        mean_logprob: Mean log-likelihood, in nats per token.
        finished: The IDM ended the text by itself.
        filters: Modes and thresholds.

    Returns:
        Reasons, in the order in which they are reported; ``["empty_action"]`` alone for a text without words.
    """
    if not text.strip():
        return ["empty_action"]
    # An action that was cut off is no phrase, whatever its words are.
    beyond = {
        "unparsed_action": not (finished and is_phrase(text)),
        "unlikely_action": mean_logprob < filters.min_likelihood,
    }
    return [reason for reason, is_beyond in beyond.items() if is_beyond and mode_of(reason, filters) != "off"]


def reason_of(findings: Sequence[str], filters: Filters) -> str:
    """Return the finding that filters a pair: the first whose filter is on ("" = none), and an empty action always.

    Args:
        findings: Reasons, in the order in which they are reported.
        filters: Modes and thresholds.
    """
    # An empty action can never be a triplet, whatever the modes.
    taking = (reason for reason in findings if reason == "empty_action" or mode_of(reason, filters) == "on")
    return next(taking, "")


def mode_of(reason: str, filters: Filters) -> Mode:
    """Return the mode of the filter behind a reason.

    Args:
        reason: A key of :data:`FILTER_OF`.
        filters: Modes and thresholds.
    """
    mode: Mode = getattr(filters, FILTER_OF[reason])
    return mode


def is_phrase(text: str) -> bool:
    """Return whether a text has a letter and is not one word (or pair of words) over and over."""
    if not _LETTER.search(text):
        return False
    words = split_at_blanks(text.lower())
    # A degenerate decoder repeats one word or two in turn.
    for span in (1, 2):
        repeats = 1
        for at in range(span, len(words) - span + 1, span):
            repeats = repeats + 1 if words[at : at + span] == words[at - span : at] else 1
            if repeats >= _MAX_REPEATS:
                return False
    return True


def repeat_bits(
    hashes_P2: Sequence[tuple[int, int]], filters: Filters, kept_P: Sequence[bool] | None = None
) -> list[int | None]:
    """Compute by how many bits each pair differs from the nearest earlier one (the larger of source and target).

    Args:
        hashes_P2: (source, target) perceptual hashes of P pairs, in order.
        filters: Modes and thresholds.
        kept_P: Pairs that no other filter takes out; None: all. Only these count as earlier ones, and where the filter
            is on only those that are no repeats themselves.

    Returns:
        Bits of each pair, 0 to 64; None where there is no earlier pair.
    """
    hashes = np.asarray(hashes_P2, dtype=np.uint64).reshape(-1, 2)
    is_kept_P = np.ones(len(hashes), bool) if kept_P is None else np.asarray(kept_P, bool).copy()
    nearest: list[int | None] = []
    for row, pair in enumerate(hashes):
        # A pair that is itself left out may not push others out.
        earlier = hashes[:row][is_kept_P[:row]]
        bits = int(np.bitwise_count(earlier ^ pair).max(axis=1).min()) if len(earlier) else None
        nearest.append(bits)
        if filters.near_duplicate == "on" and bits is not None and bits <= filters.near_duplicate_bits:
            is_kept_P[row] = False
    return nearest


def _below(value: float | None, threshold: float) -> bool:
    return value is not None and value < threshold


def _reaches(value: float | None, threshold: float) -> bool:
    return value is not None and value >= threshold
