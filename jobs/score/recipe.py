"""Define what ``score`` is asked: which prediction sets, on which bench, with which models of images."""

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from wm.config import Recipe
from wm.evaluation.metrics.encoders import DinoPreparation
from wm.evaluation.subsets import SubsetColumn
from wm.paths import INPUT, CachePath, InputPath, OutputPath


class BertScoreSettings(Recipe):
    """The model of BERTScore, for the metric bertscore of actions."""

    model: InputPath = ""
    """Folder of a RoBERTa or BERT, in the paper's protocol roberta-large; empty: bertscore is absent."""
    layer: int | None = Field(default=None, ge=1)
    """Layer whose vectors are compared; left out: 17, for roberta-large alone."""
    rescale: bool = True
    """Rescale by a baseline, so that unrelated texts score about 0, as the paper's figures seem to be."""
    baseline: float | None = Field(default=None, ge=0, lt=1)
    """F1 of unrelated texts; left out: that of bert-score for English and layer 17 of roberta-large."""


class ScoreResources(Recipe):
    """Where the models of images run, and how many images at a time."""

    num_workers: int = Field(default=0, ge=0)
    """Ray tasks at a time, on all nodes; 0: in this process, without Ray."""
    device: str = "cpu"
    """Device of torch, such as cpu or cuda:1."""
    batch_size: int = Field(default=32, ge=1)
    """Images in a pass of CLIP or DINO; of BLIP a quarter of it."""


class ScoreRecipe(Recipe):
    """Which prediction sets, on which bench, with which models of images."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources.num_workers", "cache"})

    predictions: Annotated[list[InputPath], INPUT] = []
    """Prediction sets with images, actions or both: folders of wm evaluate and wm collect, no two with a system of
    one name."""
    triplets: InputPath
    """The bench: folder of the triplets that the sets are of."""
    out: OutputPath
    """Folder for scores.json, scores.csv, values/ and action_values/ (metrics of every image and action), run.json."""
    subset: SubsetColumn = "class_label"
    """Column that separates subsets; in AURORA-Bench class_label."""
    with_copy: bool = True
    """Score the source as a prediction too, as system Copy."""
    codec: InputPath = ""
    """Model folder whose image codec the true targets go through, as one more system: what its predictions could reach;
    empty: not."""
    clip: InputPath = ""
    """Folder of CLIP for clip_i and clip_t_*, in the paper's protocol openai/clip-vit-base-patch32; empty: they are
    absent."""
    dino: InputPath = ""
    """Folder of DINO for dino, in the paper's protocol facebook/dino-vits16; empty: it is absent."""
    dino_preparation: DinoPreparation = "magicbrush"
    """magicbrush: short side to 256, bicubic, centre crop of 224, as the common protocol has it; processor: the
    folder's own."""
    blip: InputPath = ""
    """Folder of BLIP for the captions of clip_t_*, such as Salesforce/blip-image-captioning-large; empty: they are
    absent."""
    bertscore: BertScoreSettings = BertScoreSettings()
    """The model of BERTScore: bertscore.model=models/roberta-large."""
    cache: CachePath = ""
    """Folder of what the models gave, by hash of image and digest of model, which several runs may share; empty:
    out/features."""
    images_per_task: int = Field(default=64, ge=1)
    """Images that are scored and stored at a time; a killed run resumes at the next ones."""
    resources: ScoreResources = ScoreResources()
    """Where the models run: resources.num_workers=4."""

    @field_validator("predictions")
    @classmethod
    def _check_predictions(cls, values: list[str]) -> list[str]:
        if len(set(values)) != len(values) or "" in values:
            raise ValueError("expected different folders")
        return values
