"""Compute Farnebäck's optical flow for batches of frames as a torch program, which a GPU runs.

The algorithm is that of OpenCV's ``calcOpticalFlowFarneback`` (modules/video/src/optflowgf.cpp; Farnebäck 2003,
"Two-Frame Motion Estimation Based on Polynomial Expansion") at the settings of :mod:`wm.video.motion`: the same
pyramid, borders and weights, in float32. Each frame is expanded once for the two flows that it is part of. Filters are
sums of shifted arrays rather than convolutions, which GPUs may round to TF32.

Flows agree to 1e-3 px but where frames rest at their border: OpenCV's running sums leave rounding errors there, whose
sign decides whether a border pixel counts as moved out of the frame; the sums here are 0. Does not know videos, nor
whether a device can be trusted: :mod:`wm.video.device_flow` does. Needs nothing but torch and numpy, so that a bare GPU
machine can measure it.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 3
_WINDOW_PX = 15
_ITERATIONS = 3
_RADIUS_PX = 5
_SIGMA_PX = 1.2
_MIN_LEVEL_PX = 32
_MIN_SIDE_PX = 16
_BORDER_WEIGHTS = (0.14, 0.14, 0.4472, 0.4472, 0.4472)
_REGULARISER = 1e-3
_MID_GREY = 128.0


@torch.no_grad()
def measure_motion(frames_THW: Tensor) -> npt.NDArray[np.float64]:
    """Measure the mean flow magnitude from each frame to the next.

    Args:
        frames_THW: uint8 brightness of T frames of one size, in order, on the device that computes.

    Returns:
        float64 (T - 1,), px/frame.
    """
    height, width = frames_THW.shape[1:]
    # What was padded is cut off again: it does not move.
    flow_B2HW = compute_flow(frames_THW)[:, :, :height, :width]
    lengths_BHW = flow_B2HW.square().sum(1).sqrt()
    return lengths_BHW.mean((1, 2), dtype=torch.float64).cpu().numpy()


def compute_flow(frames_THW: Tensor) -> Tensor:
    """Compute the flow from each frame to the next.

    Args:
        frames_THW: uint8 brightness of T frames of one size.

    Returns:
        float32 (T - 1, 2, height, width): x and y in px; at least 16 px high and wide, as
        :func:`wm.video.motion.farneback_motion` pads smaller frames.
    """
    below, right = (max(0, _MIN_SIDE_PX - side) for side in frames_THW.shape[1:])
    # Around mid-grey float32 loses less; the expansion takes no notice of a constant.
    frames_T1HW = F.pad(frames_THW[:, None].float() - _MID_GREY, (0, right, 0, below), mode="replicate")
    height, width = frames_T1HW.shape[2:]
    flow_B2HW: Tensor | None = None
    # From the coarsest level to the frame itself.
    for level in range(count_levels(height, width), -1, -1):
        size_px = round(height / 2**level), round(width / 2**level)
        expansion_T5HW = _expand(_reduce(frames_T1HW, level, size_px))
        if flow_B2HW is None:
            flow_B2HW = frames_T1HW.new_zeros(len(frames_T1HW) - 1, 2, *size_px)
        else:
            flow_B2HW = 2 * F.interpolate(flow_B2HW, size_px, mode="bilinear")
        weight_HW = _border_weight(size_px, flow_B2HW.device)
        for _ in range(_ITERATIONS):
            flow_B2HW = _solve(_equate(expansion_T5HW, flow_B2HW, weight_HW))
    assert flow_B2HW is not None  # there is always level 0
    return flow_B2HW


def count_levels(height_px: int, width_px: int) -> int:
    """Count the levels above the full size, whose sides are at least 32 px.

    Args:
        height_px: Of a frame.
        width_px: Of a frame.
    """
    levels = 0
    while levels < _LEVELS and min(height_px, width_px) >= _MIN_LEVEL_PX * 2 ** (levels + 1):
        levels += 1
    return levels


def _reduce(frames_T1HW: Tensor, level: int, size_px: tuple[int, int]) -> Tensor:
    """Blur the full-size frames and sample them at the size of a level."""
    sigma_px = (2.0**level - 1) / 2
    num_taps = max(round(5 * sigma_px) | 1, 3)
    half = num_taps // 2
    # A sigma of 0 means a kernel of OpenCV's table.
    weights_K = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma_px**2)) if level else np.array([1, 2, 1])
    kernel = (weights_K / weights_K.sum()).tolist()
    blurred = F.pad(frames_T1HW, (half, half, half, half), mode="reflect")
    blurred = _filter(_filter(blurred, kernel, 2), kernel, 3)
    return blurred if level == 0 else F.interpolate(blurred, size_px, mode="bilinear")


def _expand(image_T1HW: Tensor) -> Tensor:
    """Fit a quadratic polynomial to each pixel's surroundings; return coefficients of y, x, y², x², xy: (T, 5, H, W).

    Section 4 of the paper: normalised convolution with a Gaussian, separable into columns and rows.
    """
    # 1. Moments of the weights, and the inverse of the normal matrix of 1, y² and x²; the other three are uncoupled.
    offsets_K = np.arange(-_RADIUS_PX, _RADIUS_PX + 1)
    weights_K = np.exp(-(offsets_K**2) / (2 * _SIGMA_PX**2))
    weights_K /= weights_K.sum()
    second, fourth = weights_K @ offsets_K**2, weights_K @ offsets_K**4
    normal_33 = np.array([[1, second, second], [second, fourth, second**2], [second, second**2, fourth]])
    inverse_33 = np.linalg.inv(normal_33)
    # 2. Kernels for a constant, a slope and a curve along one axis; of a constant frame the curve must be 0, so that
    # its two parts are joined before anything is rounded.
    slope_K = offsets_K * weights_K
    curve_K = inverse_33[0, 1] * weights_K + inverse_33[1, 1] * offsets_K**2 * weights_K
    constant, slope, curve = weights_K.tolist(), (slope_K / second).tolist(), curve_K.tolist()
    # 3. Columns, then rows.
    padded = F.pad(image_T1HW, (_RADIUS_PX,) * 4, mode="replicate")
    level, rise, bend = (_filter(padded, kernel, 2) for kernel in (constant, slope, curve))
    along_rows = ((rise, constant), (level, slope), (bend, constant), (level, curve), (rise, slope))
    return torch.cat([_filter(columns, kernel, 3) for columns, kernel in along_rows], 1)


def _filter(image_TCHW: Tensor, kernel: list[float], dim: int) -> Tensor:
    """Correlate along one dimension, without padding."""
    size = image_TCHW.shape[dim] - len(kernel) + 1
    total = image_TCHW.narrow(dim, 0, size) * kernel[0]
    for shift, weight in enumerate(kernel[1:], 1):
        total.add_(image_TCHW.narrow(dim, shift, size), alpha=weight)
    return total


def _border_weight(size_px: tuple[int, int], device: torch.device) -> Tensor:
    """Build the weight of each pixel's equation, less within 5 px of an edge; float32 (H, W)."""
    sides = []
    for side in size_px:
        weight_N = torch.ones(side)
        # Multiplied: in a narrow frame both edges count.
        weight_N[: len(_BORDER_WEIGHTS)] *= torch.tensor(_BORDER_WEIGHTS)
        weight_N[-len(_BORDER_WEIGHTS) :] *= torch.tensor(_BORDER_WEIGHTS[::-1])
        sides.append(weight_N)
    return torch.outer(*sides).to(device)


