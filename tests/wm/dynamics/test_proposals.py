"""Actions proposed token by token: log-probabilities written out by hand, texts that join, draws that repeat."""

from collections import Counter
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
import torch

from tests.helpers.models_reference import gather_actions, lively, reference_logits
from wm.dynamics import Sampling, ScoredAction, propose_actions, score_actions
from wm.dynamics.idm import ProposalStream
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import build_model_runner
from wm.sampling.llama_layers import LlamaLayers
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.noise import uniform_noise
from wm.sampling.texts import decode_texts

SOURCE, TARGET = [3, 1, 4, 1], [5, 9, 2, 6]
PAIRS = np.random.default_rng(4).integers(0, 16, (2, 12, 4))
DRAWN = Sampling(temperature=0.8)


@pytest.fixture(scope="module")
def vlm(tiny_base):
    vlm = lively(load_model(tiny_base))
    vlm.module.double()
    return vlm


@pytest.fixture(scope="module")
def runner(vlm):
    return build_model_runner(vlm)


@dataclass
class Proposal:
    """An action and its tokens."""

    action: ScoredAction
    tokens: list


def advance_proposals(vlm, runner, proposals):
    """What the next token of each is."""
    steps = decode_texts(runner, [each.batch for each in proposals])
    return [each.describe_step(step) for each, step in zip(proposals, steps, strict=True)]


def propose_many(vlm, runner, proposals, delays=None):
    """All in one batch, which each joins after its delay and leaves with its end."""
    waiting = list(zip(delays or [0] * len(proposals), proposals, strict=True))
    steps = {id(each): [] for each in proposals}
    for turn in count():
        now = [each for delay, each in waiting if delay <= turn and not each.batch.is_finished]
        if not now and all(delay <= turn for delay, _ in waiting):
            break
        if now:
            for each, step in zip(now, advance_proposals(vlm, runner, now), strict=True):
                steps[id(each)].append(step)
    return [gather(steps[id(each)]) for each in proposals]


def gather(steps):
    actions = gather_actions(steps)
    tokens = [token for step in steps for token in step]
    return [
        Proposal(action, [token for token in tokens if token.sample == sample]) for sample, action in enumerate(actions)
    ]


def propose(vlm, runner, source=SOURCE, target=TARGET, **settings):
    return propose_many(vlm, runner, [ProposalStream(vlm, runner, source, target, **settings)])[0]


def ids_of(vlm, proposal):
    vocabulary = vlm.tokenizer.get_vocab()
    return [vocabulary[token.chosen.name] for token in proposal.tokens]


@pytest.mark.parametrize("sampling", [Sampling(greedy=True), DRAWN, Sampling(temperature=1.5, top_p=0.9, top_k=7)])
def test_log_probabilities_do_not_depend_on_sampling(vlm, runner, sampling):
    """log_softmax over the whole vocabulary of plain forward passes in float64."""
    results = propose(vlm, runner, num_candidates=3, sampling=sampling, seed=3, num_top=5, max_new_tokens=6)
    prefix = flatten(vlm.layout("idm", source=SOURCE, target=TARGET))
    names = {row: name for name, row in vlm.tokenizer.get_vocab().items()}
    spoken = vlm.text_rows.tolist()
    for proposal in results:
        ids = ids_of(vlm, proposal)
        logprobs_TV = torch.log_softmax(reference_logits(vlm, [*prefix, *ids]), dim=-1)[len(prefix) - 1 :]
        expected = [float(logprobs_TV[step, row]) for step, row in enumerate(ids)]
        assert [token.chosen.logprob for token in proposal.tokens] == pytest.approx(expected, abs=1e-9)
        assert proposal.action.logprob == pytest.approx(sum(expected), abs=1e-9)
        assert proposal.action.num_tokens == len(ids)
        for step, token in enumerate(proposal.tokens):
            best = sorted(spoken, key=lambda row, at=step: -float(logprobs_TV[at, row]))[:5]
            assert [belief.name for belief in token.top] == [names[row] for row in best]
            truth = [float(logprobs_TV[step, row]) for row in best]
            assert [belief.logprob for belief in token.top] == pytest.approx(truth, abs=1e-9)


