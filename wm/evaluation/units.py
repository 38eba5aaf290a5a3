"""Cut an evaluation into units (a model, a question, a seed), each stored in a file of its own.

A unit's file appears when it is complete, so that a stopped evaluation resumes with the units whose files are missing.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics.protocols import ForwardModel
from wm.dynamics.verify import NO_GUARD
from wm.evaluation.bank import Bank, sample_bank
from wm.evaluation.bench import Bench, Entry
from wm.evaluation.editor_bank import count_cut_actions, sample_editor_bank
from wm.evaluation.margins import explain_absences, list_margins, measure_margins, score_empty
from wm.evaluation.metrics.images import ceiling_metrics, copy_metrics
from wm.evaluation.probe import Preference, compare_all, score_probe
from wm.evaluation.probe_arrays import check_finite, from_arrays, to_arrays
from wm.evaluation.rows import CEILING, COPY
from wm.evaluation.sensitivity import list_gaps, read_empty
from wm.evaluation.tables import Collected
from wm.sampling.texts import GREEDY

Ask: TypeAlias = Literal["sample", "greedy", "probe", "propose", "margin"]
Arrays: TypeAlias = dict[str, npt.NDArray[np.generic]]
Facts: TypeAlias = dict[str, Any]
"""What a unit's file holds beside arrays: ``texts`` of ``propose``; kind of negative → figures of ``probe``; of
``sample`` ``decoding``, how codes were decoded, or of an editor images ``withheld`` by reason and ``cut_actions``, the
number of actions that it did not read to their end."""


class Unit(NamedTuple):
    """What is asked of which entry with which sampling seed."""

    entry: str
    ask: Ask
    seed: int

    def file(self, folder: Path) -> Path:
        """Return the unit's file below ``folder``."""
        return folder / f"{self.entry}.{self.ask}.{self.seed}.npz"


def list_units(
    entries: Mapping[str, Entry],
    seeds: Sequence[int],
    *,
    greedy: bool,
    with_probe: bool,
    with_margins: bool | None = None,
) -> list[Unit]:
    """List every unit, those of one entry together.

    Args:
        entries: The models by name.
        seeds: Sampling seeds, at least one.
        greedy: Evaluate forward models' greedy predictions too.
        with_probe: Run the preference probe.
        with_margins: Measure action sensitivity by the verifier; None: of models without likelihoods alone.

    Returns:
        The units.
    """
    # What is not sampled is asked once: it is the same for every sampling seed.
    units = []
    for name, entry in entries.items():
        if entry.role == "fdm":
            units += [Unit(name, "sample", seed) for seed in seeds]
            units += [Unit(name, "margin", seeds[0])] if entry.takes_margins(with_margins) else []
            # An editor has no likeliest image.
            units += [Unit(name, "greedy", seeds[0])] if greedy and entry.has_likelihoods else []
        else:
            units.append(Unit(name, "propose", seeds[0]))
        units += [Unit(name, "probe", seeds[0])] if with_probe and entry.has_likelihoods else []
    return units


def run_unit(bench: Bench, unit: Unit, folder: Path) -> Path:
    """Run one unit and write its file.

    Args:
        bench: The models and the held-out set.
        unit: What to ask.
        folder: Folder of the units' files.

    Returns:
        The file; an existing one is returned as it is.
    """
    path = unit.file(folder)
    if path.exists():
        return path
    if unit.ask == "probe":
        _save(path, *_probe(bench, unit))
    elif unit.ask == "propose":
        _save(path, *_propose(bench, unit))
    elif unit.ask == "margin":
        _save(path, *measure_margins(bench, unit.entry, unit.seed))
    else:
        _save(path, *_sample(bench, unit))
    return path


