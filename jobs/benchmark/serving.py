"""Measure serving: HTTP and Ray Serve against the library in this process, many clients at once, rising arrival rates.

A server of its own for each number of replicas, on this machine, which the clients share with it. Without fdm and idm
both models are the nano world's with random weights: what an answer costs does not depend on what they learned. Single
requests: wall seconds, the min of the rounds, in which all kinds take turns. The library has as many threads as a
replica. Answers of both sides are compared, pixel by pixel.
"""

import base64
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import httpx2
import numpy as np
from pydantic import Field, model_validator

from jobs.benchmark.harness import (
    CommonRecipe,
    Figures,
    Seconds,
    check_out,
    print_ratios,
    spread,
    torch_threads,
    wall_seconds,
    write_record,
)
from jobs.benchmark.serving_load import EditRequest, Load, closed_loop, open_loop
from jobs.benchmark.serving_server import FAITHFUL, WIDE, Library, serve, write_random_model
from wm.errors import InputError
from wm.images import decode_image, encode_png
from wm.models import hub_hint
from wm.nano.preset import TINY, NanoPreset
from wm.paths import InputPath
from wm.ports import find_free_port

PACKAGES = ("wm", "ray", "torch", "fastapi", "uvicorn", "httpx2", "numpy")
BEST_OF = 8
CLIENTS = 16
ACTION = "move the red cup left"
TRAINED_ACTION = "move the red circle to the left"
MAX_LOAD_ROUNDS = 8
RATES = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Arrival rates, as multiples of what the closed loop answered."""
SMALL = replace(TINY, side_px=32, max_positions=256)
"""Sixteen tokens an image, for the quick run, which measures all with one server."""
Work: TypeAlias = Callable[[int], dict[str, float]]
"""What is done with a seed, and the seconds that it took by name."""


class BenchmarkRecipe(CommonRecipe):
    """What to measure, and how often."""

    fdm: InputPath = ""
    """Folder of a forward model; with idm."""
    idm: InputPath = ""
    """Folder of an inverse model."""
    base: InputPath = ""
    """Base folder of fdm and idm, if those are adapters; empty: what their manifests say."""
    action: str = ""
    """Action of every request to fdm and idm: words that they know."""
    rounds: int = Field(default=40, ge=1)
    """Turns of each kind of single request; the min counts."""
    replicas: list[int] = Field(default=[1, 2], min_length=1)
    """Replicas of each server, one count after the other; ratios are of the first."""
    seconds: float = Field(default=20, gt=0)
    """Length of the arrivals at each rate."""
    cpus_per_replica: float = Field(default=1, gt=0)
    """CPU cores of each replica, its threads too."""
    base_sharing: Literal["separate", "merged"] = "separate"
    """Of the server: merged has both models in one process."""
    long_images: bool = True
    """Measure images of 256 tokens too, of two models with random weights: most of the time."""

    @model_validator(mode="after")
    def _check_both(self) -> "BenchmarkRecipe":
        if bool(self.fdm) != bool(self.idm):
            raise ValueError("fdm and idm: give both or neither")
        if min(self.replicas) < 1:
            raise ValueError(f"replicas = {self.replicas}: expected counts of at least 1")
        return self


def run(recipe: BenchmarkRecipe, *, dry_run: bool = False) -> Figures:
    """Measure, write ``recipe.out``, and return the record.

    Args:
        recipe: What is measured, and where the record goes.
        dry_run: Print what would be measured; the record is empty.
    """
    # Mistakes of the recipe are found before servers start.
    check_out(recipe.out)
    for key, folder in (("fdm", recipe.fdm), ("idm", recipe.idm), ("base", recipe.base)):
        if folder and not Path(folder).is_dir():
            raise InputError(f"{key} = {folder!r}: no such model folder{hub_hint(folder)}")
    if dry_run:
        print(f"benchmark serve: would measure servers of {recipe.replicas} replicas")
        return {}
    with torch_threads(max(1, int(recipe.cpus_per_replica))), tempfile.TemporaryDirectory() as folder:
        ratios, figures, seconds = _measure(recipe, Path(folder))
    spreads = {name: spread(values) for name, values in seconds.items()}
    record = write_record(recipe.out, "serve", PACKAGES, ratios=ratios, figures=figures, spread=spreads)
    print_ratios(ratios, spreads)
    return record


def _measure(recipe: BenchmarkRecipe, folder: Path) -> tuple[dict[str, float], Figures, Seconds]:
    models = {"fdm": recipe.fdm, "idm": recipe.idm, "base": recipe.base}
    if not recipe.fdm:
        model = write_random_model(folder / "model", SMALL if recipe.quick else NanoPreset())
        models |= {"fdm": model, "idm": model}
    action = (recipe.action or TRAINED_ACTION) if recipe.fdm else ACTION
    library = Library(models["fdm"], models["idm"], recipe.base or None)
    source_png = _random_png(library.codec.side_px, seed=0)
    ratios: dict[str, float] = {}
    figures: Figures = {"tokens_per_image": library.tokens_per_image, "best_of": BEST_OF, "clients": CLIENTS}
    seconds: Seconds = {}
    # 1. A server for each number of replicas; single requests and equal answers with the first.
    for count in recipe.replicas:
        options = f"{{num_replicas = {count}, ray_actor_options = {{num_cpus = {recipe.cpus_per_replica}}}}}"
        # Its models are loaded when the block begins.
        servers = {"fdm_server": options, "base_sharing": recipe.base_sharing, "direct_port": find_free_port()}
        if recipe.base_sharing == "separate":
            servers["idm_server"] = options
        with serve(models | servers | {"num_candidates": BEST_OF}) as url:
            request = EditRequest(url, source_png, action)
            direct = replace(request, url=f"http://127.0.0.1:{servers['direct_port']}")
            if count == recipe.replicas[0]:
                seconds |= _measure_single(request, direct, library, 2 if recipe.quick else recipe.rounds)
                figures["identical_share"] = _identical_share(request, library, 4 if recipe.quick else 20)
                ratios |= _single_ratios(seconds)
            load = _measure_load(request, direct, recipe)
            if recipe.quick and not recipe.fdm and count == recipe.replicas[0]:
                # Its images have enough tokens to see a preview before the end: that needs no other server.
                seconds |= _with_prefix("wide", _measure_previews(request, library, rounds=1))
        if count == recipe.replicas[0]:
            ratios["batching_gain"] = load["batching_gain"]["median"]
            ratios["direct_batching_gain"] = load["direct_batching_gain"]["median"]
        figures[f"replicas_{count}"] = load
    # 2. Images of more tokens, with random weights.
    if recipe.long_images and not recipe.fdm and not recipe.quick:
        # The nano world's nine tokens are too few to see a preview before the end.
        for name, preset in {"wide": WIDE, "faithful": FAITHFUL}.items():
            seconds |= _with_prefix(name, _measure_preset(preset, folder / name, rounds=5))
    for name in ("wide", "faithful"):
        if f"{name}_streamed" in seconds:
            first, streamed = (float(np.median(seconds[f"{name}_{kind}"])) for kind in ("first_preview", "streamed"))
            ratios[f"{name}_first_preview_share"] = first / streamed
            ratios[f"{name}_http_overhead"] = min(seconds[f"{name}_http"]) / min(seconds[f"{name}_library"])
    return ratios, figures, seconds


def _with_prefix(name: str, seconds: Seconds) -> Seconds:
    return {f"{name}_{kind}": values for kind, values in seconds.items()}


def _random_png(side_px: int, seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8))


def _take_turns(work: Sequence[Work], rounds: int, warm_ups: int) -> Seconds:
    """Collect the seconds that each kind of work returns for a seed, in rounds in which all kinds take turns."""
    seconds: Seconds = {}
    # Negative rounds warm up and are not recorded.
    for number in range(-warm_ups, rounds):
        for function in work:
            for name, value in function(abs(number)).items():
                if number >= 0:
                    seconds.setdefault(name, []).append(value)
    return seconds


def _post(client: httpx2.Client, request: EditRequest, name: str, best_of: int, seed: int) -> dict[str, float]:
    return {name: request.post(client, seed, best_of)[1]}


def _stream(client: httpx2.Client, request: EditRequest, seed: int) -> dict[str, float]:
    first_s, total_s = request.stream(client, seed, BEST_OF)
    return {"first_preview": first_s, "streamed": total_s}


def _answer(library: Library, request: EditRequest, name: str, best_of: int, seed: int) -> dict[str, float]:
    return {name: wall_seconds(partial(library.answer, request.source_png, request.action, seed, best_of))[0]}


def _measure_single(request: EditRequest, direct: EditRequest, library: Library, rounds: int) -> Seconds:
    with httpx2.Client(timeout=120) as client:

        def check_health(name: str, url: str, _: int) -> dict[str, float]:
            return {name: wall_seconds(lambda: client.get(f"{url}/health").raise_for_status())[0]}

        # The library beside HTTP, so that the ratio is of neighbours in time.
        work: list[Work] = [
            partial(_answer, library, request, "library_best_of_8", BEST_OF),
            partial(_post, client, request, "http_best_of_8", BEST_OF),
            partial(_post, client, direct, "direct_best_of_8", BEST_OF),
            partial(_answer, library, request, "library_best_of_1", 1),
            partial(_post, client, request, "http_best_of_1", 1),
            partial(check_health, "http_health", request.url),
            partial(check_health, "direct_health", direct.url),
            partial(_stream, client, request),
        ]
        return _take_turns(work, rounds, warm_ups=2)


def _single_ratios(seconds: Seconds) -> dict[str, float]:
    best = {name: min(values) for name, values in seconds.items()}
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "http_overhead": best["http_best_of_8"] / best["library_best_of_8"],
        "http_overhead_median": median["http_best_of_8"] / median["library_best_of_8"],
        # On the port without Ray's proxy.
        "direct_overhead": best["direct_best_of_8"] / best["library_best_of_8"],
        "direct_overhead_median": median["direct_best_of_8"] / median["library_best_of_8"],
        # Proxy, ingress and a call to each model's process, without any work of a model.
        "health_over_library": best["http_health"] / best["library_best_of_8"],
        "best_of_8_over_1": best["http_best_of_8"] / best["http_best_of_1"],
        "first_preview_share": median["first_preview"] / median["streamed"],
    }


def _identical_share(request: EditRequest, library: Library, seeds: int) -> float:
    """Compute the share of answers that equal the library's: every pixel, and the log-likelihood to the last bit."""
    identical = 0
    with httpx2.Client(timeout=120) as client:
        for seed in range(seeds):
            (entry,) = request.post(client, seed, BEST_OF)[0]["data"]
            png, prediction = library.answer(request.source_png, request.action, seed, BEST_OF)
            pixels = decode_image(base64.b64decode(entry["b64_json"]), "reply")
            logprob = entry["verification"]["logprob"]
            is_same_image = np.array_equal(pixels, decode_image(png, "own"))
            # Batching on the server must change nothing.
            identical += is_same_image and logprob == prediction.best.score.logprob
    return identical / seeds


