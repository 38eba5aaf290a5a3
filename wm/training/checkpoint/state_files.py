"""Store the tensors of a training state in safetensors files, one a rank, and read any range of a parameter back.

A file holds, under ``KIND/START/NAME``, runs of elements of flattened parameters. A reader does not need to know how
many ranks wrote: :class:`StateReader` joins a range from the runs of several files.
"""

import json
import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wm.errors import InputError
from wm.training.zero import Part

Contents = dict[str, list[tuple[int, int]]]
"""What a file holds: parameter name to (first element, count) of its runs."""


def contents_of(parts: Iterable[Part]) -> Contents:
    """List what a file of these parts holds."""
    contents: Contents = {}
    for part in parts:
        contents.setdefault(part.name, []).append((part.start, part.count))
    return contents


class HostBuffers:
    """Host memory for a rank's parts, reused by every checkpoint: training continues while they are written."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def copy(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """Copy the parts as they are now; float32, 1-D, by key. The copy before is overwritten."""
        on_gpu = any(part.values["weight"].is_cuda for part in parts)
        for part in parts:
            for kind, values in part.values.items():
                key = f"{kind}/{part.start}/{part.name}"
                # Reused: pinning memory is slow.
                host_tensor = self._tensors.get(key)
                if host_tensor is None or host_tensor.shape != values.shape:
                    host_tensor = self._tensors[key] = torch.empty(values.shape, dtype=torch.float32, pin_memory=on_gpu)
                host_tensor.copy_(values, non_blocking=on_gpu)
        # All copies run at once; the next step may change the weights only after them.
        if on_gpu:
            torch.cuda.synchronize()
        return self._tensors


def write_tensors(sink: BinaryIO, tensors: Mapping[str, Tensor]) -> int:
    """Write fp32 host tensors in the format of safetensors, whose library writes to local files alone.

    Args:
        sink: Stream, perhaps into an object store. Little-endian machines only, as every one that torch trains on.
        tensors: 1-D, by key.

    Returns:
        Number of bytes.
    """
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    # The format asks for data that begin at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        sink.write(tensor.numpy().data.cast("B"))
    return 8 + len(text) + offset


class StateReader:
    """Read ranges of parameters from the files of a checkpoint."""

    def __init__(self, folder: Path, contents: Mapping[str, Contents]) -> None:
        """Index the runs; no file is opened before it is needed.

        Args:
            folder: Of the files.
            contents: By file name.
        """
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._runs: dict[str, list[tuple[int, int, str]]] = {}
        for file, runs_by_name in contents.items():
            for name, runs in runs_by_name.items():
                self._runs.setdefault(name, []).extend((start, count, file) for start, count in runs)
        for sorted_runs in self._runs.values():
            sorted_runs.sort()

    def files_for(self, parts: Iterable[Part]) -> set[str]:
        """Return the files that hold something of these parts."""
        return {file for part in parts for _, _, file in self._overlapping_runs(part)}

    def fill(self, part: Part) -> None:
        """Write into the part's tensors what the checkpoint holds of them."""
        for start, count, file in self._overlapping_runs(part):
            begin, end = max(start, part.start), min(start + count, part.start + part.count)
            for kind, values in part.values.items():
                stored = self._read(file, f"{kind}/{start}/{part.name}", begin - start, end - start)
                values[begin - part.start : end - part.start].copy_(stored)

    def _overlapping_runs(self, part: Part) -> list[tuple[int, int, str]]:
        """Find the stored runs that together hold a part."""
        start, end = part.start, part.start + part.count
        runs = self._runs.get(part.name, [])
        # Sorted by their start: the first that can overlap is the last one that starts no later.
        first = max(0, bisect_right(runs, (start, 1 << 62, "")) - 1)
        overlapping = [run for run in runs[first:] if run[0] < end and run[0] + run[1] > start]
        if sum(min(run[0] + run[1], end) - max(run[0], start) for run in overlapping) != part.count:
            raise InputError(f"{self._folder}: the checkpoint lacks elements {start} to {end} of {part.name}")
        return overlapping

    def _read(self, file: str, key: str, begin: int, end: int) -> Tensor:
        try:
            if file not in self._files:
                self._files[file] = safe_open(self._folder / file, framework="pt")
            values: Tensor = self._files[file].get_slice(key)[begin:end]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self._folder / file} cannot be read: {error}") from error
        return values
