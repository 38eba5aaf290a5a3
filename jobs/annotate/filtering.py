"""Filter proposed pairs by their images, then by their image codes: each step costs more than the one before."""

from collections.abc import Sequence

from jobs.annotate.pairs import Pair
from wm.datasets.filters import Filters, code_findings, image_findings, reason_of, repeat_bits


def filter_images(pairs: Sequence[Pair], filters: Filters, min_motion_px: float) -> None:
    """Apply the filters that need the images only; what they take out is never shown to the IDM.

    Args:
        pairs: Their findings, reasons and details are set.
        filters: Modes and thresholds.
        min_motion_px: Pairs whose target moves less are filtered, px/frame.
    """
    for pair in pairs:
        motion = pair.video["motion"][pair.video["keyframes"][pair.target]]
        if motion < min_motion_px:
            pair.reason = "too_little_motion"
            pair.detail = f"moves {motion:.3f} px/frame, less than keyframes.min_motion_px = {min_motion_px:g}"
            continue
        pair.findings = image_findings(pair.numbers(filters), filters)
        pair.reason = reason_of(pair.findings, filters)
    if filters.near_duplicate != "off":
        # A repeat is one of a pair that is not filtered, so that this comes after the other filters.
        bits_P = repeat_bits([pair.hashes() for pair in pairs], filters, [not pair.reason for pair in pairs])
        for pair, pair.repeat_bits in zip(pairs, bits_P, strict=True):
            if pair.reason != "too_little_motion":
                pair.findings = image_findings(pair.numbers(filters), filters)
                pair.reason = reason_of(pair.findings, filters)
    for pair in pairs:
        if pair.findings:
            numbers = {name: value for name, value in pair.numbers(filters).items() if value is not None}
            pair.detail = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())


def filter_codes(pair: Pair, source_codes: Sequence[int], target_codes: Sequence[int], filters: Filters) -> None:
    """Count the codes that change, and filter a pair in which too few do before the IDM spends work on it.

    Args:
        pair: Its counts, findings and reason are set.
        source_codes: Image codes of the source.
        target_codes: Image codes of the target, as many.
        filters: Modes and thresholds.
    """
    pair.num_codes = len(source_codes)
    pair.changed_codes = sum(a != b for a, b in zip(source_codes, target_codes, strict=True))
    findings = code_findings(pair.changed_codes, filters)
    pair.findings += findings
    pair.reason = reason_of(findings, filters)
    if pair.reason:
        pair.detail = (
            f"{pair.changed_codes} of {pair.num_codes} image codes change, "
            f"fewer than filters.min_changed_codes = {filters.min_changed_codes}"
        )
