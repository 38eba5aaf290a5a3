"""Measure sampling, scoring and training at a 7B model's shape on a GPU, with random weights in bfloat16.

Parts: ``flow`` (optical flow of video frames: frames a second, and agreement with OpenCV; no model), ``check`` (a tiny
float32 model: every way of decoding against the plain one, code for code), ``sampling`` (seconds an image for each N
and way of decoding, and the share of the memory bandwidth), ``idm`` (pairs scored a second), ``hf`` (transformers'
generate with image logits unmasked, N = 8), ``speculation`` (drafts of which a known share is right), ``training`` (a
forward model's LoRA step). The JSON is written anew after every measurement; nothing new is begun after ``seconds``,
and what was left out for that, or failed, is named there. The same command then measures that alone. Each way of
decoding is compared with the plain one at the model's own shapes first; its figures say how far their logits differ.

A time is the median of ``repeats`` runs after one to warm up, the device waited for at either end; each way of
decoding is measured by itself, since several do not fit into memory together. The share of the bandwidth is the bytes
that must be moved (weights a step, each prefix once a step, every row's filled positions) over the seconds without the
reading of the prefix and over what a large copy moves.

Needs neither Ray nor DeepSpeed, decord, PyAV or openai; without OpenCV, ``flow`` is compared with the same program on
the CPU. On a machine without pydantic bring the wheels of pydantic, pydantic-core, annotated-types and
typing-inspection.
"""

import json
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import Field

from jobs.benchmark.gpu_flow import measure_flow
from jobs.benchmark.gpu_record import Record, measure_ceilings
from jobs.benchmark.gpu_training import measure_training
from jobs.benchmark.gpu_work import (
    check_decoding,
    measure_generate,
    measure_sampling,
    measure_scoring,
    measure_speculation,
)
from jobs.benchmark.harness import CommonRecipe, Figures, check_out, print_ratios, versions, write_record
from jobs.benchmark.sampling_models import Shape, ShapeModel
from wm.errors import InputError

PACKAGES = ("wm", "torch", "triton", "transformers", "peft", "numpy")
SHAPE = Shape(4096, 32, 32, 65_536, 8_192, mlp_width=11_008, prefix=1060, target=1024)
TINY = Shape(32, 2, 2, 64, 16, mlp_width=48, prefix=12, target=16)
Part = Literal["flow", "check", "sampling", "idm", "hf", "speculation", "training"]


class BenchmarkRecipe(CommonRecipe):
    """What to measure, and for how long."""

    parts: list[Part] = list(get_args(Part))
    """Parts, in their order; training changes the model and must be the last."""
    rows: list[int] = [8, 1, 32]
    """Candidates of a source, N."""
    stepping: list[Literal["plain", "static", "graph", "compiled"]] = []
    """Ways of decoding; empty: graph, compiled and plain on a GPU, static and plain elsewhere."""
    kernels: bool = True
    """Triton's kernels for the attention of a step; false: torch's products over buckets of positions."""
    caches: list[Literal["dynamic", "static", "compiled"]] = ["dynamic", "static"]
    """Caches of transformers' generate; compiled: static, with what transformers compiles by itself."""
    repeats: int = Field(default=3, ge=1)
    """Runs of which the median counts; of transformers' generate one is done."""
    seconds: float = Field(default=420.0, gt=0)
    """No measurement begins later than this."""
    device: str = "cuda"
    """Where torch works: cuda, cuda:1, cpu."""


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: Parts, device, and where the record goes.
        dry_run: Print what would be measured; the record is empty.

    Raises:
        InputError: torch cannot use the device, or the parts are in a wrong order.
    """
    check_out(recipe.out)
    _check_device(recipe.device)
    # It adds adapters to the model that all parts share.
    if "training" in recipe.parts[:-1]:
        raise InputError(f"parts = {recipe.parts}: training must be the last, it changes the model")
    if dry_run:
        print(f"benchmark gpu: would measure {', '.join(recipe.parts)} on {recipe.device}")
        return {}
    shape = TINY if recipe.quick else SHAPE
    write = partial(write_record, recipe.out, "gpu", PACKAGES, settings=recipe.settings())
    record = Record(shape, recipe.device, recipe.seconds, write, _read_earlier(recipe))
    # A CPU may have to emulate bfloat16.
    dtype = torch.bfloat16 if recipe.device != "cpu" else torch.float32
    with torch.no_grad():
        # First: what follows is given as a share of them.
        record.measure("ceilings", lambda: measure_ceilings(record.device, quick=recipe.quick))
        # Before the model, which takes the time to make it and most of the memory.
        if "flow" in recipe.parts:
            measure_flow(record, 1 if recipe.quick else recipe.repeats, quick=recipe.quick)
        if rest := [part for part in recipe.parts if part != "flow"]:
            model = ShapeModel(shape, device=recipe.device, dtype=dtype)
            for part in rest:
                _measure(part, record, recipe, model)
    print_ratios(record.ratios)
    print(
        f"benchmark gpu: {len(record.measurements)} measured, {len(record.failed)} failed, {len(record.left_out)} left "
        f"out, written to {recipe.out}"
    )
    return record.write()


def _measure(part: Part, record: Record, recipe: BenchmarkRecipe, model: ShapeModel) -> None:
    # A quick run checks the code, not the device.
    repeats = 1 if recipe.quick else recipe.repeats
    stepping = recipe.stepping or (
        ["graph", "compiled", "plain"] if record.device.type == "cuda" else ["static", "plain"]
    )
    if part == "check":
        record.measure("check", lambda: check_decoding(recipe.device, stepping))
    elif part == "sampling":
        measure_sampling(record, model, recipe.rows, stepping, repeats=repeats, kernels=recipe.kernels)
    elif part == "idm":
        measure_scoring(record, model, repeats)
    elif part == "hf":
        measure_generate(record, model, recipe.caches)
    elif part == "speculation":
        measure_speculation(record, model, repeats)
    else:
        measure_training(record, model, repeats)


def _read_earlier(recipe: BenchmarkRecipe) -> dict[str, Figures]:
    """Read the measurements of a run with the same settings, card and versions that ended early; else none."""
    path = Path(recipe.out)
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    if not isinstance(before, dict):
        return {}
    card = torch.cuda.get_device_name(recipe.device) if torch.device(recipe.device).type == "cuda" else "none"
    # How long it may take changes no figure.
    settings = {**recipe.settings(), "seconds": (before.get("settings") or {}).get("seconds")}
    is_same = (before.get("settings"), before.get("gpu"), before.get("versions")) == (
        settings,
        card,
        versions(PACKAGES),
    )
    # Of a complete run nothing is left to resume: it is measured anew.
    if not is_same or not (before.get("left_out") or before.get("failed")):
        return {}
    return {name: figures for name, figures in before["figures"].items() if name != "shape"}


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = {device!r}: torch cannot use it: {str(error).splitlines()[0]:.160}") from error
