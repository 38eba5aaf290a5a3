"""The tables of the training recipe: optimiser, data, evaluation, checkpoints, resources, logging.

Not known here: what is trained, and settings of several tables that exclude each other (:mod:`wm.training.recipe`).
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.files.uris import OBJECT_STORES, scheme_of
from wm.paths import CachePath, OutputPathOrUri, TablePath

MAX_STEPS = 10**12
"""More than any run has, and still exact as a float."""


class OptimSettings(Recipe):
    """AdamW and its learning rate: linear warm-up, then half a cosine."""

    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Steps of linear warm-up; cosine decay follows."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Instead of warmup_steps: the warm-up as a share of the run's steps, rounded up, which fits a run of any
    length."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end as a fraction of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, on matrices only."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients of a larger norm are clipped to it; 0: no clipping."""

    @field_validator("warmup_steps", mode="before")
    @classmethod
    def _check_is_no_share(cls, value: object) -> object:
        # transformers takes such a share in the same key.
        if isinstance(value, float) and 0 < value < 1:
            raise ValueError(f"expected a number of steps; a share of the run is optim.warmup_ratio = {value:g}")
        return value

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio is not None:
            raise ValueError(
                f"give warmup_steps or warmup_ratio, not both (warmup_steps = {self.warmup_steps}, warmup_ratio = "
                f"{self.warmup_ratio:g}); a recipe's own warmup_steps is taken back by optim.warmup_steps=0"
            )
        return self


class DataSettings(Recipe):
    """How triplets are prepared for training."""

    token_cache: CachePath = ""
    """Folder that keeps tokenised triplets (of a base that reads pixels: their images) for other runs, better on a disk
    of the node than on a network, or one in a bucket, from which each node copies what it lacks; empty: ``out/.tokens``
    (with out in a bucket, a folder of each node), which is removed when the run is complete."""


class EvalSettings(Recipe):
    """Evaluation while the model trains, by the first worker while the others wait: figures in ``out/gates.jsonl``,
    images in ``out/samples``."""

    triplets: TablePath = ""
    """Folder of held-out triplets, which are not trained on."""
    every_steps: int = Field(default=0, ge=0)
    """Steps between evaluations (and one at the end): likelihood, preference probe, share of copied sources and action
    sensitivity on held-out triplets; 0: none."""
    limit: int = Field(default=100, ge=0)
    """Held-out triplets that an evaluation reads, spread evenly over the set; 0: all."""
    metric_for_best_model: Literal["", "nats", "preference", "sensitivity.shuffled"] = ""
    """``out/model`` is the model of the evaluation that was best by this metric, ``out/last`` that of the last step;
    empty: ``out/model`` is the last. sensitivity.shuffled: of a forward model, by how much the true action makes the
    target likelier than another triplet's action does."""
    sample_every_steps: int = Field(default=0, ge=0)
    """Steps between images of what the model predicts on held-out triplets, in ``out/samples``; 0: none."""
    sample_rows: int = Field(default=4, ge=1)
    """Held-out triplets in such an image."""

    @property
    def is_on(self) -> bool:
        """Return whether the model is evaluated or sampled while it trains."""
        return bool(self.every_steps or self.sample_every_steps)

    @model_validator(mode="after")
    def _check_triplets(self) -> Self:
        # Without triplets the run would train for hours and then have nothing to evaluate on.
        for name, every in (("every_steps", self.every_steps), ("sample_every_steps", self.sample_every_steps)):
            if every and not self.triplets:
                raise ValueError(f"{name} = {every} needs eval.triplets, a folder of triplets that are not trained on")
        if self.metric_for_best_model and not self.every_steps:
            raise ValueError(f"metric_for_best_model = {self.metric_for_best_model!r} needs eval.every_steps")
        return self


class CheckpointSettings(Recipe):
    """Which checkpoints are written, where, and which of them stay."""

    folder: OutputPathOrUri = ""
    """Where checkpoints are stored: a folder that all workers share, or s3://bucket/prefix, gs://bucket/prefix; empty:
    ``out/checkpoints``."""
    every_steps: int = Field(default=200, ge=1)
    """Steps between checkpoints; a killed run resumes from the last one."""
    keep_last: int = Field(default=0, ge=0)
    """Newest checkpoints that stay when the run is complete; while it lasts, at least one does."""
    keep_best: int = Field(default=0, ge=0)
    """Best checkpoints, by ``keep_best_by``, that stay too."""
    keep_best_by: Literal["loss", "nats", "preference"] = "loss"
    """Which checkpoint is the best: loss, the lowest mean over the steps since the one before; nats, preference: by the
    last evaluation."""

    @field_validator("folder")
    @classmethod
    def _check_scheme(cls, folder: str) -> str:
        # Local folders, also as file:// addresses, and the object stores that pyarrow reads.
        if scheme_of(folder) not in ("", "file", *OBJECT_STORES):
            raise ValueError("expected a local folder, s3://bucket/prefix or gs://bucket/prefix")
        return folder


class ResourceSettings(Recipe):
    """Workers, devices and what keeps the model within their memory; the result does not depend on them."""

    num_workers: int = Field(default=2, ge=0)
    """Ray Train workers; 0: in this process, without Ray. Left out, a cluster that is joined gives one a GPU with
    use_gpu, else one a CPU, as many as share global_batch_size evenly."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads of each worker."""
    use_gpu: bool = False
    """One GPU a worker."""
    device_gib: float = Field(default=0.0, ge=0)
    """Memory of one device in GiB, for a dry run about a GPU that is elsewhere; 0: that of the GPU here."""
    peak_tflops: float = Field(default=0.0, ge=0)
    """Peak of one device in TFLOP/s, for the MFU; 0: by the GPU's name, and no MFU where that is not known."""
    max_failures: int = Field(default=1, ge=0)
    """How often a run resumes by itself after a worker died."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """DeepSpeed: 0 keeps everything on every worker, 1 shards the optimiser's state over them, 2 gradients too, 3 the
    weights; auto: the first of 1, 2, 3 that fits."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Keep only the input of each layer and compute the layer again in the backward pass: less memory, a third more
    work; auto: only where it would not fit otherwise."""


class LoggingSettings(Recipe):
    """Where the figures of a run go."""

    every_steps: int = Field(default=10, ge=1)
    """Steps between writes to ``out/metrics.jsonl``, which has a line for every step."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Where else the figures go: tensorboard (``out/tensorboard``), mlflow, wandb (their own packages and settings)."""

    @field_validator("trackers")
    @classmethod
    def _check_are_different(cls, trackers: list[str]) -> list[str]:
        # Two writers into one folder would show every step twice.
        if len(set(trackers)) < len(trackers):
            raise ValueError("a tracker is named twice")
        return trackers
