"""Images of requests that join and leave while others are decoded, against each request decoded by itself."""

import random

import pytest
import torch

from tests.helpers.models_reference import lively
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import ImageEngine, ImageRequest, Sampling, build_model_runner, sample_images
from wm.sampling import scheduler as module
from wm.sampling.llama_runner import LlamaRunner


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


@pytest.fixture(scope="module")
def runner(vlm):
    return build_model_runner(vlm)


def request_of(vlm, number, count=2, sampling=None, first=0):
    action = ["put", "move the red cup left", "take the block"][number % 3]
    prefix = flatten(vlm.layout("fdm", source=[number % 7, 5, 9, 0], action=action))
    return ImageRequest(tuple(prefix), count, sampling or Sampling(), seed=number, first_candidate=first)


def alone(vlm, runner, request):
    return sample_images(
        vlm,
        [request.prefix],
        num_candidates=request.num_candidates,
        first_candidate=request.first_candidate,
        sampling=request.sampling,
        seed=request.seed,
        runner=runner,
    )[0]


class Collected:
    """Runs a pool; the images of each key, put together from their pieces."""

    def __init__(self, pool):
        self.pool, self.codes, self.last, self.order = pool, {}, {}, []

    def advance(self):
        for grown in self.pool.step():
            assert grown.request_id not in self.last, "something came after the last"
            if grown.is_complete:
                for candidate, codes in zip(grown.candidates, grown.codes.tolist(), strict=True):
                    assert candidate not in self.codes.setdefault(grown.request_id, {})
                    self.codes[grown.request_id][candidate] = codes
            if grown.is_finished:
                self.last[grown.request_id] = True
                self.order.append(grown.request_id)

    def run(self):
        while self.pool.num_unfinished:
            self.advance()

    def images(self, key, request):
        codes = self.codes[key]
        assert sorted(codes) == list(request.candidates)
        return torch.tensor([codes[candidate] for candidate in request.candidates])


SETTINGS = [Sampling(), Sampling(greedy=True), Sampling(temperature=0.7, top_k=9), Sampling(guidance_scale=2.0)]


@pytest.mark.parametrize("positions", [None, 400, 1])
def test_requests_at_any_time_get_images_of_their_own_batch(vlm, runner, positions):
    rng = random.Random(5)
    pool = ImageEngine(vlm, runner, token_budget=positions, line_tokens=1)
    collected, requests = Collected(pool), {}
    for number in range(12):
        request = request_of(vlm, number, rng.randint(1, 5), rng.choice(SETTINGS), first=rng.randint(0, 3))
        requests[pool.add_request(request)] = request
        for _ in range(rng.randint(0, 2)):
            collected.advance()
    collected.run()
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, runner, request)), request
    assert len({str(collected.codes[key]) for key in requests}) == len(requests)
    assert pool.num_running_rows == pool.num_waiting == 0


def test_float64_images_at_mixed_positions_are_exact(tiny_base):
    vlm = lively(load_model(tiny_base, dtype=torch.float64))
    runner = build_model_runner(vlm)
    pool = ImageEngine(vlm, runner, line_tokens=1)
    collected = Collected(pool)
    requests = {}
    for number in range(3):
        request = request_of(vlm, number, 3)
        requests[pool.add_request(request)] = request
        collected.advance()
    assert len({batch.images.position for batch in pool._running}) > 1, "they should be at several positions"
    collected.run()
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, runner, request))


def test_each_step_returns_a_line_more(vlm, runner):
    pool = ImageEngine(vlm, runner)
    request = request_of(vlm, 3)
    key = pool.add_request(request)
    expected = alone(vlm, runner, request)
    lengths = []
    while pool.num_unfinished:
        (grown,) = pool.step()
        assert grown.request_id == key and torch.equal(grown.codes, expected[:, : grown.codes.shape[1]])
        assert grown.is_complete == grown.is_finished == (grown.codes.shape[1] == vlm.tokens_per_image)
        lengths.append(grown.codes.shape[1])
    assert lengths == sorted(set(lengths)) and lengths[-1] == vlm.tokens_per_image and len(lengths) > 1


