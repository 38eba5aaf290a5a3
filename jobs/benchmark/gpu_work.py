"""What the GPU benchmark times: sampling, scoring, transformers' generate, speculation; and the device's ceilings."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.benchmark.sampling_models import Shape, ShapeModel, generate
from jobs.benchmark.sampling_speculation import made_draft
from jobs.benchmark.sampling_work import score_unshared
from wm.dynamics.scoring import completion_logprobs
from wm.models import UnifiedVLM
from wm.sampling import Decoder, Sampling, sample_images, speculate_images
from wm.sampling.batches import positions_at_once, rows_at_once
from wm.sampling.kernels.triton_attention import can_attend
from wm.sampling.model_runner import Stepping
from wm.sampling.weights_view import DecoderView

ROWS = 8
"""N of the ratios."""
ACTION_TOKENS = 8
SOURCES = 4
"""Of the inverse model's batch; ROWS candidates each."""
BLOCK = 8
"""Drafted codes a pass."""
SHORT = 8
"""Tokens of a run that only warms up."""


class Measures(Protocol):
    """What the parts need of :class:`jobs.benchmark.gpu.Record`."""

    ratios: dict[str, float]
    figures: dict[str, Any]
    device: torch.device

    def measure(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Do it and keep what it returns, unless the time is up or it fails."""
        ...


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Wall seconds of each run, the device waited for at either end."""
    found = []
    for _ in range(repeats):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        found.append(time.perf_counter() - begin)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Bytes a second of a large copy, read and written, and FLOPs a second of a large bfloat16 product, both on random
    numbers."""
    size, side = (1 << 16, 64) if quick else (1 << 30, 8192)
    source = torch.randn(size, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    works = {"copy": lambda: target.copy_(source), "product": lambda: left @ right}
    times: dict[str, float] = {}
    for name, work in works.items():
        seconds_of(work, device, 3)
        times[name] = statistics.median(seconds_of(work, device, 10))
    return {
        "copy_bytes_per_s": 2 * source.numel() * source.element_size() / times["copy"],
        "product_flops": 2 * side**3 / times["product"],
    }


def check_figures(device: str, stepping: Sequence[Stepping]) -> dict[str, Any]:
    """Share of images that are those of plain decoding, in float32; and the way that was taken in the end."""
    shape = Shape(64, 2, 4, 96, 32, prefix=150, target=300, mlp_width=96)
    model: Any = ShapeModel(shape, device=device)
    prefixes = [shape.ids(150), shape.ids(131, 1)]
    settings: dict[str, Any] = {"num_samples": 4, "sampling": Sampling(temperature=0.8, top_k=20, top_p=0.95)}
    plain = sample_images(model, prefixes, decoder=Decoder(model, stepping="plain"), **settings)
    found: dict[str, Any] = {}
    for way in stepping:
        decoder = Decoder(model, stepping=way)
        codes = [sample_images(model, prefixes, decoder=decoder, **settings) for _ in range(2)]
        same = [float((one == plain).all(-1).double().mean()) for one in codes]
        found[way] = {"identical": min(same), "decoded": decoder.stepping}
    return found


def sampling_figures(
    record: Measures,
    model: ShapeModel,
    rows: Sequence[int],
    stepping: Sequence[Stepping],
    *,
    repeats: int,
    kernels: bool,
) -> None:
    """Seconds an image, or rather of N images together."""
    record.measure("prefill", lambda: _prefill(record, model, repeats))
    for count in rows:
        for way in stepping:

            def decode(count: int = count, way: Stepping = way) -> dict[str, Any]:
                decoder = Decoder(cast(UnifiedVLM, model), stepping=way, kernels=kernels)
                return _sample(record, model, decoder, count=count, repeats=repeats)

            record.measure(f"sampling_n{count}_{way}", decode)
    ways = {count: [f"sampling_n{count}_{way}" for way in stepping] for count in rows}
    best = {count: _least(record, names) for count, names in ways.items()}
    for count in rows:
        if count != 1 and best.get(1) and best[count]:
            record.ratios[f"n{count}_over_n1"] = best[count] / best[1]
        for way in stepping:
            seconds = record.figures.get(f"sampling_n{count}_{way}")
            if way != "plain" and seconds and f"sampling_n{count}_plain" in record.figures:
                plain = record.figures[f"sampling_n{count}_plain"]["s"]
                record.ratios[f"plain_over_{way}_n{count}"] = plain / seconds["s"]
            if seconds and "bandwidth_share" in seconds:
                record.ratios[f"bandwidth_share_n{count}_{way}"] = seconds["bandwidth_share"]


def _least(record: Measures, names: Sequence[str]) -> float:
    """Return the min of the measured seconds; 0 if there are none."""
    return min((record.figures[name]["s"] for name in names if name in record.figures), default=0.0)


def _prefill(record: Measures, model: Any, repeats: int) -> dict[str, Any]:
    decoder, prefix = Decoder(model, stepping="plain"), model.shape.ids(model.shape.prefix)
    seconds_of(lambda: decoder.prefill([prefix]), record.device, 1)
    found = {"s": statistics.median(seconds_of(lambda: decoder.prefill([prefix]), record.device, repeats))}
    return found | {"fused_attention": _is_fused(lambda: decoder.prefill([prefix]))}


def _is_fused(work: Callable[[], object]) -> bool:
    """Return whether it runs where torch may use nothing but its flash attention."""
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            work()
    except RuntimeError:
        return False
    return True


def _sample(record: Measures, model: Any, decoder: Decoder, *, count: int, repeats: int) -> dict[str, Any]:
    shape = model.shape
    prefix = shape.ids(shape.prefix)
    positions = positions_at_once(model)

    def work() -> Tensor:
        return sample_images(model, [prefix], num_samples=count, decoder=decoder)

    if decoder.stepping == "plain":  # nothing to record: a few tokens warm up
        model.tokens_per_image = min(SHORT, shape.target)
        try:
            first = seconds_of(work, record.device, 1)
        finally:
            model.tokens_per_image = shape.target
    else:
        first = seconds_of(work, record.device, 1)
    times = seconds_of(work, record.device, repeats)
    median = statistics.median(times)
    moved = bytes_moved(decoder.view, len(model.image_rows), shape, count)
    found = {
        "s": median,
        "all_s": times,
        "first_s": first[0],
        "decoded": decoder.stepping,
        "kernels": can_attend(decoder),
        "s_per_token": median / shape.target,
        "rows_at_once": rows_at_once(shape.prefix + shape.target, None, positions),
        "gigabytes_moved": moved / 1e9,
        "weights_gb": weight_bytes(decoder.view, len(model.image_rows)) / 1e9,
        "caches_gb": 0.0 if decoder.held is None else decoder.held.num_bytes / 1e9,
    }
    if "ceilings" in record.figures and "prefill" in record.figures:
        steps_s = median - record.figures["prefill"]["s"]
        found["bandwidth_share"] = moved / record.figures["ceilings"]["copy_bytes_per_s"] / steps_s
    return found


def weight_bytes(view: DecoderView, num_codes: int) -> int:
    """Count the bytes that every step reads: all layers, the last norm and the image codes' rows of the head."""
    layer = view.layers[0]
    matrices = (layer.query, layer.key, layer.value, layer.out, layer.gate, layer.up, layer.down)
    head_norms = [part for pair in (layer.query_norm, layer.key_norm) if pair is not None for part in pair]
    in_layer = sum(matrix.weight.numel() for matrix in matrices) + sum(norm.numel() for norm in head_norms)
    in_layer += layer.norm_attention.numel() + layer.norm_mlp.numel()
    return (len(view.layers) * in_layer + (num_codes + 1) * len(view.norm)) * view.embedding.element_size()


def bytes_moved(view: DecoderView, num_codes: int, shape: Shape, rows: int) -> int:
    """At least, in all steps of an image: weights and the prefix once a step, each row's filled places, those that
    are written, and each row's embedding."""
    steps = shape.target - 1
    pair = 2 * len(view.layers) * view.num_groups * view.head_width
    read = steps * shape.prefix + rows * sum(range(1, steps + 1))
    numbers = pair * (read + rows * steps) + rows * steps * len(view.norm)
    return steps * weight_bytes(view, num_codes) + numbers * view.embedding.element_size()


def scoring_figures(record: Measures, model: Any, repeats: int) -> None:
    """Pairs a second that the inverse model scores: ROWS candidates of each of SOURCES sources."""
    decoder = Decoder(model, stepping="plain")
    scored = [segments for number in range(SOURCES) for segments in model.scored(ROWS, ACTION_TOKENS, number)]
    one = scored[:ROWS]
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "idm_shared": (len(scored), lambda: completion_logprobs(model, scored, decoder=decoder)),
        "idm_shared_one_source": (ROWS, lambda: completion_logprobs(model, one, decoder=decoder)),
        "idm_unshared_one_source": (ROWS, lambda: score_unshared(model, decoder, one)),
    }
    for name, (pairs, work) in works.items():

        def timed(pairs: int = pairs, work: Callable[[], object] = work) -> dict[str, Any]:
            work()
            times = seconds_of(work, record.device, repeats)
            return {"s": statistics.median(times), "all_s": times, "pairs_per_s": pairs / statistics.median(times)}

        record.measure(name, timed)
    if {"idm_shared_one_source", "idm_unshared_one_source"} <= set(record.figures):
        unshared, shared = (record.figures[f"idm_{how}_one_source"]["s"] for how in ("unshared", "shared"))
        record.ratios["idm_unshared_over_shared"] = unshared / shared


