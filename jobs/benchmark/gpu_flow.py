"""Measure optical flow on a GPU: frames a second at the shapes of the corpora, and agreement with OpenCV.

OpenCV's own rate is that of one core, with one thread. Without OpenCV the flow is compared with that of the same
program on the CPU, and there is no ratio.
"""

import importlib.util
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from jobs.benchmark.gpu_record import Record, time_runs
from jobs.benchmark.harness import Figures
from wm.torch_flow import compute_flow, make_moving_texture, measure_motion

SIZES_PX = {"xvid": (240, 320), "h264": (256, 340), "hd": (720, 1280)}
"""(height, width): UCF-101's, Kinetics' at this project's size, and 720p."""
QUICK_PX = {"quick": (48, 64)}
FRAMES_PX = 2**30 // 320
"""Pixels of a batch on a GPU, as in :func:`wm.video.device_flow.batch_size`, which needs OpenCV and PyAV: a larger
batch would give a rate that no annotation has."""
OPENCV_PAIRS = 4


def measure_flow(record: Record, repeats: int, *, quick: bool) -> None:
    """Measure pairs of frames a second, the way from the host's memory included, and the same of OpenCV.

    Args:
        record: Gets the measurements, their ratios, and on a GPU the rates that ``wm plan`` looks for.
        repeats: Timed runs of each.
        quick: One small size, for a test of the code.
    """
    for _shape, size_px in (QUICK_PX if quick else SIZES_PX).items():
        height, width = size_px
        name = f"flow_{width}x{height}"

        def measure(size_px: tuple[int, int] = size_px) -> Figures:
            # A CPU would take minutes for what fills a GPU.
            num_frames = FRAMES_PX // (size_px[0] * size_px[1]) if record.device.type == "cuda" else 5
            frames_THW = make_moving_texture(*size_px, num_frames)

            def run() -> object:
                return measure_motion(torch.from_numpy(frames_THW).to(record.device))

            first = time_runs(run, record.device, 1)
            times = time_runs(run, record.device, repeats)
            rate = (num_frames - 1) / times["s"]
            return {
                **times,
                "first_s": first["s"],
                "frames_at_once": num_frames,
                "frames_per_s": rate,
                **_compare(frames_THW[: OPENCV_PAIRS + 1], record.device),
            }

        record.measure(name, measure)
        if has_opencv():
            record.measure(f"{name}_opencv", partial(_measure_opencv, size_px, repeats))
        on_device, on_core = (record.number(key, "frames_per_s") for key in (name, f"{name}_opencv"))
        record.ratio(f"{name}_over_opencv", on_device, on_core)
    if record.device.type == "cuda":
        record.rates |= to_rates(record)
    record.write()


def to_rates(record: Record) -> dict[str, float]:
    """Return frames a second by shape of clips, and over both corpora in equal parts, under the names of a plan.

    Args:
        record: With the measurements; what is missing has no rate.
    """
    measured = {
        shape: record.number(f"flow_{width}x{height}", "frames_per_s") for shape, (height, width) in SIZES_PX.items()
    }
    rates = {f"flow_frames_per_s_{shape}": rate for shape, rate in measured.items() if rate}
    if measured["xvid"] and measured["h264"]:
        rates["flow_frames_per_s"] = 2 / (1 / measured["xvid"] + 1 / measured["h264"])
    return rates


def has_opencv() -> bool:
    """Return whether OpenCV is installed: a bare GPU machine may lack it."""
    return importlib.util.find_spec("cv2") is not None


def reference_flow(frames_THW: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Compute the flow from each frame to the next by OpenCV.

    Args:
        frames_THW: uint8 brightness.

    Returns:
        float32 (T - 1, 2, height, width), px.
    """
    # cv2 alone: the video package would need PyAV too.
    import cv2

    cv2.setNumThreads(1)
    flows = [
        cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        for before, after in pairwise(frames_THW)
    ]
    return np.stack(flows).transpose(0, 3, 1, 2)


def _compare(frames_THW: npt.NDArray[np.uint8], device: torch.device) -> Figures:
    """Return how far the device's flow is from the reference, px, and the largest relative difference of motion."""
    frames = torch.from_numpy(frames_THW)
    flow_B2HW = compute_flow(frames.to(device)).cpu().numpy()
    expected_B2HW = reference_flow(frames_THW) if has_opencv() else compute_flow(frames).numpy()
    distance_BHW = np.linalg.norm(flow_B2HW - expected_B2HW, axis=1)
    motion, expected = (np.linalg.norm(flow, axis=1).mean((1, 2)) for flow in (flow_B2HW, expected_B2HW))
    return {
        "compared_with": "OpenCV" if has_opencv() else "the same program on the CPU",
        "mean_distance_px": float(distance_BHW.mean()),
        "max_distance_px": float(distance_BHW.max()),
        "motion_difference": float(np.abs(motion / expected - 1).max()),
    }


def _measure_opencv(size_px: tuple[int, int], repeats: int) -> Figures:
    frames_THW = make_moving_texture(*size_px, OPENCV_PAIRS + 1)
    times = time_runs(lambda: reference_flow(frames_THW), torch.device("cpu"), repeats)
    return {**times, "frames_per_s": OPENCV_PAIRS / times["s"]}
