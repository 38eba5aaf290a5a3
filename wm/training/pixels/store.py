"""Keep the images and actions of a source on disk: written once from Parquet, memory-mapped by every worker of a node.

A folder named by a digest of all that decides its content (the Parquet files, the selection, limit and seed) holds

| file | what |
| --- | --- |
| ``images.bin`` | the images' files as the table has them, each of equal ones once, one after another |
| ``image_ends.npy``, ``sizes.npy`` | of each image: its end in bytes; width and height, int32 |
| ``pairs.npy`` | int64: numbers of source and target of each row, rows being sorted by ``triplet_id`` |
| ``names.bin``, ``name_ends.npy``, ``actions.bin``, ``action_ends.npy`` | of each row: its id and its action, UTF-8 |
| ``change.npy`` | float32, of each row: how much its image changes (:func:`pixel_change`) |
| ``facts.json`` | counts; the sizes that the files must have |

Nothing of a model is in it: all models that read pixels share one.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from wm.errors import InputError
from wm.images import Pixels, decode_image, read_size
from wm.runs import write_json
from wm.training.data.cache_folders import FACTS, check_sizes, ensure_folder, name_folder, synced
from wm.training.data.shared_tokens import fetch_shared, is_here
from wm.training.data.sources import RowSelection, Source, select_rows
from wm.training.pixels.rows import IMAGES, ImageChunk, images_bytes, read_images

_FACTS_OF_FORMAT = ["pixels", 1]
"""The version of the format."""
_THUMBNAIL_PX = 16
_THREADS = 4


class PairStore:
    """A source's rows, R of them sorted by ``triplet_id``; only requested rows are read."""

    def __init__(self, folder: Path, source: Source) -> None:
        """Open a complete folder.

        Args:
            folder: As :func:`open_pairs` writes it.
            source: The table.
        """
        facts = json.loads((folder / FACTS).read_text())
        check_sizes(folder, facts["sizes"])
        self.folder, self.source = folder, source
        self.num_skipped: int = facts["skipped"]
        self.num_bytes = 0
        """That are still to be written: none."""
        # Mapped, not read: all workers of a node share the pages.
        self._images = np.memmap(folder / "images.bin", np.uint8, "r")
        self._image_ends = np.load(folder / "image_ends.npy", mmap_mode="r")
        self._pairs_R2 = np.load(folder / "pairs.npy", mmap_mode="r")
        self._sizes = np.load(folder / "sizes.npy", mmap_mode="r")
        self.names = _read_texts(folder, "name")
        """``triplet_id`` of each row."""
        self.actions = _read_texts(folder, "action")
        self.change_R: npt.NDArray[np.float32] = np.load(folder / "change.npy")

    @property
    def sizes_R4(self) -> npt.NDArray[np.int32]:  # noqa: N802
        """Width and height of source and target of each row."""
        sizes: npt.NDArray[np.int32] = self._sizes[self._pairs_R2].reshape(-1, 4)
        return sizes

    def images(self, row: int) -> tuple[Pixels, Pixels]:
        """Decode source and target of a row.

        Args:
            row: Its number.
        """
        source, target = self._pairs_R2[row].tolist()
        name = self.names[row]
        return self._decode(source, f"source_image of {name}"), self._decode(target, f"target_image of {name}")

    def _decode(self, image: int, name: str) -> Pixels:
        # Only these bytes are read of the mapped file.
        start = int(self._image_ends[image - 1]) if image else 0
        return decode_image(bytes(self._images[start : int(self._image_ends[image])]), name)


def open_pairs(root: Path, source: Source, number: int, seed: int) -> PairStore:
    """Open the rows of a source; they are written if missing.

    Args:
        root: Folder of the caches.
        source: The table.
        number: Of the source in the recipe.
        seed: Samples the limit.

    Returns:
        The rows.

    Raises:
        InputError: Something is wrong with the rows or an image, or the disk has not the room.
    """
    folder = root / name_folder(source, number, seed, _FACTS_OF_FORMAT)

    def prepare() -> Callable[[Path], None]:
        selection = select_rows(source, np.random.default_rng([seed, number]))
        _check_room(root, images_bytes(selection))
        return lambda temporary: _write_files(temporary, source, selection)

    ensure_folder(folder, prepare)
    return PairStore(folder, source)


@dataclass(frozen=True)
class PairSurvey:
    """What a dry run knows of a source's rows: their order is that of the files."""

    source: Source
    num_skipped: int
    num_bytes: int
    """That a cache of the rows takes at most."""
    actions: list[str]
    sizes_R4: npt.NDArray[np.int32]  # noqa: N815
    """Width and height of source and target of each row."""


