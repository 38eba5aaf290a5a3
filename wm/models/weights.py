"""The tensors of a Hugging Face folder, read without loading the model: names, shapes, bytes, fingerprints.

Safetensors are preferred; where there are none, ``.bin`` files are read as tensors alone
(:mod:`wm.models.release.pickled`).
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wm.errors import InputError
from wm.models.folder_checks import one_line, read_json, refusing
from wm.models.release.pickled import need_downloaded, read_pickled, tensors_of

INDEX = "model.safetensors.index.json"
_LAYOUTS = (
    ("model.safetensors", INDEX),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_LISTED = 10
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
_FLOATS = ("F64", "F32", "F16", "BF16")
MAX_HEADER_BYTES = 100_000_000
"""The longest header of a safetensors file, as the format's own library bounds it."""
CODEC_PREFIX = "model.vqmodel."
_WHOLE_BYTES = 1 << 20
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_VOLATILE_CONFIG_KEYS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


@dataclass(frozen=True)
class TensorPlace:
    """Where a stored tensor is: at byte offsets ``begin`` to ``end`` (not included) of the file, or, if ``make``
    is given, to be had from it."""

    file: Path
    dtype: str
    """As safetensors writes it: F32, BF16, …"""
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0
    make: Callable[[], Tensor] | None = None

    def data(self) -> npt.NDArray[np.uint8]:
        """Its bytes, row-major; of a safetensors file only those looked at are read."""
        if self.make is not None:
            flat: npt.NDArray[np.uint8] = self.make().contiguous().reshape(-1).view(torch.uint8).numpy()
            return flat
        if self.begin == self.end:
            return np.zeros(0, np.uint8)
        return np.memmap(self.file, np.uint8, "r", self.begin, (self.end - self.begin,))


def place_of(file: Path, tensor: Tensor, make: Callable[[], Tensor] | None = None) -> TensorPlace:
    """Return the place of a tensor at hand; ``make`` where it is made of it only when asked for."""
    name = _DTYPES.get(tensor.dtype, str(tensor.dtype))
    return TensorPlace(file, name, tuple(tensor.shape), make=make or (lambda: tensor))


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
        raise InputError(f"no such model folder: {folder}")
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


def list_tensors(folder: Path) -> dict[str, TensorPlace]:
    """Every tensor of the folder's weight files; of safetensors only the headers are read."""
    locations: dict[str, TensorPlace] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            locations.update(read_header(file))
        else:
            tensors = tensors_of(read_pickled(file), file)
            locations.update({name: place_of(file, tensor) for name, tensor in tensors.items()})
    return locations


