"""Measure on a GPU: sampling, scoring, transformers' generate, speculation."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.benchmark.gpu_record import Record, bytes_moved, time_runs, weight_bytes
from jobs.benchmark.harness import Figures
from jobs.benchmark.sampling_models import Shape, ShapeModel, generate
from jobs.benchmark.sampling_speculation import random_draft
from jobs.benchmark.sampling_work import score_unshared
from wm.dynamics.scoring import completion_logprobs
from wm.sampling import Sampling, sample_images, speculate_images
from wm.sampling.batches import positions_at_once, rows_at_once
from wm.sampling.kernels.triton_attention import can_attend
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.model_runner import Stepping

ROWS = 8
"""Candidates of a source, N, in the ratios."""
ACTION_TOKENS = 8
SOURCES = 4
"""Sources of the inverse model's batch; each has ROWS candidates."""
BLOCK = 8
"""Draft tokens a pass."""
SHORT = 8
"""Tokens of a run that only warms up."""


def check_decoding(device: str, stepping: Sequence[Stepping]) -> Figures:
    """Count the images of each way of decoding that are those of plain decoding, in float32.

    Args:
        device: Where torch works.
        stepping: Ways of decoding.

    Returns:
        By way: the share of identical images, and the way that was taken in the end.
    """
    shape = Shape(64, 2, 4, 96, 32, mlp_width=96, prefix=150, target=300)
    model = ShapeModel(shape, device=device)
    prefixes = [shape.ids(150), shape.ids(131, 1)]
    sampling = Sampling(temperature=0.8, top_k=20, top_p=0.95)
    sample = partial(sample_images, model, prefixes, num_candidates=4, sampling=sampling)
    plain = sample(runner=LlamaRunner(model, stepping="plain"))
    figures: Figures = {}
    for way in stepping:
        runner = LlamaRunner(model, stepping=way)
        # Twice: a graph is recorded in the first run and replayed in the second.
        shares = [float((sample(runner=runner) == plain).all(-1).double().mean()) for _ in range(2)]
        figures[way] = {"identical": min(shares), "decoded": runner.stepping}
    return figures


def measure_sampling(
    record: Record,
    model: ShapeModel,
    rows: Sequence[int],
    stepping: Sequence[Stepping],
    *,
    repeats: int,
    kernels: bool,
) -> None:
    """Measure seconds of N images together, for each N and way of decoding, and of reading the prefix.

    Args:
        record: Gets the measurements and their ratios.
        model: What is sampled from.
        rows: Candidates of a source, N.
        stepping: Ways of decoding.
        repeats: Runs of each.
        kernels: Triton's kernels where they can be used.
    """
    record.measure("prefill", lambda: _measure_prefill(record, model, repeats))
    for count in rows:
        for way in stepping:

            def decode(count: int = count, way: Stepping = way) -> Figures:
                runner = LlamaRunner(model, stepping=way, kernels=kernels)
                return _measure_runner(record, model, runner, count=count, repeats=repeats)

            record.measure(f"sampling_n{count}_{way}", decode)
    # The best way of decoding counts, which is another one on another device.
    best = {count: _min_seconds(record, [f"sampling_n{count}_{way}" for way in stepping]) for count in rows}
    for count in rows:
        if count != 1:
            record.ratio(f"n{count}_over_n1", best[count], best.get(1, 0.0))
        for way in stepping:
            name = f"sampling_n{count}_{way}"
            if way != "plain":
                plain = record.number(f"sampling_n{count}_plain")
                record.ratio(f"plain_over_{way}_n{count}", plain, record.number(name))
            record.ratio(f"bandwidth_share_n{count}_{way}", record.number(name, "bandwidth_share"), 1)


def _min_seconds(record: Record, names: Sequence[str]) -> float:
    """Return the min of the measured seconds; 0 if there are none."""
    return min((record.number(name) for name in names if name in record.measurements), default=0.0)


def _measure_prefill(record: Record, model: ShapeModel, repeats: int) -> Figures:
    runner, prefix = LlamaRunner(model, stepping="plain"), model.shape.ids(model.shape.prefix)

    def prefill() -> object:
        return runner.prefill([prefix])

    time_runs(prefill, record.device, 1)
    return {"s": time_runs(prefill, record.device, repeats)["s"], "fused_attention": _can_fuse(prefill)}


def _can_fuse(work: Callable[[], object]) -> bool:
    """Return whether it runs where torch may use nothing but its flash attention."""
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            work()
    except RuntimeError:
        return False
    return True


