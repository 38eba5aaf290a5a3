"""The engine's own passes against transformers' modules, and in float64 against the decoder written out by hand."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import ChameleonConfig, ChameleonModel, GemmaConfig, GemmaModel, LlamaConfig, LlamaModel

from tests.helpers import sampling_reference
from tests.helpers.models_reference import lively, reference_logits
from wm.dynamics.scoring import completion_logprobs
from wm.models import flatten, load_model
from wm.sampling import Sampling, build_model_runner, generate_texts, sample_images
from wm.sampling.kernels.attention import attend_shared, attend_tails
from wm.sampling.kernels.self_test import FUSED
from wm.sampling.weights_view import view_of_modules

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CODEC = {
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 0,
    "embed_dim": 8,
    "num_embeddings": 8,
    "latent_channels": 8,
    "resolution": 4,
}


@pytest.fixture
def vlm(tiny_base):
    return lively(load_model(tiny_base))


class Bare:
    """Just enough of a model around transformers' decoder."""

    def __init__(self, stack, dtype):
        self.stack = stack.to(dtype).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.stack.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
        self.lm_head = torch.nn.Linear(32, 61, bias=False, dtype=dtype)
        self.image_rows, self.device = torch.arange(5, 13), torch.device("cpu")

    def decoder_view(self):
        return view_of_modules(self.stack, self.lm_head)

    def hidden(self, ids):
        with torch.no_grad():
            return self.stack(input_ids=torch.tensor([ids])).last_hidden_state[0]


