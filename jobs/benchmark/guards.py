"""Which ratios of which benchmark must not become worse, and how far one may differ by chance."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Literal, NamedTuple, TypeAlias

Better: TypeAlias = Literal["higher", "lower"]

MIN_TOLERANCE = 0.1
"""Relative difference that is always allowed: sizes of memory and of shares have no spread, and two machines differ."""
STANDARD_ERRORS = 3.0
"""Differences up to so many standard errors are noise; of a normal one .3 % are larger."""


class Guard(NamedTuple):
    """A ratio that is watched."""

    better: Better
    works: tuple[str, ...] = ()
    """Kinds of work whose times it is made of, by their names in the record's ``spread``; empty: the ratio's own, or
    none."""


HIGHER, LOWER = Guard("higher"), Guard("lower")

GUARDS: Mapping[str, Mapping[str, Guard]] = {
    "sampling": {
        "hf_over_ours_n8": Guard("higher", ("faithful.static", "faithful.ours")),
        "hf_over_ours_n8_long": Guard("higher", ("long.static", "long.ours")),
        "idm_unshared_over_shared": Guard("higher", ("faithful.idm_unshared", "faithful.idm_shared")),
        "n8_over_n1": Guard("lower", ("faithful.ours_n8_ready", "faithful.ours_n1_ready")),
        "step_over_gemm_b1": Guard("lower", ("faithful.step_b1", "faithful.gemm_b1")),
        "step_over_gemm_b8": Guard("lower", ("faithful.step_b8", "faithful.gemm_b8")),
        "shared_over_merged_step_b8": Guard("lower", ("roles.shared_b8", "roles.merged_b8")),
        "shared_over_merged_bytes": LOWER,
        "speculative_identical": HIGHER,
        "speculative_nano": HIGHER,
    },
    "training": {
        "hf_step_over_ours_fdm": Guard("higher", ("hf_fdm", "ours_fdm")),
        "hf_step_over_ours_idm": Guard("higher", ("hf_idm", "ours_idm")),
        "hf_memory_over_ours": HIGHER,
        "peft_activations_over_ours": HIGHER,
        "loader_over_step": Guard("higher", ("loader", "nano_step")),
    },
    "serve": {
        "http_overhead": Guard("lower", ("http_best_of_8", "library_best_of_8")),
        "direct_overhead": Guard("lower", ("direct_best_of_8", "library_best_of_8")),
        "best_of_8_over_1": Guard("lower", ("http_best_of_8", "http_best_of_1")),
        "wide_http_overhead": Guard("lower", ("wide_http", "wide_library")),
        "faithful_http_overhead": Guard("lower", ("faithful_http", "faithful_library")),
        "first_preview_share": Guard("lower", ("first_preview", "streamed")),
        "batching_gain": HIGHER,
    },
    "keyframes": {
        "dis_over_naive_xvid": HIGHER,
        "dis_over_naive_h264": HIGHER,
        "dis_over_decode_xvid": HIGHER,
        "dis_over_decode_h264": HIGHER,
        "exact_over_naive": HIGHER,
        "exact_jaccard": HIGHER,
        "exact_capture": HIGHER,
        "dis_spearman": HIGHER,
    },
    "annotate": {"memory_growth": LOWER, "scale_out_2_cores": HIGHER},
    "score": {
        "baseline_over_ours": HIGHER,
        "first_over_stored_features": HIGHER,
        "driver_memory_growth_0_workers": LOWER,
    },
    "gpu": {"n8_over_n1": LOWER, "hf_over_ours_n8": HIGHER, "idm_unshared_over_shared": HIGHER},
}
"""Benchmark → ratio → how it is watched. Ratios that explain others are not."""


def tolerance(guard: Guard, ratio: str, spreads: Sequence[Mapping[str, Mapping[str, float]]]) -> float:
    """Compute the relative difference of a ratio between two records that chance explains.

    The standard error of a median is about .93 of the interquartile range over the root of the count (Kendall and
    Stuart, The Advanced Theory of Statistics, vol. 1, 10.11: 1.253 standard deviations, each 1 / 1.349 of the range);
    relative errors of independent times add by their squares.

    Args:
        guard: The ratio's.
        ratio: Its name.
        spreads: The part ``spread`` of each record.

    Returns:
        At least :data:`MIN_TOLERANCE`.
    """
    variance = 0.0
    for spread in spreads:
        for name in guard.works or (ratio,):
            quartiles = spread.get(name, {})
            # Some spreads have other figures, such as bytes at both ends.
            if {"q25", "q75", "median", "count"} <= set(quartiles) and quartiles["median"]:
                error = 0.93 * (quartiles["q75"] - quartiles["q25"]) / sqrt(quartiles["count"])
                variance += (error / quartiles["median"]) ** 2
    return max(MIN_TOLERANCE, STANDARD_ERRORS * sqrt(variance))