def _measure_load(request: EditRequest, direct: EditRequest, recipe: BenchmarkRecipe) -> Load:
    """Measure closed loops of 1 and of many clients in turns, on both ports, then arrivals at rising rates."""
    rounds, num_requests = (1, 4) if recipe.quick else (min(MAX_LOAD_ROUNDS, max(1, recipe.rounds // 3)), 40)
    closed_loop(request, CLIENTS, 2 * CLIENTS)  # warm every replica up
    statuses: Counter[str] = Counter()
    kinds = [(request, "", 1), (request, "", CLIENTS), (direct, "direct_", 1), (direct, "direct_", CLIENTS)]
    answered: Seconds = {}
    for _ in range(rounds):
        for target, prefix, clients in kinds:
            # More for more clients, who begin and end with idle replicas.
            tally, wall_s = closed_loop(target, clients, num_requests if clients == 1 else 4 * num_requests)
            answered.setdefault(f"{prefix}{clients}", []).append(len(tally.latencies_s) / wall_s)
            statuses += tally.statuses
    closed = {name: spread(values) for name, values in answered.items()}
    gains = {
        # Of neighbours in time, which meet the machine in the same mood.
        prefix: spread(
            [many / one for one, many in zip(answered[f"{prefix}1"], answered[f"{prefix}{CLIENTS}"], strict=True)]
        )
        for prefix in ("", "direct_")
    }
    arrivals: list[Figures] = []
    for number, share in enumerate(RATES[:1] if recipe.quick else RATES):
        # Relative to what this machine can answer: rates of another would say nothing.
        rate = share * closed[str(CLIENTS)]["median"]
        tally, wall_s = open_loop(request, rate, 1.0 if recipe.quick else recipe.seconds, number)
        arrivals.append({"rate_per_s": round(rate, 3)} | tally.figures(wall_s))
    return {
        "closed_loop": closed,
        "batching_gain": gains[""],
        "direct_batching_gain": gains["direct_"],
        "closed_loop_statuses": dict(statuses),
        "open_loop": arrivals,
    }


def _measure_preset(preset: NanoPreset, folder: Path, *, rounds: int) -> Seconds:
    """Measure the first preview, and what HTTP adds, where an image has more tokens than the nano world's nine."""
    # Cost depends on the sizes alone: weights may be random.
    model = write_random_model(folder, preset)
    library = Library(model, model, None)
    with serve({"fdm": model, "idm": model}) as url:
        request = EditRequest(url, _random_png(preset.side_px, seed=1), ACTION)
        return _measure_previews(request, library, rounds=rounds)


def _measure_previews(request: EditRequest, library: Library, *, rounds: int) -> Seconds:
    with httpx2.Client(timeout=120) as client:
        work = [
            partial(_stream, client, request),
            partial(_post, client, request, "http", BEST_OF),
            partial(_answer, library, request, "library", BEST_OF),
        ]
        return _take_turns(work, rounds, warm_ups=1)
