"""Read the triplets that are predicted for: their sources as a pair of models takes them, both images to be shown."""

from collections.abc import Callable
from dataclasses import dataclass

from wm.dynamics import Observation
from wm.dynamics.pairs import ModelPair
from wm.errors import InputError
from wm.evaluation.heldout import read_held_out, spread_rows
from wm.files.mirror import shown
from wm.images import Pixels, decode_image
from wm.models import ImageCodec
from wm.records import row_seeds
from wm.tables import read_table, triplets_folder

_SIDES = ("source_image", "target_image")


@dataclass(frozen=True)
class TripletSources:
    """Triplets by their numbers.

    Attributes:
        ids: Theirs.
        actions: Theirs.
        observe: Returns the sources of some of them, as a pair of models takes them.
        show: Returns source and target of one as pixels.
    """

    ids: list[str]
    actions: list[str]
    observe: Callable[[ModelPair, range], list[Observation]]
    show: Callable[[int], tuple[Pixels, Pixels]]

    def __len__(self) -> int:
        return len(self.ids)

    def sampling_seeds(self, seed: int) -> list[int]:
        """Derive the sampling seed of each triplet from that of the run, see :func:`wm.records.row_seeds`."""
        return row_seeds(seed, self.ids)


def read_sources(folder: str, codec: ImageCodec | None, *, limit: int | None) -> TripletSources:
    """Read triplets for a forward model.

    Args:
        folder: Folder of triplets.
        codec: That of the forward model, whose stored codes are used; None: it is an editor, which takes the images.
        limit: That many rows, spread evenly over the set; None: all.

    Returns:
        The triplets.

    Raises:
        InputError: On an empty set, a bad image or stored codes of the wrong length.
    """
    if codec is None:
        return _read_images(folder, limit)
    # Stored codes need no encoding, and are those that the triplets were made with.
    held_out = read_held_out(folder, codec, limit=limit)

    def observe(pair: ModelPair, rows: range) -> list[Observation]:
        codes_BN = held_out.source_codes[rows.start : rows.stop].tolist()
        return [pair.observe(held_out.source_pixels[row], codes_N) for row, codes_N in zip(rows, codes_BN, strict=True)]

    def show(row: int) -> tuple[Pixels, Pixels]:
        return held_out.source_pixels[row], held_out.target_pixels[row]

    return TripletSources(held_out.ids, held_out.actions, observe, show)


def _read_images(folder: str, limit: int | None) -> TripletSources:
    table = read_table(triplets_folder(folder), columns=["triplet_id", "action", *_SIDES])
    if not table.num_rows:
        raise InputError(f"no triplet in {shown(folder)}")
    rows = table.take(spread_rows(table.num_rows, limit)).to_pylist()

    def read(row: int, side: str) -> Pixels:
        return decode_image(rows[row][side]["bytes"], f"{side} of triplet {rows[row]['triplet_id']} in {shown(folder)}")

    # A damaged one is found now; as pixels all of them would not fit into memory.
    for row in range(len(rows)):
        for side in _SIDES:
            read(row, side)
    return TripletSources(
        ids=[row["triplet_id"] for row in rows],
        actions=[row["action"] or "" for row in rows],
        observe=lambda pair, numbers: [pair.observe(read(row, "source_image")) for row in numbers],
        show=lambda row: (read(row, "source_image"), read(row, "target_image")),
    )
