"""Speculation against sequential sampling, token for token, and its counts against a slow walk over the draws."""

import pytest
import torch

from tests.helpers.models_reference import lively
from wm.dynamics import sample_observations, speculate_observations
from wm.errors import InputError
from wm.models import flatten
from wm.nano.preset import TINY, TINY_WORDS, NanoPreset, build_nano
from wm.sampling import Sampling, build_model_runner, sample_images, speculate_images

PRESET = NanoPreset(**{**vars(TINY), "channel_multiplier": (1, 1, 1)})
"""16 tokens an image."""
LENGTH = 16


@pytest.fixture(scope="module")
def vlm():
    torch.manual_seed(0)
    return lively(build_nano(TINY_WORDS, PRESET)[0])


def sources_and_prefixes(vlm, count):
    sources_BN = torch.randint(0, 16, (count, LENGTH), generator=torch.Generator().manual_seed(7))
    actions = ["put the cup", "take", "move the red block to the left", "up"]
    prefixes = [
        flatten(vlm.layout("fdm", source=source.tolist(), action=actions[row % 4]))
        for row, source in enumerate(sources_BN)
    ]
    return sources_BN, prefixes


def draft_of(codes_BKN, share, seed=0):
    """Right with probability ``share``, else another code."""
    generator = torch.Generator().manual_seed(seed)
    wrong = (codes_BKN + torch.randint(1, 16, codes_BKN.shape, generator=generator)) % 16
    return torch.where(torch.rand(codes_BKN.shape, generator=generator) < share, codes_BKN, wrong)


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.6, top_k=7, top_p=0.9),
    Sampling(greedy=True),
    Sampling(guidance_scale=2.0, image_guidance_scale=1.5),
]


# Every pair of a way to sample, a block and a word on drafting anew; not all threes.
@pytest.mark.parametrize(
    ("sampling", "block", "redraft"),
    [
        (way, block, (row + index) % 2 == 0)
        for row, way in enumerate(SAMPLINGS)
        for index, block in enumerate((1, 4, 15))
    ],
)
def test_the_images_are_those_of_sequential_sampling(vlm, sampling, block, redraft):
    sources_BN, prefixes = sources_and_prefixes(vlm, 3)
    expected = sample_images(vlm, prefixes, num_candidates=4, sampling=sampling, seed=[1, 2, 3])
    for drafts in (sources_BN, draft_of(expected, 0.7)[:, : 1 if sampling.greedy else 4]):
        for batch_size in (None, 3):
            speculation = speculate_images(
                vlm,
                prefixes,
                drafts,
                num_candidates=4,
                num_draft_tokens=block,
                sampling=sampling,
                seed=[1, 2, 3],
                redraft=redraft,
                batch_size=batch_size,
            )
            assert torch.equal(speculation.codes, expected)
            assert (speculation.passes >= -(-(LENGTH - 1) // (block + 1))).all()
            assert (speculation.passes <= LENGTH - 1).all()


def test_counts_of_a_fixed_draft_are_those_of_a_slow_walk(vlm):
    _, prefixes = sources_and_prefixes(vlm, 3)
    codes_BKN = sample_images(vlm, prefixes, num_candidates=5, seed=4)
    drafts_BKN = draft_of(codes_BKN, 0.7)
    block = 3
    speculation = speculate_images(
        vlm,
        prefixes,
        drafts_BKN,
        num_candidates=5,
        num_draft_tokens=block,
        seed=4,
        redraft=False,
        runner=build_model_runner(vlm),
    )
    for source in range(3):
        for candidate in range(5):
            right = (codes_BKN == drafts_BKN)[source, candidate].tolist()
            length, passes, confirmed, examined = 1, 0, 0, 0
            while length < LENGTH:
                passes += 1
                for step in range(block + 1):
                    if length == LENGTH:
                        break
                    length += 1
                    if step == block:
                        break
                    examined += 1
                    if not right[length - 1]:
                        break
                    confirmed += 1
            where = f"source {source}, candidate {candidate}"
            assert int(speculation.passes[source, candidate]) == passes, where
            assert int(speculation.confirmed[source, candidate]) == confirmed, where
            assert int(speculation.examined[source, candidate]) == examined, where
    assert speculation.batch_passes == int(speculation.passes.max()), "rows do not wait for each other"
    assert torch.equal(speculation.tokens_per_pass, (LENGTH - 1) / speculation.passes.double())
    assert torch.equal(speculation.acceptance, speculation.confirmed / speculation.examined.double())


def test_a_draft_that_is_right_needs_fewest_passes(vlm):
    _, prefixes = sources_and_prefixes(vlm, 2)
    codes_BKN = sample_images(vlm, prefixes, num_candidates=2, seed=4)
    speculation = speculate_images(vlm, prefixes, codes_BKN, num_candidates=2, num_draft_tokens=4, seed=4)
    assert speculation.passes.tolist() == [[3, 3], [3, 3]]
    assert speculation.acceptance.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    wrong = speculate_images(
        vlm, prefixes, (codes_BKN + 1) % 16, num_candidates=2, num_draft_tokens=4, seed=4, redraft=False
    )
    assert wrong.passes.tolist() == [[15, 15], [15, 15]]
    assert wrong.acceptance.tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_bad_input_is_named(vlm):
    sources_BN, prefixes = sources_and_prefixes(vlm, 2)
    for block in (0, 16):
        with pytest.raises(
            InputError, match=rf"num_draft_tokens must be 1 to 15 \(an image has 16 tokens\), got {block}"
        ):
            speculate_images(vlm, prefixes, sources_BN, num_candidates=1, num_draft_tokens=block)
    with pytest.raises(InputError, match=r"drafts: expected codes \(2, 16\).*got shape \(2, 15\)"):
        speculate_images(vlm, prefixes, sources_BN[:, :15], num_candidates=1, num_draft_tokens=2)
    with pytest.raises(InputError, match=r"drafts: code 16 is outside the codebook \[0, 16\)"):
        speculate_images(vlm, prefixes, sources_BN + 1, num_candidates=1, num_draft_tokens=2)
    with pytest.raises(InputError, match="num_candidates must be at least 1, got 0"):
        speculate_images(vlm, prefixes, sources_BN, num_candidates=0, num_draft_tokens=2)
    assert speculate_images(vlm, [], sources_BN[:0], num_candidates=2, num_draft_tokens=2).codes.shape == (0, 2, 16)


def test_observations_are_drafted_from_their_sources(vlm):
    sources_BN, prefixes = sources_and_prefixes(vlm, 3)
    actions = ["put the cup", "take", "move the red block to the left"]
    speculation = speculate_observations(vlm, sources_BN, actions, num_candidates=2, num_draft_tokens=3, seed=4)
    assert torch.equal(speculation.codes, sample_observations(vlm, sources_BN, actions, num_candidates=2, seed=4))
    direct = speculate_images(vlm, prefixes, sources_BN, num_candidates=2, num_draft_tokens=3, seed=4)
    assert torch.equal(speculation.passes, direct.passes)
    assert speculate_observations(vlm, sources_BN[:0], [], num_candidates=2, num_draft_tokens=3).codes.shape == (
        0,
        2,
        LENGTH,
    )