def _measure_runner(record: Record, model: ShapeModel, runner: LlamaRunner, *, count: int, repeats: int) -> Figures:
    shape = model.shape
    prefix = shape.ids(shape.prefix)
    positions = positions_at_once(model)

    def work() -> Tensor:
        return sample_images(model, [prefix], num_candidates=count, runner=runner)

    # Plain decoding has nothing to record: a few tokens warm up.
    if runner.stepping == "plain":
        model.tokens_per_image = min(SHORT, shape.target)
    try:
        # The first run compiles or records where there is something to.
        first = time_runs(work, record.device, 1)
    finally:
        model.tokens_per_image = shape.target
    times = time_runs(work, record.device, repeats)
    num_bytes = bytes_moved(runner.view, len(model.image_rows), shape, count)
    figures: Figures = {
        **times,
        "first_s": first["s"],
        "decoded": runner.stepping,
        "kernels": can_attend(runner),
        "self_tests": runner.describe_decoding()["self_tests"],
        "s_per_token": times["s"] / shape.target,
        "rows_at_once": rows_at_once(shape.prefix + shape.target, None, positions),
        "gigabytes_moved": num_bytes / 1e9,
        "weights_gb": weight_bytes(runner.view, len(model.image_rows)) / 1e9,
        "caches_gb": 0.0 if runner.static_steps is None else runner.static_steps.num_bytes / 1e9,
    }
    copied_per_s, prefill_s = record.number("ceilings", "copy_bytes_per_s"), record.number("prefill")
    if copied_per_s and prefill_s:
        figures["bandwidth_share"] = num_bytes / copied_per_s / (times["s"] - prefill_s)
    return figures


def measure_scoring(record: Record, model: ShapeModel, repeats: int) -> None:
    """Measure pairs a second that the inverse model scores: ROWS candidates of each of SOURCES sources.

    Args:
        record: Gets the measurements and their ratio.
        model: Scores as inverse model.
        repeats: Timed runs of each way.
    """
    runner = LlamaRunner(model, stepping="plain")
    prompts = [prompt for number in range(SOURCES) for prompt in model.inverse_prompts(ROWS, ACTION_TOKENS, number)]
    of_one_source = prompts[:ROWS]
    works: Mapping[str, tuple[int, Callable[[], object]]] = {
        "idm_shared": (len(prompts), lambda: completion_logprobs(model, prompts, runner=runner)),
        "idm_shared_one_source": (ROWS, lambda: completion_logprobs(model, of_one_source, runner=runner)),
        "idm_unshared_one_source": (ROWS, lambda: score_unshared(model, runner, of_one_source)),
    }
    # Shared: the source is read once; unshared: with each candidate.
    for name, (pairs, work) in works.items():

        def score(pairs: int = pairs, work: Callable[[], object] = work) -> Figures:
            work()
            times = time_runs(work, record.device, repeats)
            return {**times, "pairs_per_s": pairs / times["s"]}

        record.measure(name, score)
    unshared, shared = (record.number(f"idm_{kind}_one_source") for kind in ("unshared", "shared"))
    record.ratio("idm_unshared_over_shared", unshared, shared)


def measure_generate(record: Record, model: ShapeModel, caches: Sequence[str]) -> None:
    """Measure transformers' generate at N = ROWS, once after a few tokens to warm up.

    Args:
        record: Gets the measurements and their ratio to the best way of ours.
        model: What is sampled from.
        caches: ``dynamic``, ``static``, or ``compiled``, which warms up with a complete image.
    """
    prefix = model.shape.ids(model.shape.prefix)
    for cache in caches:

        def run(cache: str = cache) -> Figures:
            # Compiled code is of one length, so that it must warm up at that.
            is_compiled = cache == "compiled"
            kind = "static" if is_compiled else cache
            tokens = model.shape.target if is_compiled else min(SHORT, model.shape.target)
            generate(model, prefix, ROWS, kind, tokens=tokens, compiled=is_compiled)
            work = partial(generate, model, prefix, ROWS, kind, compiled=is_compiled)
            return {"s": time_runs(work, record.device, 1)["s"]}

        record.measure(f"hf_n{ROWS}_{cache}", run)
    # The best of either side: which way that is depends on the device.
    theirs = _min_seconds(record, [f"hf_n{ROWS}_{cache}" for cache in caches])
    ours = _min_seconds(record, [name for name in record.measurements if name.startswith(f"sampling_n{ROWS}_")])
    record.ratio("hf_over_ours_n8", theirs, ours)


def measure_speculation(record: Record, model: ShapeModel, repeats: int) -> None:
    """Measure speculative decoding with drafts of which a known share is right, against the GPU's way of decoding.

    Args:
        record: Gets the measurements and their ratios.
        model: Images are sampled from it.
        repeats: Timed runs of each way.
    """
    prefixes, block = [model.shape.ids(model.shape.prefix)], min(BLOCK, model.shape.target - 1)
    for count in (1, ROWS):

        def run(count: int = count) -> Figures:
            runner = LlamaRunner(model)
            sample = partial(sample_images, model, prefixes, num_candidates=count, runner=runner)
            codes = sample()
            # From the right codes, so that the share of right drafts is known.
            drafts = random_draft(codes, model.shape.codes)
            speculate = partial(
                speculate_images, model, prefixes, drafts, num_candidates=count, num_draft_tokens=block, runner=runner
            )
            result = speculate()
            return {
                "s": time_runs(speculate, record.device, repeats)["s"],
                "sequential_s": time_runs(sample, record.device, repeats)["s"],
                "passes": result.batch_passes,
                "acceptance": float(result.confirmed.sum() / result.examined.sum()),
                "identical_codes": float((result.codes == codes).double().mean()),
            }

        name = f"speculation_n{count}"
        record.measure(name, run)
        # From one measurement, in which the device was as warm for both.
        sequential_s, speculative_s = record.number(name, "sequential_s"), record.number(name)
        record.ratio(f"sequential_over_speculative_n{count}", sequential_s, speculative_s)
