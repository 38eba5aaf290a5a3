"""Read the held-out triplets of an evaluation: pixels at the codec's size, codes, actions, change weights."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wm.dynamics.observation import Observation, observe_codes
from wm.errors import InputError
from wm.evaluation.metrics.stats import Floats
from wm.evaluation.subsets import SubsetColumn, spread_rows
from wm.images import Pixels, decode_image, fit_square
from wm.models import ImageCodec, change_map
from wm.records import row_seeds
from wm.tables import read_table, triplets_folder

__all__ = ["HeldOut", "SubsetColumn", "choose_subset", "read_held_out", "spread_rows"]

_COLUMNS = ("triplet_id", "source_image", "target_image", "codec", "source_codes", "target_codes", "change")


@dataclass(frozen=True)
class HeldOut:
    """B triplets with their images. Without a codec an image's only code is a digest of its pixels, and ``change`` has
    no column: the code distinguishes images, and says nothing else."""

    ids: list[str]
    actions: list[str]
    subsets: list[str]
    source_pixels: Pixels  # uint8, (B, side, side, 3)
    target_pixels: Pixels
    source_codes: torch.Tensor  # int64, (B, N)
    target_codes: torch.Tensor
    change: Floats  # squared L2 distance between the features of source and target at each token, raw, (B, N)

    def __len__(self) -> int:
        return len(self.ids)

    def sampling_seeds(self, seed: int) -> list[int]:
        """Derive the sampling seed of each triplet from that of the run, see :func:`wm.records.row_seeds`."""
        return row_seeds(seed, self.ids)

    def take(self, rows: Sequence[int]) -> "HeldOut":
        """Return some of the triplets.

        Args:
            rows: Their numbers.
        """
        # As a list: a range indexes neither a tensor nor an array as it should.
        index = list(rows)
        ids, actions, subsets = ([values[row] for row in index] for values in (self.ids, self.actions, self.subsets))
        return HeldOut(
            ids=ids,
            actions=actions,
            subsets=subsets,
            source_pixels=self.source_pixels[index],
            target_pixels=self.target_pixels[index],
            source_codes=self.source_codes[index],
            target_codes=self.target_codes[index],
            change=self.change[index],
        )

    def observe(self, side: Literal["source", "target"], codec: ImageCodec | None) -> list[Observation]:
        """Return the images of a side as a model is shown them.

        Args:
            side: Which of the two.
            codec: Of a model that reads codes, which are then those of this set; None: the true pixels.
        """
        codes_BN, pixels_BHWC = (
            (self.source_codes, self.source_pixels) if side == "source" else (self.target_codes, self.target_pixels)
        )
        # Codes as they are: nothing is decoded between models of one codec.
        if codec is not None:
            return observe_codes(codes_BN.tolist(), codec)
        return [Observation.from_pixels(pixels_HWC) for pixels_HWC in pixels_BHWC]


def read_held_out(
    folder: str | Path,
    codec: ImageCodec | None,
    *,
    limit: int | None = None,
    subset: SubsetColumn = "dataset",
    side_px: int = 512,
) -> HeldOut:
    """Read triplets below ``folder``. Codes and change weights stored by this very codec are used, others computed.

    Args:
        folder: Folder of triplets, or of a stage that has them below ``triplets``.
        codec: Encodes the images; its side is the size of the pixels. None: no model has image codes.
        limit: That many rows, spread evenly over the set; None: all.
        subset: Column that separates subsets.
        side_px: Size of the pixels without a codec.

    Returns:
        The triplets.

    Raises:
        InputError: On an empty set, a bad image or stored codes of the wrong length.
    """
    table = read_table(triplets_folder(folder), columns=[*_COLUMNS, "action", subset])
    if not table.num_rows:
        raise InputError(f"no triplet in {folder}")
    rows = table.take(spread_rows(table.num_rows, limit)).to_pylist()
    # 1. Images at the codec's size.
    sides = []
    for name in ("source_image", "target_image"):
        images = [
            decode_image(row[name]["bytes"], f"{name} of triplet {row['triplet_id']} in {folder}") for row in rows
        ]
        sides.append(np.stack([fit_square(pixels, codec.side_px if codec else side_px) for pixels in images]))
    # 2. Codes and change weights. All stored or none: those of two codecs would not compare.
    # Without a codec nothing compares codes but the probe, which has to know equal images.
    if codec is None:
        source_BN, target_BN = (_digest(pixels_BHWC) for pixels_BHWC in sides)
        change_BN = np.zeros((len(rows), 0))
    elif all(row["codec"] == codec.codec_id and row["change"] is not None for row in rows):
        source_BN, target_BN, change_BN = _stack_codes(rows, codec, folder)
    else:
        source_BN, target_BN, change_BN = _encode(codec, *sides)
    return HeldOut(
        ids=[row["triplet_id"] for row in rows],
        actions=[row["action"] for row in rows],
        subsets=[row[subset] or "" for row in rows],
        source_pixels=sides[0],
        target_pixels=sides[1],
        source_codes=source_BN,
        target_codes=target_BN,
        change=change_BN,
    )


def choose_subset(folder: str | Path) -> SubsetColumn:
    """Choose the column by which no random negative is of another task.

    Args:
        folder: Folder of triplets, or of a stage that has them below ``triplets``.

    Returns:
        ``class_label`` where the triplets have several, else ``dataset``.

    Raises:
        InputError: There is no triplet, or a file is damaged.
    """
    labels = read_table(triplets_folder(folder), columns=["class_label"]).column("class_label")
    return "class_label" if len({label or "" for label in labels.unique().to_pylist()}) > 1 else "dataset"


def _stack_codes(
    rows: Sequence[dict[str, object]], codec: ImageCodec, folder: str | Path
) -> tuple[torch.Tensor, torch.Tensor, Floats]:
    arrays = []
    for name in ("source_codes", "target_codes", "change"):
        values = [row[name] for row in rows]
        if any(not isinstance(value, list) or len(value) != codec.tokens_per_image for value in values):
            raise InputError(f"{folder}: {name} does not hold {codec.tokens_per_image} values in every triplet")
        arrays.append(np.array(values))
    source_BN, target_BN = (torch.from_numpy(array.astype(np.int64)) for array in arrays[:2])
    return source_BN, target_BN, arrays[2].astype(np.float64)


def _digest(pixels_BHWC: Pixels) -> torch.Tensor:
    """Hash each image to a whole number of 63 bits, (B, 1), which stands for its codes."""
    # As codes are, of int64: 63 bits of the hash are enough for any set.
    digests = [hashlib.sha256(pixels_HWC.tobytes()).digest() for pixels_HWC in pixels_BHWC]
    return torch.tensor([[int.from_bytes(digest[:8], "big") >> 1] for digest in digests])


def _encode(codec: ImageCodec, source_BHWC: Pixels, target_BHWC: Pixels) -> tuple[torch.Tensor, torch.Tensor, Floats]:
    source_BN, source_BND = codec.encode_with_features(source_BHWC)
    target_BN, target_BND = codec.encode_with_features(target_BHWC)
    change_BN: Floats = change_map(source_BND, target_BND).double().cpu().numpy()
    return source_BN.cpu(), target_BN.cpu(), change_BN
