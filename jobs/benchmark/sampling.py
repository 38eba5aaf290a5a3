"""Measure sampling: our engine against transformers' generate, its steps against their bare matrix products, scoring
with a shared source, speculation, both roles over one base.

Random weights of a stated shape, except for speculation on a trained model (fdm=FOLDER triplets=FOLDER). All
times are CPU seconds of one thread, the least of the rounds, in which all kinds of work take turns. A step's bare
matrix products (``gemm``): its own, with weights and in attention, in the engine's layouts, on random numbers. Beside
them stand those with weights alone (``weights``) and the same in torch's own layout (``torch``), which is slower.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from jobs.benchmark.harness import check_out, spread, write_ratios
from jobs.benchmark.sampling_models import Shape, ShapeModel, generate
from jobs.benchmark.sampling_roles import role_figures
from jobs.benchmark.sampling_speculation import nano_figures, speculation_figures
from jobs.benchmark.sampling_work import (
    bare_products,
    build_step,
    count_sampling,
    count_scoring,
    score_unshared,
    torch_products,
    turns,
)
from wm.config import Recipe
from wm.dynamics.scoring import completion_logprobs
from wm.paths import InputPath, OutputPath
from wm.sampling import sample_images
from wm.sampling.llama_runner import LlamaRunner

PACKAGES = ("wm", "torch", "transformers", "numpy")
ROWS = 8
"""N of the table."""
ACTION_TOKENS = 8
REPEATS = 20
"""Of short work, a turn."""
CACHES = ("dynamic", "static")


class BenchmarkRecipe(Recipe):
    """What to measure, and how often."""

    out: OutputPath
    """JSON file to write."""
    rounds: int = Field(default=5, ge=1)
    """Turns of each kind of work; the least counts."""
    long: bool = True
    """Also prefix 1,060 and target 1,024 at width 256, which takes most of the time."""
    fdm: InputPath = ""
    """Folder of a trained forward model, for speculation on it; with triplets."""
    base: InputPath = ""
    """Of fdm, if that is an adapter: its base's folder; empty: what its manifest says."""
    triplets: InputPath = ""
    """Folder of triplets to speculate on."""
    items: int = Field(default=64, ge=1)
    """Triplets taken."""
    quick: bool = False
    """Tiny shapes, one round: shows that it works, measures nothing."""

    @model_validator(mode="after")
    def _check_both(self) -> "BenchmarkRecipe":
        if bool(self.fdm) != bool(self.triplets):
            raise ValueError("fdm and triplets: give both or neither")
        return self


