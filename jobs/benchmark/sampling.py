"""Measure sampling: our engine against transformers' generate, its steps against their bare matrix products, scoring
with a shared source, speculation, both roles over one base.

Random weights of a stated shape, except for speculation on a trained model (fdm=FOLDER triplets=FOLDER). All
times are CPU seconds of one thread, the min of the rounds, in which all kinds of work take turns. A step's bare
matrix products (``gemm``): its own, with weights and in attention, in the engine's layouts, on random numbers. Beside
them are those with weights alone (``weights``) and the same in torch's own layout (``torch``), which is slower.
"""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor

from jobs.benchmark.harness import (
    CommonRecipe,
    Figures,
    Seconds,
    check_out,
    print_ratios,
    spread,
    torch_threads,
    turns,
    write_record,
)
from jobs.benchmark.sampling_models import Shape, ShapeModel, generate
from jobs.benchmark.sampling_roles import role_figures
from jobs.benchmark.sampling_speculation import speculation_figures, trained_figures
from jobs.benchmark.sampling_work import (
    bare_products,
    build_step,
    count_sampling,
    count_scoring,
    score_unshared,
    torch_products,
)
from wm.dynamics.scoring import completion_logprobs
from wm.paths import InputPath
from wm.sampling import sample_images
from wm.sampling.llama_runner import LlamaRunner

PACKAGES = ("wm", "torch", "transformers", "numpy")
ROWS = 8
"""Candidates of a source, N."""
ACTION_TOKENS = 8
REPEATS = 20
"""Times that short work is done in a turn."""
CACHES = ("dynamic", "static")


