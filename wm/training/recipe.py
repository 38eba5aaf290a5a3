"""The training recipe: what ``jobs.train`` reads and every worker receives."""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.errors import InputError
from wm.files.uris import OBJECT_STORES, scheme_of
from wm.models.prompts import Task
from wm.paths import InputPath, OutputPath, OutputPathOrUri
from wm.training.adapters import Lora
from wm.training.data.order import SampleOrder
from wm.training.data.sources import Source
from wm.training.loss import Weights

MAX_STEPS = 10**12
"""More than any run has, and still exact as a float."""
TOKENS = ".tokens"
"""Below ``out``, while a run lasts: the tokenised triplets."""


class TrainRecipe(Recipe):
    """One training run. The defaults of ``lora`` and ``weights`` are the paper's (appendix A.8)."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"token_cache", "log_to", "peak_tflops", "num_workers", "micro_batch", "use_gpu", "threads_per_worker"}
        | {"zero_stage", "checkpoint_activations", "max_failures", "checkpoint_every", "log_every"}
        | {"checkpoints", "keep_last", "keep_best", "keep_best_by", "device_gib"}
    )

    task: Task
    """idm: (source, target) to action. fdm: (source, action) to target."""
    base: InputPath
    """Folder of the base model (Hugging Face format)."""
    triplets: list[Source]
    """Tables of triplets: ``[[triplets]]`` tables in the file, or triplets=FOLDER for one."""
    out: OutputPath
    """Output folder; the trained model is written to ``out/model``."""
    steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Optimiser steps; 0: given by ``epochs``."""
    epochs: float = Field(default=0.0, ge=0, le=1e9)
    """Passes over the triplets; 0: given by ``steps``."""
    global_batch: int = Field(default=32, ge=1)
    """Triplets a step, over all workers; how they are spread changes nothing but the draw of dropout."""
    micro_batch: int = Field(default=0, ge=0)
    """Triplets a worker takes at a time, gradients being accumulated; 0: its whole share."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Steps of linear warm-up; cosine decay follows."""
    warmup_ratio: float | None = Field(default=None, ge=0, le=1)
    """Instead of warmup_steps: the warm-up as a share of the run's steps, rounded up, which fits a run of any
    length."""
    lr_floor: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end as a fraction of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay, on matrices only."""
    grad_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0: no clipping."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the order of rows, limits, adapter initialisation and dropout."""
    num_workers: int = Field(default=2, ge=0)
    """Ray Train workers; 0: in this process, without Ray."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads of each worker."""
    use_gpu: bool = False
    """One GPU a worker."""
    precision: Literal["fp32", "bf16", "autocast"] = "fp32"
    """fp32; bf16: weights in bfloat16, the optimiser's copy in fp32; autocast: fp32 weights, bfloat16
    products."""
    lora: Lora = Lora()
    """Adapters or full fine-tuning."""
    weights: Weights = Weights()
    """Recognition weights (task fdm)."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints; a killed run goes on from the last one."""
    log_every: int = Field(default=10, ge=1)
    """Steps between writes to ``out/metrics.jsonl``, which has a line for every step."""
    log_to: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Where else the figures go: tensorboard (``out/tensorboard``), mlflow, wandb (their own packages and settings)."""
    peak_tflops: float = Field(default=0.0, ge=0)
    """Peak of one device in TFLOP/s, for the MFU; 0: by the GPU's name, and no MFU where that says nothing."""
    device_gib: float = Field(default=0.0, ge=0)
    """Memory of one device in GiB, for what a dry run says of a GPU that is elsewhere; 0: that of the GPU here."""
    held_out: InputPath = ""
    """Folder of triplets that are not trained on, for gates and samples."""
    gate_every: int = Field(default=0, ge=0)
    """Steps between gates (and one at the end): likelihood, preference probe and copies on held-out triplets, by the
    first worker while the others wait; 0: none."""
    gate_limit: int = Field(default=100, ge=0)
    """Held-out triplets a gate reads, spread evenly over the set; 0: all."""
    best_by: Literal["", "nats", "preference"] = ""
    """``out/model`` is the model of the gate that was best by this figure, ``out/last`` that of the last step; empty:
    ``out/model`` is the last."""
    sample_every: int = Field(default=0, ge=0)
    """Steps between pictures of what the model predicts on held-out triplets, in ``out/samples``; 0: none."""
    sample_rows: int = Field(default=4, ge=1)
    """Held-out triplets in such a picture."""
    token_cache: OutputPath = ""
    """Folder that keeps tokenised triplets for other runs, better on a disk of the node than on a network; empty:
    ``out/.tokens``, which is removed when the run is whole."""
    max_failures: int = Field(default=1, ge=0)
    """How often a run goes on by itself after a worker died."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """DeepSpeed: 0 keeps everything on every worker, 1 shards the optimiser's state over them, 2 gradients too, 3 the
    weights; auto: the first of 1, 2, 3 that fits."""
    checkpoint_activations: Literal["auto", True, False] = "auto"
    """Keep only the input of each layer and compute the layer again in the backward pass: less memory, a third more
    work; auto: only where it would not fit otherwise."""
    checkpoints: OutputPathOrUri = ""
    """Where checkpoints lie: a folder that all workers share, or s3://bucket/prefix, gs://bucket/prefix; empty:
    ``out/checkpoints``."""
    keep_last: int = Field(default=0, ge=0)
    """Newest checkpoints that stay when the run is whole; while it lasts, at least one does."""
    keep_best: int = Field(default=0, ge=0)
    """Best checkpoints, by ``keep_best_by``, that stay too."""
    keep_best_by: Literal["loss", "nats", "preference"] = "loss"
    """Which checkpoint is the best: loss, least mean over the steps since the one before; nats, preference: by the last
    gate."""

    @field_validator("checkpoints")
    @classmethod
    def _place(cls, checkpoints: str) -> str:
        if scheme_of(checkpoints) not in ("", "file", *OBJECT_STORES):
            raise ValueError("expected a local folder, s3://bucket/prefix or gs://bucket/prefix")
        return checkpoints

    @field_validator("warmup_steps", mode="before")
    @classmethod
    def _no_share(cls, value: Any) -> Any:
        if isinstance(value, float) and 0 < value < 1:
            raise ValueError(f"expected whole steps; a share of the run is warmup_ratio = {value:g}")
        return value

    @field_validator("triplets", mode="before")
    @classmethod
    def _one_folder(cls, value: Any) -> Any:
        return [{"path": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.triplets:
            raise ValueError("triplets is empty; give at least one table with a path")
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(f"give steps or epochs, one of them (steps = {self.steps}, epochs = {self.epochs})")
        if self.warmup_steps and self.warmup_ratio is not None:
            raise ValueError(
                f"give warmup_steps or warmup_ratio, not both (warmup_steps = {self.warmup_steps}, warmup_ratio = "
                f"{self.warmup_ratio:g}); a recipe's own warmup_steps is taken back by warmup_steps = 0"
            )
        share, rest = divmod(self.global_batch, self.num_ranks)
        if rest:
            raise ValueError(f"global_batch = {self.global_batch} is no multiple of num_workers = {self.num_ranks}")
        if share % (self.micro_batch or share):
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide a worker's share of {share} triplets")
        if self.zero_stage == 3 and self.lora.train_image_rows:
            raise ValueError(
                "lora.train_image_rows with zero_stage = 3: PEFT takes these rows of a whole matrix; take 2"
            )
        self._check_gates()
        if self.keep_best and self.keep_best_by != "loss" and not self.gate_every:
            raise ValueError(f"keep_best_by = {self.keep_best_by!r} needs gate_every")
        return self

    def _check_gates(self) -> None:
        for name in ("gate_every", "sample_every"):
            every: int = getattr(self, name)
            if every and not self.held_out:
                raise ValueError(f"{name} = {every} needs held_out, a folder of triplets that are not trained on")
            if every and self.zero_stage == 3:
                raise ValueError(
                    f"{name} = {every} with zero_stage = {self.zero_stage}: no worker has the whole model to ask; "
                    "take zero_stage 2 or lower, or leave it out and run jobs.gate on the trained model"
                )
        if self.best_by and not self.gate_every:
            raise ValueError(f"best_by = {self.best_by!r} needs gate_every")
        if len(set(self.log_to)) < len(self.log_to):
            raise ValueError(f"log_to = {self.log_to} names a place twice")

    @property
    def num_ranks(self) -> int:
        """Return the processes that train: one even without Ray."""
        return max(1, self.num_workers)

    @property
    def micro_batch_size(self) -> int:
        """Return the triplets of one forward pass on one worker."""
        return self.micro_batch or self.global_batch // self.num_ranks

    @property
    def accumulation_steps(self) -> int:
        """Return the forward passes of one worker a step."""
        return self.global_batch // self.num_ranks // self.micro_batch_size

    @property
    def token_root(self) -> Path:
        """Return the folder of the tokenised triplets."""
        return Path(self.token_cache or Path(self.out) / TOKENS)

    def num_steps(self, order: SampleOrder) -> int:
        """Return the optimiser steps over rows in this order.

        Raises:
            InputError: ``epochs`` is so small a share of the rows that no step is left.
        """
        steps = self.steps or order.steps_of(self.epochs, self.global_batch)
        if not steps:
            raise InputError(
                f"epochs = {self.epochs:g} shows none of the {order.rows_per_epoch:,} rows of an epoch: there is no "
                f"step to train; expected {0.5 / order.rows_per_epoch:.2g} or more, or steps"
            )
        return steps

    def num_warmup_steps(self, num_steps: int) -> int:
        """Return the steps of the warm-up in a run of so many; a ratio is rounded up, as in transformers."""
        return self.warmup_steps if self.warmup_ratio is None else math.ceil(num_steps * self.warmup_ratio)
