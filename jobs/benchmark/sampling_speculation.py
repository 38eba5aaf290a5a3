"""Measure what speculation saves: on drafts of known quality, and on a trained model with the source image as draft."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from jobs.benchmark.harness import Figures, Seconds, turns
from jobs.benchmark.sampling_models import Shape, ShapeModel
from wm.models import flatten, load_codec, load_model
from wm.sampling import Sampling, Speculation, build_model_runner, sample_images, speculate_images

ALPHA = 0.8
"""Share of right codes in a random draft."""
BLOCK = 8
"""Draft tokens a pass."""
SOURCES = 8
BLOCKS = (1, 2, 4, 8, 16, 32)
SAMPLINGS = {"temperature_1": Sampling(), "greedy": Sampling(greedy=True)}


def random_draft(codes_BKN: Tensor, num_codes: int, seed: int = 0) -> Tensor:
    """Build drafts in which each code is right with probability ALPHA, else another one, independently.

    Args:
        codes_BKN: The right codes.
        num_codes: Size of the codebook.
        seed: The same seed gives the same drafts.

    Returns:
        Codes of the same shape.
    """
    generator = torch.Generator().manual_seed(seed)
    # A shift by 1 to num_codes - 1 never gives the right code.
    other = (codes_BKN + torch.randint(1, num_codes, codes_BKN.shape, generator=generator)) % num_codes
    return torch.where(torch.rand(codes_BKN.shape, generator=generator) < ALPHA, codes_BKN, other)


def speculation_figures(shape: Shape, timed: Shape, rows: int, ratios: dict[str, float], *, rounds: int) -> Figures:
    """Count passes, and measure seconds.

    Args:
        shape: For the counts.
        timed: For the seconds.
        rows: Candidates of a source, N.
        ratios: Gets ``speculative_over_formula``, ``speculative_identical``, and ``ragged_n8_over_n1``: tokens a pass
            of N rows until the slowest is done, over those of one row alone.
        rounds: Turns of each kind of work.

    Returns:
        The figures.
    """
    model = ShapeModel(shape)
    block = min(BLOCK, shape.target - 1)
    runner = build_model_runner(model, rows=rows * (block + 1))
    prefixes = [shape.ids(shape.prefix, seed) for seed in range(SOURCES)]
    codes_BKN = sample_images(model, prefixes, num_candidates=rows, seed=list(range(SOURCES)), runner=runner)
    drafts_BKN = random_draft(codes_BKN, shape.codes)

    def speculate(count: int, redraft: bool) -> list[Speculation]:
        return [
            speculate_images(
                model,
                [prefixes[source]],
                drafts_BKN[source : source + 1, :count],
                num_candidates=count,
                num_draft_tokens=block,
                seed=source,
                redraft=redraft,
                runner=runner,
            )
            for source in range(SOURCES)
        ]

    # Fixed and renewed drafts, and each row alone: a batch waits for its slowest row.
    fixed, redrafted, alone = speculate(rows, False), speculate(rows, True), speculate(1, False)
    same = _compare_codes((fixed, redrafted, alone), codes_BKN)
    passes = torch.cat([result.passes for result in fixed]).double()
    per_pass = float((shape.target - 1) / passes.mean())
    # Leviathan et al. 2023, equation 1: expected tokens a pass with independent errors.
    formula = (1 - ALPHA ** (block + 1)) / (1 - ALPHA)
    single_passes = float(torch.cat([result.passes for result in alone]).double().sum())
    ratios["speculative_over_formula"] = per_pass / formula
    ratios["speculative_identical"] = sum(same) / len(same)
    ratios["ragged_n8_over_n1"] = single_passes / sum(result.batch_passes for result in fixed)
    examined = sum(int(result.examined.sum()) for result in fixed)
    return {
        "shape": vars(shape),
        "alpha": ALPHA,
        "block": block,
        "images_compared": len(same),
        "tokens_per_pass": per_pass,
        "formula": formula,
        "acceptance": sum(int(result.confirmed.sum()) for result in fixed) / examined,
        "tokens_per_pass_by_row": [round(value, 3) for value in ((shape.target - 1) / passes).flatten().tolist()],
        "rows_mean_over_n1": single_passes / float(passes.mean(dim=1).sum()),
        "seconds": _measure_seconds(timed, rows, rounds),
    }


def _compare_codes(runs: Sequence[Sequence[Speculation]], codes_BKN: Tensor) -> list[bool]:
    """Compare each image with plain sampling's: drafts may change how fast images come, never which."""
    return [
        torch.equal(result.codes[0, k], codes_BKN[b, k])
        for results in runs
        for b, result in enumerate(results)
        for k in range(result.codes.shape[1])
    ]


