"""Measure what speculation saves: on drafts of known quality, and on a trained model with the source image as draft."""

from typing import Any

import torch
from torch import Tensor

from jobs.benchmark.sampling_models import Shape, ShapeModel
from jobs.benchmark.sampling_work import turns
from wm.models import flatten, load_codec, load_model
from wm.sampling import Decoder, Sampling, Speculation, sample_images, speculate_images

ALPHA = 0.8
"""Share of right codes in a made draft."""
BLOCK = 8
"""Drafted codes a pass."""
SOURCES = 8
BLOCKS = (1, 2, 4, 8, 16, 32)
SAMPLINGS = {"temperature_1": Sampling(), "greedy": Sampling(greedy=True)}


def made_draft(codes_BKN: Tensor, num_codes: int, seed: int = 0) -> Tensor:
    """Build drafts in which each code is right with probability ALPHA, else another one, independently."""
    generator = torch.Generator().manual_seed(seed)
    other = (codes_BKN + torch.randint(1, num_codes, codes_BKN.shape, generator=generator)) % num_codes
    return torch.where(torch.rand(codes_BKN.shape, generator=generator) < ALPHA, codes_BKN, other)


def speculation_figures(
    shape: Shape, timed: Shape, rows: int, ratios: dict[str, float], *, rounds: int
) -> dict[str, Any]:
    """Measure counts on ``shape`` and seconds on ``timed``, and add to ``ratios``.

    ``ragged_n8_over_n1``: tokens a pass of N rows until the slowest is done, over those of one row alone.
    """
    block = min(BLOCK, shape.target - 1)
    model: Any = ShapeModel(shape)
    decoder = Decoder(model, rows=rows * (block + 1))
    prefixes = [shape.ids(shape.prefix, seed) for seed in range(SOURCES)]
    seeds = list(range(SOURCES))
    codes_BKN = sample_images(model, prefixes, num_samples=rows, seed=seeds, decoder=decoder)
    drafts_BKN = made_draft(codes_BKN, shape.codes)

    def speculate(source: int, count: int, redraft: bool) -> Speculation:
        return speculate_images(
            model,
            [prefixes[source]],
            drafts_BKN[source : source + 1, :count],
            num_samples=count,
            num_draft_tokens=block,
            seed=seeds[source],
            redraft=redraft,
            decoder=decoder,
        )

    # Fixed and renewed drafts, and each row alone: a batch waits for its slowest row.
    fixed = [speculate(source, rows, False) for source in range(SOURCES)]
    redrafted = [speculate(source, rows, True) for source in range(SOURCES)]
    alone = [speculate(source, 1, False) for source in range(SOURCES)]
    same = [
        torch.equal(result.codes[0, k], codes_BKN[b, k])
        for run in (fixed, redrafted, alone)
        for b, result in enumerate(run)
        for k in range(result.codes.shape[1])
    ]
    passes = torch.cat([result.passes for result in fixed]).double()
    per_pass = float((shape.target - 1) / passes.mean())
    formula = (1 - ALPHA ** (block + 1)) / (1 - ALPHA)
    together = sum(result.batch_passes for result in fixed)
    singly = float(torch.cat([result.passes for result in alone]).double().sum())
    ratios["speculative_over_formula"] = per_pass / formula
    ratios["speculative_identical"] = sum(same) / len(same)
    ratios["ragged_n8_over_n1"] = singly / together
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
        "rows_mean_over_n1": singly / float(passes.mean(dim=1).sum()),
        "seconds": _measure_seconds(timed, rows, rounds),
    }


def _measure_seconds(shape: Shape, rows: int, rounds: int) -> dict[str, Any]:
    """Measure CPU seconds of sequential and of speculative sampling with a made draft, for one row and for N."""
    model: Any = ShapeModel(shape)
    block = min(BLOCK, shape.target - 1)
    decoder, prefix = Decoder(model, rows=rows), shape.ids(shape.prefix)
    codes = sample_images(model, [prefix], num_samples=rows, decoder=decoder)
    drafts = made_draft(codes, shape.codes)
    work: dict[str, Any] = {}
    for count in (1, rows):
        settings = {"num_samples": count, "decoder": decoder}
        work[f"sequential_n{count}"] = lambda settings=settings: sample_images(model, [prefix], **settings)
        work[f"speculative_n{count}"] = lambda settings=settings, count=count: speculate_images(
            model, [prefix], drafts[:, :count], num_draft_tokens=block, **settings
        )
    return turns(work, rounds)


def nano_figures(
    fdm: str, base: str, triplets: str, ratios: dict[str, float], *, items: int, rows: int
) -> dict[str, Any]:
    """Count passes of a trained model, drafts being its triplets' source images. Adds ``speculative_nano``: sequential
    over speculative passes at temperature 1 with the block that saves most (the smallest within 1 % of it)."""
    from wm.evaluation.heldout import read_held_out

    vlm = load_model(fdm, base=base or None)
    held_out = read_held_out(triplets, load_codec(base or fdm), limit=items)
    sources = held_out.source_codes
    prefixes = [
        flatten(vlm.layout("fdm", source=source, action=action))
        for source, action in zip(sources.tolist(), held_out.actions, strict=True)
    ]
    decoder = Decoder(vlm)
    seeds = held_out.sampling_seeds(0)
    figures: dict[str, Any] = {"items": len(prefixes), "rows": rows, "tokens_per_image": vlm.tokens_per_image}
    # The largest block is a complete image but its first code.
    blocks = sorted({block for block in BLOCKS if block < vlm.tokens_per_image} | {vlm.tokens_per_image - 1})
    for name, sampling in SAMPLINGS.items():
        codes = sample_images(vlm, prefixes, num_samples=rows, sampling=sampling, seed=seeds, decoder=decoder)
        for redraft in (True, False):
            for block in blocks:
                result = speculate_images(
                    vlm,
                    prefixes,
                    sources,
                    num_samples=rows,
                    num_draft_tokens=block,
                    sampling=sampling,
                    seed=seeds,
                    redraft=redraft,
                    decoder=decoder,
                )
                sequential = (vlm.tokens_per_image - 1) * result.passes.numel()
                figures[f"{name}_block_{block}{'_redrafted' if redraft else ''}"] = {
                    "sequential_over_speculative": sequential / int(result.passes.sum()),
                    "acceptance": int(result.confirmed.sum()) / int(result.examined.sum()),
                    "identical": float((result.codes == codes).all(-1).double().mean()),
                    "unchanged_tokens": float((codes == sources[:, None]).double().mean()),
                }
    saved = {block: figures[f"temperature_1_block_{block}"]["sequential_over_speculative"] for block in blocks}
    best_block = min(block for block in blocks if saved[block] >= 0.99 * max(saved.values()))
    ratios["speculative_nano"] = saved[best_block]
    return figures | {"block": best_block}
