"""Evaluate models on held-out triplets: text metrics, preference probe, verification at several K,
examples."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator, model_validator

from jobs.shared.devices import need_device
from jobs.shared.roles import DType
from wm import cli
from wm.config import Recipe
from wm.dynamics import BaseSharing, Sampling, check_draft_length
from wm.errors import InputError
from wm.evaluation.adaptive import adaptive_rows
from wm.evaluation.heldout import HeldOut, SubsetColumn, read_held_out
from wm.evaluation.metrics.images import ActionCheck, Codes, JudgeMany
from wm.evaluation.report.gallery import write_gallery
from wm.evaluation.report.summary import print_tables
from wm.evaluation.tables import build_tables
from wm.evaluation.units import Bench, Entry, Unit, collect, run_unit, units_of
from wm.images import Pixels
from wm.judging import JudgeScore
from wm.models import ImageCodec, hub_hint, is_adapter, load_codec, model_folder, read_manifest
from wm.models.sharing import need_shareable
from wm.paths import InputPath, OutputPath
from wm.records import SEED_SCHEME
from wm.runs import Run, digest_of, read_run, write_json

Role = Literal["idm", "fdm"]
ROLES: tuple[Role, ...] = ("idm", "fdm")


class ModelEntry(Recipe):
    """A model to evaluate."""

    path: InputPath
    """Model folder: full weights or a PEFT adapter."""
    role: Role
    """Inverse (idm) or forward (fdm) dynamics."""
    reads: Literal["codes", "pixels"] = "codes"
    """pixels: a vision-language model of transformers (Qwen2-VL, LLaVA, …), an idm for the probe alone."""
    label: str
    """Name in the tables. Entries with the same label are runs of other training seeds and share a row."""
    seed: int = 0
    """Training seed of this run."""
    idm: str = ""
    """Of an FDM: name of the entry that verifies it; empty: the recipe's idm."""
    base: InputPath = ""
    """Of an adapter: its base folder; empty: the recipe's base, else what its manifest says."""


class EvaluateRecipe(Recipe):
    """Which models, on which triplets, and what is measured."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "k": "num_candidates",
        "margins": "min_gains_nats",
        "at_least": "min_candidates",
        "block": "num_draft_tokens",
        "weights": "base_sharing",
    }

    triplets: InputPath
    """Folder of held-out triplets."""
    out: OutputPath
    """Output folder."""
    codec: InputPath = ""
    """Model folder whose image codec decodes predictions; empty: the base, else the first model."""
    base: InputPath = ""
    """Pre-trained model: base of the adapters, and with zero_shot evaluated as it is, as FDM and as IDM."""
    zero_shot: bool = True
    """Evaluate the base, if there is one."""
    zero_shot_label: str = "C-ZS"
    """Its name in the tables."""
    models: dict[str, ModelEntry] = Field(default_factory=dict)
    """The models, one table each: [models.NAME]."""
    idm: str = ""
    """Name of the entry that verifies every FDM that names none; empty: no verification of those."""
    judge: Literal["oracle", "none"] = "none"
    """oracle: read predictions of the tabletop world back into states; none: image distances only."""
    seeds: list[int] = Field([0], min_length=1)
    """Sampling seeds."""
    num_candidates: list[int] = Field([1, 2, 4, 8], min_length=1)
    """Numbers of candidates to choose among."""
    sampling: Sampling = Sampling()
    """How candidates are sampled, guidance included."""
    num_draft_tokens: int = Field(0, ge=0)
    """Sample candidates speculatively, so many codes of the source drafted a pass: the same ones in fewer passes; 0:
    one code a pass."""
    max_unchanged: float = Field(1.0, ge=0, le=1)
    """Copy guard: candidates with a larger share of unchanged image tokens are chosen last; 1: off."""
    min_gains_nats: list[float] = [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    """Adaptive N is replayed on the candidates with these minimum gains (nats an action token, see
    wm.dynamics.stopping), the largest of num_candidates being the budget; []: not."""
    min_candidates: int = Field(1, ge=1)
    """Candidates of its first round; each later round doubles the number sampled."""
    greedy: bool = True
    """Evaluate the greedy prediction too."""
    probe: bool = True
    """Run the preference probe."""
    subset: SubsetColumn = "dataset"
    """Column that separates subsets: figures by subset, and negatives of the probe, go by it."""
    limit: int = Field(0, ge=0)
    """Use so many triplets, spread evenly over the set; 0: all."""
    examples: int = Field(12, ge=0)
    """How many examples to keep with images."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest action an IDM may propose, tokens."""
    batch_size: int = Field(64, ge=1)
    """Rows a forward pass."""
    num_workers: int = Field(0, ge=0)
    """Ray tasks at a time; 0: in this process, without Ray."""
    device: str = "cpu"
    """Where the models run."""
    dtype: DType = "float32"
    """Type of their weights; bfloat16 halves the memory."""
    base_sharing: BaseSharing = "merged"
    """merged: every model has weights of its own while it is loaded. shared: adapters of one base are applied beside
    one copy of its weights: less memory and loading, a little slower, the same up to rounding."""

    @field_validator("seeds", "num_candidates")
    @classmethod
    def _check_counts(cls, values: list[int], info: ValidationInfo) -> list[int]:
        min_value = 1 if info.field_name == "num_candidates" else 0
        if len(set(values)) != len(values) or min(values) < min_value:
            raise ValueError(f"expected different whole numbers from {min_value} up")
        return sorted(values)

    @field_validator("min_gains_nats")
    @classmethod
    def _check_margins(cls, values: list[float]) -> list[float]:
        if len(set(values)) != len(values) or min(values, default=0.0) < 0:
            raise ValueError("expected different numbers from 0 up")
        return sorted(values, reverse=True)

    @model_validator(mode="after")
    def _check_budget(self) -> "EvaluateRecipe":
        if self.min_candidates > 1 and not self.min_gains_nats:
            raise ValueError(
                f"min_candidates = {self.min_candidates} is a setting of the replay, which "
                "min_gains_nats = [] turns off"
            )
        if self.min_candidates > max(self.num_candidates):
            raise ValueError(
                f"min_candidates = {self.min_candidates} is more than the largest of num_candidates, "
                f"{max(self.num_candidates)}"
            )
        return self