def _sample(bench: Bench, unit: Unit) -> tuple[Facts, Arrays]:
    # Greedy candidates are all equal: one is enough, and there is nothing to verify.
    greedy = unit.ask == "greedy"
    verifier = bench.entries[unit.entry].verifier
    fdm, idm = bench.load_forward(unit.entry), bench.load_inverse(verifier) if verifier and not greedy else None
    if fdm.kind == "editor":
        bank = sample_editor_bank(
            fdm, idm, bench.held_out, bench.codec, bench.judge_many, num_candidates=bench.num_candidates,
            seed=unit.seed, batch_size=bench.batch_size,
        )  # fmt: skip
    else:
        assert bench.codec is not None
        bank = sample_bank(
            fdm,
            idm,
            bench.held_out,
            bench.codec,
            bench.judge_many,
            num_candidates=1 if greedy else bench.num_candidates,
            sampling=bench.sampling.model_copy(update={"greedy": True}) if greedy else bench.sampling,
            seed=unit.seed,
            batch_size=bench.batch_size,
            num_draft_tokens=bench.num_draft_tokens,
        )
    arrays: Arrays = {f"metric.{name}": value for name, value in bank.metrics.items()}
    arrays["codes"] = bank.codes.astype(np.int32)
    # One after the other, with where each ends: an array of files would need pickle.
    if bank.images:
        arrays["image.bytes"] = np.frombuffer(b"".join(bank.images), dtype=np.uint8)
        arrays["image.ends"] = np.cumsum([len(image) for image in bank.images], dtype=np.int64)
    if bank.verifier is not None:
        arrays["verifier"] = bank.verifier
    if bank.action_tokens is not None:
        arrays["action_tokens"] = bank.action_tokens
    return _describe(bench, unit, fdm, bank), arrays


def _describe(bench: Bench, unit: Unit, fdm: ForwardModel, bank: Bank) -> Facts:
    """Describe how candidates were made: of codes how they were decoded, of an editor what it withheld or cut."""
    if fdm.kind != "editor":
        return {"decoding": bench.load_role(unit.entry).runner.describe_decoding()}
    facts: Facts = {"withheld": dict(bank.withheld)} if bank.withheld else {}
    cut = count_cut_actions(fdm, bench.held_out)
    return facts | ({"cut_actions": cut} if cut else {})


def _probe(bench: Bench, unit: Unit) -> tuple[Facts, Arrays]:
    held_out, others = bench.held_out, bench.counterfactuals
    scores = score_probe(
        bench.load_scorer(unit.entry), held_out.source_codes, held_out.target_codes, held_out.actions,
        held_out.subsets, ids=held_out.ids, counterfactuals=others.actions if others else None, seed=unit.seed,
    )  # fmt: skip
    # Here, not when the tables are made: of a likelihood that is NaN each comparison would be a silent "no".
    check_finite(scores, held_out.ids, bench.entries[unit.entry].path)
    preferences = {kind: asdict(preference) for kind, preference in compare_all(scores).items()}
    return preferences, to_arrays(scores) | score_empty(bench, unit.entry)


def _propose(bench: Bench, unit: Unit) -> tuple[Facts, Arrays]:
    held_out, idm = bench.held_out, bench.load_inverse(unit.entry)
    codec = bench.codec if idm.kind == "codes" else None
    with torch.inference_mode():
        proposed = idm.propose(
            held_out.observe("source", codec), held_out.observe("target", codec), sampling=GREEDY,
            seeds=[0] * len(held_out), max_new_tokens=bench.max_new_tokens, batch_size=bench.batch_size,
        )  # fmt: skip
    texts = [answer.text for answer in proposed]
    arrays: Arrays = {"mean_logprob": np.array([answer.mean_logprob for answer in proposed])}
    # Where a world can check actions: in the true images, however they are worded.
    if bench.action_is_right is not None:
        pairs = zip(held_out.source_pixels, held_out.target_pixels, texts, strict=True)
        arrays["right"] = np.array([bench.action_is_right(*pair) for pair in pairs], dtype=np.float64)
    return {"texts": texts}, arrays


