"""The runner over transformers' own forward: against plain loops, for decoders that it alone knows."""

import copy
import random

import pytest
import torch
import transformers

from tests.helpers.code_calls import predict_observations
from tests.helpers.models_families import ACTION, CODES, SOURCE, TARGET, liquid_tokenizer
from tests.helpers.sampling_decoders import (
    DECODERS,
    SETTINGS,
    SIZES,
    adapt,
    build_decoder,
    prefixes_of,
    sample_slowly,
    source_of,
)
from wm.dynamics import Role, Roles, Search, propose_actions, sample_observations, score_actions
from wm.dynamics.idm import ProposalStream
from wm.errors import InputError
from wm.models import flatten
from wm.models.families.liquid import LiquidVLM
from wm.models.vlm import Facts
from wm.sampling import (
    ImageEngine,
    ImageRequest,
    Sampling,
    build_model_runner,
    generate_texts,
    sample_images,
    speculate_images,
)
from wm.sampling.runners import _log_fallback
from wm.sampling.speculative import _log_no_drafts
from wm.sampling.texts import decode_texts
from wm.sampling.transformers_runner import TransformersRunner

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:`is_gradient_checkpointing`")


@pytest.fixture(scope="module")
def decoders():
    return {name: build_decoder(name) for name in DECODERS}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("sampling", SETTINGS[:3], ids=str)
def test_unknown_decoder_samples_as_plain_loop(decoders, name, sampling):
    vlm = decoders[name]
    prefixes = prefixes_of(vlm)
    runner = build_model_runner(vlm)
    assert isinstance(runner, TransformersRunner)
    codes_BKN = sample_images(vlm, prefixes, num_candidates=3, sampling=sampling, seed=7, runner=runner)
    for row, prefix in enumerate(prefixes):
        expected = [sample_slowly(vlm, prefix, candidate, sampling, 7) for candidate in range(3)]
        assert codes_BKN[row].tolist() == expected


@pytest.mark.parametrize("name", DECODERS)
def test_unknown_decoder_is_greedy_as_generate(decoders, name):
    """transformers' own ``generate``, kept to the image codes."""
    vlm = decoders[name]
    prefix = prefixes_of(vlm, 2)[1]
    rows = vlm.image_rows.tolist()
    output = vlm.module.generate(
        torch.tensor([prefix]), max_new_tokens=4, do_sample=False, prefix_allowed_tokens_fn=lambda *_: rows
    )
    codes = sample_images(vlm, [prefix], num_candidates=1, sampling=Sampling(greedy=True))
    assert vlm.image_rows[codes[0, 0]].tolist() == output[0, len(prefix) :].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_unknown_decoder_scores_as_complete_pass(decoders, name):
    vlm = decoders[name]
    sources, targets = [source_of(vlm, row) for row in (1, 1, 2)], [source_of(vlm, row) for row in (2, 3, 4)]
    actions = ["put", ACTION, "take the block"]
    scores = score_actions(vlm, sources, targets, actions)
    for row, score in enumerate(scores):
        prefix = flatten(vlm.layout("idm", source=sources[row], target=targets[row]))
        ids = [*prefix, *vlm.tokenize_action(actions[row]), vlm.eos_id]
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(vlm.module(input_ids=torch.tensor([ids])).logits[0], -1)
        expected = sum(float(logprobs_TV[at - 1, ids[at]]) for at in range(len(prefix), len(ids)))
        assert score.logprob == pytest.approx(expected, abs=1e-9)


def test_window_hides_begin_of_prompt(decoders):
    """What the window leaves out changes nothing, and without a window it would."""
    vlm = decoders["mistral_window"]
    prefix = prefixes_of(vlm, 2)[1]
    other = [*vlm.image_rows[:2].tolist(), *prefix[2:]]
    single = copy.deepcopy(vlm)
    del single.module.model.layers[1]  # two layers look twice as far
    runner = TransformersRunner(single)
    hidden = [runner.prefill([ids])[1] for ids in (prefix, other)]
    assert len(prefix) > 5 + 2 and torch.equal(*hidden)


@pytest.mark.parametrize("name", ["qwen3", "mixtral", "mistral_window"])
def test_requests_join_and_leave_on_fallback(decoders, name):
    vlm = decoders[name]
    rng = random.Random(5)
    engine = ImageEngine(vlm, build_model_runner(vlm), token_budget=120, line_tokens=1)
    requests, codes = {}, {}

    def step():
        for output in engine.step():
            if output.is_complete:
                rows = zip(output.candidates, output.codes.tolist(), strict=True)
                codes.setdefault(output.request_id, {}).update(rows)

    for number, prefix in enumerate(prefixes_of(vlm, 8)):
        sampling = rng.choice(SETTINGS[:3])
        request = ImageRequest(tuple(prefix), rng.randint(1, 3), sampling, seed=number)
        requests[engine.add_request(request)] = request
        for _ in range(rng.randint(0, 2)):
            step()
        if number == 3:
            engine.abort_request(3)
            del requests[3]
    while engine.num_unfinished:
        step()
    assert 3 not in codes
    for request_id, request in requests.items():
        for candidate in request.candidates[:1] if request.sampling.greedy else request.candidates:
            expected = sample_slowly(vlm, request.prefix, candidate, request.sampling, request.seed)
            assert codes[request_id][candidate] == expected


