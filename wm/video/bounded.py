"""Key-frames by a costly measure of motion, taken of few frames.

A cheap stand-in of every frame's motion is known. A Gaussian process over time learns, from the frames measured so
far, what the measure makes of it, and gives each other frame an upper bound. The key-frames are chosen as if every
frame moved as much as its bound allows, and those among them that are not measured are measured: when all of them
are, no other frame can enter the choice, as far as the bounds hold (optimistic search; Srinivas et al. 2010, the
upper confidence bound of GP-UCB).
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from wm.video.keyframes import KeyframeRule, choose_keyframes

Floats = npt.NDArray[np.float64]

BOUND_SDS = 2.0
"""The upper bound lies this many standard deviations above the expected motion."""

# Of the logarithm of motion, over real clips of 3 to 9 s: the share that stand-ins leave unexplained has a standard
# deviation of 0.2, half of it common to frames some 16 apart; a stand-in's power differs from clip to clip by 0.25.
_POWER_SD = 0.25
_DRIFT_SD = 0.2
_DRIFT_FRAMES = 16.0
_NOISE_SD = 0.1
_OFFSET_SD = 3.0
_PRIOR_SAMPLES = 4
_SCALE_LIMITS = (0.5, 3.0)
_MAX_LEARNT = 256
_BLOCK = 4096
_FLOOR = 0.01
"""Added to px/frame before the logarithm: less than this is rest."""


def search_keyframes(
    standins_TP: Floats,
    powers_P: Sequence[float],
    measure: Callable[[list[int]], Sequence[float]],
    *,
    max_keyframes: int,
    min_interval: int,
    rule: KeyframeRule,
    batch: int = 1,
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(motion of each frame, which of them were measured); unmeasured motion is what is expected of it.

    ``standins_TP``: P positive numbers a frame that grow with its motion; motion is expected to go like their product,
    each to its power of ``powers_P``. ``measure``: frames to their motion; frame 0 has none before it, moves 0 and is
    never asked for. ``batch``: how many frames at least should be asked for at once, where asking is costly.
    """
    num_frames = len(standins_TP)
    logs_TP = np.log(standins_TP)
    logs_TP = logs_TP - logs_TP.mean(axis=0)
    expected_T, sd_T = logs_TP @ np.asarray(powers_P), np.full(num_frames, _OFFSET_SD)
    motion_T, measured_T = np.zeros(num_frames), np.zeros(num_frames, dtype=bool)
    measured_T[0] = True
    order: list[int] = []

    def wanted(upper_T: Floats, known_T: npt.NDArray[np.bool_]) -> list[int]:
        if rule == "top_then_spacing":
            chosen = np.argsort(-upper_T, kind="stable")[:max_keyframes].tolist()
        else:
            chosen = choose_keyframes(upper_T, max_keyframes=max_keyframes, min_interval=min_interval, rule=rule)
            chosen.sort(key=lambda frame: -upper_T[frame])
        return [frame for frame in chosen if not known_T[frame]]

    while True:
        upper_T = np.where(measured_T, motion_T, np.exp(expected_T + BOUND_SDS * sd_T))
        asked = wanted(upper_T, measured_T)
        if not asked:
            break
        believed_T, known_T, more = upper_T, measured_T.copy(), asked
        while more and len(asked) < batch:  # go on as if what is asked for turned out as expected
            known_T[more] = True
            believed_T[more] = np.exp(expected_T[more])
            more = wanted(believed_T, known_T)
            asked = asked + more
        motion_T[asked] = measure(asked)
        measured_T[asked] = True
        order += asked
        learnt = np.asarray(order[-_MAX_LEARNT:])
        expected_T, sd_T = _regress(logs_TP, powers_P, learnt, np.log(motion_T[learnt] + _FLOOR))
    expected_motion_T = np.maximum(np.exp(expected_T) - _FLOOR, 0.0)
    return np.where(measured_T, motion_T, expected_motion_T), measured_T


def _regress(
    logs_TP: Floats, powers_P: Sequence[float], at_M: npt.NDArray[np.intp], log_motion_M: Floats
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of every frame's log motion, given those measured (Rasmussen & Williams 2006,
    equations 2.23 and 2.24)."""
    prior_T = logs_TP @ np.asarray(powers_P)
    surprise_M = log_motion_M - prior_T[at_M]
    inverse_MM = np.linalg.inv(_covariance(logs_TP, at_M, at_M) + _NOISE_SD**2 * np.eye(len(at_M)))
    weights_M = inverse_MM @ surprise_M
    # How much larger than expected this clip's surprises are; a few expected ones keep it steady at first.
    scale = np.sqrt((surprise_M @ weights_M + _PRIOR_SAMPLES) / (len(at_M) + _PRIOR_SAMPLES))
    mean_T, var_T = np.empty_like(prior_T), np.empty_like(prior_T)
    for begin in range(0, len(prior_T), _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, len(prior_T)))
        across_BM = _covariance(logs_TP, block, at_M)
        mean_T[block] = prior_T[block] + across_BM @ weights_M
        alone_B = _OFFSET_SD**2 + _POWER_SD**2 * (logs_TP[block] ** 2).sum(axis=1) + _DRIFT_SD**2 + _NOISE_SD**2
        var_T[block] = alone_B - ((across_BM @ inverse_MM) * across_BM).sum(axis=1)
    return mean_T, np.sqrt(np.maximum(var_T, 0.0)) * np.clip(scale, *_SCALE_LIMITS)


def _covariance(logs_TP: Floats, rows_A: npt.NDArray[np.intp], columns_B: npt.NDArray[np.intp]) -> Floats:
    apart_AB = np.abs(rows_A[:, None] - columns_B[None, :])
    powers_AB = _POWER_SD**2 * (logs_TP[rows_A] @ logs_TP[columns_B].T)
    covariance_AB: Floats = _OFFSET_SD**2 + powers_AB + _DRIFT_SD**2 * np.exp(-apart_AB / _DRIFT_FRAMES)
    return covariance_AB
