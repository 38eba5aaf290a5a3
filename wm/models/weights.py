"""Read the tensors of a Hugging Face folder without loading the model: names, shapes, types, bytes.

Safetensors are preferred; where there are none, ``.bin`` files are read as tensors alone
(:mod:`wm.models.pickled`).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wm.errors import InputError, MissingPathError
from wm.models.folder_checks import one_line, read_json, refusing
from wm.models.pickled import check_downloaded, read_pickled, tensors_of

INDEX = "model.safetensors.index.json"
_LAYOUTS = (
    ("model.safetensors", INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of a number of each type that safetensors knows."""
MAX_HEADER_BYTES = 100_000_000
"""The longest header of a safetensors file, as the format's own library bounds it."""
CODEC_PREFIX = "model.vqmodel."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not read yet: bytes ``begin`` to ``end`` (not included) of a file, or what ``make`` returns."""

    file: Path
    dtype: str
    """As safetensors writes it: F32, BF16, …"""
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    make: Callable[[], Tensor] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * _DTYPE_BITS[self.dtype] // 8

    def data(self) -> npt.NDArray[np.uint8]:
        """Return its bytes, row-major; of a safetensors file only those looked at are read."""
        if self.make is not None:
            flat: npt.NDArray[np.uint8] = self.make().contiguous().reshape(-1).view(torch.uint8).numpy()
            return flat
        # An empty map cannot be made.
        if self.begin == self.end:
            return np.zeros(0, np.uint8)
        return np.memmap(self.file, np.uint8, "r", self.begin, (self.end - self.begin,))


def describe_tensor(file: Path, tensor: Tensor, make: Callable[[], Tensor] | None = None) -> StoredTensor:
    """Describe a tensor at hand, or one of its type and shape that ``make`` returns.

    Args:
        file: Where it is from.
        tensor: Says type and shape; it may be on the device ``meta`` where ``make`` is given.
        make: Returns the tensor when it is asked for; ``tensor`` itself without.
    """
    name = _DTYPES.get(tensor.dtype, str(tensor.dtype))
    return StoredTensor(file, name, tuple(tensor.shape), make=make or (lambda: tensor))


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights in the Hugging Face layout."""
    return any((folder / name).is_file() for layout in _LAYOUTS for name in layout)


def weight_files(folder: Path) -> list[Path]:
    """List the weight files of a model folder, safetensors or ``.bin``: one, or the shards that the index names."""
    for single, index in _LAYOUTS:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _indexed(folder / index)
    if not folder.is_dir():
        raise MissingPathError(folder, "model folder")
    raise InputError(f"no weights in {folder}: expected one of {', '.join(name for pair in _LAYOUTS for name in pair)}")


def _indexed(index: Path) -> list[Path]:
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
        raise InputError(f"{index}: expected a weight_map from tensor names to file names")
    names = sorted(set(shard_of.values()))
    # A name with a folder in it could point anywhere on the disk.
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise InputError(f"{index} names {outside[0]!r}; expected file names of its own folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise InputError(f"{index} names files that are not there: {', '.join(missing) or 'none at all'}")
    return [index.parent / name for name in names]


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """List every tensor of the folder's weight files; of safetensors only the headers are read."""
    stored: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            stored.update(read_header(file))
        else:
            tensors = tensors_of(read_pickled(file), file)
            stored.update({name: describe_tensor(file, tensor) for name, tensor in tensors.items()})
    return stored


def read_header(file: Path) -> dict[str, StoredTensor]:
    """List every tensor of a safetensors file; no data is read.

    The format: 8 bytes little-endian length, JSON, then the data to which the offsets refer.

    Args:
        file: A safetensors file.

    Returns:
        Its tensors by name.

    Raises:
        InputError: It is absent, cut short or none of this kind.
    """
    check_downloaded(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        # Bounds first: a damaged length would make the next read take all memory.
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise InputError(f"{file} is no complete safetensors file ({size} bytes)")
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{file}: its header has {length:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
        with refusing(f"{file} is no readable safetensors file"):
            header = json.loads(stream.read(length))
            stored = {
                name: _parse_entry(file, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
            }
    if any(tensor.end > size for tensor in stored.values()):
        raise InputError(f"{file} is truncated: {size} bytes, its header promises more")
    # The offsets decide what is read as a weight: they must agree with shape and type.
    for name, tensor in stored.items():
        _check_entry(name, tensor, file)
    return stored


def _parse_entry(file: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    # Relative to the end of the header.
    begin, end = entry["data_offsets"]
    if begin < 0:
        raise ValueError(f"a tensor begins at {begin}")
    return StoredTensor(file, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def _check_entry(name: str, tensor: StoredTensor, file: Path) -> None:
    """Raise :class:`InputError` if an entry of a header contradicts itself."""
    if not all(type(side) is int and side >= 0 for side in tensor.shape):
        raise InputError(f"{file}: tensor {name!r:.80} has the shape {tensor.shape!r:.80}, expected whole numbers")
    bits = _DTYPE_BITS.get(tensor.dtype) if isinstance(tensor.dtype, str) else None
    if bits is None:
        raise InputError(
            f"{file}: tensor {name!r:.80} has the type {tensor.dtype!r:.40}, which safetensors does not know"
        )
    if tensor.begin < 8 or (tensor.end - tensor.begin) * 8 != math.prod(tensor.shape) * bits:
        raise InputError(
            f"{file}: tensor {name!r:.80} has {tensor.end - tensor.begin} bytes in the file, which is not what "
            f"{tensor.shape!r:.80} of {tensor.dtype} take"
        )


def load_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose name starts with ``prefix`` (removed from the keys); nothing else is read.

    Args:
        folder: Holds the weight files.
        prefix: Such as ``model.vqmodel.``.
    """
    selection = {name: tensor for name, tensor in list_tensors(folder).items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in read_stored(selection)}


def read_stored(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Iterate over names and tensors, file by file, each in the type it is stored in."""
    for name, tensor in stored.items():
        if tensor.make is not None:
            yield name, tensor.make()
    # A file is opened once, whatever order the names have.
    for file in sorted({tensor.file for tensor in stored.values() if tensor.make is None}):
        try:
            with safe_open(file, framework="pt", device="cpu") as stream:
                for name, tensor in stored.items():
                    if tensor.make is None and tensor.file == file:
                        yield name, stream.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read: {one_line(error)}") from error
