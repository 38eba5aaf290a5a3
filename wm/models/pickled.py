"""Tensors of files written by ``torch.save`` (``.pth``, ``.bin``, ``.ckpt``), read without running what they hold.

Only tensors and plain containers are accepted (``torch.load(weights_only=True)``); the data stay in the file
until they are used.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.folder_checks import one_line

_ZIP = b"PK\x03\x04"
_POINTER = b"version https://git-lfs"


def read_pickled(file: Path) -> dict[str, Any]:
    """Read the top-level dictionary of a file; its tensors are memory-mapped where the file's format allows it.

    Raises :class:`InputError` for a file that is absent, cut short, no dictionary, or that holds Python objects.
    """
    check_downloaded(file)
    try:
        value = _load(file)
    except InputError:  # a ValueError too
        raise
    except pickle.UnpicklingError as error:
        raise InputError(_unsafe(file)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        size = file.stat().st_size
        raise InputError(f"{file} cannot be read ({size} bytes; half downloaded?): {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a dictionary of tensors, got {type(value).__name__}")
    return value


def tensors_of(value: Mapping[str, object], file: Path, nullable: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Return the entries of a state dictionary; one that is no tensor is an error, unless it is None and
    ``nullable``.

    Args:
        value: The dictionary, as it was read.
        file: Named in the error.
        nullable: Names of entries that may be None, and are left out then.
    """
    # All are counted, so that one look says what kind of file it is.
    wrong = [name for name, entry in value.items() if not isinstance(entry, Tensor) and name not in nullable]
    if wrong:
        kind = type(value[wrong[0]]).__name__
        raise InputError(f"{file}: expected tensors only, but {wrong[0]!r} is a {kind} ({len(wrong)} such entries)")
    return {str(name): entry for name, entry in value.items() if isinstance(entry, Tensor)}


def check_downloaded(file: Path) -> None:
    """Raise :class:`InputError` if a file is absent, empty, or a git-lfs pointer in place of the file itself."""
    if not file.is_file():
        raise InputError(f"no {file.name} in {file.parent}")
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if not start:
        raise InputError(f"{file} is empty; download it again")
    if start == _POINTER:
        raise InputError(f"{file} is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`")


def _load(file: Path) -> object:
    with file.open("rb") as stream:
        start = stream.read(4)
    # torch's older formats are bare pickles (protocol 2 and up), which cannot be memory-mapped.
    if start != _ZIP and start[:1] != b"\x80":
        raise InputError(f"{file} is no file of torch.save: it starts with {start!r}")
    return torch.load(file, map_location="cpu", weights_only=True, mmap=start == _ZIP)


def _unsafe(file: Path) -> str:
    rewrite = "c = torch.load(IN, weights_only=False); torch.save({'state_dict': c['state_dict']}, OUT)"
    return (
        f"{file} holds Python objects besides tensors, which are never loaded (or it is damaged); if you trust it, "
        f"rewrite it once with `{rewrite}` where its libraries are installed"
    )
