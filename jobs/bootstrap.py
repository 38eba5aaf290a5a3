"""Run the complete method stage by stage: base → inverse model → annotate videos → select → forward models → evaluate →
report. Stages exchange files: one whose output is complete and whose inputs are unchanged is not run again.
"""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from jobs import annotate, evaluate, gate, imagine, ingest, pretrain, relabel, report, select, tabletop, train
from jobs.annotate.recipe import AnnotateRecipe
from jobs.ingest.recipe import IngestRecipe
from jobs.select.recipe import SelectRecipe
from jobs.train.job import need_machine
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.datasets.layouts.labelled import list_labelled
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError, OtherRunError
from wm.evaluation.report.findings import SUPERSEDED
from wm.models import load_codec
from wm.paths import OptionalInputPath, OutputPath
from wm.runs import check_place, read_run
from wm.training import TrainRecipe
from wm.training.planning.schedule import schedule_warnings

Settings = dict[str, Any]


class BootstrapRecipe(Recipe):
    """One table a stage, with that stage's own keys (``python -m jobs.STAGE --help``); paths between stages are set
    here. Without ``base_model``, ``supervised_root`` and ``videos`` the nano world supplies them."""

    out: OutputPath
    """Folder of the run; each stage has a folder of its name in it."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Training seeds. Every seed trains its own inverse and forward models; evaluation gives mean and spread."""
    base_model: OptionalInputPath = None
    """Model folder to start from; without it jobs.pretrain makes the nano base."""
    supervised_root: OptionalInputPath = None
    """Folder of a supervised set in AURORA's layout; without it the tabletop's."""
    train_file: str = "data/tabletop/train.json"
    """Its rows for training, relative to the root."""
    test_file: str = "data/tabletop/test.json"
    """Its rows for evaluation."""
    videos: OptionalInputPath = None
    """Folder, glob or list of unlabelled videos; without it the tabletop's."""
    unweighted: bool = True
    """Train the bootstrapped forward model without recognition weights too, for comparison."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of annotate → select → train. From the second on the inverse model learns from what the one before
    annotated too, the better of the two annotates again (gate), and so does the better forward model."""
    self_training: bool = False
    """From the second round on: what the forward model predicts and the inverse model verifies (jobs.imagine) trains
    the next forward model too."""
    gate_file: str = "data/tabletop/tune.json"
    """With rounds > 1: rows of the supervised root that decide which model is used; neither for training nor for the
    report."""
    controls: bool = False
    """Train forward models on the true and on shuffled labels of the same clips too (tabletop only)."""
    tabletop: Settings = {}
    """Keys of jobs.tabletop."""
    pretrain: Settings = {}
    """Keys of jobs.pretrain."""
    ingest: Settings = {}
    """Keys of jobs.ingest."""
    idm: Settings = {}
    """Keys of jobs.train for the inverse model."""
    annotate: Settings = {}
    """Keys of jobs.annotate."""
    select: Settings = {}
    """Keys of jobs.select."""
    relabel: Settings = {}
    """Keys of jobs.relabel."""
    gate: Settings = {}
    """Keys of jobs.gate."""
    imagine: Settings = {}
    """Keys of jobs.imagine."""
    imagined: Settings = {}
    """Keys of a source of triplets for jobs.train (weight, limit): how imagined triplets are mixed in."""
    fdm: Settings = {}
    """Keys of jobs.train for every forward model."""
    evaluate: Settings = {}
    """Keys of jobs.evaluate."""
    report: Settings = {}
    """Keys of jobs.report."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("expected different seeds")
        return seeds


@dataclass(frozen=True)
class Stage:
    """A job with its resolved recipe; ``name`` is its folder below out."""

    name: str
    run: Callable[..., Any]
    recipe: Recipe


class _RoundResult(NamedTuple):
    """Folders of the best models after a round, and the annotated triplets as a source for training."""

    idm: str
    fdm: str
    selected: Settings


def plan(recipe: BootstrapRecipe) -> list[Stage]:
    """List every stage in order with its resolved recipe.

    Raises:
        InputError: A key in one of the tables is wrong.
    """
    return _Plan(recipe).stages


class _Plan:
    """Stages as they are added. ``models``: the entries of jobs.evaluate."""

    def __init__(self, recipe: BootstrapRecipe) -> None:
        self.recipe, self.stages = recipe, list[Stage]()
        self.models: dict[str, Settings] = {}
        self.out = Path(recipe.out)
        self.base = recipe.base_model or f"{self.add('base', pretrain, pretrain.PretrainRecipe, 'pretrain')}/model"
        world = str(self.out / "world")
        if recipe.supervised_root is None or recipe.videos is None:
            world = self.add("world", tabletop, tabletop.TabletopRecipe, "tabletop")
        root = recipe.supervised_root or f"{world}/supervised"
        self.videos = recipe.videos or f"{world}/videos"
        self.people = self.ingest("triplets", root, recipe.train_file, "train")
        test = self.ingest("test", root, recipe.test_file, "test")
        self.tuning = self.ingest("tune", root, recipe.gate_file, "tune") if recipe.rounds > 1 else ""
        # Every seed trains models of its own on the same data.
        for seed in recipe.seeds:
            self.add_seed(seed)
        self.add(
            "evaluate", evaluate, evaluate.EvaluateRecipe, "evaluate",
            triplets=f"{test}/triplets", base=self.base, models=self.models, idm="idm",
        )  # fmt: skip
        self.add("report", report, report.ReportRecipe, "report", run=str(self.out))

    def add(self, name: str, job: Any, kind: type[Recipe], table: str, **fixed: Any) -> str:
        """Append a stage; returns its folder."""
        fixed["out"] = str(self.out / name)
        keys = getattr(self.recipe, table)
        # A user's path between stages would cut the chain in silence.
        for key in sorted(set(keys) & set(fixed) - {"weights"}):
            raise InputError(f"{table}.{key} = {keys[key]!r:.80}: bootstrap sets this key itself; leave it out")
        settings = {**keys, **fixed}
        self.stages.append(Stage(name, job.run, kind.parse(settings, f"table [{table}] for stage {name}")))
        return str(fixed["out"])

    def ingest(self, name: str, root: str, file: str, split: str) -> str:
        return self.add(name, ingest, IngestRecipe, "ingest", root=root, codec=self.base, file=file, split=split)

    def train(self, name: str, task: str, seed: int, label: str, **settings: Any) -> str:
        """Train a model, and evaluate it under ``label``; returns its stage's folder."""
        folder = self.add(name, train, TrainRecipe, task, base=self.base, seed=seed, task=task, **settings)
        self.models[name] = {"path": f"{folder}/model", "role": task, "label": label, "seed": seed}
        return folder

    def annotate_and_select(self, tail: str, idm: str) -> tuple[str, Settings]:
        """Annotate and select: the annotated folder, and the selected part of it as a source for training."""
        recipe = {"videos": self.videos, "idm": f"{idm}/model"}
        annotated = self.add(f"annotated{tail}", annotate, AnnotateRecipe, "annotate", **recipe)
        triplets = f"{annotated}/triplets"
        selected = self.add(f"selected{tail}", select, SelectRecipe, "select", triplets=triplets)
        return annotated, {"path": annotated, "selection": selected}

    def add_seed(self, seed: int) -> None:
        recipe = self.recipe
        tail = "" if seed == recipe.seeds[0] else f"-seed{seed}"
        # The inverse model learns from human-labelled triplets alone, then labels the videos.
        people: list[Settings] = [{"path": self.people}]
        idm = self.train(f"idm{tail}", "idm", seed, "IDM", triplets=people)
        annotated, selected = self.annotate_and_select(tail, idm)
        both = [*people, selected]
        weights = recipe.fdm.get("weights", {})
        # A value that is no table stays, so that the recipe's own check names it.
        plain = {**weights, "enabled": False} if isinstance(weights, dict) else weights
        # The forward models that are compared: one label and its triplets each.
        variants: dict[str, tuple[str, Settings]] = {
            "fdm-ft": ("C-FT", {"triplets": people, "weights": plain}),
            "fdm": ("C-FDM", {"triplets": both}),
        }
        if recipe.unweighted:
            variants["fdm-unweighted"] = ("C-FDM, no weights", {"triplets": both, "weights": plain})
        for labels in ("truth", "shuffled") if recipe.controls else ():
            source = {"triplets": f"{annotated}/triplets", "selection": f"{selected['selection']}/selection"}
            control = self.add(
                f"control-{labels}{tail}", relabel, relabel.RelabelRecipe, "relabel", **source, labels=labels, seed=seed
            )
            triplets = {"triplets": [*people, {"path": control}]}
            variants[f"fdm-{labels}"] = (f"C-FDM, {'true' if labels == 'truth' else labels} labels", triplets)
        for name, (label, settings) in variants.items():
            self.train(f"{name}{tail}", "fdm", seed, label, **settings)
            self.models[f"{name}{tail}"]["idm"] = f"idm{tail}"
        standing = _RoundResult(idm, str(self.out / f"fdm{tail}"), selected)
        for number in range(2, recipe.rounds + 1):
            standing = self.add_round(number, seed, tail, standing)

    def add_round(self, number: int, seed: int, seed_tail: str, last: _RoundResult) -> _RoundResult:
        """Add a further round, which starts from the result of the last one."""
        tail, title = f"-r{number}{seed_tail}", f"round {number}"
        people: list[Settings] = [{"path": self.people}]
        trained = self.train(f"idm{tail}", "idm", seed, f"IDM, {title}", triplets=[*people, last.selected])
        idm = self.compare(f"gate-idm{tail}", "idm", last.idm, trained)
        annotated, selected = self.annotate_and_select(tail, idm)
        variants = {"fdm": (f"C-FDM, {title}", [*people, selected])}
        if self.recipe.self_training:
            recipe = {"fdm": f"{last.fdm}/model", "idm": f"{idm}/model", "sources": annotated, "actions": self.people}
            imagined = self.add(f"imagined{tail}", imagine, imagine.ImagineRecipe, "imagine", **recipe, seed=seed)
            mixed = [*people, selected, {**self.recipe.imagined, "path": imagined}]
            variants["fdm-self"] = (f"C-FDM, {title}, self-training", mixed)
        # Each new forward model must beat the best one before it.
        fdm = last.fdm
        for name, (label, triplets) in variants.items():
            trained = self.train(f"{name}{tail}", "fdm", seed, label, triplets=triplets)
            # One verifier for the forward models of all rounds, which then differ in themselves alone.
            self.models[f"{name}{tail}"]["idm"] = f"idm{seed_tail}"
            fdm = self.compare(f"gate-{name}{tail}", "fdm", fdm, trained)
        return _RoundResult(idm, fdm, selected)

    def compare(self, name: str, role: str, champion: str, challenger: str) -> str:
        recipe = {"champion": f"{champion}/model", "challenger": f"{challenger}/model", "role": role}
        return self.add(name, gate, gate.GateRecipe, "gate", **recipe, triplets=self.tuning)


