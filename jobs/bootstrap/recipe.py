"""Define what ``bootstrap`` is asked: data, rounds, what is compared, and the keys of every stage."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from jobs.annotate.recipe import AnnotateRecipe
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.gate import GateRecipe
from jobs.imagine.recipe import ImagineRecipe
from jobs.ingest.recipe import IngestRecipe
from jobs.judge.recipe import JudgeRecipe
from jobs.paper.recipe import PaperRecipe
from jobs.predict.recipe import PredictRecipe
from jobs.pretrain import PretrainRecipe
from jobs.relabel import RelabelRecipe
from jobs.report import ReportRecipe
from jobs.score.recipe import ScoreRecipe
from jobs.select.recipe import SelectRecipe
from jobs.study.make import StudyMakeRecipe
from jobs.study.report import StudyReportRecipe
from jobs.study.simulate import StudySimulateRecipe
from jobs.tabletop import TabletopRecipe
from wm.config import Recipe
from wm.paths import OptionalInputPath, OptionalSourcePath, OutputPath
from wm.recipe_errors import describe_error
from wm.training import Source, TrainRecipe

Settings = dict[str, object]
"""Keys of another command's recipe, which that recipe checks."""

STAGE_RECIPES: Mapping[str, type[Recipe]] = {
    "tabletop": TabletopRecipe,
    "pretrain": PretrainRecipe,
    "ingest": IngestRecipe,
    "idm": TrainRecipe,
    "annotate": AnnotateRecipe,
    "select": SelectRecipe,
    "relabel": RelabelRecipe,
    "gate": GateRecipe,
    "imagine": ImagineRecipe,
    "imagined": Source,
    "fdm": TrainRecipe,
    "preview": PredictRecipe,
    "evaluate": EvaluateRecipe,
    "judge": JudgeRecipe,
    "score": ScoreRecipe,
    "study": StudyMakeRecipe,
    "study_votes": StudySimulateRecipe,
    "study_report": StudyReportRecipe,
    "paper": PaperRecipe,
    "report": ReportRecipe,
}
"""Whose keys a table of the recipe takes."""


class BootstrapData(Recipe):
    """What the method learns from; what is left out comes from the nano world."""

    supervised_root: OptionalInputPath = None
    """Folder of a supervised set in AURORA's layout; without it the tabletop's."""
    train_file: str = "data/tabletop/train.json"
    """Its rows for training, relative to the root."""
    test_file: str = "data/tabletop/test.json"
    """Its rows for evaluation."""
    tune_file: str = "data/tabletop/tune.json"
    """With rounds > 1: its rows that decide which model is used; neither for training nor for the report."""
    videos: OptionalSourcePath = None
    """Folder, glob or list of unlabelled videos; without it the tabletop's."""


class BootstrapVariants(Recipe):
    """Which forward models are trained beside the supervised and the bootstrapped one."""

    unweighted: bool = True
    """The bootstrapped forward model without recognition weights too, for comparison."""
    self_training: bool = False
    """From the second round on: what the forward model predicts and the inverse model verifies (wm imagine) trains
    the next forward model too."""
    controls: bool = False
    """Forward models on the true and on shuffled labels of the same clips too (tabletop only)."""


class BootstrapScoring(Recipe):
    """What is made of the predicted images after the evaluation. Left out: in the nano world, where it costs nothing;
    with data of your own it is asked for."""

    judge: bool | None = None
    """Have them judged (wm judge): in the nano world by its own judge, else by the model that [judge] names."""
    score: bool | None = None
    """Score them as images and actions as texts (wm score): L1 and text metrics, others by the models of [score]."""
    study: bool = False
    """Let simulated participants choose among them by the judge's scores (wm study): table 5 of the toy world, or a
    rehearsal of a study of your own, which people then take part in."""
    paper: bool | None = None
    """Make the paper's tables and figures of all this (wm paper); in the nano world they are marked as a toy's."""


class BootstrapRecipe(Recipe):
    """One table a stage, with that stage's own keys (``python -m jobs.STAGE --help``); paths between stages are set
    here. Without ``base_model``, ``data.supervised_root`` and ``data.videos`` the nano world supplies them."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "supervised_root": "data.supervised_root",
        "train_file": "data.train_file",
        "test_file": "data.test_file",
        "gate_file": "data.tune_file",
        "videos": "data.videos",
        "unweighted": "variants.unweighted",
        "self_training": "variants.self_training",
        "controls": "variants.controls",
    }

    out: OutputPath
    """Folder of the run; each stage has a folder of its name in it."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Training seeds. Every seed trains its own inverse and forward models; evaluation gives mean and spread."""
    base_model: OptionalInputPath = None
    """Model folder to start from, such as nano:base; without it, or empty, wm pretrain makes the nano base."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of annotate → select → train. From the second on the inverse model learns from what the one before
    annotated too, the better of the two annotates again (gate), and so does the better forward model."""
    max_stages: int = Field(default=2, ge=1)
    """Stages that run side by side at most, each in a process of its own, where neither reads what the other writes and
    the machine has the CPUs and GPUs that they ask for. 1: one after another in this process. The models are the
    same."""
    data: BootstrapData = BootstrapData()
    """What the method learns from."""
    variants: BootstrapVariants = BootstrapVariants()
    """Which forward models are compared."""
    scoring: BootstrapScoring = BootstrapScoring()
    """What is made of the predicted images."""
    tabletop: Settings = {}
    """Keys of wm tabletop."""
    pretrain: Settings = {}
    """Keys of wm pretrain."""
    ingest: Settings = {}
    """Keys of wm ingest."""
    idm: Settings = {}
    """Keys of wm train for the inverse model."""
    annotate: Settings = {}
    """Keys of wm annotate."""
    select: Settings = {}
    """Keys of wm select."""
    relabel: Settings = {}
    """Keys of wm relabel."""
    gate: Settings = {}
    """Keys of wm gate."""
    imagine: Settings = {}
    """Keys of wm imagine."""
    imagined: Settings = {}
    """Keys of a source of triplets for wm train (mix_weight, limit): how imagined triplets are mixed in."""
    fdm: Settings = {}
    """Keys of wm train for every forward model."""
    preview: Settings = {}
    """Keys of wm predict for some test triplets, whose predictions by the first seed's models are shown before the
    evaluation; without sampling and resources, those of evaluate."""
    evaluate: Settings = {}
    """Keys of wm evaluate."""
    judge: Settings = {}
    """Keys of wm judge; without num_candidates, those of the evaluation."""
    score: Settings = {}
    """Keys of wm score."""
    study: Settings = {}
    """Keys of wm study make; in the nano world without per_subset, 25 items at most."""
    study_votes: Settings = {}
    """Keys of wm study simulate."""
    study_report: Settings = {}
    """Keys of wm study report."""
    paper: Settings = {}
    """Keys of wm paper; in the nano world without items, tables 2 to 6 and figures 2, 4, 7 and 11."""
    report: Settings = {}
    """Keys of wm report."""

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("expected different seeds")
        return seeds

    @field_validator(*STAGE_RECIPES)
    @classmethod
    def _check_names(cls, settings: Settings, info: ValidationInfo) -> Settings:
        # Names of keys here, for all tables at once; their values are checked with what the plan adds to them.
        recipe_class = STAGE_RECIPES[info.field_name or ""]
        try:
            recipe_class.model_validate(settings)
        except ValidationError as error:
            unknown_keys = [
                describe_error(recipe_class, item) for item in error.errors() if item["type"] == "extra_forbidden"
            ]
            if unknown_keys:
                raise ValueError("; ".join(unknown_keys)) from error
        return settings
