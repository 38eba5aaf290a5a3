"""The engine's own passes against transformers' modules, and in float64 against the decoder written out by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import ChameleonConfig, ChameleonModel, GemmaConfig, GemmaModel, LlamaConfig, LlamaModel

from tests.helpers import sampling_reference
from tests.helpers.models_reference import lively, reference_logits
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import Decoder, Sampling, generate_texts, sample_images
from wm.sampling.adapted import Matrix
from wm.sampling.kernels.attention import attend_shared, attend_tails
from wm.sampling.kernels.linear import Linear, Linears, linear, linears
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
    decoder = Decoder(model)
    prefixes = [[1, 7, 8, 9, 2], [4, 4, 17], [30, 31, 32, 33, 34, 35, 2]]
    continuations = torch.randint(0, 61, (6, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        prefix, last_PH = decoder.prefill(prefixes)
        rows = decoder.reserve(6, 9)
        by_one = [decoder.extend(continuations[:, k : k + 1], prefix, rows, k, k + 1) for k in range(4)]
        block = decoder.extend(continuations[:, 4:], prefix, rows, 4, 9)
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
    decoder = Decoder(rounded)
    with torch.no_grad():
        prefix, _ = decoder.prefill(prefixes.tolist())
        rows = decoder.reserve(8, 9)
        ours = torch.cat([decoder.extend(continuations[:, k : k + 1], prefix, rows, k, k + 1) for k in range(9)], 1)
        ids = torch.cat((prefixes, continuations), 1)
        theirs, truth = (m.stack(input_ids=ids).last_hidden_state[:, 11:].double() for m in (rounded, exact))
    assert (ours.double() - truth).std() < 1.1 * (theirs - truth).std() < 0.1


def test_rows_at_places_of_their_own():
    """Blocks that begin elsewhere in each row, with wrong tokens left behind them, as speculation leaves them."""
    torch.manual_seed(0)
    model = Bare(STACKS["chameleon"](), torch.float64)
    decoder = Decoder(model)
    continuations = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        prefix, _ = decoder.prefill([[1, 7, 8, 9, 2]])
        rows = decoder.reserve(3, 9)
        wrong = continuations.clone()
        wrong[0, 2:], wrong[1, 5:], wrong[2, 0:] = 3, 3, 3
        decoder.extend(wrong, prefix, rows, 0, 8)
        places = torch.tensor([2, 5, 0])
        block = torch.stack([continuations[row, place : place + 3] for row, place in enumerate(places.tolist())])
        hidden_RSH = decoder.extend(block, prefix, rows, places, 8)
    for row, place in enumerate(places.tolist()):
        theirs = model.hidden([1, 7, 8, 9, 2, *continuations[row].tolist()])
        torch.testing.assert_close(hidden_RSH[row], theirs[5 + place : 8 + place], atol=2e-6, rtol=2e-6)


def test_float64_logits_are_those_of_the_decoder_written_out(vlm):
    vlm.module.double()
    prefix = flatten(vlm.layout("fdm", source=[3, 1, 4, 1], action="move the red cup up"))
    continuation = vlm.image_rows[torch.tensor([[5, 9, 2], [6, 5, 3]])]
    decoder = Decoder(vlm)
    with torch.no_grad():
        shared, last_PH = decoder.prefill([prefix])
        hidden_RSH = decoder.extend(continuation, shared, decoder.reserve(2, 3), 0, 3)
        for row in range(2):
            expected = reference_logits(vlm, [*prefix, *continuation[row].tolist()])[len(prefix) - 1 :]
            ours = decoder.logits(torch.cat((last_PH, hidden_RSH[row])))
            torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-11)
            images = decoder.image_logits(last_PH)[0]
            torch.testing.assert_close(images, expected[0, vlm.image_rows], atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.7, top_k=9, top_p=0.95), Sampling(greedy=True)]
)
def test_codes_equal_those_of_transformers_and_a_growing_cache(vlm, dtype, sampling):
    vlm.module.to(dtype)
    actions = ["put", "move the red cup up", "take the block", "put the cup"]
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action=action)) for k, action in enumerate(actions)]
    ours = sample_images(vlm, prefixes, num_samples=5, sampling=sampling, seed=[3, 4, 5, 6])
    theirs = sampling_reference.sample_images(vlm, prefixes, num_samples=5, sampling=sampling, seed=[3, 4, 5, 6])
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
    bare = sample_images(vlm, [prefix], num_samples=6, seed=3)
    torch.manual_seed(0)
    vlm.module = get_peft_model(vlm.module, config).eval()
    before = {name: tensor.clone() for name, tensor in vlm.module.state_dict().items()}
    adapted = sample_images(vlm, [prefix], num_samples=6, seed=3)
    assert torch.equal(adapted, sampling_reference.sample_images(vlm, [prefix], num_samples=6, seed=3))
    assert not torch.equal(adapted, bare)
    for name, tensor in vlm.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with vlm.module.disable_adapter():
        assert torch.equal(sample_images(vlm, [prefix], num_samples=6, seed=3), bare)


def test_the_prefix_is_held_once(vlm):
    decoder = Decoder(vlm)
    prefix, _ = decoder.prefill([[1, 2, 3, 4, 5]])
    layers, groups, width = len(decoder.view.layers), decoder.view.num_groups, decoder.view.head_width
    assert prefix.num_bytes() == 2 * layers * groups * width * 5 * 4
    assert decoder.reserve(8, 4).num_bytes() == 2 * layers * groups * width * 8 * 4 * 4


def test_progress_is_the_image_as_it_grows(vlm):
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put the cup")) for k in range(2)]
    seen = []
    codes = sample_images(vlm, prefixes, num_samples=3, seed=1, on_progress=seen.append)
    assert [item.codes.shape for item in seen] == [(2, 3, 2), (2, 3, 4)], "4 tokens: two lines of two"
    for item in seen:
        assert item.candidates == range(3)
        assert torch.equal(item.codes, codes[list(item.sources), :, : item.codes.shape[2]])
    seen.clear()
    sample_images(vlm, prefixes, num_samples=3, seed=1, batch_size=2, on_progress=seen.append, progress_tokens=3)
    assert [(item.sources, item.candidates, item.codes.shape[2]) for item in seen] == [
        ((source,), candidates, done)
        for source in range(2)
        for candidates in (range(2), range(2, 3))
        for done in (3, 4)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("prefixes", "each", "tokens"), [(1, 1, 1), (1, 5, 7), (3, 2, 4)])
def test_tails_by_fused_kernels_are_those_by_scores(dtype, prefixes, each, tokens):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, prefixes * each, tokens, 4, 16, generator=generator, dtype=dtype)
    prefix = torch.randn(2, prefixes, 4, 9, 16, generator=generator, dtype=dtype)
    found = attend_tails(query, key, value, *prefix)
    later = torch.arange(tokens) > torch.arange(tokens)[:, None]
    own = key.transpose(1, 2), value.transpose(1, 2)
    expected = attend_shared(query, *prefix, *own, prefix_hidden_PT=None, own_hidden=later[None])
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert found.dtype is dtype


def test_tails_are_used_where_nothing_is_padded(vlm, monkeypatch):
    """The kernels for GPUs, taken for those for CPUs, give what scoring gives without them."""
    sources = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put")) for k in range(2)]
    tails = torch.randint(0, 16, (6, 5), generator=torch.Generator().manual_seed(2))
    decoder, calls = Decoder(vlm), []

    def hidden(prefixes, place):
        prefix, _ = decoder.prefill(prefixes)
        return decoder.extend(tails, prefix, decoder.reserve(6, 5 + place), place, 5 + place)

    with torch.no_grad():
        plain = hidden(sources, 0)
        monkeypatch.setattr("wm.sampling.model_runner.can_flash", lambda query: calls.append(1) or True)
        torch.testing.assert_close(hidden(sources, 0), plain, atol=2e-5, rtol=2e-5)
        assert len(calls) == len(decoder.view.layers)
        hidden([sources[0], sources[1][:-1]], 0)
        hidden(sources, 1)
    assert len(calls) == len(decoder.view.layers), "not for padded prefixes, nor after other tokens"


def test_guidance_is_the_mix_of_three_prompts(vlm):
    """Against three full passes a token, prompts without text and without anything made by hand."""
    source, action = [3, 1, 4, 1], "move the red cup up"
    image = vlm.image_rows[torch.tensor(source)].tolist()
    whole = flatten(vlm.layout("fdm", source=source, action=action))
    prompts = [
        whole,
        [vlm.bos_id, vlm.boi_id, *image, vlm.eoi_id, vlm.boi_id],
        [vlm.bos_id, vlm.boi_id],
    ]
    sampling = Sampling(greedy=True, guidance_scale=3.0, image_guidance_scale=1.2)
    ids: list[int] = []
    for _ in range(vlm.tokens_per_image):
        full, without_text, nothing = (reference_logits(vlm, [*p, *ids])[-1][vlm.image_rows] for p in prompts)
        mixed = nothing + 1.2 * (without_text - nothing) + 3.0 * (full - without_text)
        ids.append(int(vlm.image_rows[mixed.argmax()]))
    codes = sample_images(vlm, [whole], num_samples=2, sampling=sampling)
    assert vlm.image_rows[codes[0, 1]].tolist() == ids
    one = Sampling(guidance_scale=1.0, image_guidance_scale=1.0)
    assert torch.equal(
        sample_images(vlm, [whole], num_samples=3, sampling=one, seed=2),
        sample_images(vlm, [whole], num_samples=3, seed=2),
    )
    many = [flatten(vlm.layout("fdm", source=[k, 1, 4, 1], action=a)) for k, a in enumerate(["put", action, "up up"])]
    drawn = Sampling(guidance_scale=2.0, image_guidance_scale=1.5)
    together = sample_images(vlm, many, num_samples=3, sampling=drawn, seed=2)
    for row, prefix in enumerate(many):
        assert torch.equal(sample_images(vlm, [prefix], num_samples=2, sampling=drawn, seed=2)[0], together[row, :2])


def test_texts_do_not_depend_on_their_company(vlm):
    prefixes = [flatten(vlm.layout("idm", source=[k, 1, 2, 3], target=[3, k, 2, 1])) for k in range(4)]
    prefixes += [prefix[1:] for prefix in prefixes]
    together = generate_texts(vlm, prefixes, max_new_tokens=4)
    for prefix, text in zip(prefixes, together, strict=True):
        alone = generate_texts(copy.copy(vlm), [prefix], max_new_tokens=4)[0]
        assert alone.ids == text.ids
        assert alone.logprob == pytest.approx(text.logprob, abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("Gemma2", {}, r"has the weights pre_feedforward_layernorm\.weight"),
        ("Olmo2", {}, r"has the weights post_feedforward_layernorm\.weight"),
        ("Mistral", {"sliding_window": 8}, "sliding_window = 8"),
        ("Granite", {"residual_multiplier": 0.2}, r"residual_multiplier = 0\.2"),
        ("Granite", {"logits_scaling": 3.0}, r"logits_scaling = 3\.0"),
        ("Granite", {}, r"queries are scaled by 1\.0, not by 8\*\*-0\.5"),
        ("Mixtral", {}, r"has the weights mlp\."),
    ],
)
def test_what_a_llama_has_not_is_refused_and_not_left_out(kind, more, says):
    config = getattr(transformers, f"{kind}Config")(**SIZES, head_dim=8, **more)
    module = getattr(transformers, f"{kind}ForCausalLM")(config)
    with pytest.raises(InputError, match=rf"{kind}DecoderLayer is no decoder of the Llama kind; .*{says}"):
        view_of_modules(module.model, module.lm_head)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("Mistral", {"sliding_window": None}), ("Granite", {"attention_multiplier": 8**-0.5}), ("Qwen2", {})],
)
def test_other_names_for_a_llama_are_taken(kind, more):
    """With biases, as Qwen2 has; against the module itself."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, pad_token_id=0, **more)
    module = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    decoder = Decoder(SimpleNamespace(module=module, image_rows=torch.arange(4), device=torch.device("cpu")))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        found = decoder.logits(decoder.hidden(ids)[0])
        torch.testing.assert_close(found, module(ids).logits[0], rtol=0, atol=1e-6)  # their angles are float32


