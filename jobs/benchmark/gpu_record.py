"""Keep what the GPU benchmark measures, and time runs; what a device can do, and what a step must move."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

import torch

from jobs.benchmark.harness import Figures, wall_seconds
from jobs.benchmark.sampling_models import Shape
from wm.sampling.weights_view import DecoderView


class Record:
    """What was measured, by name, in a file from the first measurement on."""

    def __init__(
        self,
        shape: Shape,
        device: str,
        max_s: float,
        write: Callable[..., Figures],
        earlier: Mapping[str, Figures] | None = None,
    ) -> None:
        """Begin a record; time counts from here on.

        Args:
            shape: Of the model that is measured.
            device: Where torch works.
            max_s: No measurement begins later than this, in seconds.
            write: Writes the file, with its parts as keywords, and returns the record.
            earlier: Measurements of a run that ended early, which are kept and not made again.
        """
        self._earlier = earlier or {}
        self.device = torch.device(device)
        self._shape, self._max_s, self._write, self._begin = shape, max_s, write, time.monotonic()
        self.ratios: dict[str, float] = {}
        self.rates: dict[str, float] = {}
        self.measurements: dict[str, Figures] = {}
        self.failed: dict[str, str] = {}
        self.left_out: list[str] = []

    def measure(self, name: str, work: Callable[[], Figures]) -> Figures | None:
        """Measure, keep the result under its name with the peak of memory, and write the file.

        A failure is reported and the run continues: a machine that is lent is not lent again for the rest.

        Args:
            name: Of the measurement.
            work: Does it.

        Returns:
            The measurement; None if it failed or the time is up.
        """
        if name in self._earlier:
            self.measurements[name] = self._earlier[name]
            print(f"{name}: kept from the run before", flush=True)
            return self.measurements[name]
        # The time is checked before each one: what has begun is finished.
        if time.monotonic() - self._begin > self._max_s:
            self.left_out.append(name)
            return None
        measurement = self._try(name, work)
        gc.collect()  # a decoder and the buffers it holds refer to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if measurement is not None:
            self.measurements[name] = measurement
            print(f"{name}: {measurement}", flush=True)
        self.write()
        return measurement

    def _try(self, name: str, work: Callable[[], Figures]) -> Figures | None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.monotonic()
        try:
            measurement = work()
        # Out of memory and a compiler's failure alike.
        except Exception as error:
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            print(f"{name} failed: {self.failed[name]}", flush=True)
            return None
        if on_gpu:
            measurement["peak_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        measurement["took_s"] = round(time.monotonic() - begin, 1)
        return measurement

    def number(self, name: str, key: str = "s") -> float:
        """Return a number of a measurement.

        Args:
            name: Of the measurement.
            key: Of the number: ``s`` for seconds.

        Returns:
            The number; 0 where it was not measured.
        """
        value = self.measurements.get(name, {}).get(key)
        return value if isinstance(value, float) else 0.0

    def ratio(self, name: str, numerator: float, denominator: float) -> None:
        """Keep a ratio, if both of its numbers were measured.

        Args:
            name: Of the ratio.
            numerator: 0: not measured.
            denominator: 0: not measured.
        """
        if numerator and denominator:
            self.ratios[name] = numerator / denominator

    def write(self) -> Figures:
        """Write the file, to a temporary file that is then renamed; return the record."""
        return self._write(
            gpu=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "none",
            ratios=self.ratios,
            **({"rates": self.rates} if self.rates else {}),
            figures={"shape": vars(self._shape) | {"mlp": self._shape.mlp}, **self.measurements},
            failed=self.failed,
            left_out=self.left_out,
        )


class Times(TypedDict):
    """Seconds of some runs, and their median."""

    s: float
    all_s: list[float]


def time_runs(work: Callable[[], object], device: torch.device, repeats: int) -> Times:
    """Measure wall seconds of each run, the device waited for at either end.

    Args:
        work: What is run.
        device: Where it is computed.
        repeats: Number of runs; warm up before.

    Returns:
        The seconds, and their median.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def run() -> None:
        work()
        wait()

    times = []
    for _ in range(repeats):
        wait()
        times.append(wall_seconds(run)[0])
    return {"s": statistics.median(times), "all_s": times}


def measure_ceilings(device: torch.device, *, quick: bool) -> Figures:
    """Measure what the device can do, on random numbers.

    Args:
        device: What is measured.
        quick: Small tensors, for a test of the code.

    Returns:
        Bytes a second of a large copy, read and written, and FLOPs a second of a large bfloat16 product.
    """
    size, side = (1 << 16, 64) if quick else (1 << 30, 8192)
    source = torch.randn(size, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    matrix, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds: dict[str, float] = {}
    for name, work in {"copy": lambda: target.copy_(source), "product": lambda: matrix @ other}.items():
        time_runs(work, device, 3)
        seconds[name] = time_runs(work, device, 10)["s"]
    return {
        "copy_bytes_per_s": 2 * source.numel() * source.element_size() / seconds["copy"],
        "product_flops": 2 * side**3 / seconds["product"],
    }


def weight_bytes(view: DecoderView, num_codes: int) -> int:
    """Count the bytes of weights that every step reads.

    Args:
        view: The decoder's weights.
        num_codes: Size of the codebook.

    Returns:
        All layers, the last norm and the image codes' rows of the head, in bytes.
    """
    layer = view.layers[0]
    matrices = (layer.query, layer.key, layer.value, layer.out, layer.gate, layer.up, layer.down)
    head_norms = [part for pair in (layer.query_norm, layer.key_norm) if pair is not None for part in pair]
    # All layers have the shape of the first.
    in_layer = sum(matrix.weight.numel() for matrix in matrices) + sum(norm.numel() for norm in head_norms)
    in_layer += layer.norm_attention.numel() + layer.norm_mlp.numel()
    return (len(view.layers) * in_layer + (num_codes + 1) * len(view.norm)) * view.embedding.element_size()


def bytes_moved(view: DecoderView, num_codes: int, shape: Shape, rows: int) -> int:
    """Count the bytes that all steps of an image must move: a lower bound.

    Args:
        view: The decoder's weights.
        num_codes: Size of the codebook.
        shape: Lengths of prefix and image.
        rows: Candidates, which share the prefix.

    Returns:
        Weights and the prefix once a step, each row's filled positions, those that are written, and each row's
        embedding.
    """
    steps = shape.target - 1
    # Numbers of a position's keys and values in all layers.
    pair = 2 * len(view.layers) * view.num_groups * view.head_width
    read = steps * shape.prefix + rows * sum(range(1, steps + 1))
    numbers = pair * (read + rows * steps) + rows * steps * len(view.norm)
    return steps * weight_bytes(view, num_codes) + numbers * view.embedding.element_size()