def test_aborted_request_leaves_and_others_continue(vlm, runner):
    pool = ImageEngine(vlm, runner, line_tokens=1)
    requests = [request_of(vlm, number) for number in range(3)]
    keys = [pool.add_request(request) for request in requests]
    collected = Collected(pool)
    collected.advance()
    rows = pool.num_running_rows
    pool.abort_request(keys[1])
    pool.abort_request(999)
    collected.advance()
    assert pool.num_running_rows == rows - 2
    collected.run()
    assert keys[1] not in collected.codes
    for key, request in ((keys[0], requests[0]), (keys[2], requests[2])):
        assert torch.equal(collected.images(key, request), alone(vlm, runner, request))
    waiting = pool.add_request(requests[0])
    pool.abort_request(waiting)
    assert pool.num_unfinished == pool.num_waiting == 0 and pool.step() == []


def test_large_request_lets_small_ones_pass(vlm, runner):
    length = len(request_of(vlm, 0).prefix) + 4 + vlm.tokens_per_image
    pool = ImageEngine(vlm, runner, token_budget=8 * length)
    large = pool.add_request(request_of(vlm, 0, 40))
    small = [pool.add_request(request_of(vlm, number, 1)) for number in range(1, 4)]
    collected = Collected(pool)
    collected.run()
    assert collected.order == [*small, large]


def test_lack_of_memory_halves_budget_and_loses_nothing(vlm, runner, monkeypatch, caplog):
    pool = ImageEngine(vlm, runner)
    step = LlamaRunner.step
    most = 6

    def limited(self, groups):
        if sum(len(group.ids) for group in groups) > most:
            raise torch.OutOfMemoryError("no memory")
        return step(self, groups)

    monkeypatch.setattr(LlamaRunner, "step", limited)
    requests = {}
    for number in range(5):
        request = request_of(vlm, number, 3)
        requests[pool.add_request(request)] = request
    collected = Collected(pool)
    with caplog.at_level("WARNING", logger=module.__name__):
        collected.run()
    assert "out of memory" in caplog.text
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, runner, request))
    most = 0
    pool.add_request(requests[0])
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        collected.run()


def test_pass_that_fails_leaves_other_batches_intact(vlm, runner, monkeypatch):
    """Memory runs out in the middle of a line: the batch that stays repeats the step, and loses no code."""
    step, passes = LlamaRunner.step, []

    def fail_once(self, inputs):
        passes.append(len(inputs))
        if len(passes) == 2:
            raise torch.OutOfMemoryError("no memory")
        return step(self, inputs)

    monkeypatch.setattr(LlamaRunner, "step", fail_once)
    engine = ImageEngine(vlm, runner, line_tokens=4)
    requests = {engine.add_request(request): request for request in (request_of(vlm, 0, 3), request_of(vlm, 1, 2))}
    collected = Collected(engine)
    collected.run()
    assert passes[:2] == [2, 2] and passes[2] == 1, "two batches, then the first alone"
    for request_id, request in requests.items():
        assert torch.equal(collected.images(request_id, request), alone(vlm, runner, request))


def test_recorded_steps_run_one_batch_after_another(vlm):
    static = build_model_runner(vlm, stepping="static")
    pool = ImageEngine(vlm, static)
    requests = {}
    for number in range(5):
        request = request_of(vlm, number, 2, SETTINGS[number % 2 * 2])
        requests[pool.add_request(request)] = request
    collected = Collected(pool)
    batches = set()
    while pool.num_unfinished:
        collected.advance()
        batches.add(len(pool._running))
    assert batches <= {0, 1}
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, build_model_runner(vlm), request))


@pytest.mark.parametrize("field", ["num_candidates", "seed", "first_candidate"])
def test_numbers_below_the_minimum_are_refused(field):
    with pytest.raises(InputError, match=f"{field} must be at least ., got -1"):
        ImageRequest(**{"prefix": (1,), "num_candidates": 1} | {field: -1})


@pytest.mark.parametrize(("prefix", "says"), [((), "prefix 0 is empty"), ((10**9,), "outside the vocabulary")])
def test_bad_prefixes_are_refused_when_added(vlm, runner, prefix, says):
    pool = ImageEngine(vlm, runner)
    with pytest.raises(InputError, match=says):
        pool.add_request(ImageRequest(prefix, 1))
    assert pool.num_unfinished == 0