STACKS = {
    "chameleon": lambda: ChameleonModel(ChameleonConfig(**SIZES, vq_config=CODEC, vocabulary_map={"<image>": 3})),
    "chameleon_swin": lambda: ChameleonModel(
        ChameleonConfig(**SIZES, vq_config=CODEC, vocabulary_map={"<image>": 3}, swin_norm=True)
    ),
    "gemma": lambda: GemmaModel(GemmaConfig(**SIZES, head_dim=16, hidden_activation="gelu_pytorch_tanh")),
    "llama_biased": lambda: LlamaModel(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", STACKS)
def test_passes_equal_transformers(name, dtype):
    torch.manual_seed(0)
    model = Bare(STACKS[name](), dtype)
    # transformers takes norms and angles in float32 whatever the model's type is.
    tolerance = {torch.float64: 2e-6, torch.float32: 1e-5}[dtype]
    runner = build_model_runner(model)
    prefixes = [[1, 7, 8, 9, 2], [4, 4, 17], [30, 31, 32, 33, 34, 35, 2]]
    continuations = torch.randint(0, 61, (6, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        prefix, last_PH = runner.prefill(prefixes)
        rows = runner.reserve(6, 9)
        by_one = [runner.extend(continuations[:, k : k + 1], prefix, rows, k, k + 1) for k in range(4)]
        block = runner.extend(continuations[:, 4:], prefix, rows, 4, 9)
    ours_RSH = torch.cat([*by_one, block], dim=1)
    for row in range(6):
        ids = prefixes[row // 2]
        theirs = model.hidden([*ids, *continuations[row].tolist()])
        torch.testing.assert_close(last_PH[row // 2], theirs[len(ids) - 1], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(ours_RSH[row], theirs[len(ids) :], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", STACKS)
def test_bfloat16_is_as_close_to_float64_as_transformers_is(name):
    torch.manual_seed(0)
    exact = Bare(STACKS[name](), torch.float64)
    rounded = copy.deepcopy(exact)
    rounded.stack.to(torch.bfloat16)
    prefixes = torch.randint(0, 61, (8, 11), generator=torch.Generator().manual_seed(3))
    continuations = torch.randint(0, 61, (8, 9), generator=torch.Generator().manual_seed(4))
    rounded.lm_head.to(torch.bfloat16)
    runner = build_model_runner(rounded)
    with torch.no_grad():
        prefix, _ = runner.prefill(prefixes.tolist())
        rows = runner.reserve(8, 9)
        ours = torch.cat([runner.extend(continuations[:, k : k + 1], prefix, rows, k, k + 1) for k in range(9)], 1)
        ids = torch.cat((prefixes, continuations), 1)
        theirs, truth = (m.stack(input_ids=ids).last_hidden_state[:, 11:].double() for m in (rounded, exact))
    assert (ours.double() - truth).std() < 1.1 * (theirs - truth).std() < 0.1


def test_rows_at_positions_of_their_own():
    """Blocks that begin elsewhere in each row, with wrong tokens left behind them, as speculation leaves them."""
    torch.manual_seed(0)
    model = Bare(STACKS["chameleon"](), torch.float64)
    runner = build_model_runner(model)
    continuations = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        prefix, _ = runner.prefill([[1, 7, 8, 9, 2]])
        rows = runner.reserve(3, 9)
        wrong = continuations.clone()
        wrong[0, 2:], wrong[1, 5:], wrong[2, 0:] = 3, 3, 3
        runner.extend(wrong, prefix, rows, 0, 8)
        positions = torch.tensor([2, 5, 0])
        block = torch.stack(
            [continuations[row, position : position + 3] for row, position in enumerate(positions.tolist())]
        )
        hidden_RSH = runner.extend(block, prefix, rows, positions, 8)
    for row, position in enumerate(positions.tolist()):
        theirs = model.hidden([1, 7, 8, 9, 2, *continuations[row].tolist()])
        torch.testing.assert_close(hidden_RSH[row], theirs[5 + position : 8 + position], atol=2e-6, rtol=2e-6)


def test_float64_logits_are_those_of_the_decoder_written_out(vlm):
    vlm.module.double()
    prefix = flatten(vlm.layout("fdm", source=[3, 1, 4, 1], action="move the red cup up"))
    continuation = vlm.image_rows[torch.tensor([[5, 9, 2], [6, 5, 3]])]
    runner = build_model_runner(vlm)
    with torch.no_grad():
        shared, last_PH = runner.prefill([prefix])
        hidden_RSH = runner.extend(continuation, shared, runner.reserve(2, 3), 0, 3)
        for row in range(2):
            expected = reference_logits(vlm, [*prefix, *continuation[row].tolist()])[len(prefix) - 1 :]
            ours = runner.logits(torch.cat((last_PH, hidden_RSH[row])))
            torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-11)
            images = runner.image_logits(last_PH)[0]
            torch.testing.assert_close(images, expected[0, vlm.image_rows], atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_k=9, top_p=0.95), Sampling(greedy=True)]
)
def test_codes_equal_those_of_transformers_and_a_growing_cache(vlm, dtype, sampling):
    vlm.module.to(dtype)
    actions = ["put", "move the red cup up", "take the block", "put the cup"]
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action=action)) for k, action in enumerate(actions)]
    ours = sample_images(vlm, prefixes, num_candidates=5, sampling=sampling, seed=[3, 4, 5, 6])
    theirs = sampling_reference.sample_images(vlm, prefixes, num_candidates=5, sampling=sampling, seed=[3, 4, 5, 6])
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:`is_gradient_checkpointing`")
def test_adapters_are_merged_and_left_as_they_are(vlm):
    config = LoraConfig(
        r=4,
        target_modules=r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj|.*embed_tokens",
        modules_to_save=["lm_head"],
        init_lora_weights=False,
        ensure_weight_tying=False,
    )
    prefix = flatten(vlm.layout("fdm", source=[7, 5, 9, 0], action="put the cup"))
    bare = sample_images(vlm, [prefix], num_candidates=6, seed=3)
    torch.manual_seed(0)
    vlm.module = get_peft_model(vlm.module, config).eval()
    before = {name: tensor.clone() for name, tensor in vlm.module.state_dict().items()}
    adapted = sample_images(vlm, [prefix], num_candidates=6, seed=3)
    assert torch.equal(adapted, sampling_reference.sample_images(vlm, [prefix], num_candidates=6, seed=3))
    assert not torch.equal(adapted, bare)
    for name, tensor in vlm.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with vlm.module.disable_adapter():
        assert torch.equal(sample_images(vlm, [prefix], num_candidates=6, seed=3), bare)


def test_prefix_is_stored_once(vlm):
    runner = build_model_runner(vlm)
    prefix, _ = runner.prefill([[1, 2, 3, 4, 5]])
    layers, groups, width = len(runner.view.layers), runner.view.num_groups, runner.view.head_width
    assert prefix.num_bytes() == 2 * layers * groups * width * 5 * 4
    assert runner.reserve(8, 4).num_bytes() == 2 * layers * groups * width * 8 * 4 * 4


def test_progress_is_the_image_as_it_grows(vlm):
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put the cup")) for k in range(2)]
    progress = []
    codes = sample_images(vlm, prefixes, num_candidates=3, seed=1, on_progress=progress.append)
    assert [item.codes.shape for item in progress] == [(2, 3, 2), (2, 3, 4)], "4 tokens: two lines of two"
    for item in progress:
        assert item.candidates == range(3)
        assert torch.equal(item.codes, codes[list(item.sources), :, : item.codes.shape[2]])
    progress.clear()
    sample_images(vlm, prefixes, num_candidates=3, seed=1, batch_size=2, on_progress=progress.append, progress_tokens=3)
    assert [(item.sources, item.candidates, item.codes.shape[2]) for item in progress] == [
        ((source,), candidates, length)
        for source in range(2)
        for candidates in (range(2), range(2, 3))
        for length in (3, 4)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("prefixes", "each", "tokens"), [(1, 1, 1), (1, 5, 7), (3, 2, 4)])
def test_tails_by_fused_kernels_are_those_by_scores(dtype, prefixes, each, tokens):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, prefixes * each, tokens, 4, 16, generator=generator, dtype=dtype)
    prefix = torch.randn(2, prefixes, 4, 9, 16, generator=generator, dtype=dtype)
    result = attend_tails(query, key, value, *prefix)
    later = torch.arange(tokens) > torch.arange(tokens)[:, None]
    own = key.transpose(1, 2), value.transpose(1, 2)
    expected = attend_shared(query, *prefix, *own, prefix_hidden_PT=None, own_hidden=later[None])
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)
    assert result.dtype is dtype


