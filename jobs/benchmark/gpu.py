"""Sampling, scoring and training at a 7B model's shape on a GPU, with random weights in bfloat16.

Parts: ``check`` (a tiny float32 model: every way of decoding against the plain one, code for code), ``sampling``
(seconds an image for each N and way of decoding, and the share of the memory bandwidth), ``idm`` (pairs scored a
second), ``hf`` (transformers' generate with image logits unmasked, N = 8), ``speculation`` (drafts of which a known
share is right), ``training`` (a forward model's LoRA step). What is finished stands in the JSON at once, which is
written anew after every measurement; nothing new is begun after ``seconds``, and what was left out for that, or
failed, is named there.

A time is the median of ``repeats`` runs after one to warm up, the device waited for at either end; each way of
decoding is measured by itself, since several do not fit into memory together. The share of the bandwidth is the bytes
that must be moved (weights a step, each prefix once a step, every row's filled places) over the seconds without the
reading of the prefix and over what a large copy moves.

Needs neither Ray nor DeepSpeed, decord, PyAV or openai. On a machine without pydantic bring the wheels of pydantic,
pydantic-core, annotated-types and typing-inspection.
"""

import gc
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field

from jobs.benchmark.gpu_training import training_figures
from jobs.benchmark.gpu_work import (
    ceilings,
    check_figures,
    generate_figures,
    sampling_figures,
    scoring_figures,
    speculation_figures,
)
from jobs.benchmark.harness import check_out, write_benchmark
from jobs.benchmark.sampling_models import Shape, ShapeModel
from wm.config import Recipe
from wm.errors import InputError
from wm.paths import OutputPath

PACKAGES = ("wm", "torch", "triton", "transformers", "peft", "numpy")
SHAPE = Shape(4096, 32, 32, 65_536, 8_192, prefix=1060, target=1024, mlp_width=11_008)
TINY = Shape(32, 2, 2, 64, 16, prefix=12, target=16, mlp_width=48)
Part = Literal["check", "sampling", "idm", "hf", "speculation", "training"]
PARTS: tuple[Part, ...] = ("check", "sampling", "idm", "hf", "speculation", "training")


class BenchmarkRecipe(Recipe):
    """What to measure, and for how long."""

    out: OutputPath
    """JSON file to write."""
    parts: list[Part] = list(PARTS)
    """In the order in which they are done; training changes the model and must be the last."""
    rows: list[int] = [8, 1, 32]
    """Candidates of a source, N."""
    stepping: list[Literal["plain", "static", "graph", "compiled"]] = []
    """Ways of decoding; empty: graph, compiled and plain on a GPU, static and plain elsewhere."""
    kernels: bool = True
    """Triton's kernels for the attention of a step; false: torch's products over buckets of places."""
    caches: list[Literal["dynamic", "static", "compiled"]] = ["dynamic", "static"]
    """Of transformers' generate; compiled: static, with what transformers compiles by itself."""
    repeats: int = Field(default=3, ge=1)
    """Runs of which the median counts; of transformers' generate one is done."""
    seconds: float = Field(default=420.0, gt=0)
    """No measurement begins later than this."""
    device: str = "cuda"
    """Where torch works: cuda, cuda:1, cpu."""
    quick: bool = False
    """Tiny shapes, one repeat: shows that it works, measures nothing."""


class Record:
    """What was measured, in a file from the first measurement on."""

    def __init__(self, recipe: BenchmarkRecipe, shape: Shape) -> None:
        self._recipe, self._begin = recipe, time.monotonic()
        self.ratios: dict[str, float] = {}
        self.figures: dict[str, Any] = {"shape": vars(shape) | {"mlp": shape.mlp}}
        self.failed: dict[str, str] = {}
        self.left_out: list[str] = []
        self.device = torch.device(recipe.device)

    def measure(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Do it, keep what it returns as ``figures[name]``, with the memory it took at most; None if it failed or the
        time is up. A failure is told and the rest goes on: a machine that is lent is not lent again for the rest."""
        if time.monotonic() - self._begin > self._recipe.seconds:
            self.left_out.append(name)
            return None
        found = self._done(name, work)
        gc.collect()  # a decoder and the buffers it holds refer to each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if found is not None:
            self.figures[name] = found
            print(f"{name}: {found}", flush=True)
        self.write()
        return found

    def _done(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        begin = time.monotonic()
        try:
            found = work()
        except Exception as error:
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            print(f"{name} failed: {self.failed[name]}", flush=True)
            return None
        peak = {"peak_gb": round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)} if on_gpu else {}
        return found | peak | {"took_s": round(time.monotonic() - begin, 1)}

    def write(self) -> dict[str, Any]:
        """Aside, then renamed."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "none"
        return write_benchmark(
            self._recipe.out,
            "gpu",
            PACKAGES,
            gpu=gpu,
            ratios={name: round(value, 4) for name, value in self.ratios.items()},
            figures=self.figures,
            failed=self.failed,
            left_out=self.left_out,
            settings=self._recipe.model_dump(exclude={"out"}),
        )


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Measure and write ``recipe.out``; returns what was written."""
    check_out(recipe.out)
    _check_device(recipe.device)
    if "training" in recipe.parts[:-1]:
        raise InputError(f"parts = {recipe.parts}: training must be the last, it changes the model")
    if dry_run:
        print(f"benchmark gpu: would measure {', '.join(recipe.parts)} on {recipe.device}")
        return {}
    shape, on_gpu = TINY if recipe.quick else SHAPE, recipe.device != "cpu"
    record = Record(recipe, shape)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    with torch.no_grad():
        record.measure("ceilings", lambda: ceilings(record.device, quick=recipe.quick))
        model = ShapeModel(shape, device=recipe.device, dtype=dtype)
        for part in recipe.parts:
            _measure(part, record, recipe, model)
    written = record.write()
    for name, value in written["ratios"].items():
        print(f"{name:36s}{value:9.3f}")
    print(
        f"benchmark gpu: {len(record.figures) - 1} measured, {len(record.failed)} failed, {len(record.left_out)} left "
        f"out, written to {recipe.out}"
    )
    return written


def _measure(part: Part, record: Record, recipe: BenchmarkRecipe, model: ShapeModel) -> None:
    repeats = 1 if recipe.quick else recipe.repeats
    stepping = recipe.stepping or (
        ["graph", "compiled", "plain"] if record.device.type == "cuda" else ["static", "plain"]
    )
    if part == "check":
        record.measure("check", lambda: check_figures(recipe.device, stepping))
    elif part == "sampling":
        sampling_figures(record, model, recipe.rows, stepping, repeats=repeats, kernels=recipe.kernels)
    elif part == "idm":
        scoring_figures(record, model, repeats)
    elif part == "hf":
        generate_figures(record, model, recipe.caches)
    elif part == "speculation":
        speculation_figures(record, model, repeats)
    else:
        training_figures(record, model, repeats)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = {device!r}: torch cannot use it: {str(error).splitlines()[0]:.160}") from error
