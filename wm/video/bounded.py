"""Choose key-frames by a costly measure of motion, run on few frames.

Cheap stand-ins for every frame's motion are known. A Gaussian process over time learns, from the frames measured so
far, what the measure makes of them, and gives each other frame an upper bound. The key-frames are chosen as if every
frame moved as much as its bound allows, and those among them that are not measured are measured next: when all of them
are, no other frame can enter the choice, as far as the bounds hold (optimistic search; Srinivas et al. 2010, the upper
confidence bound of GP-UCB).
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from wm.video.keyframes import Floats, KeyframeRule

Mask = npt.NDArray[np.bool_]
Ask = Callable[[list[int]], Sequence[float]]


# Chosen on 31 real clips of 3 to 9 s in two shapes, for key-frames that agree at the least cost: all do but one clip's
# by one rule. It is in the half of the sources on which settings differ; the other half agrees by nearly all of them.
BOUND_SDS = 2.0
"""Standard deviations from the expectation to the upper bound."""
FLOW_FLOOR_PX = 0.02
STEP_FLOOR = 0.025
"""Added before a logarithm is taken: less flow (px/frame) and difference (grey levels) than this is rest."""

# Of log motion in those clips: it goes with its first stand-in, and with powers of both that differ from clip to clip;
# what is left unexplained is common to frames some 16 apart, or a frame's own; nothing is known of the factor.
_POWER_SD = 0.1
_DRIFT_SD = 0.2
_DRIFT_FRAMES = 16.0
_NOISE_SD = 0.2
_OFFSET_SD = 3.0
_PRIOR_SAMPLES = 4
_SCALE_LIMITS = (0.5, 2.0)
_ROUND = 2
_MAX_LEARNT = 256
_BLOCK = 4096


def search_keyframes(
    flow_T: Sequence[float],
    step_T: Sequence[float],
    measure: Ask,
    *,
    max_keyframes: int,
    min_interval_frames: int,
    rule: KeyframeRule,
    batch: int = 1,
) -> tuple[Floats, Mask]:
    """Measure the frames that can enter the choice of key-frames, and expect the motion of the others.

    Args:
        flow_T: First stand-in for the motion of each frame: Farnebäck's flow at a small size, px/frame.
        step_T: Second stand-in: mean difference of thumbnails, grey levels.
        measure: Maps frame numbers to motion, px/frame; frame 0 moves 0 and is never measured.
        max_keyframes: ``K_f`` of :func:`wm.video.keyframes.choose_keyframes`.
        min_interval_frames: ``I_f`` of the same.
        rule: How key-frames are chosen.
        batch: Min number of frames to measure at once, where a call is costly.

    Returns:
        float64 (T,) motion in px/frame, measured or expected; bool (T,) which of it was measured.
    """
    search = _Search(flow_T, step_T)

    def list_unmeasured(upper_T: Floats, measured_T: Mask) -> list[int]:
        candidates = rule.list_candidates(upper_T, max_keyframes, min_interval_frames)
        return [frame for frame in candidates if not measured_T[frame]]

    while frames := list_unmeasured(search.upper_T, search.measured_T):
        # 1. Few at a time, the most moving first: each measurement may rule out the next.
        if search.order:
            frames = frames[:_ROUND]
        # 2. Fill the batch as if each measurement turned out as expected.
        assumed_T, measured_T, more = search.upper_T.copy(), search.measured_T.copy(), frames
        while more and len(frames) < batch:
            measured_T[more] = True
            assumed_T[more] = search.expected_T[more]
            more = list_unmeasured(assumed_T, measured_T)
            frames = frames + more
        # 3. Measure, and learn from it.
        search.measure(frames, measure(frames))
    return search.expected_T, search.measured_T


class _Search:
    """Knowledge of each frame: its stand-ins, or its motion."""

    def __init__(self, flow_T: Sequence[float], step_T: Sequence[float]) -> None:
        flow_log_T, step_log_T = np.log(np.asarray(flow_T) + FLOW_FLOOR_PX), np.log(np.asarray(step_T) + STEP_FLOOR)
        self.logs_T2 = np.stack([flow_log_T, step_log_T], axis=1)
        self.motion_T = np.zeros(len(step_log_T))
        self.measured_T = np.zeros(len(step_log_T), dtype=bool)
        self.measured_T[0] = True  # it moves 0 by definition
        self.order: list[int] = []
        self._update_bounds()

    def measure(self, frames: list[int], motion: Sequence[float]) -> None:
        """Add measured motion of some frames."""
        self.motion_T[frames] = motion
        self.measured_T[frames] = True
        self.order += frames
        self._update_bounds()

    def _update_bounds(self) -> None:
        """Set ``expected_T`` and ``upper_T``, px/frame."""
        log_T, bound_T = self._regress()
        self.expected_T = self._merge_measured(log_T)
        self.upper_T = self._merge_measured(bound_T)

    def _merge_measured(self, log_T: Floats) -> Floats:
        return np.where(self.measured_T, self.motion_T, np.maximum(np.exp(log_T) - FLOW_FLOOR_PX, 0.0))

    def _regress(self) -> tuple[Floats, Floats]:
        """Regress log motion and its upper bound on the measurements (Rasmussen & Williams 2006, eq. 2.23, 2.24)."""
        # The newest measurements only: the inverse grows with the cube of their number.
        at_M = np.asarray(self.order[-_MAX_LEARNT:], dtype=np.intp)
        logs_T2 = self.logs_T2 - self.logs_T2[at_M if len(at_M) else slice(None)].mean(axis=0)
        prior_T = logs_T2[:, 0]
        # Nothing measured: no bound is known, and order alone decides.
        if not len(at_M):
            return prior_T, prior_T
        # Residuals of the measured frames, spread by how much another frame resembles each.
        residual_M = np.log(self.motion_T[at_M] + FLOW_FLOOR_PX) - prior_T[at_M]
        inverse_MM = np.linalg.inv(_covariance(logs_T2, at_M, at_M) + _NOISE_SD**2 * np.eye(len(at_M)))
        weights_M = inverse_MM @ residual_M
        # How much larger than expected this clip's residuals are; a few expected ones keep it steady at first.
        scale = np.sqrt((residual_M @ weights_M + _PRIOR_SAMPLES) / (len(at_M) + _PRIOR_SAMPLES))
        mean_T, var_T = np.empty_like(prior_T), np.empty_like(prior_T)
        # In blocks: the covariance of a long clip with its measured frames would fill the memory.
        for begin in range(0, len(prior_T), _BLOCK):
            block = np.arange(begin, min(begin + _BLOCK, len(prior_T)))
            across_BM = _covariance(logs_T2, block, at_M)
            mean_T[block] = prior_T[block] + across_BM @ weights_M
            alone_B = _OFFSET_SD**2 + _POWER_SD**2 * (logs_T2[block] ** 2).sum(axis=1) + _DRIFT_SD**2 + _NOISE_SD**2
            var_T[block] = alone_B - ((across_BM @ inverse_MM) * across_BM).sum(axis=1)
        sd_T = np.sqrt(np.maximum(var_T, 0.0)) * np.clip(scale, *_SCALE_LIMITS)
        return mean_T, mean_T + BOUND_SDS * sd_T


def _covariance(logs_T2: Floats, rows_A: npt.NDArray[np.intp], columns_B: npt.NDArray[np.intp]) -> Floats:
    apart_AB = np.abs(rows_A[:, None] - columns_B[None, :])
    powers_AB = _POWER_SD**2 * (logs_T2[rows_A] @ logs_T2[columns_B].T)
    covariance_AB: Floats = _OFFSET_SD**2 + powers_AB + _DRIFT_SD**2 * np.exp(-apart_AB / _DRIFT_FRAMES)
    return covariance_AB
