"""Define what ``evaluate`` is asked: which models, on which triplets, and what is measured."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.shared.model_resources import ModelResources
from wm.config import Recipe
from wm.dynamics import Sampling
from wm.dynamics.editor_settings import EditorSettings
from wm.evaluation.heldout import SubsetColumn
from wm.evaluation.rows import check_label
from wm.paths import InputPath, ModelPath, OptionalInputPath, OutputPath


class ModelEntry(Recipe):
    """A model to evaluate."""

    path: ModelPath
    """Model folder: full weights or a PEFT adapter."""
    role: Literal["idm", "fdm"]
    """Inverse (idm) or forward (fdm) dynamics."""
    reads: Literal["auto", "codes", "pixels"] = "auto"
    """How it exchanges images. auto: found from the folder, and recorded. codes: those of an image codec. pixels: an
    idm is a vision-language model of transformers (Qwen3-VL, LLaVA, …), an fdm an image editor of diffusers."""
    label: str
    """Name in the tables. Entries with the same label are runs of other training seeds and share a row."""
    seed: int = 0
    """Training seed of this run."""
    idm: str = ""
    """Of an FDM: name of the entry that verifies it; empty: the recipe's idm."""
    base: ModelPath = ""
    """Of an adapter: its base folder; empty: the recipe's base where the model has image codes, else what its manifest
    says."""
    prompt: str | None = None
    """Of an idm that reads pixels: the question, asked after the two images; left out: the one of this package."""
    editor: EditorSettings | None = None
    """Of an fdm that is an image editor: editor.settings.num_inference_steps=20, …"""

    _check_label = field_validator("label")(check_label)


class CandidateSearch(Recipe):
    """How many candidates are sampled, and how one is chosen."""

    num_candidates: list[int] = Field(default=[1, 2, 4, 8], min_length=1)
    """Numbers of candidates to choose among; the largest is sampled."""
    num_draft_tokens: int = Field(default=0, ge=0)
    """Sample speculatively, so many codes of the source drafted a pass: the same candidates in fewer passes; 0: one
    code a pass."""
    max_unchanged: float = Field(default=1.0, ge=0, le=1)
    """Copy guard: candidates with a larger share of unchanged image tokens are chosen last; 1: off."""
    min_gains_nats: list[float] = [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]
    """Adaptive N is replayed on the candidates with these minimum gains (nats an action token, see
    wm.dynamics.stopping), the largest of num_candidates being the budget; []: not."""
    min_candidates: int = Field(default=1, ge=1)
    """Candidates of its first round; each later round doubles the number sampled."""

    # Sorted, and each once: curves go by them.
    @field_validator("num_candidates")
    @classmethod
    def _check_num_candidates(cls, values: list[int]) -> list[int]:
        return _check_different(values, min_value=1)

    @field_validator("min_gains_nats")
    @classmethod
    def _check_gains(cls, values: list[float]) -> list[float]:
        if len(set(values)) != len(values) or min(values, default=0.0) < 0:
            raise ValueError("expected different numbers from 0 up")
        return sorted(values, reverse=True)

    @model_validator(mode="after")
    def _check_budget(self) -> "CandidateSearch":
        # A setting that does nothing is a mistake of whoever gave it.
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


class EvaluateResources(ModelResources):
    """Where the models run, and how many rows and units at a time."""


class EvaluateRecipe(Recipe):
    """Which models, on which triplets, and what is measured."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources.num_workers"})
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"image_side_px"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "k": "search.num_candidates",
        "block": "search.num_draft_tokens",
        "max_unchanged": "search.max_unchanged",
        "margins": "search.min_gains_nats",
        "at_least": "search.min_candidates",
        "num_workers": "resources.num_workers",
        "device": "resources.device",
        "dtype": "resources.dtype",
        "batch_size": "resources.batch_size",
        "weights": "resources.base_sharing",
    }

    triplets: InputPath
    """Folder of held-out triplets."""
    out: OutputPath
    """Output folder."""
    codec: ModelPath = ""
    """Model folder whose image codec decodes predictions; empty: the base, else the first model that has one. Needed by
    no model that reads pixels or edits them."""
    image_side_px: int = Field(default=512, ge=16, le=4096)
    """Side of the squares that images are shown and compared as where no model has a codec, which else decides it."""
    base: ModelPath = ""
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
    seeds: list[int] = Field(default=[0], min_length=1)
    """Sampling seeds."""
    search: CandidateSearch = CandidateSearch()
    """How many candidates are sampled, and how one is chosen."""
    sampling: Sampling = Sampling()
    """How candidates of image codes are sampled, guidance included; an editor has settings of its own."""
    greedy: bool = True
    """Evaluate the greedy prediction too, of models with image codes."""
    probe: bool = True
    """Run the preference probe; an editor gives no likelihoods, and is not asked."""
    action_margins: bool | None = None
    """Measure action sensitivity by the verifier: two more images a triplet, under a shuffled and an opposite action.
    Left out: of forward models that give no likelihoods (image editors) alone."""
    counterfactuals: OptionalInputPath = None
    """Of the probe: file with lines {"triplet_id": …, "action": …}, or output folder of wm contradict; triplets without
    a line are left out of that comparison and counted. Left out: the bench's column counterfactual_action where it has
    one; else with judge=oracle the exact opposite, from the state; else none."""
    subset: SubsetColumn | Literal["auto"] = "auto"
    """Column that separates subsets: figures by subset, and negatives of the probe, go by it. auto: class_label where
    the triplets have several, so that no negative is of another task; else dataset."""
    limit: int = Field(default=0, ge=0)
    """Use so many triplets, spread evenly over the set; 0: all."""
    examples: int = Field(default=12, ge=0)
    """How many examples to keep with images."""
    keep_images: bool | None = None
    """Write every predicted image below out/predictions, the prediction set that wm score and others read; left out:
    for at most 1,000 triplets."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest action an IDM may propose, tokens."""
    resources: EvaluateResources = EvaluateResources()
    """Where the models run, and how many rows and units at a time."""

    _check_label = field_validator("zero_shot_label")(check_label)

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, values: list[int]) -> list[int]:
        return _check_different(values, min_value=0)

    @property
    def is_sized(self) -> bool:
        """Return whether the number of tasks is given, or the device of this process is to be used."""
        return "num_workers" in self.resources.model_fields_set or self.resources.device != "cpu"

    def sized_for(self, cpus: float, gpus: float) -> Self:
        """Return the recipe with a task for each CPU of a cluster, where it does not say how many.

        Args:
            cpus: Of the cluster.
            gpus: Not used: a task has no GPU.
        """
        # A device of this process was named, or a number of tasks.
        if self.is_sized:
            return self
        resources = self.resources.model_copy(update={"num_workers": max(1, int(cpus))})
        return self.model_copy(update={"resources": resources})


def _check_different(values: list[int], *, min_value: int) -> list[int]:
    if len(set(values)) != len(values) or min(values) < min_value:
        raise ValueError(f"expected different whole numbers from {min_value} up")
    return sorted(values)
