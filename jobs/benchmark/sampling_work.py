"""Build the work that the sampling benchmark times and counts."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmark.sampling_models import ShapeModel
from wm.dynamics.scoring import completion_logprobs, token_logprobs
from wm.models import flatten
from wm.models.prompts import Segment
from wm.models.vlm import UnifiedVLM
from wm.sampling import ModelRunner, sample_images
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.noise import Sampling, sample_tokens


def build_step(model: ShapeModel, runner: ModelRunner, rows: int, position: int) -> Callable[[], Tensor]:
    """Build a step: one token of each candidate, from its id to the sampled code.

    Args:
        model: The model.
        runner: Its runner.
        rows: Number of candidates.
        position: Position in the image; the cache is filled up to it.

    Returns:
        The step, which may be done again and again.
    """
    prefix, _ = runner.prefill([model.shape.ids(model.shape.prefix)])
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

    Args:
        runner: Whose weights are multiplied.
        rows: Number of candidates.
        prefix_length: Positions of the prefix, which all candidates share.
        filled: Positions of each candidate's own.
        attention: Also the four products of each layer's attention; without, those with weights alone.

    Returns:
        The products, without a result.
    """
    # Random numbers in the sizes of a step; what they are does not change the time.
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
    """Build the products with weights in torch's own layout.

    Args:
        runner: Its weights are multiplied.
        rows: Rows of the other factor.

    Returns:
        A function that computes every product of one decoding step.
    """
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


def score_unshared(model: UnifiedVLM, runner: LlamaRunner, prompts: Sequence[Sequence[Segment]]) -> Tensor:
    """Score actions with every prompt read from its start.

    Args:
        model: The model.
        runner: Its runner.
        prompts: Segments of each prompt, all of one length; the last one is its action.

    Returns:
        Sum of each action's log-probabilities in nats, (R,).
    """
    ids_RT = torch.tensor([flatten(segments) for segments in prompts], device=runner.device)
    count = len(prompts[0][-1].ids)
    hidden_QH = runner.forward(ids_RT)[:, -count - 1 : -1].flatten(0, 1)
    return token_logprobs(model, runner, hidden_QH, ids_RT[:, -count:].flatten()).view(len(prompts), count).sum(1)


def count_sampling(model: ShapeModel, rows: int) -> dict[str, int]:
    """Count FLOPs and cache bytes of N candidates of a prefix, and of N prefixes with a candidate each.

    Args:
        model: In float64, where every product is counted.
        rows: Candidates N.

    Returns:
        ``flops_*`` and ``bytes_*``, of ``shared`` and of ``naive``.
    """
    runner, prefix = LlamaRunner(model), model.shape.ids(model.shape.prefix)
    counts: dict[str, int] = {}
    for name, prefixes, each in (("shared", 1, rows), ("naive", rows, 1)):
        counts[f"flops_{name}"] = _count_flops(
            partial(sample_images, model, [prefix] * prefixes, num_candidates=each, runner=runner)
        )
        # Caches as they are when the last code is sampled.
        prefix_cache, _ = runner.prefill([prefix] * prefixes)
        cache = runner.reserve(prefixes * each, model.shape.target)
        counts[f"bytes_{name}"] = (prefix_cache.num_bytes() + cache.num_bytes()) // 2  # of float64
    return counts


def count_scoring(model: ShapeModel, rows: int, action_tokens: int) -> dict[str, int]:
    """Count the FLOPs of N inverse prompts with one source.

    Args:
        model: In float64, where every product is counted.
        rows: Prompts N.
        action_tokens: Length of each action.

    Returns:
        ``flops_shared`` and ``flops_naive``.
    """
    runner, prompts = LlamaRunner(model), model.inverse_prompts(rows, action_tokens)
    return {
        "flops_shared": _count_flops(lambda: completion_logprobs(model, prompts, runner=runner)),
        "flops_naive": _count_flops(lambda: score_unshared(model, runner, prompts)),
    }


def _count_flops(work: Callable[[], object]) -> int:
    """Count the FLOPs of all matrix products, attention's too: its fused kernels are not counted, so it is unfused."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())