def shapes(quick: bool) -> tuple[Shape, Shape, Shape]:
    """Build the faithful shape, the long one, and the one for counts of speculation."""
    if quick:
        tiny = Shape(width=32, layers=2, heads=2, vocabulary=64, codes=16, prefix=12, target=9)
        return tiny, Shape(32, 2, 2, 64, 16, prefix=20, target=16), Shape(32, 1, 2, 64, 16, prefix=12, target=25)
    faithful = Shape()
    return faithful, Shape(width=256, heads=4, prefix=1060, target=1024), Shape(64, 2, 2, 512, 256, 132, 1024)


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Measure and write ``recipe.out``; returns what was written."""
    check_out(recipe.out)
    if dry_run:
        print(f"benchmark sampling: would measure {recipe.rounds} rounds")
        return {}
    # One thread: CPU seconds of several depend on what else runs.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _write(recipe, *_measure(recipe))
    finally:
        torch.set_num_threads(threads)


def _measure(recipe: BenchmarkRecipe) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
    faithful, long, ragged = shapes(recipe.quick)
    rounds, repeats = (1, 1) if recipe.quick else (recipe.rounds, REPEATS)
    with torch.inference_mode():
        ratios, seconds = _faithful(faithful, rounds, repeats)
        figures: dict[str, Any] = {"shape": vars(faithful) | {"mlp": faithful.mlp}}
        ratios |= _counts(faithful, figures)
        if recipe.long:
            work = _against_generate(ShapeModel(long), ROWS)
            seconds["long"] = turns(work, rounds, CACHES, repeats)
            ratios["hf_over_ours_n8_long"] = _over_ours(seconds["long"])
            figures["long_shape"] = vars(long) | {"mlp": long.mlp}
        seconds["roles"], figures["roles"] = role_figures(faithful, ROWS, ratios, rounds=rounds, repeats=repeats)
        figures["speculation"] = speculation_figures(ragged, faithful, ROWS, ratios, rounds=rounds)
        if recipe.fdm:
            figures["nano"] = nano_figures(
                recipe.fdm, recipe.base, recipe.triplets, ratios, items=recipe.items, rows=ROWS
            )
    return ratios, seconds, figures


def _faithful(shape: Shape, rounds: int, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    model = ShapeModel(shape)
    runner = LlamaRunner(model, rows=ROWS)  # type: ignore[arg-type]
    position = shape.target // 2
    work: dict[str, Callable[[], object]] = {
        **_against_generate(model, ROWS),
        **{f"ours_n{n}_ready": _ours(model, n, runner) for n in (1, ROWS)},
        **{f"step_b{n}": build_step(model, runner, n, position) for n in (1, ROWS)},
        **{f"gemm_b{n}": bare_products(runner, n, shape.prefix, position + 1) for n in (1, ROWS)},
        **{f"weights_b{n}": bare_products(runner, n, 1, 1, attention=False) for n in (1, ROWS)},
        **{f"torch_b{n}": torch_products(runner, n) for n in (1, ROWS)},
        "idm_shared": lambda: completion_logprobs(model, scored, runner=runner),  # type: ignore[arg-type]
        "idm_unshared": lambda: score_unshared(model, runner, scored),
    }
    scored = model.scored(ROWS, ACTION_TOKENS)
    seconds = turns(work, rounds, CACHES, repeats)
    least = {name: min(values) for name, values in seconds.items()}
    ours = least[f"ours_n{ROWS}_ready"] / least["ours_n1_ready"]
    ratios = {
        "hf_over_ours_n8": _over_ours(seconds),
        "idm_unshared_over_shared": least["idm_unshared"] / least["idm_shared"],
        "n8_over_n1": ours,
    }
    for products in ("gemm", "weights", "torch"):
        many, single = least[f"{products}_b{ROWS}"], least[f"{products}_b1"]
        ratios[f"{products}_n8_over_n1"] = many / single
        ratios[f"n8_over_n1_over_{products}"] = ours / (many / single)
        ratios[f"step_over_{products}_b1"] = least["step_b1"] / single
        ratios[f"step_over_{products}_b8"] = least[f"step_b{ROWS}"] / many
    return ratios, {"faithful": seconds}


def _ours(model: ShapeModel, num_samples: int, runner: LlamaRunner | None) -> Callable[[], Tensor]:
    prefix = model.shape.ids(model.shape.prefix)
    vlm: Any = model
    return lambda: sample_images(vlm, [prefix], num_samples=num_samples, runner=runner)


def _against_generate(model: ShapeModel, rows: int) -> dict[str, Callable[[], object]]:
    """Build the work: transformers with either cache, and ours, the building of the runner (packing) included."""
    prefix = model.shape.ids(model.shape.prefix)
    theirs = {cache: (lambda cache=cache: generate(model, prefix, rows, cache)) for cache in CACHES}
    return {**theirs, "ours": _ours(model, rows, None)}


def _over_ours(seconds: Mapping[str, list[float]]) -> float:
    return min(min(seconds[cache]) for cache in CACHES) / min(seconds["ours"])


def _counts(shape: Shape, figures: dict[str, Any]) -> dict[str, float]:
    """Count against N times one: FLOPs in which a multiplication with its addition are two, cache bytes in float32."""
    model = ShapeModel(shape).double()
    sampler, idm = count_sampling(model, ROWS), count_scoring(model, ROWS, ACTION_TOKENS)
    figures["counts"] = {"sampler": sampler, "idm": idm}
    return {
        "sampler_flops": sampler["flops_shared"] / sampler["flops_naive"],
        "sampler_cache_bytes": sampler["bytes_shared"] / sampler["bytes_naive"],
        "idm_flops": idm["flops_shared"] / idm["flops_naive"],
    }


def _write(
    recipe: BenchmarkRecipe, ratios: dict[str, float], seconds: dict[str, Any], figures: dict[str, Any]
) -> dict[str, Any]:
    spreads = {
        f"{part}.{name}": spread(values) for part, measured in seconds.items() for name, values in measured.items()
    }
    record = write_ratios(
        recipe.out,
        "sampling",
        PACKAGES,
        ratios=ratios,
        spreads=spreads,
        seconds=seconds,
        figures=figures,
        settings=recipe.model_dump(exclude={"out"}),
    )
    missing = "" if recipe.fdm else "; speculation on a trained model not measured (no fdm)"
    print(f"benchmark sampling: {recipe.rounds} rounds{missing}, written to {recipe.out}")
    return record
