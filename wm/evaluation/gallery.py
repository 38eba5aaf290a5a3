"""Write the wall of examples: images of sources, targets and candidates with the scores of verifier and judge."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wm.evaluation.bank import Bank
from wm.evaluation.bench import Bench, Entry
from wm.evaluation.rows import CandidateDict, Example
from wm.evaluation.units import Unit, load_bank, load_part
from wm.images import Pixels, encode_png


def pick_items(subsets: Sequence[str], count: int) -> list[int]:
    """Choose rows, in turn from each subset, so that none is left out.

    Args:
        subsets: Name of each row's subset.
        count: How many rows.

    Returns:
        Row numbers, ascending.
    """
    rows = list(enumerate(subsets))
    queues = [[row for row, name in rows if name == subset] for subset in dict.fromkeys(subsets)]
    longest = max((len(queue) for queue in queues), default=0)
    turns = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return sorted(turns[:count])


def write_gallery(bench: Bench, units: Sequence[Unit], parts: Path, out: Path, count: int) -> list[Example]:
    """Write PNG files below ``out/examples``.

    Args:
        bench: The models and the held-out set.
        units: Units of the evaluation, whose files exist. Of each label the lowest training seed and its first
            sampling seed are shown.
        parts: Folder of the units' files.
        out: Folder of the evaluation.
        count: Number of triplets.

    Returns:
        The content of ``examples.json``. Equal candidates are one entry with ``times``; the best by the verifier comes
        first, and ``chosen`` is its index.
    """
    folder = out / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    held_out = bench.held_out
    items = pick_items(held_out.subsets, count)
    # 1. The triplets.
    examples: list[Example] = []
    for item in items:
        examples.append(
            {
                "triplet_id": held_out.ids[item],
                "subset": held_out.subsets[item],
                "action": held_out.actions[item],
                "source": _write_image(folder, f"{item:05d}-source", held_out.source_pixels[item]),
                "target": _write_image(folder, f"{item:05d}-target", held_out.target_pixels[item]),
                "change": [round(float(value), 4) for value in held_out.change[item]],
                "proposed": [],
                "models": [],
            }
        )
    # 2. What each model made of them, read from the files of its units.
    for unit in _choose_units(bench.entries, units):
        entry = bench.entries[unit.entry]
        facts, arrays = load_part(unit.file(parts))
        # Once a unit: an editor's file holds its images.
        bank = load_bank(unit.file(parts), bench.max_unchanged) if unit.ask == "sample" else None
        for item, example in zip(items, examples, strict=True):
            if bank is None:
                right = bool(arrays["right"][item]) if "right" in arrays else None
                example["proposed"].append({"label": entry.label, "text": facts["texts"][item], "right": right})
            else:
                candidates = _write_candidates(bench, bank, item, folder, f"{item:05d}-{unit.entry}")
                chosen_index = None if bank.verifier is None else 0
                example["models"].append(
                    {"label": entry.label, "seed": entry.run, "candidates": candidates, "chosen": chosen_index}
                )
    return examples


def _choose_units(entries: Mapping[str, Entry], units: Sequence[Unit]) -> list[Unit]:
    """Choose the sampling unit of each FDM label and the proposing unit of each IDM label."""
    first: dict[tuple[str, str], Unit] = {}
    for unit in sorted(units, key=lambda unit: (entries[unit.entry].run, unit.seed)):
        if unit.ask in ("sample", "propose"):
            first.setdefault((unit.ask, entries[unit.entry].label), unit)
    return [unit for unit in units if unit in first.values()]


def _write_candidates(bench: Bench, bank: Bank, item: int, folder: Path, stem: str) -> list[CandidateDict]:
    """Write the images of the distinct candidates of an item, best first by the verifier."""
    codes_KN = bank.codes[item]
    distinct, first, times = np.unique(codes_KN, axis=0, return_index=True, return_counts=True)
    score_K = None if bank.verifier is None else bank.verifier[item]
    ranking_K = None if bank.ranking is None else bank.ranking[item]
    # The guard's ranking, then the order of sampling: as the verifier chooses.
    order = sorted(
        range(len(distinct)),
        key=lambda index: (0.0 if ranking_K is None else -ranking_K[first[index]], int(first[index])),
    )
    # Distinct ones alone: decoding costs most.
    images = bank.decode(distinct, bench.codec)
    candidates: list[CandidateDict] = []
    for rank, index in enumerate(order):
        position = int(first[index])
        figures = {name: round(float(value[item, position]), 4) for name, value in bank.metrics.items()}
        candidates.append(
            {
                "image": _write_image(folder, f"{stem}-{rank}", images[index]),
                "times": int(times[index]),
                "logprob": None if score_K is None else round(float(score_K[position]), 4),
                "metrics": figures,
            }
        )
    return candidates


def _write_image(folder: Path, stem: str, pixels_HWC: Pixels) -> str:
    """Write a PNG; return its path relative to the evaluation's folder."""
    path = folder / f"{stem}.png"
    path.write_bytes(encode_png(pixels_HWC))
    return f"{folder.name}/{path.name}"
