"""Measure the motion of a clip's frames in batches on a GPU, which proves itself first.

A device is used once its flows of a small made clip are those of OpenCV; where they are not, or torch cannot use it,
or its memory ends, the reason is kept and :mod:`wm.video.scan` measures on the CPU. torch is imported with the first
device that is asked for.
"""

import os
import sys
import threading
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wm.video.farneback import opencv_flow
from wm.video.isolation import resident_mib
from wm.video.motion import Luma

NO_DEVICE = "cpu"
"""Name of the way without torch."""
BATCH_BYTES = 2**30
"""Max memory of a batch on the device; several decoding processes share a GPU."""
BYTES_PER_PX = 320
"""Peak of :func:`wm.torch_flow.compute_flow` for a pixel of a frame: measured."""
MAX_BATCH = 256
"""Max number of frames in a batch: more make nothing faster, and wait in the host's memory."""
MAX_ERROR = 1e-4
"""Mean distance of flows in px up to which a device agrees with OpenCV. Other orders of summing give
1e-6, products in TF32 1e-3."""
TEST_PX, TEST_FRAMES = (258, 301), 5
"""Of the self-test's clip: large enough for every level of the pyramid, with sides that do not halve evenly."""
_WATCH_S = 0.25


class FlowError(Exception):
    """A device that fails; the message says why."""


@dataclass(frozen=True)
class FlowTest:
    """Result of a device's self-test.

    Attributes:
        device: As torch calls it.
        name: Of the card, or of the device where it has none.
        error: As :func:`flow_error` gives it, in px; None where nothing was computed.
        problem: Why it is not used; empty: it is.
    """

    device: str
    name: str
    error: float | None = None
    problem: str = ""

    @property
    def measured_on(self) -> str:
        """Say who measures: the card, or the CPU and why."""
        return f"{NO_DEVICE} ({self.problem})" if self.problem else self.name


_TESTS: dict[str, FlowTest] = {}
"""By device, for as long as the process lives."""


def check_device(device: str) -> FlowTest:
    """Test a device, once in a process.

    Args:
        device: As torch calls it: ``cuda``, ``cuda:1``; ``cpu:0`` runs the same program on the CPU.

    Returns:
        Whether it can be used, and how far it differs from OpenCV.
    """
    if device not in _TESTS:
        _TESTS[device] = _try_device(device)
    return _TESTS[device]


def give_up(device: str, problem: str) -> FlowTest:
    """Use a device no more in this process.

    Args:
        device: As torch calls it.
        problem: Why.
    """
    _TESTS[device] = FlowTest(device, check_device(device).name, problem=problem)
    return _TESTS[device]


class DeviceFlow:
    """A meter of the motion of a clip's frames, from each to the next."""

    def __init__(self, device: str, batch_bytes: int = BATCH_BYTES) -> None:
        """Begin a clip.

        Args:
            device: As torch calls it.
            batch_bytes: Max memory of a batch.
        """
        self._device = device
        self._batch_bytes = batch_bytes
        self._frames: list[Luma] = []
        self._motion: list[float] = []

    def add(self, grey_HW: Luma) -> None:
        """Take the next frame; a batch that is full is measured.

        Args:
            grey_HW: Full-size brightness.

        Raises:
            FlowError: The device fails.
        """
        # No flow leads to a frame of another size: it moves 0, as the first does.
        if not self._frames or self._frames[-1].shape != grey_HW.shape:
            self._measure()
            self._frames = []
            self._motion.append(0.0)
        self._frames.append(grey_HW)
        if len(self._frames) > batch_size(grey_HW.size, self._batch_bytes):
            self._measure()

    def motion(self) -> list[float]:
        """Return the motion of each frame so far, px/frame; 0 for the first, and for one of another size than before.

        Raises:
            FlowError: The device fails.
        """
        self._measure()
        return list(self._motion)

    def _measure(self) -> None:
        """Measure the frames that wait; the last stays as the first of the next batch."""
        if len(self._frames) > 1:
            self._motion += measure_frames(np.stack(self._frames), self._device).tolist()
            del self._frames[:-1]


