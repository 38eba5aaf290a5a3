"""Serving: HTTP and Ray Serve against the library in this process, many clients at once, arrivals at rising rates.

A server of its own for each number of replicas, on this machine, which the clients share with it. Without fdm and idm
both models are the nano world's with random weights: what an answer costs does not depend on what they learned. Single
requests: wall seconds, the least of the rounds, in which all kinds take turns. The library has as many threads as a
replica. Answers of both sides are compared, pixel by pixel.
"""

import base64
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from pydantic import Field, model_validator

from jobs.benchmark.harness import check_out, spread, write_benchmark
from jobs.benchmark.serving_load import Asked, answered_per_s, ask, closed_loop, first_preview, open_loop
from jobs.benchmark.serving_server import FAITHFUL, WIDE, Library, random_model, served
from wm.config import Recipe
from wm.errors import InputError
from wm.images import decode_image, encode_png
from wm.models import hub_hint
from wm.nano.preset import TINY, NanoPreset
from wm.paths import InputPath, OutputPath

PACKAGES = ("wm", "ray", "torch", "fastapi", "uvicorn", "httpx2", "numpy")
BEST_OF = 8
CLIENTS = 16
ACTION = "move the red cup left"
TRAINED_ACTION = "move the red circle to the left"
RATES = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Of what the closed loop answered."""
SMALL = replace(TINY, side_px=32, max_positions=256)
"""Sixteen tokens an image, for the quick run."""


class BenchmarkRecipe(Recipe):
    """What to measure, and how often."""

    out: OutputPath
    """JSON file to write."""
    fdm: InputPath = ""
    """Folder of a forward model; with idm."""
    idm: InputPath = ""
    """Folder of an inverse model."""
    base: InputPath = ""
    """Of fdm and idm, if those are adapters: their base's folder; empty: what their manifests say."""
    action: str = ""
    """What is asked of fdm and idm: words that they know."""
    rounds: int = Field(default=40, ge=1)
    """Turns of each kind of single request; the least counts."""
    replicas: list[int] = Field(default=[1, 2], min_length=1)
    """Replicas of each server, one count after the other; ratios are of the first."""
    seconds: float = Field(default=20, gt=0)
    """Of arrivals at each rate."""
    cpus_per_replica: float = Field(default=1, gt=0)
    """CPU cores of each replica, its threads too."""
    quick: bool = False
    """Tiny models, one round: shows that it works, measures nothing."""

    @model_validator(mode="after")
    def _need_both(self) -> "BenchmarkRecipe":
        if bool(self.fdm) != bool(self.idm):
            raise ValueError("fdm and idm: give both or neither")
        if min(self.replicas) < 1:
            raise ValueError(f"replicas = {self.replicas}: expected counts of at least 1")
        return self


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Measure and write ``recipe.out``; returns what was written."""
    check_out(recipe.out)
    for key in ("fdm", "idm", "base"):
        folder = getattr(recipe, key)
        if folder and not Path(folder).is_dir():
            raise InputError(f"{key} = {folder!r}: no such model folder{hub_hint(folder)}")
    if dry_run:
        print(f"benchmark serve: would measure servers of {recipe.replicas} replicas")
        return {}
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(recipe.cpus_per_replica)))
    try:
        with tempfile.TemporaryDirectory() as folder:
            ratios, figures, seconds = _measure(recipe, Path(folder))
    finally:
        torch.set_num_threads(threads)
    record = write_benchmark(
        recipe.out,
        "serve",
        PACKAGES,
        ratios={name: round(value, 4) for name, value in ratios.items()},
        figures=figures,
        spread={name: spread(values) for name, values in seconds.items()},
    )
    for name, value in record["ratios"].items():
        print(f"{name:28} {value:8.3f}")
    return record


def _measure(recipe: BenchmarkRecipe, folder: Path) -> tuple[dict[str, float], dict[str, Any], dict[str, list[float]]]:
    models = {"fdm": recipe.fdm, "idm": recipe.idm, "base": recipe.base}
    if not recipe.fdm:
        model = random_model(folder / "model", TINY if recipe.quick else NanoPreset())
        models |= {"fdm": model, "idm": model}
    action = (recipe.action or TRAINED_ACTION) if recipe.fdm else ACTION
    library = Library(models["fdm"], models["idm"], recipe.base or None)
    picture = encode_png(np.random.default_rng(0).integers(0, 256, (library.codec.side_px,) * 2 + (3,), np.uint8))
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {"tokens_per_image": library.tokens_per_image, "best_of": BEST_OF, "clients": CLIENTS}
    seconds: dict[str, list[float]] = {}
    for count in recipe.replicas:
        options = f"{{num_replicas = {count}, ray_actor_options = {{num_cpus = {recipe.cpus_per_replica}}}}}"
        servers = {"fdm_server": options, "idm_server": options}
        with served(models | servers | {"num_candidates": BEST_OF}) as url:
            asked = Asked(url, picture, action)
            if count == recipe.replicas[0]:
                seconds |= _single(asked, library, 2 if recipe.quick else recipe.rounds)
                figures["identical_share"] = _identical(asked, library, 4 if recipe.quick else 20)
                ratios |= _ratios(seconds)
            figures[f"replicas_{count}"] = _loaded(asked, recipe)
    ratios["batching_gain"] = figures[f"replicas_{recipe.replicas[0]}"]["batching_gain"]["median"]
    if not recipe.fdm:
        presets = {"wide": SMALL} if recipe.quick else {"wide": WIDE, "faithful": FAITHFUL}
        for name, preset in presets.items():
            seconds |= _larger(preset, folder / name, name, ratios, rounds=1 if recipe.quick else 5)
    return ratios, figures, seconds


def _single(asked: Asked, library: Library, rounds: int) -> dict[str, list[float]]:
    """Wall seconds of single requests, in turns."""
    with httpx2.Client(timeout=120) as client:
        work: dict[str, Callable[[int], float]] = {
            "library_best_of_8": lambda seed: _timed(library, asked, seed, BEST_OF),
            "http_best_of_8": lambda seed: ask(client, asked, seed, best_of=BEST_OF)[1],
            "library_best_of_1": lambda seed: _timed(library, asked, seed, 1),
            "http_best_of_1": lambda seed: ask(client, asked, seed, best_of=1)[1],
            "http_health": lambda _: _health(client, asked.url),
        }
        found: dict[str, list[float]] = {name: [] for name in [*work, "first_preview", "streamed"]}
        for round_ in range(-2, rounds):  # two to warm up
            for name, function in work.items():
                seconds = function(abs(round_))
                if round_ >= 0:
                    found[name].append(seconds)
            first_s, whole_s = first_preview(client, asked, abs(round_), BEST_OF)
            if round_ >= 0:
                found["first_preview"].append(first_s)
                found["streamed"].append(whole_s)
    return found


def _health(client: httpx2.Client, url: str) -> float:
    begin = time.perf_counter()
    client.get(f"{url}/health").raise_for_status()
    return time.perf_counter() - begin


def _timed(library: Library, asked: Asked, seed: int, best_of: int) -> float:
    begin = time.perf_counter()
    library.answer(asked.source_png, asked.action, seed, best_of)
    return time.perf_counter() - begin


def _identical(asked: Asked, library: Library, seeds: int) -> float:
    """Share of answers whose picture equals the library's pixel for pixel, and whose log-likelihood is its to the last
    bit."""
    same = 0
    with httpx2.Client(timeout=120) as client:
        for seed in range(seeds):
            (entry,) = ask(client, asked, seed, best_of=BEST_OF)[0]["data"]
            picture, found = library.answer(asked.source_png, asked.action, seed, BEST_OF)
            shown = decode_image(base64.b64decode(entry["b64_json"]), "reply")
            logprob = entry["verification"]["logprob"]
            same += np.array_equal(shown, decode_image(picture, "own")) and logprob == found.best.score.logprob
    return same / seeds


def _ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    least = {name: min(values) for name, values in seconds.items()}
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "http_overhead": least["http_best_of_8"] / least["library_best_of_8"],
        "http_overhead_median": middle["http_best_of_8"] / middle["library_best_of_8"],
        # Proxy, ingress and a call to each model's process, without any work of a model.
        "health_over_library": least["http_health"] / least["library_best_of_8"],
        "best_of_8_over_1": least["http_best_of_8"] / least["http_best_of_1"],
        "first_preview_share": middle["first_preview"] / middle["streamed"],
    }


def _loaded(asked: Asked, recipe: BenchmarkRecipe) -> dict[str, Any]:
    """Measure closed loops of 1 and of many clients in turns, then arrivals at rising rates."""
    rounds, each = (1, 4) if recipe.quick else (8, 40)
    loops: dict[str, list[Any]] = {"1": [], str(CLIENTS): []}
    closed_loop(asked, CLIENTS, 2 * CLIENTS)  # warm every replica up
    for _ in range(rounds):
        loops["1"].append(closed_loop(asked, 1, each))
        loops[str(CLIENTS)].append(closed_loop(asked, CLIENTS, 4 * each))
    answered = {name: answered_per_s(found) for name, found in loops.items()}
    closed = {name: spread(values) for name, values in answered.items()}
    # Of neighbours in time, which meet the machine in the same mood.
    gain = spread([many / one for one, many in zip(answered["1"], answered[str(CLIENTS)], strict=True)])
    rates = RATES[:1] if recipe.quick else RATES
    arrivals = []
    for number, share in enumerate(rates):
        rate = share * closed[str(CLIENTS)]["median"]
        tally, wall_s = open_loop(asked, rate, 1.0 if recipe.quick else recipe.seconds, number)
        arrivals.append({"rate_per_s": round(rate, 3)} | tally.figures(wall_s))
    statuses = sum((tally.statuses for found in loops.values() for tally, _ in found), start=Counter[str]())
    return {"closed_loop": closed, "batching_gain": gain, "closed_loop_statuses": dict(statuses), "open_loop": arrivals}


def _larger(
    preset: NanoPreset, folder: Path, name: str, ratios: dict[str, float], *, rounds: int
) -> dict[str, list[float]]:
    """Measure the first preview, and what HTTP adds, where an image has more tokens than the nano world's nine."""
    model = random_model(folder, preset)
    library = Library(model, model, None)
    picture = encode_png(np.random.default_rng(1).integers(0, 256, (preset.side_px,) * 2 + (3,), np.uint8))
    found: dict[str, list[float]] = {kind: [] for kind in ("first_preview", "streamed", "http", "library")}
    with served({"fdm": model, "idm": model}) as url, httpx2.Client(timeout=120) as client:
        asked = Asked(url, picture, ACTION)
        for round_ in range(-1, rounds):
            seed = abs(round_)
            first_s, whole_s = first_preview(client, asked, seed, BEST_OF)
            http_s = ask(client, asked, seed, best_of=BEST_OF)[1]
            if round_ >= 0:
                library_s = _timed(library, asked, seed, BEST_OF)
                for kind, value in zip(found, (first_s, whole_s, http_s, library_s), strict=True):
                    found[kind].append(value)
    ratios[f"{name}_first_preview_share"] = float(np.median(found["first_preview"]) / np.median(found["streamed"]))
    ratios[f"{name}_http_overhead"] = min(found["http"]) / min(found["library"])
    return {f"{name}_{kind}": values for kind, values in found.items()}