def _measure_seconds(shape: Shape, rows: int, rounds: int) -> Seconds:
    """Measure CPU seconds of sequential and of speculative sampling with a random draft, for one row and for N."""
    model = ShapeModel(shape)
    block = min(BLOCK, shape.target - 1)
    runner, prefixes = build_model_runner(model, rows=rows), [shape.ids(shape.prefix)]
    drafts = random_draft(sample_images(model, prefixes, num_candidates=rows, runner=runner), shape.codes)
    work: dict[str, Callable[[], object]] = {}
    for count in (1, rows):
        sample = partial(sample_images, model, prefixes, num_candidates=count, runner=runner)
        speculate = partial(speculate_images, num_candidates=count, num_draft_tokens=block, runner=runner)
        work[f"sequential_n{count}"] = sample
        work[f"speculative_n{count}"] = partial(speculate, model, prefixes, drafts[:, :count])
    return turns(work, rounds)


def trained_figures(fdm: str, base: str, triplets: str, ratios: dict[str, float], *, items: int, rows: int) -> Figures:
    """Count passes of a trained model, whose drafts are its triplets' source images.

    Args:
        fdm: Folder of the forward model.
        base: Folder of its base, if it is an adapter; empty: what its manifest says.
        triplets: Folder of the triplets.
        ratios: Gets ``speculative_nano``: sequential over speculative passes at temperature 1 with the block that
            saves most (the smallest within 1 % of it).
        items: Number of triplets.
        rows: Candidates of each, N.

    Returns:
        The figures.
    """
    from wm.evaluation.heldout import read_held_out

    vlm = load_model(fdm, base=base or None)
    held_out = read_held_out(triplets, load_codec(base or fdm), limit=items)
    sources = held_out.source_codes
    prefixes = [
        flatten(vlm.layout("fdm", source=source, action=action))
        for source, action in zip(sources.tolist(), held_out.actions, strict=True)
    ]
    runner = build_model_runner(vlm)
    seeds = held_out.sampling_seeds(0)
    figures: Figures = {"items": len(prefixes), "rows": rows, "tokens_per_image": vlm.tokens_per_image}
    # The largest block is a complete image but its first code.
    blocks = sorted({block for block in BLOCKS if block < vlm.tokens_per_image} | {vlm.tokens_per_image - 1})
    savings: dict[str, float] = {}
    for name, sampling in SAMPLINGS.items():
        codes = sample_images(vlm, prefixes, num_candidates=rows, sampling=sampling, seed=seeds, runner=runner)
        for redraft in (True, False):
            for block in blocks:
                result = speculate_images(
                    vlm,
                    prefixes,
                    sources,
                    num_candidates=rows,
                    num_draft_tokens=block,
                    sampling=sampling,
                    seed=seeds,
                    redraft=redraft,
                    runner=runner,
                )
                kind = f"{name}_block_{block}{'_redrafted' if redraft else ''}"
                sequential = (vlm.tokens_per_image - 1) * result.passes.numel()
                savings[kind] = sequential / int(result.passes.sum())
                figures[kind] = {
                    "sequential_over_speculative": savings[kind],
                    "acceptance": int(result.confirmed.sum()) / int(result.examined.sum()),
                    "identical": float((result.codes == codes).all(-1).double().mean()),
                    "unchanged_tokens": float((codes == sources[:, None]).double().mean()),
                }
    # The smallest of equal blocks: a longer one costs more a pass.
    saved = {block: savings[f"temperature_1_block_{block}"] for block in blocks}
    best_block = min(block for block in blocks if saved[block] >= 0.99 * max(saved.values()))
    ratios["speculative_nano"] = saved[best_block]
    return figures | {"block": best_block}