def survey_pairs(root: Path, source: Source, number: int, seed: int) -> PairStore | PairSurvey:
    """Read all rows of a source without writing any; those that an earlier run has left are opened.

    Args:
        root: Folder of the caches.
        source: The table.
        number: Of the source in the recipe.
        seed: Samples the limit.

    Raises:
        InputError: Something is wrong with the rows; images are not decoded.
    """
    folder = root / name_folder(source, number, seed, _FACTS_OF_FORMAT)
    if is_here(folder, FACTS) or fetch_shared(folder, FACTS):
        return PairStore(folder, source)
    selection = select_rows(source, np.random.default_rng([seed, number]))
    actions: list[str] = []
    sizes: list[tuple[int, int, int, int]] = []
    for chunk in read_images(source, selection):
        actions += chunk.actions
        for name, pair in zip(chunk.names, chunk.images, strict=True):
            before, after = (
                read_size(data, f"{source.folder}: {side} of triplet {name}")
                for side, data in zip(IMAGES, pair, strict=True)
            )
            sizes.append((*before, *after))
    size_R4 = np.array(sizes, np.int32).reshape(-1, 4)
    return PairSurvey(source, selection.num_skipped, images_bytes(selection), actions, size_R4)


def pixel_change(source: bytes, target: bytes) -> float:
    """Compute how much an image changes.

    Args:
        source: Thumbnail of the image before.
        target: Of the one after.

    Returns:
        Mean absolute difference of grey values, 0 to 255, of images scaled to 16 x 16.
    """
    # As floats: differences of unsigned bytes would wrap around.
    before, after = (np.frombuffer(side, np.uint8).astype(np.float32) for side in (source, target))
    return float(np.abs(before - after).mean())


class _Checked(NamedTuple):
    """An image that was decoded once, to be sure of it."""

    number: int
    size: tuple[int, int]
    thumbnail: bytes


def _write_files(folder: Path, source: Source, selection: RowSelection) -> None:
    ranks: list[int] = []
    rows: list[tuple[int, int, float, str, str]] = []
    # 1. One pass over the rows. A damaged image is reported now, and not after hours of training.
    with synced(folder / "images.bin") as file, ThreadPoolExecutor(_THREADS) as pool:
        writer = _ImageWriter(source, file, pool)
        for chunk in read_images(source, selection):
            ranks += chunk.rank_P.tolist()
            for name, action, sides in zip(chunk.names, chunk.actions, writer.add(chunk), strict=True):
                before, after = sides
                change = pixel_change(before.thumbnail, after.thumbnail)
                rows.append((before.number, after.number, change, name, action))
    # 2. Rows in the order of their ids.
    rows = [rows[at] for at in np.argsort(np.array(ranks)).tolist()]
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "image_ends": np.array(writer.ends, np.int64),
        "sizes": np.array([image.size for image in writer.images.values()], np.int32).reshape(-1, 2),
        "pairs": np.array([row[:2] for row in rows], np.int64).reshape(-1, 2),
        "change": np.array([row[2] for row in rows], np.float32),
    }
    for name, texts in (("name", [row[3] for row in rows]), ("action", [row[4] for row in rows])):
        encoded = [text.encode() for text in texts]
        arrays[f"{name}_ends"] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        with synced(folder / f"{name}s.bin") as text_file:
            text_file.write(b"".join(encoded))
    for name, values in arrays.items():
        with synced(folder / f"{name}.npy") as array_file:
            np.save(array_file, values)
    # 3. The facts last: a folder without them is not read.
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    write_json(folder / FACTS, {"rows": len(rows), "skipped": selection.num_skipped, "sizes": sizes})


@dataclass
class _ImageWriter:
    """Writes images into one file, each of equal ones once."""

    source: Source
    file: BinaryIO
    pool: ThreadPoolExecutor
    images: dict[bytes, _Checked] = field(default_factory=dict)
    """By digest, in the order of the file."""
    ends: list[int] = field(default_factory=list)

    def add(self, chunk: ImageChunk) -> list[list[_Checked]]:
        """Write the images of a chunk that are new; returns source and target of each row."""
        digests = [[hashlib.sha256(data).digest() for data in pair] for pair in chunk.images]
        new: dict[bytes, tuple[bytes, str]] = {}
        # Annotated videos have most key-frames in two triplets.
        for name, pair, sides in zip(chunk.names, chunk.images, digests, strict=True):
            for side, data, digest in zip(IMAGES, pair, sides, strict=True):
                if digest not in self.images:
                    new.setdefault(digest, (data, f"{self.source.folder}: {side} of triplet {name}"))
        # Pillow decodes without Python's lock.
        for digest, (size, thumbnail) in zip(new, self.pool.map(_check, new.values()), strict=True):
            data = new[digest][0]
            self.file.write(data)
            self.ends.append((self.ends[-1] if self.ends else 0) + len(data))
            self.images[digest] = _Checked(len(self.images), size, thumbnail)
        return [[self.images[digest] for digest in sides] for sides in digests]


def _check(image: tuple[bytes, str]) -> tuple[tuple[int, int], bytes]:
    pixels_HWC = decode_image(*image)
    height, width = pixels_HWC.shape[:2]
    # Enough to sort rows by how much they change, and 256 bytes an image.
    small = Image.fromarray(pixels_HWC).convert("L").resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    return (width, height), small.tobytes()


def _read_texts(folder: Path, name: str) -> Sequence[str]:
    data = (folder / f"{name}s.bin").read_bytes()
    ends = np.load(folder / f"{name}_ends.npy").tolist()
    return [data[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _check_room(root: Path, size: int) -> None:
    free = shutil.disk_usage(root).free
    if size > free:
        raise InputError(
            f"the images of the triplets need up to {size / 1e9:.1f} GB in {root}, which has {free / 1e9:.1f} GB free; "
            "give another folder as data.token_cache"
        )