def read_header(file: Path) -> dict[str, TensorPlace]:
    """Every tensor of a safetensors file, none of whose data is read.

    The format: 8 bytes little-endian length, JSON, then the data to which the offsets refer. Raises
    :class:`InputError` for a file that is absent, cut short or none of this kind.
    """
    need_downloaded(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        # Bounds first: a damaged length would make the next read take all memory.
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise InputError(f"{file} is no whole safetensors file ({size} bytes)")
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{file}: its header has {length:,} bytes, expected at most {MAX_HEADER_BYTES:,}")
        with refusing(f"{file} is no readable safetensors file"):
            header = json.loads(stream.read(length))
            locations = {
                name: _place_in(file, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
            }
    if any(location.end > size for location in locations.values()):
        raise InputError(f"{file} is truncated: {size} bytes, its header promises more")
    for name, location in locations.items():
        _check_place(name, location, file)
    return locations


def _place_in(file: Path, entry: Mapping[str, Any], start: int) -> TensorPlace:
    begin, end = entry["data_offsets"]
    if begin < 0:
        raise ValueError(f"a tensor begins at {begin}")
    return TensorPlace(file, entry["dtype"], tuple(entry["shape"]), start + begin, start + end)


def _check_place(name: str, location: TensorPlace, file: Path) -> None:
    """Raise :class:`InputError` if an entry of a header contradicts itself."""
    if not all(type(side) is int and side >= 0 for side in location.shape):
        raise InputError(f"{file}: tensor {name!r:.80} has the shape {location.shape!r:.80}, expected whole numbers")
    bits = _DTYPE_BITS.get(location.dtype) if isinstance(location.dtype, str) else None
    if bits is None:
        raise InputError(
            f"{file}: tensor {name!r:.80} has the type {location.dtype!r:.40}, which safetensors does not know"
        )
    if location.begin < 8 or (location.end - location.begin) * 8 != math.prod(location.shape) * bits:
        raise InputError(
            f"{file}: tensor {name!r:.80} has {location.end - location.begin} bytes in the file, which is not what "
            f"{location.shape!r:.80} of {location.dtype} take"
        )


def load_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors whose name starts with ``prefix`` (removed from the keys); nothing else is read."""
    selection = {name: location for name, location in list_tensors(folder).items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in read_places(selection)}


def read_places(locations: Mapping[str, TensorPlace]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, one at a time and file by file, each in the type it is stored in."""
    for name, location in locations.items():
        if location.make is not None:
            yield name, location.make()
    for file in sorted({location.file for location in locations.values() if location.make is None}):
        try:
            with safe_open(file, framework="pt", device="cpu") as stream:
                for name, location in locations.items():
                    if location.make is None and location.file == file:
                        yield name, stream.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read: {one_line(error)}") from error


def check_tensors(
    expected: Mapping[str, Iterable[int]], actual: Mapping[str, Iterable[int]], where: str, *, extra: bool = True
) -> None:
    """Raise one :class:`InputError` that counts and lists missing, misshapen and (if ``extra``) surplus tensors.

    The first ten of each kind are named, with the shapes expected and found.
    """
    expected_shapes, actual_shapes = (
        {name: tuple(shape) for name, shape in shapes.items()} for shapes in (expected, actual)
    )
    problems = {
        "missing": [
            f"{name} (expected {expected_shapes[name]})"
            for name in sorted(expected_shapes.keys() - actual_shapes.keys())
        ],
        "misshapen": [
            f"{name} {actual_shapes[name]} not {expected_shapes[name]}"
            for name in sorted(expected_shapes.keys() & actual_shapes.keys())
            if expected_shapes[name] != actual_shapes[name]
        ],
        "extra": [
            f"{name} {actual_shapes[name]}" for name in sorted(actual_shapes.keys() - expected_shapes.keys()) if extra
        ],
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}"
        for kind, names in problems.items()
        if names
    ]
    if parts:
        raise InputError(f"{where}: tensors do not fit the configuration; " + "; ".join(parts))


def check_floats(expected: Mapping[str, Tensor], actual: Mapping[str, TensorPlace], where: str) -> None:
    """Check that weights are stored as floats where the model has floats.

    Args:
        expected: The model's tensors by name.
        actual: What is stored, by the same names; others are passed over.
        where: Named in the error.

    Raises:
        InputError: A tensor is stored as whole numbers: quantised, or of something else.
    """
    wrong = [
        f"{name} ({location.dtype})"
        for name, location in actual.items()
        if name in expected and expected[name].is_floating_point() and location.dtype not in _FLOATS
    ]
    if wrong:
        raise InputError(
            f"{where}: {len(wrong)} tensors are not stored as numbers of {', '.join(_FLOATS)}: "
            f"{', '.join(wrong[:_LISTED])}{', …' if len(wrong) > _LISTED else ''}"
        )


def count_numbers(locations: Mapping[str, TensorPlace]) -> int:
    """Count the numbers of stored tensors."""
    return sum(math.prod(location.shape) for location in locations.values())


def fingerprint(folder: Path, keep: Callable[[str], bool]) -> str:
    """:func:`fingerprint_of` the configuration and kept tensors of a Hugging Face folder."""
    locations = {name: location for name, location in list_tensors(folder).items() if keep(name)}
    return fingerprint_of(read_json(folder / "config.json"), locations)


def fingerprint_of(config: Mapping[str, Any], locations: Mapping[str, TensorPlace]) -> str:
    """16 hexadecimal digits of configuration and weights, the same however the weights are stored and sharded.

    Of each tensor: name, type, shape, and its bytes; of one above 1 MiB, 16 evenly spaced pieces of 4 KiB. A
    changed tensor of a large model that agrees in all those pieces is therefore not noticed.
    """
    facts = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG_KEYS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(locations):
        location = locations[name]
        data = location.data()
        digest.update(f"{name}\x1f{location.dtype}\x1f{location.shape}\n".encode())
        if len(data) <= _WHOLE_BYTES:
            digest.update(data.tobytes())
            continue
        # Large tensors are sampled, so that a 7B folder is identified in seconds.
        for sample in range(_SAMPLES):
            begin = sample * (len(data) - _SAMPLE_BYTES) // (_SAMPLES - 1)
            digest.update(data[begin : begin + _SAMPLE_BYTES].tobytes())
    return digest.hexdigest()[:16]


def tensor_digest(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """16 hexadecimal digits of named tensors (as float32) and further facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}\x1f{tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
