"""The decoding engine against full forward passes, brute-force filters and the model's own distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.models_reference import lively, reference_logits
from wm.dynamics import score_actions
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.nano.preset import NanoPreset, build_nano
from wm.sampling import (
    Sampling,
    build_model_runner,
    generate_texts,
    invert_cdf,
    probabilities,
    sample_images,
    speculate_images,
    uniform_noise,
)
from wm.sampling.batches import POSITIONS_AT_ONCE
from wm.sampling.noise import expand_seeds


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


def forward_prefix(vlm, source, action):
    return flatten(vlm.layout("fdm", source=source, action=action))


def slow_image(vlm, prefix, choose):
    """One image, all of the sequence run again for each token; ``choose(image logits, position)``."""
    ids, codes = list(prefix), []
    for position in range(vlm.tokens_per_image):
        with torch.no_grad():
            logits_V = vlm.head(vlm.body(torch.tensor([ids])))[0, -1]
        codes.append(choose(logits_V[vlm.image_rows], position))
        ids.append(int(vlm.image_rows[codes[-1]]))
    return codes


def test_greedy_is_the_argmax_of_full_forward_passes(vlm):
    prefixes = [
        forward_prefix(vlm, [1, 2, 3, k], action)
        for k, action in enumerate(["put", "move the red cup left", "take", "up up up up"])
    ]
    codes_BKN = sample_images(vlm, prefixes, num_candidates=2, sampling=Sampling(greedy=True), batch_size=3)
    expected = [slow_image(vlm, prefix, lambda logits, _: int(logits.argmax())) for prefix in prefixes]
    assert codes_BKN.tolist() == [[codes, codes] for codes in expected]
    assert len({tuple(codes) for codes in expected}) > 1


def test_sampling_inverts_the_distribution_at_each_step(vlm):
    sampling = Sampling(temperature=0.7, top_k=9, top_p=0.95)
    prefix = forward_prefix(vlm, [4, 4, 2, 0], "move the blue bowl right")
    codes_KN = sample_images(vlm, [prefix], num_candidates=3, sampling=sampling, seed=11)[0]
    for candidate in range(3):
        noise_N = uniform_noise(11, candidate, vlm.tokens_per_image)

        def choose(logits, position, noise_N=noise_N):
            probs = brute_probabilities(logits.double().numpy(), sampling)
            return int(np.searchsorted(np.cumsum(probs), noise_N[position], side="right"))

        assert codes_KN[candidate].tolist() == slow_image(vlm, prefix, choose)


def test_candidate_does_not_depend_on_its_batch(vlm):
    prefixes = [forward_prefix(vlm, [k, 5, 9, 0], "put the cup on the block") for k in range(5)]
    prefixes += [forward_prefix(vlm, [k, 5, 9, 0], "take") for k in range(2)]
    all_BKN = sample_images(vlm, prefixes, num_candidates=6, seed=3)
    assert len({tuple(codes) for codes in all_BKN.flatten(0, 1).tolist()}) > 20
    assert torch.equal(sample_images(vlm, prefixes, num_candidates=2, seed=3), all_BKN[:, :2])
    assert torch.equal(sample_images(vlm, prefixes, num_candidates=6, seed=3, batch_size=4), all_BKN)
    for row, prefix in enumerate(prefixes):
        assert torch.equal(sample_images(vlm, [prefix], num_candidates=1, seed=3)[0, 0], all_BKN[row, 0])
    backwards = sample_images(vlm, prefixes[::-1], num_candidates=6, seed=3)
    assert torch.equal(backwards.flip(0), all_BKN)


def test_each_row_has_its_seed(vlm):
    prefix = forward_prefix(vlm, [1, 1, 1, 1], "put")
    both = sample_images(vlm, [prefix, prefix], num_candidates=2, seed=[5, 6])
    for row, seed in enumerate((5, 6)):
        assert torch.equal(both[row], sample_images(vlm, [prefix], num_candidates=2, seed=seed)[0])
    assert not torch.equal(both[0], both[1])
    with pytest.raises(InputError, match="one seed or 2, got 1"):
        sample_images(vlm, [prefix, prefix], num_candidates=1, seed=[5])


def test_samples_follow_the_model_distribution():
    torch.manual_seed(0)
    preset = NanoPreset(
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        mlp_size=32,
        num_codes=4,
        side_px=2,
        channel_multiplier=(1, 1),
    )
    vlm = lively(build_nano(["go"], preset)[0])
    prefix = forward_prefix(vlm, [2], "go")
    codes = sample_images(vlm, [prefix], num_candidates=4000, seed=0, batch_size=4000).flatten()
    logits_V = reference_logits(vlm, prefix)[-1][vlm.image_rows]
    expected = torch.softmax(logits_V, 0)
    observed = torch.bincount(codes, minlength=4) / 4000
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert expected.max() < 0.9
    assert torch.all((observed - expected).abs() < 4 * deviation), (observed, expected)


def brute_probabilities(logits, sampling):
    """Softmax at a temperature; of the codes from most to least probable (of equals the lower first) at most
    ``top_k``, and of these, renormalised, the fewest that reach ``top_p``."""
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    ranked = sorted(range(len(weights)), key=lambda v: (-weights[v], v))
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    total, indices, reached = sum(weights[v] for v in ranked), [], 0.0
    for v in ranked:
        if sampling.top_p < 1 and reached >= sampling.top_p:
            break
        indices.append(v)
        reached += weights[v] / total
    probs = np.zeros(len(weights))
    probs[indices] = weights[indices] / sum(weights[v] for v in indices)
    return probs


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.5]), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.37, 0.61, 0.93, 1.0]),
)
def test_filters_are_brute_force(logits, temperature, top_k, top_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    ours = probabilities(torch.tensor([logits]), sampling)[0].numpy()
    np.testing.assert_allclose(ours, brute_probabilities(np.array(logits), sampling), atol=1e-12)


def test_greedy_probability_is_all_on_the_first_maximum():
    probs = probabilities(torch.tensor([[1.0, 3.0, 3.0]]), Sampling(greedy=True))
    assert probs.tolist() == [[0.0, 1.0, 0.0]]


def test_inverse_distribution_at_its_edges():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    cases = {0.0: 1, 0.2499: 1, 0.25: 3, 0.999999: 3, 1.0: 3}
    assert {noise: int(invert_cdf(probs, torch.tensor([noise]).double())) for noise in cases} == cases


def test_noise_is_a_function_of_seed_candidate_and_position():
    long = uniform_noise(7, 3, 100)
    assert np.array_equal(uniform_noise(7, 3, 10), long[:10])
    assert ((long >= 0) & (long < 1)).all()
    assert not np.array_equal(uniform_noise(7, 4, 100), long)
    assert not np.array_equal(uniform_noise(8, 3, 100), long)
    assert uniform_noise(0, 0, 3).round(6).tolist() == uniform_noise(0, 0, 3).round(6).tolist()
    with pytest.raises(InputError, match="must not be negative, got -1 and 0"):
        uniform_noise(-1, 0, 1)


def test_texts_are_greedy_over_words_and_end(vlm):
    prefixes = [flatten(vlm.layout("idm", source=[k, 1, 2, 3], target=[3, k, 2, 1])) for k in range(6)]
    texts = generate_texts(vlm, prefixes, max_new_tokens=5, batch_size=4)
    allowed = vlm.text_rows.tolist()
    for prefix, text in zip(prefixes, texts, strict=True):
        ids, logprob = list(prefix), 0.0
        for step in range(6):
            logits_V = reference_logits(vlm, ids)[-1]
            token = max(allowed, key=lambda row: logits_V[row]) if step < 5 else vlm.eos_id
            logprob += float(logits_V[token] - torch.logsumexp(logits_V, 0))
            ids.append(token)
            if token == vlm.eos_id:
                break
        assert [*text.ids, vlm.eos_id] == ids[len(prefix) :]
        assert text.logprob == pytest.approx(logprob, abs=1e-3)
        assert text.num_tokens == len(text.ids) + 1


def test_settings_are_checked(vlm):
    for bad in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"topk": 3}):
        with pytest.raises(InputError):
            Sampling.parse(bad, "test")
    with pytest.raises(InputError, match="num_candidates must be at least 1, got 0"):
        sample_images(vlm, [[0]], num_candidates=0)
    with pytest.raises(InputError, match="max_new_tokens must be at least 1"):
        generate_texts(vlm, [[0]], max_new_tokens=0)
    with pytest.raises(InputError, match="progress_tokens must be at least 1, got 0"):
        sample_images(vlm, [[0]], num_candidates=1, progress_tokens=0)
    assert sample_images(vlm, [], num_candidates=2).shape == (0, 2, 4)
    assert generate_texts(vlm, []) == []


def test_prefixes_are_checked(vlm):
    drafts = torch.zeros((2, 4), dtype=torch.int64)
    calls = (
        lambda ids: sample_images(vlm, [[0], ids], num_candidates=1),
        lambda ids: speculate_images(vlm, [[0], ids], drafts, num_candidates=1, num_draft_tokens=1),
        lambda ids: generate_texts(vlm, [[0], ids]),
    )
    for call in calls:
        with pytest.raises(InputError, match="prefix 1 is empty"):
            call([])
        for bad in (41, -1):
            with pytest.raises(InputError, match=rf"prefix 1: id {bad} is outside the vocabulary \[0, 41\)"):
                call([0, bad])


def test_non_finite_numbers_are_reported_and_not_sampled(tiny_base):
    """From nan every draw would be code 0."""
    broken = load_model(tiny_base)
    broken.module.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    source_1N = [[1, 2, 3, 4]]
    calls = (
        lambda: sample_images(broken, [[0]], num_candidates=1),
        lambda: speculate_images(
            broken, [[0]], torch.zeros((1, 4), dtype=torch.int64), num_candidates=1, num_draft_tokens=1
        ),
        lambda: generate_texts(broken, [[0]]),
        lambda: score_actions(broken, source_1N, source_1N, ["put"]),
    )
    for call in calls:
        with pytest.raises(InputError, match=rf"model chameleon {broken.base_id}: .* are nan or infinite"):
            call()


def test_temperature_near_zero_is_greedy():
    logits = torch.tensor([[1.0, 900.0, 900.5, -3.0]])
    assert probabilities(logits, Sampling(temperature=1e-320)).tolist() == [[0.0, 0.0, 1.0, 0.0]]


def test_size_of_batches_is_logged_once(vlm, caplog):
    caplog.set_level("INFO", logger="wm.sampling")
    runner = build_model_runner(vlm)
    for _ in range(2):
        sample_images(vlm, [[0, 1]] * 3, num_candidates=2, batch_size=4, runner=runner)
    assert [record.getMessage() for record in caplog.records] == [
        f"3 sources, 2 candidates each, 4 rows at once (at most {POSITIONS_AT_ONCE} positions), plain decoding"
    ]


def test_seeds_may_be_numpy_integers_but_no_floats():
    expected = [uniform_noise(7, 0, 5), uniform_noise(2**63 - 1, 0, 5)]
    for seeds in ([7, 2**63 - 1], np.array([7, 2**63 - 1]), torch.tensor([7, 2**63 - 1])):
        noise = [uniform_noise(seed, 0, 5) for seed in expand_seeds(seeds, 2)]
        assert np.array_equal(noise, expected)
    for seed in (np.int64(7), torch.tensor(7)):
        assert expand_seeds(seed, 3) == [7, 7, 7] and type(expand_seeds(seed, 1)[0]) is int
    for seed in (1.5, [0, 1.5], np.array([0.0, 1.0]), "12"):
        with pytest.raises(InputError, match=r"seed = .*expected integers of at least 0"):
            expand_seeds(seed, 2)
