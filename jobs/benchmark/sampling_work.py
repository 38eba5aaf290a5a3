"""Build the work that the sampling benchmark times and counts."""

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
from wm.sampling import sample_images
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.noise import Sampling, sample_tokens

SHORT_S = 0.05
SLOWER = 1.25


def turns(
    work: Mapping[str, Callable[[], object]], rounds: int, either: Sequence[str] = (), repeats: int = 1
) -> dict[str, list[float]]:
    """Measure CPU seconds of each kind of work in each round, in which all take turns, after one to warm up.

    What is shorter than 50 ms is done ``repeats`` times a turn, and the shortest counts. ``either``: kinds of
    which only the quickest will count; one that took over 1.25 times another's time in warming up is timed in that
    round alone.
    """
    # The first round warms up: it packs weights and fills caches, and does not count.
    first = {name: _measure_cpu_s(function) for name, function in work.items()}
    quickest = min((first[name] for name in either), default=0.0)
    slow = {name for name in either if first[name] > SLOWER * quickest}
    seconds: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in work}
    for _ in range(rounds):
        for name, function in work.items():
            if name not in slow:
                times = repeats if first[name] < SHORT_S else 1
                seconds[name].append(min(_measure_cpu_s(function) for _ in range(times)))
    return seconds


def _measure_cpu_s(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def build_step(model: ShapeModel, runner: LlamaRunner, rows: int, position: int) -> Callable[[], Tensor]:
    """Build a step: one token of ``rows`` candidates at ``position``, from its id to the sampled code."""
    prefix, _ = runner.prefill([model.shape.ids(model.shape.prefix)])
    # The cache is filled up to the position, as half-way through an image.
    cache = runner.reserve(rows, model.shape.target)
    runner.extend(torch.tensor([model.shape.ids(position)] * rows), prefix, cache, 0, position)
    ids_R1 = torch.full((rows, 1), 5)
    noise_R = torch.full((rows,), 0.5, dtype=torch.float64)
    sampling = Sampling()

    def step() -> Tensor:
        hidden_RSH = runner.extend(ids_R1, prefix, cache, position, position + 1)
        return sample_tokens(runner.image_logits(hidden_RSH[:, 0]), noise_R, sampling)

    return step


def bare_products(
    runner: LlamaRunner, rows: int, prefix_length: int, filled: int, *, attention: bool = True
) -> Callable[[], None]:
    """Build the matrix products of one step, in their order and in the engine's layouts, on random rows and caches.

    ``attention``: also the four of each layer's attention; without, those with weights alone.
    """
    view = runner.view
    groups, width = view.num_groups, view.head_width
    inputs = {name: torch.randn(rows, len(view.norm)) for name in ("project", "gate", "up", "head")}
    inputs["out"] = torch.randn(rows, view.num_heads * width)
    inputs["down"] = torch.randn(rows, len(view.layers[0].up.weight))
    shared = [torch.randn(2, groups, prefix_length, width) for _ in view.layers]
    own = [torch.randn(2, rows * groups, filled, width) for _ in view.layers]
    query, mixing = torch.randn(groups, rows, width), torch.rand(groups, rows, prefix_length)
    own_query, own_mixing = torch.randn(rows * groups, 1, width), torch.rand(rows * groups, 1, filled)

    def multiply() -> None:
        layer = 0
        for name, matrix in runner.matrices():
            matrix(inputs[name])
            if attention and name == "project":
                torch.bmm(query, shared[layer][0].transpose(1, 2))
                torch.bmm(own_query, own[layer][0].transpose(1, 2))
                torch.bmm(mixing, shared[layer][1])
                torch.bmm(own_mixing, own[layer][1])
                layer += 1

    return multiply


def torch_products(runner: LlamaRunner, rows: int) -> Callable[[], None]:
    """Build the products with weights in torch's own layout."""
    matrices = [
        matrix.weight
        for layer in runner.view.layers
        for matrix in (layer.query, layer.key, layer.value, layer.out, layer.gate, layer.up, layer.down)
    ]
    matrices.append(runner.view.head.weight[: len(runner.image_rows)])
    products = [(weight, torch.randn(rows, weight.shape[1])) for weight in matrices]

    def multiply() -> None:
        for weight, x_RI in products:
            torch.nn.functional.linear(x_RI, weight)

    return multiply


def score_unshared(model: Any, runner: LlamaRunner, scored: Sequence[Sequence[Segment]]) -> Tensor:
    """Score the same actions, every sequence read from its start; all are of one length."""
    ids_RT = torch.tensor(
        [[token for part in segments for token in part.ids] for segments in scored], device=runner.device
    )
    count = len(scored[0][-1].ids)
    hidden_QH = runner.forward(ids_RT)[:, -count - 1 : -1].flatten(0, 1)
    return token_logprobs(model, runner, hidden_QH, ids_RT[:, -count:].flatten()).view(len(scored), count).sum(1)


def count_sampling(model: Any, rows: int) -> dict[str, int]:
    """Count FLOPs and cache bytes of N candidates of a prefix, and of N prefixes with a candidate each."""
    runner, prefix = LlamaRunner(model), model.shape.ids(model.shape.prefix)
    counts: dict[str, int] = {}
    for name, prefixes, each in (("shared", 1, rows), ("naive", rows, 1)):
        counts[f"flops_{name}"] = _count_flops(
            partial(sample_images, model, [prefix] * prefixes, num_samples=each, runner=runner)
        )
        prefix_cache, _ = runner.prefill([prefix] * prefixes)
        cache = runner.reserve(prefixes * each, model.shape.target)
        counts[f"bytes_{name}"] = (prefix_cache.num_bytes() + cache.num_bytes()) // 2  # of float64
    return counts


def count_scoring(model: Any, rows: int, action_tokens: int) -> dict[str, int]:
    """Count the FLOPs of N inverse prompts with one source."""
    runner, scored = LlamaRunner(model), model.scored(rows, action_tokens)
    return {
        "flops_shared": _count_flops(lambda: completion_logprobs(model, scored, runner=runner)),
        "flops_naive": _count_flops(lambda: score_unshared(model, runner, scored)),
    }


def _count_flops(work: Callable[[], object]) -> int:
    """Count the FLOPs of all matrix products, attention's too: its fused kernels are not counted, so it is unfused."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())
