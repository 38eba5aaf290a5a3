"""Plan the stages of a bootstrap run: which commands, with which recipes. Runs nothing and reads no file."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jobs import (
    annotate,
    evaluate,
    gate,
    imagine,
    ingest,
    predict,
    pretrain,
    relabel,
    report,
    select,
    tabletop,
    train,
)
from jobs.annotate.recipe import AnnotateRecipe
from jobs.bootstrap.recipe import BootstrapRecipe, Settings
from jobs.bootstrap.scores import complete_evaluation, list_score_stages
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.imagine.recipe import ImagineRecipe
from jobs.ingest.recipe import IngestRecipe
from jobs.predict.recipe import PredictRecipe
from jobs.select.recipe import SelectRecipe
from jobs.tabletop import TabletopRecipe
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import to_uri
from wm.training import TrainRecipe

_PREVIEW_TRIPLETS = 4


@dataclass(frozen=True)
class Stage:
    """A command with its resolved recipe; ``name`` is its folder below out."""

    name: str
    run: Callable[..., object]
    recipe: Recipe
    after: frozenset[str] = frozenset()
    """Stages that it waits for although it reads nothing of theirs."""


class _RoundResult(NamedTuple):
    """Folders of the best models after a round, and the annotated triplets as a source for training."""

    idm: str
    fdm: str
    selected: Settings


class _Variant(NamedTuple):
    """A forward model to train: its stage's name, its label in the tables, keys of wm train."""

    name: str
    label: str
    settings: Settings


def plan(recipe: BootstrapRecipe) -> list[Stage]:
    """List every stage in order with its resolved recipe.

    Args:
        recipe: Settings of all stages.

    Returns:
        The stages; each reads only what stages before it write.

    Raises:
        InputError: A key in one of the tables is wrong.
    """
    return _Plan(recipe).stages


