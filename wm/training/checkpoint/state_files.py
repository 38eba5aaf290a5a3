"""The tensors of a training state in safetensors files, one a rank, and reading any range of a parameter back.

A file holds, under ``KIND/START/NAME``, runs of elements of flattened parameters. Whoever reads needs not know how many
ranks wrote: :class:`StateReader` puts a range together from whatever files hold pieces of it.
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


class HostCopy:
    """Host memory for a rank's parts, kept from one checkpoint to the next: training goes on while it is written."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def take(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        """Copy the parts as they are now; float32, 1-D, by key. The former copy is overwritten."""
        on_gpu = any(part.values["weight"].is_cuda for part in parts)
        for part in parts:
            for kind, values in part.values.items():
                key = f"{kind}/{part.start}/{part.name}"
                host_tensor = self._tensors.get(key)
                if host_tensor is None or host_tensor.shape != values.shape:
                    host_tensor = self._tensors[key] = torch.empty(values.shape, dtype=torch.float32, pin_memory=on_gpu)
                host_tensor.copy_(values, non_blocking=on_gpu)
        if on_gpu:
            torch.cuda.synchronize()
        return self._tensors


def write_tensors(sink: BinaryIO, tensors: Mapping[str, Tensor]) -> int:
    """Write fp32 host tensors in the format of safetensors, which its library writes to local files alone; returns the
    number of bytes. Little-endian machines only, as every one that torch trains on."""
    header: dict[str, Any] = {}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        sink.write(tensor.numpy().data.cast("B"))
    return 8 + len(text) + offset


class StateReader:
    """Ranges of parameters out of the files of a checkpoint that lie in ``folder``."""

    def __init__(self, folder: Path, contents: Mapping[str, Contents]) -> None:
        """``contents``: by file name."""
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._runs: dict[str, list[tuple[int, int, str]]] = {}
        for file, held in contents.items():
            for name, runs in held.items():
                self._runs.setdefault(name, []).extend((start, count, file) for start, count in runs)
        for found in self._runs.values():
            found.sort()

    def files_for(self, parts: Iterable[Part]) -> set[str]:
        """Return the files that hold something of these parts."""
        return {file for part in parts for _, _, file in self._pieces(part.name, part.start, part.count)}

    def fill(self, part: Part) -> None:
        """Write into the part's tensors what the checkpoint holds of them."""
        for start, count, file in self._pieces(part.name, part.start, part.count):
            begin, end = max(start, part.start), min(start + count, part.start + part.count)
            for kind, values in part.values.items():
                stored = self._slice(file, f"{kind}/{start}/{part.name}", begin - start, end - start)
                values[begin - part.start : end - part.start].copy_(stored)

    def _pieces(self, name: str, start: int, count: int) -> list[tuple[int, int, str]]:
        runs = self._runs.get(name, [])
        first = max(0, bisect_right(runs, (start, 1 << 62, "")) - 1)
        found = [run for run in runs[first:] if run[0] < start + count and run[0] + run[1] > start]
        if sum(min(run[0] + run[1], start + count) - max(run[0], start) for run in found) != count:
            raise InputError(f"{self._folder}: the checkpoint lacks elements {start} to {start + count} of {name}")
        return found

    def _slice(self, file: str, key: str, begin: int, end: int) -> Tensor:
        try:
            if file not in self._open:
                self._open[file] = safe_open(self._folder / file, framework="pt")
            values: Tensor = self._open[file].get_slice(key)[begin:end]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self._folder / file} cannot be read: {error}") from error
        return values