def run(recipe: BootstrapRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Run every stage whose output is not complete.

    Args:
        recipe: Settings of all stages.
        dry_run: Check everything and print the stages.

    Returns:
        Run record by stage; empty on a dry run.

    Raises:
        InputError: Something given is wrong; what can be checked is checked before the first stage.
    """
    stages = plan(recipe)
    _check_inputs(recipe, stages)
    if dry_run:
        print(f"bootstrap: {len(stages)} stages into {recipe.out}")
        for number, stage in enumerate(stages, 1):
            state = _state(stage, Path(recipe.out) / stage.name)
            print(f"  {number:>2} {stage.name:<24} {stage.run.__module__.removesuffix('.job'):<16} {state}")
            for line in _warnings(stage):
                print(f"     warning: {line}")
        return {}
    begin = time.monotonic()
    records = {}
    for number, stage in enumerate(stages, 1):
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        print(f"\n[{number}/{len(stages)}] {stage.name} ({minutes}:{seconds:02d} so far)", flush=True)
        _run_stage(stage, Path(recipe.out))
        records[stage.name] = read_run(Path(recipe.out) / stage.name)
    minutes, seconds = divmod(int(time.monotonic() - begin), 60)
    print(f"\nbootstrap: complete in {minutes}:{seconds:02d}. Report: {Path(recipe.out) / 'report' / 'report.html'}")
    return records


def _check_inputs(recipe: BootstrapRecipe, stages: list[Stage]) -> None:
    """Check what the user brings before the first stage: the one that needs it may come hours later."""
    check_place(Path(recipe.out))
    record = read_run(recipe.out)
    if record is not None:
        raise InputError(f"{recipe.out} holds another run (of stage {record.get('stage')!r}); choose another out")
    if recipe.base_model is not None:
        load_codec(recipe.base_model)
    # Files of the user's data set, which the stages read hours later.
    if recipe.supervised_root is not None:
        gates = [recipe.gate_file] if recipe.rounds > 1 else []
        for file in (recipe.train_file, recipe.test_file, *gates):
            list_labelled(recipe.supervised_root, file, recipe.ingest.get("dataset_layout", "auto"))
    if recipe.videos is not None:
        settings = recipe.annotate
        list_videos(
            recipe.videos, layout=settings.get("dataset_layout", "auto"), annotations=settings.get("annotations")
        )
    # CPUs and GPUs, which Ray would wait for without an end.
    for stage in stages:
        if isinstance(stage.recipe, TrainRecipe):
            need_machine(stage.recipe)


def _state(stage: Stage, folder: Path) -> str:
    """Describe a stage's folder. Changed inputs show only when the stages before have run."""
    record = read_run(folder)
    if record is None:
        return "to do"
    old, new = record.get("recipe") or {}, stage.recipe.model_dump(mode="json")
    is_same = stage.recipe.identity_settings(old) == stage.recipe.identity_settings(new)
    return "complete" if is_same else "complete, of another recipe"


def _warnings(stage: Stage) -> list[str]:
    """List what is wrong with the schedule of a stage that trains."""
    # With ``epochs`` its length follows from triplets that other stages write first: then the stage itself warns.
    recipe = stage.recipe
    if isinstance(recipe, pretrain.PretrainRecipe):
        return pretrain.schedule_warnings(recipe)
    return schedule_warnings(recipe, recipe.steps) if isinstance(recipe, TrainRecipe) and recipe.steps else []


def _run_stage(stage: Stage, out: Path) -> None:
    """Run a stage; an output of another recipe or of other inputs is moved away first, never overwritten."""
    try:
        stage.run(stage.recipe)
    except OtherRunError as error:
        destination = _free_name(out / SUPERSEDED, stage.name)
        destination.parent.mkdir(exist_ok=True)
        shutil.move(out / stage.name, destination)
        print(f"{stage.name}: {error}; the old one is now {destination}")
        stage.run(stage.recipe)


def _free_name(folder: Path, name: str) -> Path:
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(BootstrapRecipe, run, name="bootstrap", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
