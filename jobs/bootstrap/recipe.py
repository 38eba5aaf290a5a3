"""Define what ``bootstrap`` is asked: data, rounds, what is compared, and the keys of every stage."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, field_validator

from wm.config import Recipe
from wm.paths import OptionalInputPath, OutputPath

Settings = dict[str, object]
"""Keys of another command's recipe, which that recipe checks."""


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
    videos: OptionalInputPath = None
    """Folder, glob or list of unlabelled videos; without it the tabletop's."""


class BootstrapVariants(Recipe):
    """Which forward models are trained beside the supervised and the bootstrapped one."""

    unweighted: bool = True
    """The bootstrapped forward model without recognition weights too, for comparison."""
    self_training: bool = False
    """From the second round on: what the forward model predicts and the inverse model verifies (jobs.imagine) trains
    the next forward model too."""
    controls: bool = False
    """Forward models on the true and on shuffled labels of the same clips too (tabletop only)."""


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
    """Model folder to start from; without it jobs.pretrain makes the nano base."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of annotate → select → train. From the second on the inverse model learns from what the one before
    annotated too, the better of the two annotates again (gate), and so does the better forward model."""
    data: BootstrapData = BootstrapData()
    """What the method learns from."""
    variants: BootstrapVariants = BootstrapVariants()
    """Which forward models are compared."""
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
    """Keys of a source of triplets for jobs.train (mix_weight, limit): how imagined triplets are mixed in."""
    fdm: Settings = {}
    """Keys of jobs.train for every forward model."""
    evaluate: Settings = {}
    """Keys of jobs.evaluate."""
    report: Settings = {}
    """Keys of jobs.report."""

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("expected different seeds")
        return seeds
