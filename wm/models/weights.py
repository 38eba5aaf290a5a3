"""The tensors of a Hugging Face folder, read without loading the model: names, shapes, bytes, fingerprints.

Safetensors are preferred; where there are none, ``.bin`` files are read as tensors alone
(:mod:`wm.models.pickled`).
"""

import hashlib
import json
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
from wm.models.pickled import need_downloaded, read_pickled, tensors_of

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
    """The place of a tensor at hand; ``make`` where it is made of it only when asked for."""
    name = _DTYPES.get(tensor.dtype, str(tensor.dtype))
    return TensorPlace(file, name, tuple(tensor.shape), make=make or (lambda: tensor))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; :class:`InputError` names the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"no {path.name} in {path.parent}; expected a Hugging Face model folder") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights in the Hugging Face layout."""
    return any((folder / name).is_file() for layout in _LAYOUTS for name in layout)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, safetensors or ``.bin``: one, or the shards that the index names."""
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
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise InputError(f"{index} names {outside[0]!r}; expected file names of its own folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise InputError(f"{index} names files that are not there: {', '.join(missing) or 'none at all'}")
    return [index.parent / name for name in names]


def list_tensors(folder: Path) -> dict[str, TensorPlace]:
    """Every tensor of the folder's weight files; of safetensors only the headers are read."""
    places: dict[str, TensorPlace] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            places.update(read_header(file))
        else:
            tensors = tensors_of(read_pickled(file), file)
            places.update({name: place_of(file, tensor) for name, tensor in tensors.items()})
    return places


def read_header(file: Path) -> dict[str, TensorPlace]:
    """Every tensor of a safetensors file, none of whose data is read.

    The format: 8 bytes little-endian length, JSON, then the data to which the offsets refer. Raises
    :class:`InputError` for a file that is absent, cut short or none of this kind.
    """
    need_downloaded(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise InputError(f"{file} is no whole safetensors file ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
            entries = {name: value for name, value in header.items() if name != "__metadata__"}
            places = {
                name: TensorPlace(
                    file,
                    entry["dtype"],
                    tuple(entry["shape"]),
                    8 + length + entry["data_offsets"][0],
                    8 + length + entry["data_offsets"][1],
                )
                for name, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is no readable safetensors file: {error}") from error
    if any(place.end > size for place in places.values()):
        raise InputError(f"{file} is truncated: {size} bytes, its header promises more")
    return places


def load_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with ``prefix`` (removed from the keys); nothing else is read."""
    wanted = {name: place for name, place in list_tensors(folder).items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor for name, tensor in read_places(wanted)}


def read_places(places: Mapping[str, TensorPlace]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, one at a time and file by file, each in the type it is stored in."""
    for name, place in places.items():
        if place.make is not None:
            yield name, place.make()
    for file in sorted({place.file for place in places.values() if place.make is None}):
        try:
            with safe_open(file, framework="pt", device="cpu") as stream:
                for name, place in places.items():
                    if place.make is None and place.file == file:
                        yield name, stream.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error


def check_tensors(
    expected: Mapping[str, Iterable[int]], found: Mapping[str, Iterable[int]], where: str, *, extra: bool = True
) -> None:
    """Raise one :class:`InputError` that counts and lists missing, misshapen and (if ``extra``) surplus tensors.

    The first ten of each kind are named, with the shapes expected and found.
    """
    want, got = ({name: tuple(shape) for name, shape in shapes.items()} for shapes in (expected, found))
    problems = {
        "missing": [f"{name} (expected {want[name]})" for name in sorted(want.keys() - got.keys())],
        "misshapen": [
            f"{name} {got[name]} not {want[name]}"
            for name in sorted(want.keys() & got.keys())
            if want[name] != got[name]
        ],
        "extra": [f"{name} {got[name]}" for name in sorted(got.keys() - want.keys()) if extra],
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', …' if len(names) > _LISTED else ''}"
        for kind, names in problems.items()
        if names
    ]
    if parts:
        raise InputError(f"{where}: tensors do not fit the configuration; " + "; ".join(parts))


def fingerprint(folder: Path, keep: Callable[[str], bool]) -> str:
    """:func:`fingerprint_of` the configuration and kept tensors of a Hugging Face folder."""
    places = {name: place for name, place in list_tensors(folder).items() if keep(name)}
    return fingerprint_of(read_json(folder / "config.json"), places)


def fingerprint_of(config: Mapping[str, Any], places: Mapping[str, TensorPlace]) -> str:
    """16 hexadecimal digits of configuration and weights, the same however the weights are stored and sharded.

    Of each tensor: name, type, shape, and its bytes; of one above 1 MiB, 16 evenly spaced pieces of 4 KiB. A
    changed tensor of a large model that agrees in all those pieces is therefore not noticed.
    """
    facts = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG_KEYS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(places):
        place = places[name]
        data = place.data()
        digest.update(f"{name}\x1f{place.dtype}\x1f{place.shape}\n".encode())
        if len(data) <= _WHOLE_BYTES:
            digest.update(data.tobytes())
            continue
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