def test_greedy_is_the_action_that_is_proposed_and_scored(vlm, runner):
    actions = propose_actions(vlm, *PAIRS, max_new_tokens=12, runner=runner)
    kinds = Counter()
    for source, target, expected in zip(*PAIRS, actions, strict=True):
        (proposal,) = propose(vlm, runner, source, target, max_new_tokens=12)
        assert (proposal.action.text, proposal.action.num_tokens) == (expected.text, expected.num_tokens)
        assert proposal.action.logprob == pytest.approx(expected.logprob, abs=1e-10)
        assert sum(token.chosen.logprob for token in proposal.tokens) == proposal.action.logprob
        finish = [token.finish for token in proposal.tokens]
        assert set(finish[:-1]) <= {None} and finish[-1] == ("length" if len(finish) == 13 else "stop")
        kinds[finish[-1]] += 1
        if expected.text:
            (score,) = score_actions(vlm, [source], [target], [expected.text], runner=runner)
            assert proposal.action.logprob == pytest.approx(score.logprob, abs=1e-9)
    assert len(kinds) == 2, "the test sees both ends"


def test_a_sampled_action_is_scored_without_its_temperature(vlm, runner):
    hot, seeds = Sampling(temperature=1.5), [11, 12]
    pairs = [np.concatenate([side, side[:1]]) for side in PAIRS[:, :2]]
    # The third pair is the first one with another seed: other noise, another text.
    together = propose_actions(vlm, *pairs, sampling=hot, seed=[*seeds, 13], max_new_tokens=8, runner=runner)
    for source, target, seed, expected in zip(*pairs, [*seeds, 13], together, strict=True):
        (alone,) = propose_actions(
            vlm, [source], [target], sampling=hot, seed=[seed], max_new_tokens=8, batch_size=1, runner=runner
        )
        assert alone.text == expected.text and alone.logprob == pytest.approx(expected.logprob, abs=1e-9)
        (stream,) = propose(vlm, runner, source, target, sampling=hot, seed=seed, max_new_tokens=8)
        assert stream.action.text == expected.text
        (score,) = score_actions(vlm, [source], [target], [expected.text], runner=runner)
        if score.num_tokens == expected.num_tokens:  # else the text has another, shorter spelling
            assert expected.logprob == pytest.approx(score.logprob, abs=1e-9)
    assert together[0].text != together[2].text
    with pytest.raises(InputError, match="expected one seed or 3, got 2"):
        propose_actions(vlm, *pairs, sampling=hot, seed=seeds)


def test_end_sampled_as_last_token_is_not_cut(vlm, runner):
    for source, target in zip(*PAIRS, strict=True):
        (free,) = propose(vlm, runner, source, target, max_new_tokens=20)
        length = len(free.tokens) - 1
        if free.tokens[-1].finish == "stop" and length > 1:
            (exact,) = propose(vlm, runner, source, target, max_new_tokens=length)
            (short,) = propose(vlm, runner, source, target, max_new_tokens=length - 1)
            assert (exact.tokens[-1].finish, exact.action.text) == ("stop", free.action.text)
            assert short.tokens[-1].finish == "length" and free.action.text.startswith(short.action.text)
            return
    raise AssertionError("no pair of the test ends by itself")


def test_texts_join_and_bytes_belong_to_their_tokens(vlm, runner):
    for proposal in propose(vlm, runner, num_candidates=8, sampling=DRAWN, seed=1, num_top=3):
        spoken = [row for row in ids_of(vlm, proposal) if row != vlm.eos_id]
        assert proposal.action.text == vlm.detokenize(spoken)
        assert "".join(token.chosen.text for token in proposal.tokens) == proposal.action.text
        assert proposal.tokens[-1].chosen.name == "</s>" and proposal.tokens[-1].chosen.text == ""
        for token in proposal.tokens:
            same = [belief for belief in token.top if belief.name == token.chosen.name]
            assert all(belief == token.chosen for belief in same)


def test_seed_repeats_and_number_of_samples_changes_none(vlm, runner):
    def texts(number, seed):
        return [
            proposal.action.text for proposal in propose(vlm, runner, num_candidates=number, sampling=DRAWN, seed=seed)
        ]

    many = texts(8, 7)
    assert texts(3, 7) == many[:3] and texts(8, 7) == many
    assert len(set(many)) > 4 and texts(8, 8) != many


def test_samples_follow_the_noise(vlm, runner):
    """By inversion in the order of the vocabulary, written out: one token at a time from plain forward passes."""
    temperature = 0.8
    prefix = flatten(vlm.layout("idm", source=SOURCE, target=TARGET))
    for sample, proposal in enumerate(propose(vlm, runner, num_candidates=3, sampling=DRAWN, seed=9)):
        noise, ids = uniform_noise(9, sample, 33), []
        while len(ids) < 32 and vlm.eos_id not in ids:
            logits_V = reference_logits(vlm, [*prefix, *ids])[-1][vlm.text_rows] / temperature
            cumulative = np.cumsum(torch.softmax(logits_V, 0).numpy())
            ids.append(int(vlm.text_rows[int(np.searchsorted(cumulative, noise[len(ids)], side="right"))]))
        assert [*ids, vlm.eos_id][: len(proposal.tokens)] == ids_of(vlm, proposal)