class _Plan:
    """Stages as they are added. ``models``: the entries of wm evaluate."""

    def __init__(self, recipe: BootstrapRecipe) -> None:
        self.recipe, self.stages = recipe, list[Stage]()
        self.models: dict[str, Settings] = {}
        self.out, data = Path(recipe.out), recipe.data
        # 1. The base and the data, from the user or from the nano world.
        self.base = recipe.base_model or f"{self.add('base', pretrain.run, pretrain.PretrainRecipe, 'pretrain')}/model"
        root = data.supervised_root or f"{self.add_world('world', videos=0)}/supervised"
        # Apart from the pairs: training of the first models need not wait for the clips.
        # Videos of a bucket keep their URI: decoders on any node read them by it.
        self.videos = data.videos or to_uri(f"{self.add_world('clips', train=0, tune=0, test=0)}/videos")
        self.human = self.add_triplets("triplets", root, data.train_file, "train")
        test = self.add_triplets("test", root, data.test_file, "test")
        self.tuning = self.add_triplets("tune", root, data.tune_file, "tune") if recipe.rounds > 1 else ""
        # 2. The models: every seed trains its own on the same data.
        for seed in recipe.seeds:
            self.add_seed(seed)
        # 3. What comes of them: first a look at some predictions, then the figures.
        self.add_preview(f"{test}/triplets")
        evaluated = self.add(
            "evaluate", evaluate.run, EvaluateRecipe, "evaluate", complete_evaluation(recipe),
            triplets=f"{test}/triplets", base=self.base, models=self.models, idm="idm",
        )  # fmt: skip
        # The first image is there before the longest stage begins.
        self.stages[-1] = replace(self.stages[-1], after=frozenset({"preview"}))
        evaluation = self.stages[-1].recipe
        assert isinstance(evaluation, EvaluateRecipe)
        for stage in list_score_stages(recipe, evaluation, f"{test}/triplets", evaluated):
            self.add(stage.name, stage.run, stage.kind, stage.table, stage.keys, **stage.fixed)
        self.add("report", report.run, report.ReportRecipe, "report", run=str(self.out))

    def add(
        self,
        name: str,
        run: Callable[..., object],
        kind: type[Recipe],
        table: str,
        keys: Settings | None = None,
        /,
        **fixed: object,
    ) -> str:
        """Append a stage.

        Args:
            name: Of the stage and of its folder.
            run: The command's function.
            kind: The command's recipe.
            table: Key of the bootstrap recipe with the user's settings.
            keys: These settings, completed; None: as they are.
            fixed: Keys that are set here; a user's own would cut the chain in silence.

        Returns:
            The stage's folder.

        Raises:
            InputError: A key is set here or wrong.
        """
        keys = getattr(self.recipe, table) if keys is None else keys
        for key in sorted(set(keys) & {"out", *fixed} - {"recognition"}):
            raise InputError(f"{table}.{key} = {keys[key]!r:.80}: bootstrap sets this key itself; leave it out")
        # Stages are found by their folder's name: a resumed run has the same.
        folder = str(self.out / name)
        recipe = kind.parse({**keys, **fixed, "out": folder}, f"table [{table}] for stage {name}")
        self.stages.append(Stage(name, run, recipe))
        return folder

    def add_world(self, name: str, **without: object) -> str:
        """Add a part of the nano world; what is ``without`` is 0 in it. Returns its folder."""
        return self.add(name, tabletop.run, TabletopRecipe, "tabletop", {**self.recipe.tabletop, **without})

    def add_triplets(self, name: str, root: str, file: str, split: str) -> str:
        """Add the stage that reads a split of the supervised set; returns its folder."""
        source = {"root": root, "codec": self.base, "file": file, "split": split}
        return self.add(name, ingest.run, IngestRecipe, "ingest", **source)

    def add_model(self, variant: _Variant, task: str, seed: int, verifier: str = "") -> str:
        """Add the training of a model, which is evaluated under its label; returns its stage's folder."""
        keys = variant.settings
        folder = self.add(variant.name, train.run, TrainRecipe, task, base=self.base, seed=seed, task=task, **keys)
        entry: Settings = {"path": f"{folder}/model", "role": task, "label": variant.label, "seed": seed}
        self.models[variant.name] = entry | ({"idm": verifier} if verifier else {})
        return folder

    def annotate_and_select(self, tail: str, idm: str) -> tuple[str, Settings]:
        """Add both stages: the annotated folder, and the selected part of it as a source for training."""
        source = {"videos": self.videos, "idm": f"{idm}/model"}
        annotated = self.add(f"annotated{tail}", annotate.run, AnnotateRecipe, "annotate", **source)
        selected = self.add(f"selected{tail}", select.run, SelectRecipe, "select", triplets=f"{annotated}/triplets")
        return annotated, {"path": annotated, "selection": selected}

    def add_preview(self, triplets: str) -> None:
        """Add predictions of the first seed's models for some test triplets, as an image to look at."""
        evaluation = self.recipe.evaluate
        # As the evaluation will sample, and where; a user's own keys come first.
        keys: Settings = {
            "limit": _PREVIEW_TRIPLETS,
            "storyboard_triplets": _PREVIEW_TRIPLETS,
            "search": {"num_candidates": 8, "num_return": 3},
            "sampling": evaluation.get("sampling", {}),
            **self.recipe.preview,
        }
        resources = evaluation.get("resources")
        if "resources" not in keys and isinstance(resources, dict):
            keys["resources"] = {key: value for key, value in resources.items() if key != "num_workers"}
        models = {role: f"{self.out}/{role}/model" for role in ("fdm", "idm")}
        self.add("preview", predict.run, PredictRecipe, "preview", keys, triplets=triplets, **models)

    def add_seed(self, seed: int) -> None:
        """Add all rounds of a training seed."""
        tail = "" if seed == self.recipe.seeds[0] else f"-seed{seed}"
        # The inverse model learns from human-labelled triplets alone, then labels the videos.
        human: list[Settings] = [{"path": self.human}]
        idm = self.add_model(_Variant(f"idm{tail}", "IDM", {"triplets": human}), "idm", seed)
        annotated, selected = self.annotate_and_select(tail, idm)
        for variant in self.first_variants(tail, seed, annotated, selected):
            self.add_model(variant, "fdm", seed, verifier=f"idm{tail}")
        last = _RoundResult(idm, str(self.out / f"fdm{tail}"), selected)
        for number in range(2, self.recipe.rounds + 1):
            last = self.add_round(number, seed, tail, last)

    def first_variants(self, tail: str, seed: int, annotated: str, selected: Settings) -> list[_Variant]:
        """List the forward models of the first round; stages that their triplets need are added."""
        wanted = self.recipe.variants
        human: list[Settings] = [{"path": self.human}]
        both = [*human, selected]
        recognition = self.recipe.fdm.get("recognition", {})
        # A value that is no table stays, so that the recipe's own check names it.
        plain = {"recognition": {**recognition, "enabled": False} if isinstance(recognition, dict) else recognition}
        variants = [
            _Variant(f"fdm-ft{tail}", "C-FT", {"triplets": human, **plain}),
            _Variant(f"fdm{tail}", "C-FDM", {"triplets": both}),
        ]
        if wanted.unweighted:
            variants.append(_Variant(f"fdm-unweighted{tail}", "C-FDM, no weights", {"triplets": both, **plain}))
        for labels, words in (("truth", "true"), ("shuffled", "shuffled")) if wanted.controls else ():
            control = self.add(
                f"control-{labels}{tail}", relabel.run, relabel.RelabelRecipe, "relabel",
                triplets=f"{annotated}/triplets", selection=f"{selected['selection']}/selection",
                labels=labels, seed=seed,
            )  # fmt: skip
            triplets: Settings = {"triplets": [*human, {"path": control}]}
            variants.append(_Variant(f"fdm-{labels}{tail}", f"C-FDM, {words} labels", triplets))
        return variants

    def add_round(self, number: int, seed: int, seed_tail: str, last: _RoundResult) -> _RoundResult:
        """Add a further round, which starts from the result of the last one."""
        tail, title = f"-r{number}{seed_tail}", f"round {number}"
        human: list[Settings] = [{"path": self.human}]
        # 1. A new inverse model, which annotates if it is better.
        variant = _Variant(f"idm{tail}", f"IDM, {title}", {"triplets": [*human, last.selected]})
        idm = self.add_gate(f"gate-idm{tail}", "idm", last.idm, self.add_model(variant, "idm", seed))
        annotated, selected = self.annotate_and_select(tail, idm)
        variants = [_Variant(f"fdm{tail}", f"C-FDM, {title}", {"triplets": [*human, selected]})]
        if self.recipe.variants.self_training:
            models = {"fdm": f"{last.fdm}/model", "idm": f"{idm}/model"}
            imagined = self.add(
                f"imagined{tail}", imagine.run, ImagineRecipe, "imagine",
                **models, sources=annotated, actions=self.human, seed=seed,
            )  # fmt: skip
            sources = [*human, selected, {**self.recipe.imagined, "path": imagined}]
            variants.append(_Variant(f"fdm-self{tail}", f"C-FDM, {title}, self-training", {"triplets": sources}))
        # 2. New forward models, each of which must beat the best one before it. One verifier for those of all rounds,
        # which then differ in themselves alone.
        fdm = last.fdm
        for variant in variants:
            trained = self.add_model(variant, "fdm", seed, verifier=f"idm{seed_tail}")
            fdm = self.add_gate(f"gate-{variant.name}", "fdm", fdm, trained)
        return _RoundResult(idm, fdm, selected)

    def add_gate(self, name: str, role: str, champion: str, challenger: str) -> str:
        """Add the comparison of two models; returns the folder with a link to the better one."""
        models = {"champion": f"{champion}/model", "challenger": f"{challenger}/model"}
        return self.add(name, gate.run, gate.GateRecipe, "gate", **models, role=role, triplets=self.tuning)
