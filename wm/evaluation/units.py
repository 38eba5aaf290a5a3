"""Cut an evaluation into units (a model, a question, a seed), each stored in a file of its own.

A unit's file appears when it is complete, so that a stopped evaluation resumes with the units whose files are missing.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from wm.dynamics import BaseSharing, Role, Sampling, load_role
from wm.dynamics.verify import NO_GUARD
from wm.dynamics.vlm_scorer import VLMScorer, load_vlm_scorer
from wm.errors import InputError
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.images import (
    ActionCheck,
    Bank,
    JudgeMany,
    ceiling_metrics,
    copy_metrics,
    fdm_scorer,
    idm_scorer,
    pixel_scorer,
    propose,
    sample_bank,
)
from wm.evaluation.metrics.text import report_text
from wm.evaluation.probe import Preference, Scorer, probe
from wm.evaluation.tables import Collected
from wm.models import ImageCodec, UnifiedVLM, base_of, read_manifest

Ask: TypeAlias = Literal["sample", "greedy", "probe", "propose"]
COPY, CEILING = "Copy", "True target through the codec"
_MODELS_KEPT = 3


@dataclass(frozen=True)
class Entry:
    """A model to evaluate. Entries of one ``label`` are runs of other training seeds (``run``).

    ``verifier``: name of the entry whose IDM verifies this FDM, or "" for none; ``base``: of an adapter.
    ``reads``: image codes, as the models of this repository, or pixels, as any vision-language model of
    transformers: an IDM for the probe alone.
    """

    name: str
    path: str
    role: Literal["idm", "fdm"]
    label: str
    run: int
    verifier: str
    base: str
    reads: Literal["codes", "pixels"] = "codes"


class Unit(NamedTuple):
    """What is asked of which entry with which sampling seed."""

    entry: str
    ask: Ask
    seed: int

    def file(self, folder: Path) -> Path:
        return folder / f"{self.entry}.{self.ask}.{self.seed}.npz"


@dataclass(frozen=True)
class Bench:
    """All that units share: the held-out set, the codec, the judge, the entries and the settings."""

    held_out: HeldOut
    codec: ImageCodec
    judge_many: JudgeMany | None
    action_is_right: ActionCheck | None
    entries: dict[str, Entry]
    num_candidates: int
    sampling: Sampling
    batch_size: int
    max_new_tokens: int
    device: str
    dtype: torch.dtype = torch.float32
    base_sharing: BaseSharing = "merged"
    num_draft_tokens: int = 0
    """Codes drafted a pass where candidates are sampled speculatively; 0: one code a pass."""
    max_unchanged: float = NO_GUARD
    """The copy guard of the choice among candidates."""

    def model(self, name: str) -> UnifiedVLM:
        """Load the model of an entry, checked against the codec of the bench."""
        return self.role(name).model

    def role(self, name: str) -> Role:
        """Load the model of an entry with its decoder, built once; the last few stay loaded."""
        entry = self.entries[name]
        role = _load(entry.path, entry.base, self.device, self.dtype, self.base_sharing)
        model = role.model
        if model.codec_id != self.codec.codec_id:
            raise InputError(
                f"{entry.path} speaks codec {model.codec_id}, the evaluation's codec is {self.codec.codec_id}"
            )
        return role

    def scorer(self, name: str) -> Scorer:
        """Build the probe's scorer of an entry."""
        entry = self.entries[name]
        if entry.reads == "pixels":
            return pixel_scorer(
                _load_scorer(entry.path, self.device, self.dtype), self.held_out, batch_size=self.batch_size
            )
        scorer_of = idm_scorer if entry.role == "idm" else fdm_scorer
        role = self.role(name)
        return scorer_of(role.model, batch_size=self.batch_size, decoder=role.decoder)


@lru_cache(maxsize=1)
def _load_scorer(path: str, device: str, dtype: torch.dtype) -> VLMScorer:
    return load_vlm_scorer(path, device=device, dtype=dtype)


@lru_cache(maxsize=_MODELS_KEPT)
def _load(path: str, base: str, device: str, dtype: torch.dtype, base_sharing: BaseSharing) -> Role:
    manifest = read_manifest(path)
    # Over a shared base only an adapter can be applied; other models have weights of their own.
    alone = base_sharing == "merged" or (manifest is not None and manifest.kind == "full")
    over = None if alone else _load_base(str(base_of(path, base or None)[0].resolve()), device, dtype)
    return load_role(path, base=base or None, device=device, dtype=dtype, over=over)


@lru_cache(maxsize=1)
def _load_base(path: str, device: str, dtype: torch.dtype) -> Role:
    return load_role(path, device=device, dtype=dtype)


def units_of(entries: dict[str, Entry], seeds: Sequence[int], *, greedy: bool, with_probe: bool) -> list[Unit]:
    """List every unit, those of one entry together.

    Args:
        entries: The models by name.
        seeds: Sampling seeds, at least one.
        greedy: Evaluate forward models' greedy predictions too.
        with_probe: Run the preference probe.

    Returns:
        The units.
    """
    units = []
    for name, entry in entries.items():
        if entry.role == "fdm":
            units += [Unit(name, "sample", seed) for seed in seeds]
            units += [Unit(name, "greedy", seeds[0])] if greedy else []
        elif entry.reads == "codes":
            units.append(Unit(name, "propose", seeds[0]))
        units += [Unit(name, "probe", seeds[0])] if with_probe else []
    return units