def run(recipe: EvaluateRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Evaluate every model and write ``tables.json``, ``examples.json`` and ``examples/`` below ``out``.

    A stopped evaluation resumes with the units whose files are missing.

    Args:
        recipe: The models, the held-out triplets and the settings.
        dry_run: Check the recipe and report the number of units only.

    Returns:
        The record that ``run.json`` holds; empty on a dry run.

    Raises:
        InputError: On a model, triplets or a folder that does not fit.
    """
    entries = entries_of(recipe)
    units = units_of(entries, recipe.seeds, greedy=recipe.greedy, with_probe=recipe.probe)
    inputs = {"triplets": digest_of(recipe.triplets)}
    inputs |= {f"model {name}": digest_of(entry.path) for name, entry in entries.items()}
    inputs["seeds"] = SEED_SCHEME  # parts of another scheme would be mixed with new ones
    job = Run(recipe.out, "evaluate", recipe, inputs)
    if job.is_complete():
        print(f"{recipe.out} is whole: nothing to do")
        return read_run(recipe.out) or {}
    # Read before the folder is made, so that bad input leaves nothing behind.
    with job.timed("read"):
        bench = _build_bench(recipe)
    if dry_run:
        print(
            f"would evaluate {len(entries)} models on {len(bench.held_out)} triplets in {len(units)} units "
            f"into {recipe.out}"
        )
        return {}
    job.start()
    parts = job.out / "parts"
    with job.timed("models"), cli.progress_bar(len(units), "unit", "evaluate") as bar:
        for unit in _run_units(recipe, bench, units, parts):
            bar.set_postfix_str(f"{unit.entry} {unit.ask}")
            bar.update()
    # Tables are made of the files alone: a resumed run gives what an uninterrupted one would.
    with job.timed("tables"):
        collected = collect(bench, units, parts, recipe.num_candidates)
        tables = build_tables(collected) | {
            "judge": recipe.judge,
            "seeds": recipe.seeds,
            "sampling": recipe.sampling.model_dump(mode="json"),
            "max_unchanged": recipe.max_unchanged,
            "adaptive": adaptive_rows(collected.banks, recipe.min_gains_nats, recipe.min_candidates)
            if recipe.min_gains_nats
            else [],
        }
        write_json(job.out / "tables.json", tables)
        examples = write_gallery(bench, units, parts, job.out, recipe.examples)
        write_json(job.out / "examples.json", examples)
    counts = {
        "triplets": len(bench.held_out),
        "models": len(entries),
        "units": len(units),
        "examples": len(examples),
    }
    record = job.finish(counts)
    print_tables(tables)
    print(f"evaluated {len(entries)} models on {len(bench.held_out)} triplets: {job.out / 'tables.json'}")
    return record


def entries_of(recipe: EvaluateRecipe) -> dict[str, Entry]:
    """Build the models to evaluate, each checked: its folder exists, its task fits its role, its verifier is an IDM."""
    # Both roles of the base are evaluated: it knows both prompts, though it was trained on neither.
    entries: dict[str, Entry] = {}
    if recipe.base and recipe.zero_shot:
        for role in ROLES:
            entries[f"zero-shot-{role}"] = Entry(
                f"zero-shot-{role}", recipe.base, role, recipe.zero_shot_label, 0, "", ""
            )
    for name, model in recipe.models.items():
        if name in entries:
            raise InputError(f"models.{name}: this name is kept for the base; choose another")
        entries[name] = Entry(name, model.path, model.role, model.label, model.seed, model.idm, model.base, model.reads)
    if not entries:
        raise InputError("nothing to evaluate: give base, or models as tables [models.NAME]")
    return {name: _check_entry(entry, entries, recipe) for name, entry in entries.items()}


def _check_entry(entry: Entry, entries: dict[str, Entry], recipe: EvaluateRecipe) -> Entry:
    where = f"models.{entry.name}"
    if not re.fullmatch(r"[\w-]+", entry.name):
        raise InputError(f"{where}: a name holds letters, digits, - and _ only")
    if not Path(entry.path).is_dir():
        raise InputError(f"{where}.path: no such model folder: {entry.path}{hub_hint(entry.path)}")
    if entry.reads == "pixels" and (entry.role != "idm" or not recipe.probe):
        raise InputError(f"{where}.reads = 'pixels': such a model is an idm, and only the probe (probe = true) asks it")
    manifest = read_manifest(entry.path)
    if manifest is not None and manifest.task not in (None, entry.role):
        raise InputError(f"{where}.role = {entry.role!r}, but {entry.path} was trained as {manifest.task}")
    verifier = (entry.verifier or recipe.idm) if entry.role == "fdm" else ""
    if entry.verifier and entry.role == "idm":
        raise InputError(f"{where}.idm = {entry.verifier!r}: an IDM is not verified; leave it out")
    if verifier and (verifier not in entries or not _can_verify(entries[verifier])):
        idms = ", ".join(name for name, other_entry in entries.items() if _can_verify(other_entry)) or "none"
        raise InputError(f"{where}: verifier {verifier!r} is no IDM of this recipe; those are {idms}")
    # Such entries would be averaged as one run in the tables.
    for other in entries.values():
        twin = (other.label, other.role, other.run) == (entry.label, entry.role, entry.run)
        if twin and other.name != entry.name:
            raise InputError(f"{where} and models.{other.name} share label {entry.label!r} and seed {entry.run}")
    is_adapter = manifest is not None and manifest.kind == "adapter"
    return replace(entry, verifier=verifier, base=entry.base or (recipe.base if is_adapter else ""))


def _can_verify(entry: Entry) -> bool:
    return entry.role == "idm" and entry.reads == "codes"


def _build_bench(recipe: EvaluateRecipe) -> Bench:
    entries = entries_of(recipe)
    need_device(recipe.device)
    # A model of pixels has no codec; the images must be compared through that of another.
    with_codes = [entry.path for entry in entries.values() if entry.reads == "codes"]
    codec_path = recipe.codec or recipe.base or next(iter(with_codes), "")
    if not codec_path:
        raise InputError("every model reads pixels: give codec, a model folder whose codes distinguish the images")
    codec = load_codec(codec_path, recipe.device)
    for entry in entries.values():
        _check_fit(entry, codec)
        if recipe.base_sharing == "shared" and is_adapter(entry.path):
            need_shareable(model_folder(entry.path))
    check_draft_length(recipe.num_draft_tokens, codec.tokens_per_image)
    codec.need_decoder()
    held_out = read_held_out(recipe.triplets, codec, limit=recipe.limit or None, subset=recipe.subset)
    judge_many, action_is_right = _build_oracle(held_out) if recipe.judge == "oracle" else (None, None)
    return Bench(
        held_out=held_out,
        codec=codec,
        judge_many=judge_many,
        action_is_right=action_is_right,
        entries=entries,
        num_candidates=max(recipe.num_candidates),
        sampling=recipe.sampling,
        batch_size=recipe.batch_size,
        max_new_tokens=recipe.max_new_tokens,
        device=recipe.device,
        dtype=getattr(torch, recipe.dtype),
        base_sharing=recipe.base_sharing,
        num_draft_tokens=recipe.num_draft_tokens,
        max_unchanged=recipe.max_unchanged,
    )


def _check_fit(entry: Entry, codec: ImageCodec) -> None:
    """Refuse a model of another codec or base by its manifest, before any model is loaded."""
    manifest = read_manifest(entry.path)
    if manifest is None or entry.reads == "pixels":
        return
    if manifest.codec_id != codec.codec_id:
        raise InputError(
            f"models.{entry.name}: {entry.path} speaks codec {manifest.codec_id}, "
            f"the evaluation's codec is {codec.codec_id}"
        )
    base = read_manifest(entry.base) if entry.base else None
    if base is not None and base.base_id != manifest.base_id:
        raise InputError(
            f"models.{entry.name}: {entry.path} was trained on base {manifest.base_id}, "
            f"but {entry.base} is {base.base_id}"
        )


def _build_oracle(held_out: HeldOut) -> tuple[JudgeMany, ActionCheck | None]:
    """Build the tabletop's judge, which reads the true pairs back into states once, and its check of actions."""
    from wm.nano.world.actions import parse_action
    from wm.nano.world.oracle import UNREADABLE, action_is_right, judge_states, read_states

    sources, targets = read_states(held_out.source_pixels), read_states(held_out.target_pixels)
    # Cells that show nothing known are equal to each other: the oracle would call noise right.
    unreadable = sum(
        UNREADABLE in (*source.cells, *target.cells) for source, target in zip(sources, targets, strict=True)
    )
    if 2 * unreadable > len(held_out):
        raise InputError(
            f"judge = 'oracle' reads images of the tabletop world; {unreadable} of {len(held_out)} held-out triplets "
            "show something else. Use judge = 'none'"
        )

    def judge_many(items_M: Codes, predicted_MHWC: Pixels) -> list[JudgeScore]:
        scores = []
        # In parts: the comparison with all templates takes 75 x 13 floats a cell.
        for begin in range(0, len(items_M), 256):
            predicted = read_states(predicted_MHWC[begin : begin + 256])
            for item, state in zip(items_M[begin : begin + 256].tolist(), predicted, strict=True):
                scores.append(judge_states(sources[item], targets[item], state))
        return scores

    # Where no reference is in the tabletop's words, no answer would be right.
    reads_actions = any(parse_action(action) is not None for action in held_out.actions)
    return judge_many, action_is_right if reads_actions else None


def _run_units(recipe: EvaluateRecipe, bench: Bench, units: Sequence[Unit], parts: Path) -> Iterator[Unit]:
    """Run every unit, in this process or in Ray tasks; yield each when its file exists."""
    if recipe.num_workers == 0:
        for unit in units:
            run_unit(bench, unit, parts)
            yield unit
        return
    import ray

    from jobs.shared.ray_session import connect

    connect()
    task = ray.remote(num_cpus=1, max_retries=2)(_run_remote_unit)
    values = recipe.with_absolute_paths().model_dump(mode="json")
    waiting = list(units)
    running: dict[Any, Unit] = {}
    while waiting or running:
        # No more at a time than asked for: each worker holds models of its own.
        while waiting and len(running) < recipe.num_workers:
            unit = waiting.pop(0)
            running[task.remote(values, tuple(unit), str(parts.resolve()))] = unit
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            problem = ray.get(reference)
            # As text, because an exception of a task would arrive wrapped in its traceback.
            if problem:
                raise InputError(problem)
            yield running.pop(reference)


def _run_remote_unit(values: dict[str, Any], unit: tuple[str, Any, int], parts: str) -> str:
    """Run a unit in a worker process; return what is wrong with the input, or an empty text."""
    # Imported by name: started with ``python -m``, this module is ``__main__`` here and something else in a worker.
    from jobs.evaluate import _build_worker_bench

    torch.set_num_threads(1)  # as many tasks as cores run at a time
    try:
        run_unit(_build_worker_bench(json.dumps(values)), Unit(*unit), Path(parts))
    except InputError as error:
        return str(error)
    return ""


@lru_cache(maxsize=1)
def _build_worker_bench(recipe_json: str) -> Bench:
    return _build_bench(EvaluateRecipe.model_validate_json(recipe_json))


def main() -> int:
    """Run the command line."""
    return cli.main(EvaluateRecipe, run, name="evaluate", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
