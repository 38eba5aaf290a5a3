"""Store checkpoints in a local folder or an object store, in which one is complete or not there at all.

A checkpoint is a folder ``step-00000200-TOKEN`` of files and, written last, ``checkpoint.json``, which names them. In a
local folder it is written under a hidden name and renamed; an object store cannot rename, there the manifest alone says
that the rest is complete. The token is of the attempt that wrote it: what two attempts of a run write never mixes.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NotRequired, TypedDict, cast

import pyarrow as pa

from wm.errors import InputError, to_line
from wm.files.storage import object_store
from wm.files.uris import is_remote, local_path
from wm.training.checkpoint.deletion import Deletion
from wm.training.checkpoint.state_files import Contents

MANIFEST = "checkpoint.json"
_OWNER = "owner"
_NAME = re.compile(r"step-(\d{8,})-[0-9a-f]+")


class FileFacts(TypedDict):
    """A file of a checkpoint."""

    bytes: int
    contents: Contents


class Manifest(TypedDict):
    """Content of ``checkpoint.json``."""

    step: int
    metrics: dict[str, float]
    identity: dict[str, object]
    """Of the run: :func:`wm.training.checkpoint.identity.identity_of`."""
    num_ranks: int
    zero_stage: NotRequired[int | str]
    files: dict[str, FileFacts]
    """By name, of all ranks."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder's name and what its manifest says."""

    name: str
    manifest: Manifest

    @property
    def step(self) -> int:
        """Return the optimiser steps done."""
        return int(self.manifest["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """Return what was measured of the model then, by name."""
        return dict(self.manifest["metrics"])


class CheckpointStore:
    """Checkpoints below one folder. Methods raise :class:`OSError` where it cannot be read or written."""

    def __init__(self, root_uri: str) -> None:
        """Open the file system; nothing is read or written yet.

        Args:
            root_uri: A local folder, which need not exist, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
        """
        from pyarrow import fs

        self.root_uri = root_uri
        self._is_local = not is_remote(root_uri)
        self._fs: fs.FileSystem
        if self._is_local:
            self._fs, self._root = fs.LocalFileSystem(), str(Path(local_path(root_uri)).absolute())
        else:
            self._fs, self._root = object_store(root_uri)
        self._deletion = Deletion(self._fs, self._root, root_uri)

    def check(self) -> None:
        """Write and remove a small file; :class:`InputError` names the folder if that fails."""
        from pyarrow import fs

        # A folder that is made for the test goes again: the run may still be refused for another reason.
        existed = self._fs.get_file_info(self._root).type == fs.FileType.Directory if self._is_local else True
        try:
            with self._errors():
                self._write(f"{self._root}/.{_OWNER}.{os.getpid()}", b"?")
                self._deletion.delete_file(f"{self._root}/.{_OWNER}.{os.getpid()}")
                if not existed:
                    self._fs.delete_dir(self._root)
        except OSError as error:
            # A full disk is no mistake of the recipe.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(
                f"checkpoint.folder = {self.root_uri!r}: cannot be written to: {to_line(error, 300)}"
            ) from error

    def claim(self, token: str) -> None:
        """Make ``token`` the attempt that writes here; an earlier one that still runs somewhere then writes no more."""
        with self._errors():
            self._write(f"{self._root}/{_OWNER}", token.encode())

    def is_claimed_by(self, token: str) -> bool:
        """Return whether no later attempt has claimed the folder."""
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
        # Of a folder without a manifest nothing can be used.
        complete = {checkpoint.name for checkpoint in self.checkpoints()}
        for name in self._folders():
            if _NAME.fullmatch(name.removeprefix(".")) and name not in complete:
                with self._errors():
                    self._deletion.delete_folder(f"{self._root}/{name}")

    @contextmanager
    def writing(self, name: str, file: str) -> Iterator[BinaryIO]:
        """Open a file of a checkpoint for writing, on any rank; complete in an object store when it is closed.

        Args:
            name: Of the checkpoint.
            file: Name of the file in it.
        """
        folder = self._temporary_path(name)
        with self._errors():
            if self._is_local:
                self._fs.create_dir(folder, recursive=True)
            with self._fs.open_output_stream(f"{folder}/{file}") as sink:
                yield cast(BinaryIO, sink)
            if self._is_local:
                _flush_to_disk(Path(folder) / file)

    def finish(self, name: str, manifest: Manifest) -> Checkpoint:
        """Complete a checkpoint whose files are written.

        Args:
            name: Of its folder.
            manifest: Written last; each of its files must have the size that it says.

        Returns:
            The checkpoint.

        Raises:
            OSError: A file is missing or too short, or the manifest cannot be written.
        """
        folder = self._temporary_path(name)
        with self._errors():
            for file, facts in manifest["files"].items():
                # Rank 0 sees another node's files only on shared storage.
                info = self._fs.get_file_info(f"{folder}/{file}")
                if not info.is_file or info.size != facts["bytes"]:
                    raise OSError(
                        errno.EIO, f"{file} is not complete there; do all nodes share the storage of the checkpoints?"
                    )
            self._write(f"{folder}/{MANIFEST}", (json.dumps(manifest) + "\n").encode())
            if self._is_local:
                _flush_to_disk(Path(folder) / MANIFEST)
                # The name appears when all is on the disk: a power cut leaves the checkpoint complete or hidden.
                self._fs.move(folder, f"{self._root}/{name}")
                _flush_to_disk(Path(self._root))
        return Checkpoint(name, manifest)

    def discard(self, name: str) -> None:
        """Remove what was written of a checkpoint that will not be completed; nothing if there is nothing."""
        from pyarrow import fs

        with self._errors():
            if self._fs.get_file_info(self._temporary_path(name)).type == fs.FileType.Directory:
                self._deletion.delete_folder(self._temporary_path(name))

    def remove(self, name: str) -> None:
        """Remove a complete checkpoint, the manifest first: without it the rest is no checkpoint."""
        with self._errors():
            self._deletion.delete_file(f"{self._root}/{name}/{MANIFEST}")
            self._deletion.delete_folder(f"{self._root}/{name}")

    def remove_all_but(self, names: Sequence[str]) -> None:
        """Remove every other checkpoint, and the folder itself if none stays."""
        for checkpoint in self.checkpoints():
            if checkpoint.name not in names:
                self.remove(checkpoint.name)
        self.remove_unfinished()
        with self._errors():
            if self._fs.get_file_info(f"{self._root}/{_OWNER}").is_file:
                self._deletion.delete_file(f"{self._root}/{_OWNER}")
            root = Path(self._root)
            if self._is_local and not names and root.is_dir() and not any(root.iterdir()):
                self._fs.delete_dir(self._root)

    @contextmanager
    def local_files(self, checkpoint: Checkpoint, files: Sequence[str]) -> Iterator[Path]:
        """Provide a local folder with these files of a checkpoint.

        Args:
            checkpoint: A complete one.
            files: Names in its manifest.

        Yields:
            The folder: that of the checkpoint, or a temporary one with copies.

        Raises:
            InputError: A file is missing or has not the size that the manifest says.
        """
        folder = f"{self._root}/{checkpoint.name}"
        with self._errors():
            # A truncated file would fail deep inside of safetensors, or be read as other numbers.
            for file in files:
                info, expected = self._fs.get_file_info(f"{folder}/{file}"), checkpoint.manifest["files"][file]["bytes"]
                if not info.is_file or info.size != expected:
                    actual = f"{info.size:,} bytes" if info.is_file else "nothing"
                    raise InputError(
                        f"checkpoint {checkpoint.name} of {self.root_uri}: expected {expected:,} bytes in {file}, "
                        f"found {actual}"
                    )
        # Read in place.
        if self._is_local:
            yield Path(folder)
            return
        # safetensors maps local files alone.
        with tempfile.TemporaryDirectory() as local:
            for file in files:
                with (
                    self._errors(),
                    self._fs.open_input_stream(f"{folder}/{file}") as source,
                    (Path(local) / file).open("wb") as sink,
                ):
                    shutil.copyfileobj(source, sink, 8 << 20)
            yield Path(local)

    def _temporary_path(self, name: str) -> str:
        # Hidden until it is renamed; an object store has no renaming, there the missing manifest hides it.
        return f"{self._root}/{'.' if self._is_local else ''}{name}"

    def _folders(self) -> list[str]:
        from pyarrow import fs

        with self._errors():
            # A folder that does not exist yet holds no checkpoint.
            infos = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)

    def _read_manifest(self, path: str) -> Manifest:
        with self._errors(), self._fs.open_input_stream(path) as stream:
            text = stream.read()
        try:
            manifest = json.loads(text)
            # Written by another program, or cut off.
            if not {"step", "metrics", "identity", "files", "num_ranks"} <= manifest.keys():
                raise ValueError("keys are missing")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {error}; remove that folder") from error
        return cast(Manifest, manifest)

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
            raise OSError(errno.EIO, f"{self.root_uri}: {to_line(error, 300)}") from error


def _flush_to_disk(path: Path) -> None:
    """Flush to the disk: otherwise a power cut leaves a name without its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