def test_tails_are_used_where_nothing_is_padded(vlm, monkeypatch):
    """The kernels for GPUs, taken for those for CPUs, give what scoring gives without them."""
    sources = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put")) for k in range(2)]
    tails = torch.randint(0, 16, (6, 5), generator=torch.Generator().manual_seed(2))
    runner, calls = build_model_runner(vlm), []

    def hidden(prefixes, position):
        prefix, _ = runner.prefill(prefixes)
        return runner.extend(tails, prefix, runner.reserve(6, 5 + position), position, 5 + position)

    with torch.no_grad():
        plain = hidden(sources, 0)
        monkeypatch.setattr("wm.sampling.llama_runner.can_flash", lambda query: calls.append(1) or True)
        torch.testing.assert_close(hidden(sources, 0), plain, atol=2e-5, rtol=2e-5)
        assert len(calls) == len(runner.view.layers)
        hidden([sources[0], sources[1][:-1]], 0)
        hidden(sources, 1)
    assert len(calls) == len(runner.view.layers), "not for padded prefixes, nor after other tokens"
    assert runner.self_tests[FUSED].agrees and runner.self_tests[FUSED].error < 1e-5


@pytest.mark.parametrize("fault", ["wrong", "missing"])
def test_a_fused_kernel_that_is_wrong_is_not_used(vlm, monkeypatch, caplog, fault):
    """What it gives is half of what it should, or the build has no such kernel: scores are those without it."""
    segments = [vlm.layout("idm", source=[1, 2, 3, 4], target=[k] * 4, action="put") for k in range(3)]
    expected = completion_logprobs(vlm, segments, runner=build_model_runner(vlm))

    def broken(*tensors):
        if fault == "missing":
            raise NotImplementedError("no such kernel")
        return attend_tails(*tensors) * 0.5

    monkeypatch.setattr("wm.sampling.llama_runner.can_flash", lambda query: True)
    monkeypatch.setattr("wm.sampling.llama_runner.attend_tails", broken)
    monkeypatch.setattr("wm.sampling.kernels.self_test.attend_tails", broken)
    runner = build_model_runner(vlm)
    with caplog.at_level(logging.WARNING):
        assert completion_logprobs(vlm, segments, runner=runner) == expected
        assert completion_logprobs(vlm, segments, runner=runner) == expected
    (record,) = caplog.records
    assert record.message.startswith("fused attention failed (")
    assert ("no such kernel" in record.message) == (fault == "missing")
    assert not runner.self_tests[FUSED].agrees


def test_guidance_is_the_mix_of_three_prompts(vlm):
    """Against three full passes a token, prompts without text and without anything made by hand."""
    source, action = [3, 1, 4, 1], "move the red cup up"
    image = vlm.image_rows[torch.tensor(source)].tolist()
    prompt = flatten(vlm.layout("fdm", source=source, action=action))
    prompts = [
        prompt,
        [vlm.bos_id, vlm.boi_id, *image, vlm.eoi_id, vlm.boi_id],
        [vlm.bos_id, vlm.boi_id],
    ]
    sampling = Sampling(greedy=True, guidance_scale=3.0, image_guidance_scale=1.2)
    ids: list[int] = []
    for _ in range(vlm.tokens_per_image):
        full, without_text, nothing = (reference_logits(vlm, [*p, *ids])[-1][vlm.image_rows] for p in prompts)
        mixed = nothing + 1.2 * (without_text - nothing) + 3.0 * (full - without_text)
        ids.append(int(vlm.image_rows[mixed.argmax()]))
    codes = sample_images(vlm, [prompt], num_candidates=2, sampling=sampling)
    assert vlm.image_rows[codes[0, 1]].tolist() == ids
    unguided = Sampling(guidance_scale=1.0, image_guidance_scale=1.0)
    assert torch.equal(
        sample_images(vlm, [prompt], num_candidates=3, sampling=unguided, seed=2),
        sample_images(vlm, [prompt], num_candidates=3, seed=2),
    )
    many = [flatten(vlm.layout("fdm", source=[k, 1, 4, 1], action=a)) for k, a in enumerate(["put", action, "up up"])]
    guided = Sampling(guidance_scale=2.0, image_guidance_scale=1.5)
    together = sample_images(vlm, many, num_candidates=3, sampling=guided, seed=2)
    for row, prefix in enumerate(many):
        alone = sample_images(vlm, [prefix], num_candidates=2, sampling=guided, seed=2)
        assert torch.equal(alone[0], together[row, :2])


def test_texts_do_not_depend_on_their_batch(vlm):
    prefixes = [flatten(vlm.layout("idm", source=[k, 1, 2, 3], target=[3, k, 2, 1])) for k in range(4)]
    prefixes += [prefix[1:] for prefix in prefixes]
    together = generate_texts(vlm, prefixes, max_new_tokens=4)
    for prefix, text in zip(prefixes, together, strict=True):
        alone = generate_texts(copy.copy(vlm), [prefix], max_new_tokens=4)[0]
        assert alone.ids == text.ids
        assert alone.logprob == pytest.approx(text.logprob, abs=1e-4)
