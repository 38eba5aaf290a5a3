"""Write the images that the units of an evaluation predicted as files of a prediction set."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wm.evaluation.bank import Bank, find_distinct
from wm.evaluation.bench import Bench, Entry
from wm.evaluation.predicted_actions import ActionRow
from wm.evaluation.predictions import PredictionRow, prediction_row, write_predictions
from wm.evaluation.units import Unit, load_bank, load_part
from wm.evaluation.verification import best_in_groups

_DECODE_BATCH = 64
"""Images decoded at a time: 50 MB at 512 px."""


def prediction_file(unit: Unit, folder: Path) -> Path:
    """Return the file of a unit's predictions.

    Args:
        unit: The unit.
        folder: Folder of the set's files.
    """
    return folder / f"part-{unit.entry}.{unit.ask}.{unit.seed}.parquet"


def write_unit_predictions(bench: Bench, unit: Unit, parts: Path, folder: Path, ks: Sequence[int]) -> None:
    """Write the images of one unit, if it predicts any and their file is missing.

    Args:
        bench: The models and the held-out set.
        unit: A unit whose file exists.
        parts: Folder of the units' files.
        folder: Folder of the prediction set's files.
        ks: Numbers of candidates that the verifier chooses among.
    """
    path = prediction_file(unit, folder)
    if unit.ask in ("sample", "greedy") and not path.exists():
        write_predictions(_build_rows(bench, unit, parts, ks), path)


def _build_rows(bench: Bench, unit: Unit, parts: Path, ks: Sequence[int]) -> Iterator[PredictionRow]:
    entry = bench.entries[unit.entry]
    # With the images of an editor, which no codec decodes.
    bank = load_bank(unit.file(parts), bench.max_unchanged)
    is_greedy = unit.ask == "greedy"
    # 1. Each distinct candidate once, by item and then in the order of sampling.
    items_M, codes_MN, index_BK = find_distinct(bank.codes)
    candidates_M = [np.flatnonzero(index_BK[item] == number).tolist() for number, item in enumerate(items_M)]
    order = sorted(range(len(items_M)), key=lambda number: (items_M[number], candidates_M[number][0]))
    choices_BK = {} if is_greedy else count_choices(bank, ks)
    # 2. Decode a few at a time.
    for begin in range(0, len(order), _DECODE_BATCH):
        batch = order[begin : begin + _DECODE_BATCH]
        for number, pixels in zip(batch, bank.decode(codes_MN[batch], bench.codec), strict=True):
            item, candidates = int(items_M[number]), candidates_M[number]
            yield prediction_row(
                pixels,
                triplet_id=bench.held_out.ids[item],
                system=entry.label,
                run=entry.run,
                sampling_seed=unit.seed,
                decoding="greedy" if is_greedy else "sampled",
                candidates=candidates,
                chosen_at=[k for k, times in choices_BK.items() for _ in range(int(times[item, candidates].sum()))],
                verifier_logprob=None if bank.verifier is None else float(bank.verifier[item, candidates[0]]),
                view="square",
                origin="wm",
            )


def list_unit_actions(
    entries: Mapping[str, Entry], ids: Sequence[str], units: Sequence[Unit], parts: Path
) -> list[ActionRow]:
    """List the actions that inverse models proposed, as a prediction set has them.

    Args:
        entries: The models by name.
        ids: Of the triplets.
        units: Units whose files exist.
        parts: Folder of the units' files.

    Returns:
        A row a model and triplet.
    """
    return [
        ActionRow(
            triplet_id=triplet_id,
            system=entries[unit.entry].label,
            run=entries[unit.entry].run,
            action=text,
            origin="wm",
        )
        for unit in units
        if unit.ask == "propose"
        for triplet_id, text in zip(ids, load_part(unit.file(parts))[0]["texts"], strict=True)
    ]


def count_choices(bank: Bank, ks: Sequence[int]) -> dict[int, npt.NDArray[np.int64]]:
    """Count in how many groups of K each candidate is chosen.

    Args:
        bank: The candidates; without a verifier there is a choice at K = 1 only, where each is a group of its own.
        ks: Numbers of candidates to choose among.

    Returns:
        K → (B, candidates).
    """
    shape = bank.codes.shape[:2]
    ranking_BK = np.zeros(shape) if bank.ranking is None else bank.ranking
    counts: dict[int, npt.NDArray[np.int64]] = {}
    for k in ks:
        if k == 1 or bank.ranking is not None:
            counts[k] = np.zeros(shape, np.int64)
            # Groups do not overlap: no candidate is chosen twice.
            np.put_along_axis(counts[k], best_in_groups(ranking_BK, k), 1, axis=1)
    return counts