def run_unit(bench: Bench, unit: Unit, folder: Path) -> Path:
    """Run one unit and write its file below ``folder``; return the file. An existing file is returned as it is."""
    path = unit.file(folder)
    if path.exists():
        return path
    facts: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    if unit.ask == "probe":
        facts = _probe(bench, unit)
    elif unit.ask == "propose":
        facts, arrays = _propose(bench, unit)
    else:
        arrays = _sample(bench, unit)
    _save(path, facts, arrays)
    return path


def _sample(bench: Bench, unit: Unit) -> dict[str, npt.NDArray[Any]]:
    # Greedy candidates are all equal: one is enough, and there is nothing to verify.
    greedy = unit.ask == "greedy"
    verifier = bench.entries[unit.entry].verifier
    fdm, idm = bench.role(unit.entry), bench.role(verifier) if verifier and not greedy else None
    bank = sample_bank(
        fdm.model,
        idm.model if idm else None,
        bench.held_out,
        bench.codec,
        bench.judge_many,
        num_candidates=1 if greedy else bench.num_candidates,
        sampling=bench.sampling.model_copy(update={"greedy": True}) if greedy else bench.sampling,
        seed=unit.seed,
        batch_size=bench.batch_size,
        decoder=fdm.decoder,
        verifier_decoder=idm.decoder if idm else None,
        num_draft_tokens=bench.num_draft_tokens,
    )
    arrays: dict[str, npt.NDArray[Any]] = {f"metric.{name}": value for name, value in bank.metrics.items()}
    arrays["codes"] = bank.codes.astype(np.int32)
    if bank.verifier is not None:
        arrays["verifier"] = bank.verifier
    if bank.action_tokens is not None:
        arrays["action_tokens"] = bank.action_tokens
    return arrays


def _probe(bench: Bench, unit: Unit) -> dict[str, Any]:
    held_out = bench.held_out
    preferences = probe(
        bench.scorer(unit.entry),
        held_out.source_codes,
        held_out.target_codes,
        held_out.actions,
        held_out.subsets,
        ids=held_out.ids,
        seed=unit.seed,
    )
    return {kind: asdict(preference) for kind, preference in preferences.items()}


def _propose(bench: Bench, unit: Unit) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    role = bench.role(unit.entry)
    texts, mean_logprobs, right_B = propose(
        role.model,
        bench.held_out,
        bench.action_is_right,
        max_new_tokens=bench.max_new_tokens,
        batch_size=bench.batch_size,
        decoder=role.decoder,
    )
    arrays: dict[str, npt.NDArray[Any]] = {"mean_logprob": np.array(mean_logprobs)}
    if right_B is not None:
        arrays["right"] = right_B
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
    held_out = bench.held_out
    collected = Collected(subsets=held_out.subsets, ks=ks)
    collected.references[COPY] = copy_metrics(held_out, bench.judge_many)
    collected.references[CEILING] = ceiling_metrics(held_out, bench.codec, bench.judge_many)
    for unit in units:
        entry = bench.entries[unit.entry]
        facts, arrays = load_part(unit.file(folder))
        if unit.ask == "probe":
            preferences = {kind: Preference(**values) for kind, values in facts.items()}
            collected.probes[entry.role, entry.label, entry.run] = preferences
        elif unit.ask == "propose":
            report = report_text(facts["texts"], held_out.actions)
            if bench.judge_many is not None and "right" not in arrays:
                report.absent["state_equivalent"] = "the judge reads none of the reference actions"
            collected.texts[entry.label, entry.run] = report
            figures = dict(report.figures)
            figures["mean_logprob"] = float(arrays["mean_logprob"].mean())
            by_item = {}
            if "right" in arrays:
                by_item["state_equivalent"] = arrays["right"]
                figures["state_equivalent"] = float(arrays["right"].mean())
            collected.idm[entry.label, entry.run] = (figures, by_item)
        else:
            banks = collected.banks if unit.ask == "sample" else collected.greedy
            banks[entry.label, entry.run, unit.seed] = bank_of(arrays, bench.max_unchanged)
    return collected


def bank_of(arrays: dict[str, npt.NDArray[Any]], max_unchanged: float = NO_GUARD) -> Bank:
    """Build the bank that a ``sample`` or ``greedy`` unit's file holds, with the copy guard for its choice."""
    return Bank(
        codes=arrays["codes"].astype(np.int64),
        metrics={name[7:]: value for name, value in arrays.items() if name.startswith("metric.")},
        verifier=arrays.get("verifier"),
        action_tokens=arrays.get("action_tokens"),
        max_unchanged=max_unchanged,
    )


def _save(path: Path, facts: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
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


def load_part(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Load a unit's file: (facts, arrays)."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(str(arrays.pop("facts"))), arrays
