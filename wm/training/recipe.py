"""The training recipe: what ``wm train`` reads and every worker receives."""

import hashlib
import math
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import mirror_root, uri_of
from wm.models.prompts import Task
from wm.paths import ModelPath, OutputPath
from wm.training.adapters import Lora
from wm.training.data.order import SampleOrder
from wm.training.data.sources import Source
from wm.training.loss import RecognitionWeights
from wm.training.settings import (
    MAX_STEPS,
    CheckpointSettings,
    DataSettings,
    EvalSettings,
    LoggingSettings,
    OptimSettings,
    ResourceSettings,
)

TOKENS = ".tokens"
"""Below ``out``, while a run lasts: the tokenised triplets."""


class TrainRecipe(Recipe):
    """One training run. The defaults of ``lora`` and ``recognition`` are the paper's (appendix A.8)."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"micro_batch_size", "data", "checkpoint", "resources", "logging"}
    )
    RENAMED_KEYS: ClassVar[dict[str, str]] = {
        # Top level.
        "steps": "max_steps",
        "global_batch": "global_batch_size",
        "micro_batch": "micro_batch_size",
        "weights": "recognition",
        # Optimiser and schedule.
        "lr": "optim.lr",
        "warmup_steps": "optim.warmup_steps",
        "warmup_ratio": "optim.warmup_ratio",
        "lr_floor": "optim.min_lr_ratio",
        "weight_decay": "optim.weight_decay",
        "grad_clip": "optim.max_grad_norm",
        "token_cache": "data.token_cache",
        # Evaluation.
        "held_out": "eval.triplets",
        "gate_every": "eval.every_steps",
        "gate_limit": "eval.limit",
        "best_by": "eval.metric_for_best_model",
        "sample_every": "eval.sample_every_steps",
        "sample_rows": "eval.sample_rows",
        # Checkpoints.
        "checkpoints": "checkpoint.folder",
        "checkpoint_every": "checkpoint.every_steps",
        "keep_last": "checkpoint.keep_last",
        "keep_best": "checkpoint.keep_best",
        "keep_best_by": "checkpoint.keep_best_by",
        # Workers, devices and memory.
        "num_workers": "resources.num_workers",
        "threads_per_worker": "resources.threads_per_worker",
        "use_gpu": "resources.use_gpu",
        "device_gib": "resources.device_gib",
        "peak_tflops": "resources.peak_tflops",
        "max_failures": "resources.max_failures",
        "zero_stage": "resources.zero_stage",
        "checkpoint_activations": "resources.gradient_checkpointing",
        # Figures of the run.
        "log_every": "logging.every_steps",
        "log_to": "logging.trackers",
    }

    task: Task
    """idm: (source, target) to action. fdm: (source, action) to target."""
    base: ModelPath
    """Folder of the base model (Hugging Face format): one that speaks image codes, or with task idm any vision-language
    model that reads pixels (Qwen3-VL, Qwen2.5-VL, LLaVA-Interleave, InternVL, …)."""
    triplets: list[Source]
    """Tables of triplets: ``[[triplets]]`` tables in the file, or triplets=FOLDER for one."""
    out: OutputPath
    """Output folder; the trained model is written to ``out/model``."""
    max_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    """Optimiser steps; 0: given by ``epochs``."""
    epochs: float = Field(default=0.0, ge=0, le=1e9)
    """Passes over the triplets; 0: given by ``max_steps``."""
    global_batch_size: int = Field(default=32, ge=1)
    """Triplets a step, over all workers; how they are spread changes nothing but the masks of dropout."""
    micro_batch_size: int = Field(default=0, ge=0)
    """Triplets in one forward pass of a worker, gradients being accumulated; 0: its complete share."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the order of rows, limits, adapter initialisation and dropout."""
    precision: Literal["fp32", "bf16", "autocast"] = "fp32"
    """fp32; bf16: weights in bfloat16, the optimiser's own in fp32; autocast: fp32 weights, bfloat16 products."""
    optim: OptimSettings = OptimSettings()
    """Optimiser and schedule."""
    lora: Lora = Lora()
    """Adapters or full fine-tuning."""
    recognition: RecognitionWeights = RecognitionWeights()
    """Recognition weights of the loss (task fdm)."""
    data: DataSettings = DataSettings()
    """Preparation of the triplets."""
    eval: EvalSettings = EvalSettings()
    """Evaluation while the model trains."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """Checkpoints."""
    resources: ResourceSettings = ResourceSettings()
    """Workers, devices and memory."""
    logging: LoggingSettings = LoggingSettings()
    """Figures of the run."""

    @field_validator("triplets", mode="before")
    @classmethod
    def _to_sources(cls, value: object) -> object:
        return [{"path": value}] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.triplets:
            raise ValueError("triplets is empty; give at least one table with a path")
        if (self.max_steps > 0) == (self.epochs > 0):
            raise ValueError(
                f"give max_steps or epochs, one of them (max_steps = {self.max_steps}, epochs = {self.epochs})"
            )
        # 1. Workers share a batch evenly, and so do the passes of a worker: no row weighs more than another.
        share, rest = divmod(self.global_batch_size, self.num_ranks)
        if rest:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} is no multiple of resources.num_workers = "
                f"{self.num_ranks}"
            )
        if share % (self.micro_batch_size or share):
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} does not divide a worker's share of {share} triplets"
            )
        # 2. Settings of several tables that exclude each other.
        if self.resources.zero_stage == 3:
            self._check_zero_3()
        if self.task == "idm" and self.eval.metric_for_best_model == "sensitivity.shuffled":
            raise ValueError("eval.metric_for_best_model = 'sensitivity.shuffled' is of a forward model; task = 'idm'")
        keep = self.checkpoint
        if keep.keep_best and keep.keep_best_by != "loss" and not self.eval.every_steps:
            raise ValueError(f"checkpoint.keep_best_by = {keep.keep_best_by!r} needs eval.every_steps")
        return self

    def _check_zero_3(self) -> None:
        """Check that nothing needs unsharded weights."""
        if self.lora.train_image_rows:
            raise ValueError(
                "lora.train_image_rows with resources.zero_stage = 3: PEFT takes these rows of a complete matrix; "
                "choose 2"
            )
        # The first worker evaluates alone, and would have to gather every layer from the others.
        for name in ("every_steps", "sample_every_steps"):
            if every := getattr(self.eval, name):
                raise ValueError(
                    f"eval.{name} = {every} with resources.zero_stage = 3: no worker has the complete model to "
                    "evaluate; choose resources.zero_stage = 2 or lower, or leave it out and run wm gate on the "
                    "trained model"
                )

    def with_resources(self, **settings: object) -> Self:
        """Return a recipe with other values of ``resources``.

        Args:
            settings: Values by key of that table.

        Returns:
            The recipe, all else unchanged.
        """
        return self.model_copy(update={"resources": self.resources.model_copy(update=settings)})

    @property
    def is_sized(self) -> bool:
        """Return whether it says how many workers there are."""
        return "num_workers" in self.resources.model_fields_set

    def sized_for(self, cpus: float, gpus: float) -> Self:
        """Return the recipe with as many workers as a cluster holds, where it does not say how many.

        Args:
            cpus: Of the cluster; a worker takes one.
            gpus: Of the cluster; with ``resources.use_gpu`` a worker takes one.
        """
        if self.is_sized:
            return self
        limit = min(self.global_batch_size, max(1, int(gpus if self.resources.use_gpu else cpus)))
        # As the recipe is checked: an even share of the batch each, in even passes.
        counts = [
            count
            for count in range(1, limit + 1)
            if self.global_batch_size % count == 0
            and self.global_batch_size // count % (self.micro_batch_size or self.global_batch_size // count) == 0
        ]
        return self.with_resources(num_workers=max(counts, default=1))

    @property
    def num_ranks(self) -> int:
        """Return the processes that train: one even without Ray."""
        return max(1, self.resources.num_workers)

    @property
    def rows_per_pass(self) -> int:
        """Return the triplets of one forward pass on one worker."""
        return self.micro_batch_size or self.global_batch_size // self.num_ranks

    @property
    def accumulation_steps(self) -> int:
        """Return the forward passes of one worker a step."""
        return self.global_batch_size // self.num_ranks // self.rows_per_pass

    @property
    def token_root(self) -> Path:
        """Return the folder of the tokenised triplets."""
        uri = uri_of(self.out)
        if uri is not None and not self.data.token_cache:
            # Each node's own, beside its copies of buckets: what is below the output is uploaded.
            return mirror_root().parent / "tokens" / hashlib.sha256(uri.encode()).hexdigest()[:16]
        return Path(self.data.token_cache or Path(self.out) / TOKENS)

    @property
    def checkpoint_root(self) -> str:
        """Return the folder or URI in which checkpoints are stored."""
        root = self.checkpoint.folder or str(Path(self.out) / "checkpoints")
        # Written into the bucket itself, file by file: a node's copy would have only what its own ranks wrote.
        return uri_of(root) or root

    def num_steps(self, order: SampleOrder) -> int:
        """Return the optimiser steps over rows in this order.

        Args:
            order: Of the rows of all sources.

        Returns:
            1 or more.

        Raises:
            InputError: ``epochs`` is so small a share of the rows that no step is left.
        """
        steps = self.max_steps or order.steps_of(self.epochs, self.global_batch_size)
        if not steps:
            raise InputError(
                f"epochs = {self.epochs:g} shows none of the {order.rows_per_epoch:,} rows of an epoch: there is no "
                f"step to train; expected {0.5 / order.rows_per_epoch:.2g} or more, or max_steps"
            )
        return steps

    def num_warmup_steps(self, num_steps: int) -> int:
        """Return the steps of the warm-up in a run of so many; a ratio is rounded up, as in transformers."""
        # Rounded up: a short run has a warm-up of at least one step.
        ratio = self.optim.warmup_ratio
        return self.optim.warmup_steps if ratio is None else math.ceil(num_steps * ratio)