def _equate(expansion_T5HW: Tensor, flow_B2HW: Tensor, weight_HW: Tensor) -> Tensor:
    """Build each pixel's equations of the displacement from two expansions and the flow so far.

    Equations 7 to 9 of the paper's section 6.

    Returns:
        (B, 5, H, W): the three different entries of the symmetric matrix, and the two of the right-hand side.
    """
    height, width = weight_HW.shape
    before_B5HW = expansion_T5HW[:-1]
    flow_x, flow_y = flow_B2HW.unbind(1)
    # 1. The later frame's expansion where the flow leads to.
    to_x = flow_x + torch.arange(width, device=flow_x.device)
    to_y = flow_y + torch.arange(height, device=flow_x.device)[:, None]
    is_inside = (to_x >= 0) & (to_x < width - 1) & (to_y >= 0) & (to_y < height - 1)
    after_B5HW = _sample(expansion_T5HW[1:], to_x, to_y)
    # 2. Means of the second-order terms; outside of the frame, the earlier frame's alone.
    is_inside = is_inside[:, None]
    squares = torch.where(is_inside, (before_B5HW[:, 2:] + after_B5HW[:, 2:]) / 2, before_B5HW[:, 2:])
    slopes = (before_B5HW[:, :2] - torch.where(is_inside, after_B5HW[:, :2], 0.0)) / 2
    # 3. Normal equations of A d = b, with A the mean matrix and b half the change of slopes, moved by the flow so far.
    yy, xx, xy = (squares * weight_HW).unbind(1)
    xy = xy / 2
    slope_y, slope_x = (slopes * weight_HW).unbind(1)
    slope_y = slope_y + yy * flow_y + xy * flow_x
    slope_x = slope_x + xy * flow_y + xx * flow_x
    return torch.stack(
        [
            yy * yy + xy * xy,
            (yy + xx) * xy,
            xx * xx + xy * xy,
            yy * slope_y + xy * slope_x,
            xy * slope_y + xx * slope_x,
        ],
        1,
    )


