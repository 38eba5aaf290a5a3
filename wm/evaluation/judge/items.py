"""Choose which predictions are judged, and know their images. Knows nothing of the API or of stored judgements."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from wm.errors import InputError
from wm.evaluation.judge.requests import Question
from wm.evaluation.predictions import PredictionFacts, pixels_digest, read_image_bytes
from wm.evaluation.subsets import SubsetColumn, spread_rows
from wm.images import Pixels, decode_image, encode_png, fit_square
from wm.names import hint_nearest, quote_names
from wm.tables import read_table, triplets_folder

COPY = "Copy"
"""System whose prediction is the source."""


@dataclass(frozen=True)
class JudgeItem:
    """One prediction to be judged: whose, for what, as which of K candidates."""

    triplet_id: str
    system: str
    run: int
    sampling_seed: int
    num_candidates: int
    prediction: PredictionFacts | None
    """None: the source itself, see :data:`COPY`."""


class Bench:
    """Sources, actions and subsets of a bench, and the images of questions about it."""

    def __init__(self, folder: str | Path, subset: SubsetColumn, limit: int, view: Literal["as_seen", "full"]) -> None:
        """Read the bench; its images stay encoded.

        Args:
            folder: Folder of triplets, or of a stage that has them below ``triplets``.
            subset: Column of the subsets.
            limit: That many triplets, spread evenly; 0: all.
            view: ``as_seen`` crops a source to the square where its prediction shows no more.

        Raises:
            InputError: There is no triplet, or a file is damaged.
        """
        table = read_table(triplets_folder(folder), columns=["triplet_id", "source_image", "action", subset])
        if not table.num_rows:
            raise InputError(f"no triplet in {folder}")
        # Images stay encoded: a bench of thousands fits into memory.
        rows = table.take(spread_rows(table.num_rows, limit or None)).to_pylist()
        self.folder, self._view = folder, view
        self.ids: list[str] = [row["triplet_id"] for row in rows]
        self.actions: dict[str, str] = {row["triplet_id"]: row["action"] for row in rows}
        self.subsets: dict[str, str] = {row["triplet_id"]: row[subset] or "" for row in rows}
        self._sources: dict[str, bytes] = {row["triplet_id"]: row["source_image"]["bytes"] for row in rows}
        # The candidates of an item follow each other and share their source.
        self._source = lru_cache(maxsize=4)(self._decode_source)

    def _decode_source(self, triplet_id: str, side_px: int) -> tuple[Pixels, str]:
        pixels_HWC = decode_image(self._sources[triplet_id], f"source_image of triplet {triplet_id} in {self.folder}")
        if side_px:
            pixels_HWC = fit_square(pixels_HWC, side_px)
        return pixels_HWC, pixels_digest(pixels_HWC)

    def _side_px(self, item: JudgeItem) -> int:
        """Return the side of the square that a source is cropped to; 0: the source as it is."""
        prediction = item.prediction
        is_cropped = prediction is not None and prediction["view"] == "square" and self._view == "as_seen"
        return prediction["width_px"] if prediction is not None and is_cropped else 0

    def question(self, item: JudgeItem, repeat: int) -> Question:
        """Build the question about an item; no prediction is read for it.

        Args:
            item: The prediction.
            repeat: Number of the repeat.

        Returns:
            The question.

        Raises:
            InputError: The source cannot be decoded.
        """
        _, source_sha256 = self._source(item.triplet_id, self._side_px(item))
        prediction_sha256 = source_sha256 if item.prediction is None else item.prediction["pixels_sha256"]
        return Question(self.actions[item.triplet_id], source_sha256, prediction_sha256, repeat)

    def images(self, item: JudgeItem) -> tuple[bytes, bytes]:
        """Encode source and prediction as PNG, in this order.

        Args:
            item: The prediction.

        Returns:
            The bytes of both.

        Raises:
            InputError: A file is damaged.
        """
        pixels_HWC, _ = self._source(item.triplet_id, self._side_px(item))
        source_png = encode_png(pixels_HWC)
        if item.prediction is None:
            return source_png, source_png
        # As it is stored: encoding anew would change nothing but cost time.
        return source_png, read_image_bytes(item.prediction["file"], [item.prediction["row"]])[0]

    def sizes_px(self, item: JudgeItem) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return width and height of the source as it is seen, and of the prediction."""
        pixels_HWC, _ = self._source(item.triplet_id, self._side_px(item))
        source = pixels_HWC.shape[1], pixels_HWC.shape[0]
        prediction = item.prediction
        return source, source if prediction is None else (prediction["width_px"], prediction["height_px"])


def choose_items(
    facts: Iterable[PredictionFacts], ids: Sequence[str], num_candidates: Sequence[int], systems: Sequence[str] = ()
) -> list[JudgeItem]:
    """Choose, for each K, the one of the first K candidates that the verifier likes best; ties: the first of them.

    Greedy predictions are left out: they are no candidates. A system without a verifier has its first candidate at
    K = 1 and nothing at other K.

    Args:
        facts: Rows of prediction sets.
        ids: Triplets of the bench; other predictions are left out.
        num_candidates: Numbers of candidates K.
        systems: Only these; empty: all.

    Returns:
        The items in the order of ``ids``, those of one triplet together.

    Raises:
        InputError: A system is not there, or predictions hold another bench's triplets only.
    """
    order = {triplet_id: number for number, triplet_id in enumerate(ids)}
    groups: dict[tuple[str, str, int, int], list[PredictionFacts]] = defaultdict(list)
    names, is_known = set(), False
    for row in facts:
        names.add(row["system"])
        is_known |= row["triplet_id"] in order
        if row["triplet_id"] in order and row["decoding"] != "greedy" and (not systems or row["system"] in systems):
            groups[row["triplet_id"], row["system"], row["run"], row["sampling_seed"]].append(row)
    # A misspelt system would be an empty row of the table.
    missing = [name for name in systems if name not in names]
    if missing:
        raise InputError(
            f"systems = {missing[0]!r:.100}: the prediction sets hold {quote_names(sorted(names))}"
            f"{hint_nearest(missing[0], names)}"
        )
    if not is_known:
        raise InputError("no prediction belongs to a triplet of this bench; were they made for another one?")
    # One item a group and K, where the group has as many candidates.
    items = []
    for (triplet_id, system, run, seed), rows in groups.items():
        for count in num_candidates:
            best = _choose(rows, count)
            if best is not None:
                items.append(JudgeItem(triplet_id, system, run, seed, count, best))
    items.sort(
        key=lambda item: (order[item.triplet_id], item.system, item.run, item.sampling_seed, item.num_candidates)
    )
    return items


def copy_items(ids: Sequence[str]) -> list[JudgeItem]:
    """Build an item a triplet whose prediction is the source."""
    return [JudgeItem(triplet_id, COPY, 0, 0, 1, None) for triplet_id in ids]


def _choose(rows: Sequence[PredictionFacts], count: int) -> PredictionFacts | None:
    """Choose the best of the first ``count`` candidates, or None where there are not so many."""
    by_candidate: Mapping[int, PredictionFacts] = {number: row for row in rows for number in row["candidates"]}
    if any(number not in by_candidate for number in range(count)):
        return None
    if count == 1:
        return by_candidate[0]
    scores = [
        score for score in (by_candidate[number]["verifier_logprob"] for number in range(count)) if score is not None
    ]
    # Without a verifier nothing is chosen.
    if len(scores) < count:
        return None
    # The first of equal scores, as the sampler's own ranking has it.
    return by_candidate[scores.index(max(scores))]
