"""The tensors of a Hugging Face folder, read without loading the model: names, shapes, bytes, fingerprints.

Only safetensors are read; a pickle is never opened.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wm.errors import InputError

INDEX = "model.safetensors.index.json"
CODEC_PREFIX = "model.vqmodel."
_WHOLE_BYTES = 1 << 20
_SAMPLES = 16
_SAMPLE_BYTES = 4096
_VOLATILE_CONFIG_KEYS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


@dataclass(frozen=True)
class TensorPlace:
    """Where a stored tensor is. ``begin`` and ``end`` are byte offsets in the file, end not included."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: one, or the shards that the index names."""
    single, index = folder / "model.safetensors", folder / INDEX
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise InputError(f"{index} names files that are not there: {', '.join(missing) or 'none at all'}")
        return [folder / name for name in names]
    if not folder.is_dir():
        raise InputError(f"no such model folder: {folder}")
    raise InputError(f"no model.safetensors or {INDEX} in {folder} (pickled weights are never read)")


def list_tensors(folder: Path) -> dict[str, TensorPlace]:
    """Every tensor of the folder's weight files, from their headers alone."""
    places: dict[str, TensorPlace] = {}
    for file in weight_files(folder):
        places.update(_read_header(file))
    return places


def _read_header(file: Path) -> dict[str, TensorPlace]:
    """The format: 8 bytes little-endian length, JSON, then the data to which the offsets refer."""
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
    wanted = [(name, place) for name, place in list_tensors(folder).items() if name.startswith(prefix)]
    tensors: dict[str, Tensor] = {}
    for file in sorted({place.file for _, place in wanted}):
        try:
            with safe_open(file, framework="pt", device="cpu") as stream:
                for name, place in wanted:
                    if place.file == file:
                        tensors[name.removeprefix(prefix)] = stream.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
    return tensors


def check_tensors(expected: Mapping[str, Iterable[int]], found: Mapping[str, Iterable[int]], where: str) -> None:
    """Raise :class:`InputError` that lists missing and misshapen tensors (the first six of each)."""
    missing = sorted(set(expected) - set(found))
    shapes = {name: (tuple(expected[name]), tuple(found[name])) for name in sorted(set(expected) & set(found))}
    misshapen = [f"{name} {got} not {want}" for name, (want, got) in shapes.items() if want != got]
    parts = [
        f"{len(names)} {label}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
        for label, names in (("missing", missing), ("misshapen", misshapen))
        if names
    ]
    if parts:
        raise InputError(f"{where}: tensors do not fit the configuration; " + "; ".join(parts))


def fingerprint(folder: Path, keep: Callable[[str], bool]) -> str:
    """16 hexadecimal digits of configuration and weights, the same however the weights are sharded.

    Of each kept tensor: name, type, shape, and its bytes; of one above 1 MiB, 16 evenly spaced pieces of 4
    KiB. A changed tensor of a large model that agrees in all those pieces is therefore not noticed.
    """
    config = {
        name: value for name, value in read_json(folder / "config.json").items() if name not in _VOLATILE_CONFIG_KEYS
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    places = {name: place for name, place in list_tensors(folder).items() if keep(name)}
    streams = {file: file.open("rb") for file in {place.file for place in places.values()}}
    try:
        for name in sorted(places):
            place = places[name]
            digest.update(f"{name}\x1f{place.dtype}\x1f{place.shape}\n".encode())
            stream, size = streams[place.file], place.end - place.begin
            if size <= _WHOLE_BYTES:
                stream.seek(place.begin)
                digest.update(stream.read(size))
                continue
            for sample in range(_SAMPLES):
                stream.seek(place.begin + sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    finally:
        for stream in streams.values():
            stream.close()
    return digest.hexdigest()[:16]


def tensor_digest(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """16 hexadecimal digits of named tensors (as float32) and further facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}\x1f{tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