def test_decoders_of_another_kind_are_refused(vlm):
    class Other:
        module = torch.nn.Linear(2, 2)

    with pytest.raises(InputError, match=r"Linear has no decoder of the Llama kind; its family must give decoder_view"):
        Decoder(Other())
    vlm.inner.model.config.hidden_act = "relu"
    with pytest.raises(InputError, match="activation 'relu' is none of silu"):
        Decoder(vlm)
    vlm.inner.model.config.hidden_act = "silu"
    vlm.inner.model.layers[0].self_attn.q_norm = torch.nn.RMSNorm(16)
    with pytest.raises(InputError, match="queries are normalised by RMSNorm"):
        Decoder(vlm)


@pytest.mark.parametrize("rows", [1, 2, 8, 33])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 24)])
@pytest.mark.parametrize("transposed_up_to", [24 * 40 - 1, 24 * 40])
def test_products_with_copies_are_the_plain_ones(monkeypatch, rows, bias, transposed_up_to):
    """A large matrix is packed, a small one transposed."""
    monkeypatch.setattr("wm.sampling.kernels.linear.TRANSPOSED_UP_TO", transposed_up_to)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=generator)
    given, other = torch.randn(rows, 40, generator=generator), torch.randn(rows, 24, generator=generator)
    packed, plain = linear(Matrix(weight, bias), 8), Linear(weight, bias, None)
    assert packed.weight is None and (packed.packed is None) == (transposed_up_to == 24 * 40) == (
        packed.transposed is not None
    )
    for how in (
        lambda matrix: matrix(given),
        lambda matrix: matrix.plus(given, other),
        lambda matrix: matrix.times(given, other),
        lambda matrix: matrix.activated(given, "silu"),
        lambda matrix: matrix.activated(given, "gelu"),
        lambda matrix: matrix.activated(given, "gelu_tanh"),
    ):
        torch.testing.assert_close(how(packed), how(plain), atol=1e-5, rtol=1e-5)
    two = [Matrix(weight, bias), Matrix(weight[:7] * 2)]
    stacked = linears(two, 8)
    assert len(stacked.parts) == 1
    apart = Linears((Linear(weight, bias, None), Linear(weight[:7] * 2, None, None)))
    torch.testing.assert_close(stacked(given), apart(given), atol=1e-5, rtol=1e-5)
