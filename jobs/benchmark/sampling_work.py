"""The pieces of work that the sampling benchmark times and counts."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmark.sampling_models import ShapeModel
from wm.dynamics.scoring import completion_logprobs, token_logprobs
from wm.models.protocol import Segment
from wm.sampling import Decoder, sample_images
from wm.sampling.noise import Sampling, choose

SHORT_S = 0.05
SLOWER = 1.25


def turns(
    work: Mapping[str, Callable[[], object]], rounds: int, either: Sequence[str] = (), repeats: int = 1
) -> dict[str, list[float]]:
    """CPU seconds of each kind of work in each round, in which all take turns, after one to warm up.

    What is shorter than 50 ms is done ``repeats`` times a turn, of which the least is taken. ``either``: kinds of
    which only the quickest will count; one that took over 1.25 times another's time in warming up is timed in that
    round alone.
    """
    first = {name: _cpu_s(function) for name, function in work.items()}
    quickest = min((first[name] for name in either), default=0.0)
    slow = {name for name in either if first[name] > SLOWER * quickest}
    seconds: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            if name not in slow:
                times = repeats if first[name] < SHORT_S else 1
                seconds[name].append(min(_cpu_s(function) for _ in range(times)))
    return seconds


def _cpu_s(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def one_step(model: ShapeModel, decoder: Decoder, rows: int, place: int) -> Callable[[], Tensor]:
    """One token of ``rows`` candidates, ``place`` of theirs in the cache: from its id to the drawn code."""
    prefix, _ = decoder.prefill([model.shape.ids(model.shape.prefix)])
    cache = decoder.reserve(rows, model.shape.target)
    decoder.extend(torch.tensor([model.shape.ids(place)] * rows), prefix, cache, 0, place)
    ids_R1 = torch.full((rows, 1), 5)
    noise_R = torch.full((rows,), 0.5, dtype=torch.float64)
    sampling = Sampling()

    def step() -> Tensor:
        hidden_RSH = decoder.extend(ids_R1, prefix, cache, place, place + 1)
        return choose(decoder.image_logits(hidden_RSH[:, 0]), noise_R, sampling)

    return step


def bare_products(
    decoder: Decoder, rows: int, prefix_length: int, filled: int, *, attention: bool = True
) -> Callable[[], None]:
    """The matrix products of one step, in their order and in the engine's layouts, on random rows and caches.

    ``attention``: also the four of each layer's attention; without, those with weights alone.
    """
    view = decoder.view
    groups, width = view.num_groups, view.head_width
    given = {name: torch.randn(rows, len(view.norm)) for name in ("project", "gate", "up", "head")}
    given["out"] = torch.randn(rows, view.num_heads * width)
    given["down"] = torch.randn(rows, len(view.layers[0].up.weight))
    shared = [torch.randn(2, groups, prefix_length, width) for _ in view.layers]
    own = [torch.randn(2, rows * groups, filled, width) for _ in view.layers]
    query, mixing = torch.randn(groups, rows, width), torch.rand(groups, rows, prefix_length)
    own_query, own_mixing = torch.randn(rows * groups, 1, width), torch.rand(rows * groups, 1, filled)

    def multiply() -> None:
        layer = 0
        for name, matrix in decoder.matrices():
            matrix(given[name])
            if attention and name == "project":
                torch.bmm(query, shared[layer][0].transpose(1, 2))
                torch.bmm(own_query, own[layer][0].transpose(1, 2))
                torch.bmm(mixing, shared[layer][1])
                torch.bmm(own_mixing, own[layer][1])
                layer += 1

    return multiply


def torch_products(decoder: Decoder, rows: int) -> Callable[[], None]:
    """The products with weights in the layout in which torch keeps them."""
    matrices = [
        matrix.weight
        for layer in decoder.view.layers
        for matrix in (layer.query, layer.key, layer.value, layer.out, layer.gate, layer.up, layer.down)
    ]
    matrices.append(decoder.view.head.weight[: len(decoder.image_rows)])
    products = [(weight, torch.randn(rows, weight.shape[1])) for weight in matrices]

    def multiply() -> None:
        for weight, given in products:
            torch.nn.functional.linear(given, weight)

    return multiply


def score_unshared(model: Any, decoder: Decoder, scored: Sequence[Sequence[Segment]]) -> Tensor:
    """Log-probabilities of the same actions, every sequence read whole; all are of one length."""
    ids_RT = torch.tensor(
        [[token for part in segments for token in part.ids] for segments in scored], device=decoder.device
    )
    count = len(scored[0][-1].ids)
    hidden_QH = decoder.hidden(ids_RT)[:, -count - 1 : -1].flatten(0, 1)
    return token_logprobs(model, decoder, hidden_QH, ids_RT[:, -count:].flatten()).view(len(scored), count).sum(1)


def count_sampling(model: Any, rows: int) -> dict[str, int]:
    """FLOPs and cache bytes of N candidates of a prefix, and of N prefixes with a candidate each."""
    decoder, prefix = Decoder(model), model.shape.ids(model.shape.prefix)
    found: dict[str, int] = {}
    for name, prefixes, each in (("shared", 1, rows), ("naive", rows, 1)):
        found[f"flops_{name}"] = _flops(
            partial(sample_images, model, [prefix] * prefixes, num_samples=each, decoder=decoder)
        )
        held, _ = decoder.prefill([prefix] * prefixes)
        cache = decoder.reserve(prefixes * each, model.shape.target)
        found[f"bytes_{name}"] = (held.num_bytes() + cache.num_bytes()) // 2  # of float64
    return found


def count_scoring(model: Any, rows: int, action_tokens: int) -> dict[str, int]:
    """FLOPs of N inverse prompts with one source."""
    decoder, scored = Decoder(model), model.scored(rows, action_tokens)
    return {
        "flops_shared": _flops(lambda: completion_logprobs(model, scored, decoder=decoder)),
        "flops_naive": _flops(lambda: score_unshared(model, decoder, scored)),
    }


def _flops(work: Callable[[], object]) -> int:
    """Of all matrix products, attention's too: its fused kernels for CPUs are not counted, so it is taken apart."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())