def collect(bench: Bench, units: Sequence[Unit], folder: Path, ks: Sequence[int]) -> Collected:
    """Collect every unit's file, and the figures of Copy and of the codec's ceiling, which are measured here.

    Args:
        bench: The models and the held-out set.
        units: Units whose files exist.
        folder: Folder of the files.
        ks: Numbers of candidates to choose among.

    Returns:
        Figures by label, training seed and sampling seed.
    """
    # Here: it needs the extra eval, which predicting does not.
    from wm.evaluation.metrics.text import report_text

    held_out = bench.held_out
    collected = Collected(subsets=held_out.subsets, ks=ks)
    # Neither needs a model: they are measured here, and need no file.
    collected.references[COPY] = copy_metrics(held_out, bench.judge_many)
    if bench.codec is not None:
        collected.references[CEILING] = ceiling_metrics(held_out, bench.codec, bench.judge_many)
    for unit in units:
        entry = bench.entries[unit.entry]
        facts, arrays = load_part(unit.file(folder))
        if unit.ask == "probe":
            preferences = {kind: Preference(**values) for kind, values in facts.items()}
            collected.probes[entry.role, entry.label, entry.run] = preferences
            scores = from_arrays(arrays)
            if scores is not None:
                collected.probe_scores[entry.role, entry.label, entry.run] = scores
            if scores is not None and entry.role == "fdm":
                collected.gaps[entry.label, entry.run] = list_gaps(scores, read_empty(arrays))
        elif unit.ask == "propose":
            report = report_text(facts["texts"], held_out.actions)
            figures = {**report.figures, "mean_logprob": float(arrays["mean_logprob"].mean())}
            by_item = {}
            # Only a world with a state can say whether other words mean the same.
            if "right" in arrays:
                by_item["state_equivalent"] = arrays["right"].astype(np.float64)
                figures["state_equivalent"] = float(by_item["state_equivalent"].mean())
            elif bench.judge_many is not None:
                report.absent["state_equivalent"] = "the judge reads none of the reference actions"
            collected.texts[entry.label, entry.run] = report
            collected.idm[entry.label, entry.run] = (figures, by_item)
        elif unit.ask == "margin":
            gaps = list_margins(collected.banks[entry.label, entry.run, unit.seed], arrays)
            collected.margins[entry.label, entry.run] = gaps
        else:
            # Greedy predictions have one candidate: there is nothing to choose.
            banks = collected.banks if unit.ask == "sample" else collected.greedy
            banks[entry.label, entry.run, unit.seed] = build_bank(arrays, bench.max_unchanged)
    collected.reasons = explain_absences(bench.entries, {(unit.entry, unit.ask) for unit in units})
    return collected


def build_bank(arrays: Arrays, max_unchanged: float = NO_GUARD) -> Bank:
    """Build the bank that a ``sample`` or ``greedy`` unit's file holds.

    Args:
        arrays: The file's.
        max_unchanged: The copy guard of the choice, a share of image tokens.

    Returns:
        The bank.
    """
    floats = {name: value.astype(np.float64) for name, value in arrays.items() if name != "codes"}
    return Bank(
        codes=arrays["codes"].astype(np.int64),
        metrics={name.removeprefix("metric."): value for name, value in floats.items() if name.startswith("metric.")},
        verifier=floats.get("verifier"),
        action_tokens=floats.get("action_tokens"),
        max_unchanged=max_unchanged,
    )


def load_bank(path: Path, max_unchanged: float = NO_GUARD) -> Bank:
    """Load the bank of a ``sample`` or ``greedy`` unit with what its candidates are decoded by.

    Args:
        path: The unit's file.
        max_unchanged: As :func:`build_bank`.

    Returns:
        The bank.
    """
    bank = build_bank(load_part(path)[1], max_unchanged)
    with np.load(path, allow_pickle=False) as archive:
        if "image.bytes" not in archive.files:
            return bank
        data, ends = archive["image.bytes"].tobytes(), archive["image.ends"].tolist()
    return replace(bank, images=tuple(data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)))


def _save(path: Path, facts: Facts, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Renamed when complete: a file that exists is never done again.
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_part(path: Path) -> tuple[Facts, Arrays]:
    """Load a unit's file: facts and arrays, without the images of an editor (see :func:`load_bank`)."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if not name.startswith("image.")}
    return json.loads(str(arrays.pop("facts"))), arrays
