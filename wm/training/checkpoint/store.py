"""Where checkpoints lie: a local folder or an object store, in which one is there whole or not at all.

A checkpoint is a folder ``step-00000200-TOKEN`` of files and, written last, ``checkpoint.json``, which names them. In a
local folder it is written under a hidden name and renamed; an object store cannot rename, there the manifest alone says
that the rest is whole. The token is of the attempt that wrote it: what two attempts of a run write never mixes.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from wm.errors import InputError
from wm.files.storage import object_store
from wm.files.uris import is_remote, local_path

MANIFEST = "checkpoint.json"
_OWNER = "owner"
_NAME = re.compile(r"step-(\d{8,})-[0-9a-f]+")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder's name and what its manifest says."""

    name: str
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.manifest["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured of the model then, by name."""
        return dict(self.manifest["metrics"])


class CheckpointStore:
    """Checkpoints below one place. Raises :class:`OSError` where the place cannot be read or written."""

    def __init__(self, place: str) -> None:
        """``place``: a local folder, which need not exist, or ``s3://bucket/prefix`` or ``gs://bucket/prefix``."""
        from pyarrow import fs

        self.place = place
        self._is_local = not is_remote(place)
        self._fs: Any
        if self._is_local:
            self._fs, self._root = fs.LocalFileSystem(), str(Path(local_path(place)).absolute())
        else:
            self._fs, self._root = object_store(place)

    def check(self) -> None:
        """Write and remove a small file; :class:`InputError` names the place if that fails."""
        from pyarrow import fs

        was_there = self._fs.get_file_info(self._root).type == fs.FileType.Directory if self._is_local else True
        try:
            with self._errors():
                self._write(f"{self._root}/.{_OWNER}.{os.getpid()}", b"?")
                self._fs.delete_file(f"{self._root}/.{_OWNER}.{os.getpid()}")
                if not was_there:
                    self._fs.delete_dir(self._root)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"checkpoints = {self.place!r}: cannot be written to: {_one_line(error)}") from error

    def claim(self, token: str) -> None:
        """Make ``token`` the attempt that writes here; an earlier one that still runs somewhere then writes no more."""
        with self._errors():
            self._write(f"{self._root}/{_OWNER}", token.encode())

    def is_claimed_by(self, token: str) -> bool:
        """Return whether no later attempt has claimed the place."""
        with self._errors(), self._fs.open_input_stream(f"{self._root}/{_OWNER}") as stream:
            return bool(stream.read().decode() == token)

    def checkpoints(self) -> list[Checkpoint]:
        """List the complete checkpoints, by step. Raises :class:`InputError` for a manifest that is damaged."""
        complete = []
        for name in self._folders():
            path = f"{self._root}/{name}/{MANIFEST}"
            if _NAME.fullmatch(name) and self._fs.get_file_info(path).is_file:
                complete.append(Checkpoint(name, self._read_manifest(path)))
        return sorted(complete, key=lambda checkpoint: (checkpoint.step, checkpoint.name))

    def remove_unfinished(self) -> None:
        """Remove what attempts that were killed have left of checkpoints."""
        complete = {checkpoint.name for checkpoint in self.checkpoints()}
        for name in self._folders():
            if _NAME.fullmatch(name.removeprefix(".")) and name not in complete:
                with self._errors():
                    self._fs.delete_dir(f"{self._root}/{name}")

    @contextmanager
    def writing(self, name: str, file: str) -> Iterator[BinaryIO]:
        """Open a file of the checkpoint ``name`` for writing, on any rank; complete in an object store when it is
        closed."""
        folder = self._aside(name)
        with self._errors():
            if self._is_local:
                self._fs.create_dir(folder, recursive=True)
            with self._fs.open_output_stream(f"{folder}/{file}") as sink:
                yield cast(BinaryIO, sink)
            if self._is_local:
                _to_disk(Path(folder) / file)

    def finish(self, name: str, manifest: Mapping[str, Any]) -> Checkpoint:
        """Make the checkpoint whole, once all its files are written. ``manifest["files"]`` is looked at: name to
        ``{"bytes": …}``."""
        folder = self._aside(name)
        with self._errors():
            for file, facts in manifest["files"].items():
                info = self._fs.get_file_info(f"{folder}/{file}")
                if not info.is_file or info.size != facts["bytes"]:
                    raise OSError(
                        errno.EIO, f"{file} is not whole there; do all nodes share the storage of the checkpoints?"
                    )
            self._write(f"{folder}/{MANIFEST}", (json.dumps(manifest) + "\n").encode())
            if self._is_local:
                _to_disk(Path(folder) / MANIFEST)
                self._fs.move(folder, f"{self._root}/{name}")
                _to_disk(Path(self._root))
        return Checkpoint(name, manifest)

    def discard(self, name: str) -> None:
        """Remove what was written of a checkpoint that will not be whole; nothing if there is nothing."""
        from pyarrow import fs

        with self._errors():
            if self._fs.get_file_info(self._aside(name)).type == fs.FileType.Directory:
                self._fs.delete_dir(self._aside(name))

    def remove(self, name: str) -> None:
        """Remove a whole checkpoint, the manifest first."""
        with self._errors():
            self._fs.delete_file(f"{self._root}/{name}/{MANIFEST}")
            self._fs.delete_dir(f"{self._root}/{name}")

    def remove_all_but(self, names: Sequence[str]) -> None:
        """Remove every other checkpoint, and the whole place if none is left."""
        for checkpoint in self.checkpoints():
            if checkpoint.name not in names:
                self.remove(checkpoint.name)
        self.remove_unfinished()
        with self._errors():
            if self._fs.get_file_info(f"{self._root}/{_OWNER}").is_file:
                self._fs.delete_file(f"{self._root}/{_OWNER}")
            root = Path(self._root)
            if self._is_local and not names and root.is_dir() and not any(root.iterdir()):
                self._fs.delete_dir(self._root)

    @contextmanager
    def at_hand(self, checkpoint: Checkpoint, files: Sequence[str]) -> Iterator[Path]:
        """Provide a local folder with these files of a checkpoint, each of the size that the manifest says.

        Raises :class:`InputError` for one that is missing or of another size.
        """
        folder = f"{self._root}/{checkpoint.name}"
        with self._errors():
            for file in files:
                info, expected = self._fs.get_file_info(f"{folder}/{file}"), checkpoint.manifest["files"][file]["bytes"]
                if not info.is_file or info.size != expected:
                    actual = f"{info.size:,} bytes" if info.is_file else "nothing"
                    raise InputError(
                        f"checkpoint {checkpoint.name} of {self.place}: expected {expected:,} bytes in {file}, "
                        f"found {actual}"
                    )
        if self._is_local:
            yield Path(folder)
            return
        with tempfile.TemporaryDirectory() as local:
            for file in files:
                with (
                    self._errors(),
                    self._fs.open_input_stream(f"{folder}/{file}") as source,
                    (Path(local) / file).open("wb") as sink,
                ):
                    shutil.copyfileobj(source, sink, 8 << 20)
            yield Path(local)

    def _aside(self, name: str) -> str:
        return f"{self._root}/{'.' if self._is_local else ''}{name}"

    def _folders(self) -> list[str]:
        from pyarrow import fs

        with self._errors():
            infos = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def _read_manifest(self, path: str) -> dict[str, Any]:
        with self._errors(), self._fs.open_input_stream(path) as stream:
            text = stream.read()
        try:
            manifest = json.loads(text)
            if not {"step", "metrics", "identity", "files", "num_ranks"} <= manifest.keys():
                raise ValueError("keys are missing")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {error}; remove that folder") from error
        return dict(manifest)

    def _write(self, path: str, content: bytes) -> None:
        if self._is_local:
            self._fs.create_dir(str(Path(path).parent), recursive=True)
        with self._fs.open_output_stream(path) as sink:
            sink.write(content)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise pyarrow's own exceptions as :class:`OSError`."""
        try:
            yield
        except pa.ArrowException as error:
            raise OSError(errno.EIO, f"{self.place}: {_one_line(error)}") from error


def _to_disk(path: Path) -> None:
    """Flush to the disk: otherwise a power cut leaves a name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