def generate_figures(record: Measures, model: ShapeModel, caches: Sequence[str]) -> None:
    """Time transformers' generate at N = ROWS, once after a few tokens to warm up (a whole image where it compiles)."""
    prefix = model.shape.ids(model.shape.prefix)
    for cache in caches:

        def timed(cache: str = cache) -> dict[str, Any]:
            kind, compiled = ("static", True) if cache == "compiled" else (cache, False)
            warm = model.shape.target if compiled else min(SHORT, model.shape.target)
            generate(model, prefix, ROWS, kind, tokens=warm, compiled=compiled)
            work = lambda: generate(model, prefix, ROWS, kind, compiled=compiled)  # noqa: E731
            return {"s": seconds_of(work, record.device, 1)[0]}

        record.measure(f"hf_n{ROWS}_{cache}", timed)
    theirs = _least(record, [f"hf_n{ROWS}_{cache}" for cache in caches])
    ours = _least(record, [name for name in record.figures if name.startswith(f"sampling_n{ROWS}_")])
    if theirs and ours:
        record.ratios["hf_over_ours_n8"] = theirs / ours


def speculation_figures(record: Measures, model: Any, repeats: int) -> None:
    """Speculative decoding with drafts of which a known share is right, against the way of decoding that GPUs take."""
    prefix, block = model.shape.ids(model.shape.prefix), min(BLOCK, model.shape.target - 1)
    for count in (1, ROWS):

        def timed(count: int = count) -> dict[str, Any]:
            decoder = Decoder(model)
            settings: dict[str, Any] = {"num_samples": count, "decoder": decoder}
            codes = sample_images(model, [prefix], **settings)
            drafts = made_draft(codes, model.shape.codes)

            def speculate() -> Any:
                return speculate_images(model, [prefix], drafts, num_draft_tokens=block, **settings)

            one = speculate()
            return {
                "s": statistics.median(seconds_of(speculate, record.device, repeats)),
                "sequential_s": statistics.median(
                    seconds_of(lambda: sample_images(model, [prefix], **settings), record.device, repeats)
                ),
                "passes": one.batch_passes,
                "acceptance": float(one.confirmed.sum() / one.examined.sum()),
                "identical_codes": float((one.codes == codes).double().mean()),
            }

        found = record.measure(f"speculation_n{count}", timed)
        if found is not None:
            record.ratios[f"sequential_over_speculative_n{count}"] = found["sequential_s"] / found["s"]