def batch_size(frame_px: int, batch_bytes: int = BATCH_BYTES) -> int:
    """Compute how many pairs of frames are measured at once.

    Args:
        frame_px: Pixels of a frame.
        batch_bytes: Max memory of a batch.
    """
    # A batch of b pairs holds b + 1 frames; one pair must always be possible.
    return max(1, min(MAX_BATCH, batch_bytes // (BYTES_PER_PX * frame_px)) - 1)


def measure_frames(frames_THW: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.float64]:
    """Measure the motion of each frame after the first, in smaller batches where memory ends.

    Args:
        frames_THW: uint8 brightness.
        device: As torch calls it.

    Returns:
        float64 (T - 1,), px/frame.

    Raises:
        FlowError: The device fails, with one pair of frames at a time too.
    """
    import torch

    from wm.torch_flow import measure_motion

    size = len(frames_THW) - 1
    while True:
        try:
            parts = [frames_THW[begin : begin + size + 1] for begin in range(0, len(frames_THW) - 1, size)]
            motion = np.concatenate([measure_motion(torch.from_numpy(part).to(device)) for part in parts])
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise FlowError(f"no memory on {device} for two frames: {_first_line(error)}") from error
            size = (size + 1) // 2
        # A driver's error comes as one of many kinds.
        except RuntimeError as error:
            raise FlowError(f"{type(error).__name__} on {device}: {_first_line(error)}") from error
        else:
            if not np.isfinite(motion).all():
                raise FlowError(f"motion on {device} is not finite")
            return motion


def _try_device(device: str) -> FlowTest:
    """Compare a device's flow of a made clip with OpenCV's."""
    try:
        import torch

        from wm.torch_flow import make_moving_texture

        name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    # A build without CUDA raises AssertionError, an old driver or no card RuntimeError, a broken build ImportError or
    # OSError, a card that fails while CUDA starts another kind still.
    except Exception as error:
        return FlowTest(device, device, problem=f"no {device}: {_first_line(error)}")
    try:
        distance = flow_error(make_moving_texture(*TEST_PX, TEST_FRAMES), device)
    except Exception as error:
        return FlowTest(device, name, problem=f"self-test of {name}: {_first_line(error)}")
    # Written so that NaN does not agree.
    if not distance <= MAX_ERROR:
        problem = f"self-test of {name}: its flow differs from OpenCV's by {distance:.2g} px, expected {MAX_ERROR:g}"
        return FlowTest(device, name, distance, problem)
    return FlowTest(device, name, distance)


def flow_error(frames_THW: npt.NDArray[np.uint8], device: str) -> float:
    """Compute how far flow and motion on a device are from OpenCV's.

    Args:
        frames_THW: uint8 brightness, at least 16 px high and wide.
        device: As torch calls it.

    Returns:
        The mean over pixels of the distance between the flows in px, or the largest difference of motion if that is
        more.

    Raises:
        FlowError: The device cannot compute them.
    """
    # First: it says why a device cannot.
    motion = measure_frames(frames_THW, device)
    import torch

    from wm.torch_flow import compute_flow

    flow_B2HW = compute_flow(torch.from_numpy(frames_THW).to(device)).cpu().numpy()
    expected_B2HW = np.stack([opencv_flow(*pair) for pair in pairwise(frames_THW)]).transpose(0, 3, 1, 2)
    distance_BHW = np.linalg.norm(flow_B2HW - expected_B2HW, axis=1)
    expected = np.linalg.norm(expected_B2HW, axis=1).mean((1, 2), dtype=np.float64)
    return float(max(distance_BHW.mean(), np.abs(motion - expected).max()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def prepare_device(memory_limit_mib: int, device: str) -> tuple[str, float]:
    """Load torch and test a device, in the child that will use it; bound the child's memory from here on.

    Args:
        memory_limit_mib: Resident memory beyond today's at which the process ends, 0 = none: with a GPU's driver its
            address space cannot be limited.
        device: As torch calls it.

    Returns:
        Why the device cannot be used, empty if it can; resident memory of the process in MiB.
    """
    is_first = device not in _TESTS
    problem = check_device(device).problem
    resident = resident_mib(os.getpid())
    if is_first and memory_limit_mib and not problem:
        threading.Thread(target=_end_beyond, args=(resident + memory_limit_mib,), daemon=True).start()
    return problem, resident


def _end_beyond(limit_mib: float) -> None:
    """End the process once its resident memory exceeds a limit: the owner reports its last words."""
    while resident_mib(os.getpid()) <= limit_mib:
        time.sleep(_WATCH_S)
    print(f"more than {limit_mib:.0f} MiB of memory taken", file=sys.stderr, flush=True)
    os._exit(1)