class BenchmarkRecipe(CommonRecipe):
    """What to measure, and how often."""

    rounds: int = Field(default=5, ge=1)
    """Turns of each kind of work; the min counts."""
    long: bool = True
    """Also prefix 1,060 and target 1,024 at width 256, which takes most of the time."""
    fdm: InputPath = ""
    """Folder of a trained forward model, for speculation on it; with triplets."""
    base: InputPath = ""
    """Base folder of an fdm that is an adapter; empty: what its manifest says."""
    triplets: InputPath = ""
    """Folder of triplets to speculate on."""
    items: int = Field(default=64, ge=1)
    """Number of triplets."""

    @model_validator(mode="after")
    def _check_both(self) -> "BenchmarkRecipe":
        # A trained model needs sources to speculate on, and the other way round.
        if bool(self.fdm) != bool(self.triplets):
            raise ValueError("fdm and triplets: give both or neither")
        return self


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: What is measured, and where the record goes.
        dry_run: Print what would be measured; the record is empty.
    """
    check_out(recipe.out)
    if dry_run:
        print(f"benchmark sampling: would measure {recipe.rounds} rounds")
        return {}
    with torch_threads(1), torch.inference_mode():
        ratios, seconds, figures = _measure(recipe)
    spreads = {f"{part}.{name}": spread(values) for part in seconds for name, values in seconds[part].items()}
    parts = {"spread": spreads, "seconds": seconds, "figures": figures, "settings": recipe.settings()}
    record = write_record(recipe.out, "sampling", PACKAGES, ratios=ratios, **parts)
    print_ratios(ratios, spreads)
    missing = "" if recipe.fdm else "; speculation on a trained model not measured (no fdm)"
    print(f"benchmark sampling: {recipe.rounds} rounds{missing}, written to {recipe.out}")
    return record


def build_shapes(quick: bool) -> tuple[Shape, Shape, Shape]:
    """Build the faithful shape, the long one, and the one for counts of speculation."""
    if quick:
        tiny = Shape(32, 2, 2, 64, 16, prefix=12, target=9)
        return tiny, Shape(32, 2, 2, 64, 16, prefix=20, target=16), Shape(32, 1, 2, 64, 16, prefix=12, target=25)
    long = Shape(width=256, heads=4, prefix=1060, target=1024)
    return Shape(), long, Shape(64, 2, 2, 512, 256, prefix=132, target=1024)


def _measure(recipe: BenchmarkRecipe) -> tuple[dict[str, float], dict[str, Seconds], Figures]:
    faithful, long, ragged = build_shapes(recipe.quick)
    rounds, repeats = (1, 1) if recipe.quick else (recipe.rounds, REPEATS)
    seconds = {"faithful": _measure_faithful(faithful, rounds, repeats)}
    ratios = _faithful_ratios(seconds["faithful"])
    figures: Figures = {"shape": vars(faithful) | {"mlp": faithful.mlp}}
    # FLOPs, of which a multiplication with its addition are two; and cache bytes in float32.
    counted = ShapeModel(faithful).double()
    sampler, idm = count_sampling(counted, ROWS), count_scoring(counted, ROWS, ACTION_TOKENS)
    figures["counts"] = {"sampler": sampler, "idm": idm}
    ratios |= {
        "sampler_flops": sampler["flops_shared"] / sampler["flops_naive"],
        "sampler_cache_bytes": sampler["bytes_shared"] / sampler["bytes_naive"],
        "idm_flops": idm["flops_shared"] / idm["flops_naive"],
    }
    # The lengths of a 7B model's images at a width that a CPU can take.
    if recipe.long:
        seconds["long"] = turns(_against_generate(ShapeModel(long)), rounds, CACHES, repeats)
        ratios["hf_over_ours_n8_long"] = _over_ours(seconds["long"])
        figures["long_shape"] = vars(long) | {"mlp": long.mlp}
    seconds["roles"], figures["roles"] = role_figures(faithful, ROWS, ratios, rounds=rounds, repeats=repeats)
    figures["speculation"] = speculation_figures(ragged, faithful, ROWS, ratios, rounds=rounds)
    if recipe.fdm:
        figures["nano"] = trained_figures(
            recipe.fdm, recipe.base, recipe.triplets, ratios, items=recipe.items, rows=ROWS
        )
    return ratios, seconds, figures


def _measure_faithful(shape: Shape, rounds: int, repeats: int) -> Seconds:
    model = ShapeModel(shape)
    runner = LlamaRunner(model, rows=ROWS)
    # Half-way through the image: the mean of what attention reads.
    position = shape.target // 2
    prompts = model.inverse_prompts(ROWS, ACTION_TOKENS)
    work: dict[str, Callable[[], object]] = {
        **_against_generate(model),
        **{f"ours_n{n}_ready": _sample(model, n, runner) for n in (1, ROWS)},
        **{f"step_b{n}": build_step(model, runner, n, position) for n in (1, ROWS)},
        **{f"gemm_b{n}": bare_products(runner, n, shape.prefix, position + 1) for n in (1, ROWS)},
        **{f"weights_b{n}": bare_products(runner, n, 1, 1, attention=False) for n in (1, ROWS)},
        **{f"torch_b{n}": torch_products(runner, n) for n in (1, ROWS)},
        "idm_shared": lambda: completion_logprobs(model, prompts, runner=runner),
        "idm_unshared": lambda: score_unshared(model, runner, prompts),
    }
    return turns(work, rounds, CACHES, repeats)


def _faithful_ratios(seconds: Seconds) -> dict[str, float]:
    best = {name: min(values) for name, values in seconds.items()}
    # With the decoder built before, as a server has it.
    ours = best[f"ours_n{ROWS}_ready"] / best["ours_n1_ready"]
    ratios = {
        "hf_over_ours_n8": _over_ours(seconds),
        "idm_unshared_over_shared": best["idm_unshared"] / best["idm_shared"],
        "n8_over_n1": ours,
    }
    for products in ("gemm", "weights", "torch"):
        # By as much as bare products grow, a step must grow too.
        many, single = best[f"{products}_b{ROWS}"], best[f"{products}_b1"]
        ratios[f"{products}_n8_over_n1"] = many / single
        ratios[f"n8_over_n1_over_{products}"] = ours / (many / single)
        ratios[f"step_over_{products}_b1"] = best["step_b1"] / single
        ratios[f"step_over_{products}_b8"] = best[f"step_b{ROWS}"] / many
    return ratios


def _sample(model: ShapeModel, num_candidates: int, runner: LlamaRunner | None) -> Callable[[], Tensor]:
    prefix = model.shape.ids(model.shape.prefix)
    return lambda: sample_images(model, [prefix], num_candidates=num_candidates, runner=runner)


def _against_generate(model: ShapeModel) -> dict[str, Callable[[], object]]:
    """Build the work: transformers with either cache, and ours, the building of the runner (packing) included."""
    prefix = model.shape.ids(model.shape.prefix)
    # Which cache is faster depends on the shape: the better one counts.
    theirs = {cache: (lambda cache=cache: generate(model, prefix, ROWS, cache)) for cache in CACHES}
    return {**theirs, "ours": _sample(model, ROWS, None)}


def _over_ours(seconds: Mapping[str, list[float]]) -> float:
    return min(min(seconds[cache]) for cache in CACHES) / min(seconds["ours"])