def _sample(image_B5HW: Tensor, x_BHW: Tensor, y_BHW: Tensor) -> Tensor:
    """Interpolate linearly at positions in px, which are moved into the image.

    Not by ``grid_sample``: its normalised coordinates are rounded, and a frame that rests must give exactly itself.
    """
    height, width = image_B5HW.shape[2:]
    # NaN must not become an index.
    left, top = (at.floor().nan_to_num().clamp(0, side - 2) for at, side in ((x_BHW, width), (y_BHW, height)))
    x_B1N, y_B1N = ((at - begin).flatten(1)[:, None] for at, begin in ((x_BHW, left), (y_BHW, top)))
    index_B1N = (top.long() * width + left.long()).flatten(1)[:, None]
    image_B5N = image_B5HW.flatten(2)
    channels = image_B5HW.shape[1]
    weights = ((1 - x_B1N) * (1 - y_B1N), x_B1N * (1 - y_B1N), (1 - x_B1N) * y_B1N, x_B1N * y_B1N)
    total_B5N = torch.zeros_like(image_B5N)
    for shift, weight_B1N in zip((0, 1, width, width + 1), weights, strict=True):
        corner_B5N = image_B5N.gather(2, (index_B1N + shift).expand(-1, channels, -1))
        total_B5N.addcmul_(corner_B5N, weight_B1N)
    return total_B5N.view_as(image_B5HW)


def _solve(equations_B5HW: Tensor) -> Tensor:
    """Solve the equations for the flow, each summed over a window: float32 (B, 2, H, W)."""
    half = _WINDOW_PX // 2
    padded = F.pad(equations_B5HW, (half, half, half, half), mode="replicate")
    means = F.avg_pool2d(F.avg_pool2d(padded, (_WINDOW_PX, 1), 1), (1, _WINDOW_PX), 1)
    # float64: along an edge the determinant is a small difference of large products.
    yy, yx, xx, right_y, right_x = means.double().unbind(1)
    determinant = yy * xx - yx * yx + _REGULARISER
    flow = torch.stack([(yy * right_x - yx * right_y) / determinant, (xx * right_y - yx * right_x) / determinant], 1)
    return flow.float()


def make_moving_texture(height_px: int, width_px: int, num_frames: int) -> npt.NDArray[np.uint8]:
    """Make a clip to compare flows on: a sum of waves that moves by other fractions of a pixel in every frame.

    Args:
        height_px: Of a frame.
        width_px: Of a frame.
        num_frames: T.

    Returns:
        uint8 (T, height, width).
    """
    rng = np.random.default_rng(0)
    # Waves of 8 to 60 px in all directions, with more of the long ones as in natural images.
    length_W = np.geomspace(8, 60, 24)
    angle_W, phase_W = rng.uniform(0, 2 * np.pi, (2, len(length_W)))
    wave_W2 = (2 * np.pi / length_W * np.array([np.sin(angle_W), np.cos(angle_W)])).T
    shift_T2 = np.cumsum(rng.uniform(-12, 12, (num_frames, 2)), axis=0)
    # Each wave drifts a little of its own, so that no flow fits and every iteration counts.
    drift_TW = np.cumsum(rng.uniform(-0.6, 0.6, (num_frames, len(length_W))), axis=0)
    phase_TW = phase_W + shift_T2 @ wave_W2.T + drift_TW
    # cos(a + b) from the rows' and the columns' parts: an outer product for each wave.
    rows_WH = np.exp(1j * np.outer(wave_W2[:, 0], np.arange(height_px))) * length_W[:, None]
    columns_WX = np.exp(1j * np.outer(wave_W2[:, 1], np.arange(width_px)))
    frames_THW = np.stack([((rows_WH * np.exp(1j * phase_W)[:, None]).T @ columns_WX).real for phase_W in phase_TW])
    amplitude = 64 / np.sqrt((length_W**2).sum() / 2)
    return np.asarray(np.clip(128 + frames_THW * amplitude, 0, 255), dtype=np.uint8)