def test_other_requests_change_nothing(vlm, runner):
    """Of several requests in one batch, that join and end at several times."""
    settings = [
        {"num_candidates": 3, "sampling": DRAWN, "seed": 5},
        {},
        {"sampling": Sampling(temperature=1.2, top_k=3), "num_candidates": 2, "max_new_tokens": 3},
        {"num_top": 2, "max_new_tokens": 9},
    ]
    pairs = list(zip(*PAIRS, strict=True))
    proposals = [ProposalStream(vlm, runner, *pairs[row], **each) for row, each in enumerate(settings)]
    together = propose_many(vlm, runner, proposals, delays=[2, 0, 1, 30])
    for results, pair, each in zip(together, pairs, settings, strict=False):
        alone = propose(vlm, runner, *pair, **each)
        for item, other in zip(results, alone, strict=True):
            assert item.action.text == other.action.text
            assert [token.chosen.name for token in item.tokens] == [token.chosen.name for token in other.tokens]
            assert item.action.logprob == pytest.approx(other.action.logprob, abs=1e-10)


def test_weights_are_read_once_for_all_and_not_ahead(vlm, runner, monkeypatch):
    passes = []
    run = LlamaLayers.run
    monkeypatch.setattr(
        LlamaLayers, "run", lambda self, ids_X, *rest: passes.append(len(ids_X)) or run(self, ids_X, *rest)
    )
    first = ProposalStream(vlm, runner, SOURCE, TARGET, num_candidates=4, sampling=DRAWN, seed=2)
    second = ProposalStream(vlm, runner, TARGET, SOURCE)
    assert passes == []
    assert first.prompt_tokens == len(flatten(vlm.layout("idm", source=SOURCE, target=TARGET)))
    assert len(advance_proposals(vlm, runner, [first])[0]) == 4 and passes == [first.prompt_tokens]
    advance_proposals(vlm, runner, [first, second])
    assert passes[1:] == [second.prompt_tokens, 4]
    advance_proposals(vlm, runner, [second, first])
    assert passes[3:] == [5]
    assert torch.is_grad_enabled()


def test_step_that_fails_can_be_repeated(vlm, runner, monkeypatch):
    """As a batch that does not fit into memory, one by one."""
    expected = propose(vlm, runner, num_candidates=2, sampling=DRAWN, seed=4)
    retried, other = (
        ProposalStream(vlm, runner, SOURCE, TARGET, num_candidates=2, sampling=DRAWN, seed=4),
        ProposalStream(vlm, runner, TARGET, SOURCE),
    )
    steps = [advance_proposals(vlm, runner, [retried])[0]]
    advance_proposals(vlm, runner, [other])
    logits, calls = LlamaRunner.logits, []

    def full(self, hidden_XH):
        calls.append(len(hidden_XH))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return logits(self, hidden_XH)

    monkeypatch.setattr(LlamaRunner, "logits", full)
    with pytest.raises(torch.OutOfMemoryError):
        advance_proposals(vlm, runner, [retried, other])
    monkeypatch.undo()
    while not retried.batch.is_finished:
        steps += advance_proposals(vlm, runner, [retried])
    results = gather(steps)
    assert [item.action.text for item in results] == [item.action.text for item in expected]
    assert [item.action.logprob for item in results] == pytest.approx(
        [item.action.logprob for item in expected], abs=1e-10
    )


def test_non_finite_numbers_are_reported(vlm, runner, monkeypatch):
    proposing = ProposalStream(vlm, runner, SOURCE, TARGET)
    advance_proposals(vlm, runner, [proposing])
    monkeypatch.setattr(LlamaRunner, "logits", lambda self, hidden_XH: torch.full((1, 60), torch.nan))
    with pytest.raises(InputError, match="log-probabilities are nan or infinite; expected numbers"):
        advance_proposals(vlm, runner, [proposing])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_candidates": 0}, "num_candidates must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 84}, "84 new tokens: with both images the sequence would have 97, the model 96 positions"),
        ({"num_top": -1}, "num_top must not be negative, got -1"),
        ({"seed": -1}, "seed and candidate must not be negative"),
        ({"sampling": Sampling(guidance_scale=2.0)}, "guidance is for images"),
        ({"source_N": [99, 0, 0, 0]}, "source image: code 99 is outside the codebook"),
        ({"target_N": [1, 2]}, r"target image: expected 4 codes, got shape \(2,\)"),
    ],
)
def test_bad_settings_are_refused_before_any_work(vlm, runner, settings, says):
    with pytest.raises(InputError, match=says):
        ProposalStream(vlm, runner, **{"source_N": SOURCE, "target_N": TARGET} | settings)