def test_step_that_fails_is_repeated_on_fallback(decoders, monkeypatch):
    """A pass that runs out of memory in its second batch has extended the cache of the first."""
    vlm = decoders["mistral_window"]
    runner = build_model_runner(vlm)
    pair = source_of(vlm, 1), source_of(vlm, 4)
    streams = [ProposalStream(vlm, runner, *order, max_new_tokens=6) for order in (pair, pair[::-1])]
    expected = propose_actions(vlm, [pair[0], pair[1]], [pair[1], pair[0]], max_new_tokens=6)
    extend, calls = TransformersRunner.extend, []

    def fail_now_and_then(self, *arguments):
        calls.append(1)
        if len(calls) % 5 == 2:
            raise torch.OutOfMemoryError("no memory")
        return extend(self, *arguments)

    monkeypatch.setattr(TransformersRunner, "extend", fail_now_and_then)
    texts, failures = ["", ""], 0
    while not all(stream.batch.is_finished for stream in streams):
        unfinished = [row for row, stream in enumerate(streams) if not stream.batch.is_finished]
        try:
            steps = decode_texts(runner, [streams[row].batch for row in unfinished])
        except torch.OutOfMemoryError:
            failures += 1
            continue
        for row, step in zip(unfinished, steps, strict=True):
            texts[row] += "".join(token.released for token in streams[row].describe_step(step))
    assert failures and texts == [action.text for action in expected]


def test_drafts_are_switched_off_on_fallback(decoders, caplog):
    vlm = decoders["qwen3"]
    _log_no_drafts.cache_clear()
    prefixes, drafts = prefixes_of(vlm, 2), torch.tensor([source_of(vlm, 0), source_of(vlm, 1)])
    runner = build_model_runner(vlm)
    for _ in range(2):
        speculation = speculate_images(
            vlm, prefixes, drafts, num_candidates=3, num_draft_tokens=2, seed=4, runner=runner
        )
    assert torch.equal(speculation.codes, sample_images(vlm, prefixes, num_candidates=3, seed=4, runner=runner))
    assert speculation.passes.tolist() == [[3] * 3] * 2 and speculation.acceptance.isnan().all()
    assert [record.getMessage() for record in caplog.records if "draft" in record.getMessage()] == [
        "TransformersRunner cannot check drafts: images are sampled one code a pass, and are the same"
    ]


def test_reason_for_fallback_is_logged_once(decoders, caplog):
    _log_fallback.cache_clear()
    for _ in range(2):
        build_model_runner(decoders["mistral_window"])
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().endswith(
        "which is slower: MistralDecoderLayer is not of the Llama kind: sliding_window = 5"
    )


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("name", ["qwen3", "mixtral"])
def test_adapters_are_applied_on_fallback(decoders, name, settings):
    vlm = adapt(decoders[name], **settings)
    prefix = prefixes_of(vlm, 1)[0]
    codes = sample_images(vlm, [prefix], num_candidates=2, seed=7)[0].tolist()
    assert codes == [sample_slowly(vlm, prefix, candidate, Sampling(), 7) for candidate in range(2)]
    with vlm.module.disable_adapter():
        bare = sample_images(vlm, [prefix], num_candidates=2, seed=7)[0].tolist()
    assert bare == sample_images(decoders[name], [prefix], num_candidates=2, seed=7)[0].tolist()


def test_two_adapters_over_one_base_on_fallback(decoders):
    """As two roles share a base: runners beside each other, without merging."""
    base = decoders["qwen3"]
    runner = build_model_runner(base)
    roles = Roles(
        *(Role(vlm, build_model_runner(vlm, merge=False, beside=runner)) for vlm in (adapt(base), adapt(base, r=2)))
    )
    sources, actions = [source_of(base, 1), source_of(base, 2)], ["put", ACTION]
    settings = {"search": Search(num_candidates=3), "seed": 5}
    ready = predict_observations(
        roles.fdm.model, roles.idm.model, sources, actions, fdm_runner=roles.fdm.runner, idm_runner=roles.idm.runner,
        **settings,
    )  # fmt: skip
    assert ready == predict_observations(roles.fdm.model, roles.idm.model, sources, actions, **settings)
    assert roles.num_bytes() > 0


def test_model_in_training_is_sampled_without_dropout(decoders):
    vlm = adapt(decoders["qwen3"], lora_dropout=0.5)
    prefixes = prefixes_of(vlm, 2)
    expected = sample_images(vlm, prefixes, num_candidates=2, seed=3)
    vlm.module.train()
    is_training = [part.training for part in vlm.module.modules()]
    assert torch.equal(sample_images(vlm, prefixes, num_candidates=2, seed=3), expected)
    assert [part.training for part in vlm.module.modules()] == is_training and any(is_training)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("Gemma2", {"final_logit_softcapping": 30.0}, r"final_logit_softcapping = 30\.0 changes its logits behind"),
        ("Granite", {"logits_scaling": 3.0}, r"logits_scaling = 3\.0 changes its logits behind the head"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "layers of the kind 'conv' hold no keys and values"),
    ],
)
def test_rules_that_fallback_would_drop_are_refused(kind, more, message):
    tokenizer = liquid_tokenizer()
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer) + CODES, **SIZES, **more)
    module = getattr(transformers, f"{kind}ForCausalLM")(config)
    with pytest.raises(InputError, match=rf"{kind}ForCausalLM cannot be sampled from: {message}"):
        build_model_runner(LiquidVLM(module, tokenizer, Facts("base", "codec", 4, CODES)))


def test_prompts_are_checked_on_fallback(decoders):
    vlm = decoders["qwen3"]
    size = len(vlm.tokenizer) + CODES
    for call in (
        lambda: sample_images(vlm, [[size]], num_candidates=1),
        lambda: generate_texts(vlm, [[size]]),
    ):
        with pytest.raises(InputError, match=rf"prefix 0: id {size} is outside the vocabulary \[0, {size}\)"):
            call()
    observations = sample_observations(vlm, [SOURCE, TARGET], ["put", ACTION], num_candidates=2)
    assert observations.shape == (2, 2, 4)
