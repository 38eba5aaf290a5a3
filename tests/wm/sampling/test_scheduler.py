"""Images of requests that join and leave while others are decoded, against each request decoded by itself."""

import random

import pytest
import torch

from tests.helpers.models_reference import lively
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import Decoder, ImagePool, ImageRequest, Sampling, sample_images
from wm.sampling import scheduler as module


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


@pytest.fixture(scope="module")
def decoder(vlm):
    return Decoder(vlm)


def request_of(vlm, number, count=2, sampling=None, first=0):
    action = ["put", "move the red cup left", "take the block"][number % 3]
    prefix = flatten(vlm.layout("fdm", source=[number % 7, 5, 9, 0], action=action))
    return ImageRequest(tuple(prefix), count, sampling or Sampling(), seed=number, first_candidate=first)


def alone(vlm, decoder, request):
    return sample_images(
        vlm,
        [request.prefix],
        num_samples=request.num_samples,
        first_candidate=request.first_candidate,
        sampling=request.sampling,
        seed=request.seed,
        decoder=decoder,
    )[0]


class Collected:
    """Runs a pool; the images of each key, put together from their pieces."""

    def __init__(self, pool):
        self.pool, self.codes, self.last, self.order = pool, {}, {}, []

    def advance(self):
        for grown in self.pool.advance():
            assert grown.key not in self.last, "something came after the last"
            if grown.is_whole:
                for candidate, codes in zip(grown.candidates, grown.codes.tolist(), strict=True):
                    assert candidate not in self.codes.setdefault(grown.key, {})
                    self.codes[grown.key][candidate] = codes
            if grown.is_last:
                self.last[grown.key] = True
                self.order.append(grown.key)

    def run(self):
        while self.pool.num_requests:
            self.advance()

    def images(self, key, request):
        found = self.codes[key]
        assert sorted(found) == list(request.candidates)
        return torch.tensor([found[candidate] for candidate in request.candidates])


SETTINGS = [Sampling(), Sampling(greedy=True), Sampling(temperature=0.7, top_k=9), Sampling(guidance_scale=2.0)]


@pytest.mark.parametrize("positions", [None, 400, 1])
def test_requests_that_come_at_any_time_get_what_they_get_alone(vlm, decoder, positions):
    rng = random.Random(5)
    pool = ImagePool(vlm, decoder, positions=positions, line_tokens=1)
    collected, requests = Collected(pool), {}
    for number in range(12):
        request = request_of(vlm, number, rng.randint(1, 5), rng.choice(SETTINGS), first=rng.randint(0, 3))
        requests[pool.add(request)] = request
        for _ in range(rng.randint(0, 2)):
            collected.advance()
    collected.run()
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, decoder, request)), request
    assert len({str(collected.codes[key]) for key in requests}) == len(requests)
    assert pool.num_rows == pool.num_waiting == 0


def test_float64_images_of_mixed_places_are_exact(tiny_base):
    vlm = lively(load_model(tiny_base, dtype=torch.float64))
    decoder = Decoder(vlm)
    pool = ImagePool(vlm, decoder, line_tokens=1)
    collected = Collected(pool)
    requests = {}
    for number in range(3):
        request = request_of(vlm, number, 3)
        requests[pool.add(request)] = request
        collected.advance()
    assert len({batch.position for batch in pool._running}) > 1, "they should be at several positions"
    collected.run()
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, decoder, request))


def test_lines_are_told_as_they_are_done(vlm, decoder):
    pool = ImagePool(vlm, decoder)
    request = request_of(vlm, 3)
    key = pool.add(request)
    expected = alone(vlm, decoder, request)
    lengths = []
    while pool.num_requests:
        (grown,) = pool.advance()
        assert grown.key == key and torch.equal(grown.codes, expected[:, : grown.codes.shape[1]])
        assert grown.is_whole == grown.is_last == (grown.codes.shape[1] == vlm.tokens_per_image)
        lengths.append(grown.codes.shape[1])
    assert lengths == sorted(set(lengths)) and lengths[-1] == vlm.tokens_per_image and len(lengths) > 1


def test_a_dropped_request_leaves_and_the_others_go_on(vlm, decoder):
    pool = ImagePool(vlm, decoder, line_tokens=1)
    requests = [request_of(vlm, number) for number in range(3)]
    keys = [pool.add(request) for request in requests]
    collected = Collected(pool)
    collected.advance()
    rows = pool.num_rows
    pool.drop(keys[1])
    pool.drop(999)
    collected.advance()
    assert pool.num_rows == rows - 2
    collected.run()
    assert keys[1] not in collected.codes
    for key, request in ((keys[0], requests[0]), (keys[2], requests[2])):
        assert torch.equal(collected.images(key, request), alone(vlm, decoder, request))
    waiting = pool.add(requests[0])
    pool.drop(waiting)
    assert pool.num_requests == pool.num_waiting == 0 and pool.advance() == []


def test_a_large_request_lets_small_ones_pass(vlm, decoder):
    length = len(request_of(vlm, 0).prefix) + 4 + vlm.tokens_per_image
    pool = ImagePool(vlm, decoder, positions=8 * length)
    large = pool.add(request_of(vlm, 0, 40))
    small = [pool.add(request_of(vlm, number, 1)) for number in range(1, 4)]
    collected = Collected(pool)
    collected.run()
    assert collected.order == [*small, large]


def test_too_little_memory_halves_the_room_and_nothing_is_lost(vlm, decoder, monkeypatch, caplog):
    pool = ImagePool(vlm, decoder)
    held = Decoder.step_together
    most = 6

    def limited(self, groups):
        if sum(len(group.ids) for group in groups) > most:
            raise torch.OutOfMemoryError("no memory")
        return held(self, groups)

    monkeypatch.setattr(Decoder, "step_together", limited)
    requests = {}
    for number in range(5):
        request = request_of(vlm, number, 3)
        requests[pool.add(request)] = request
    collected = Collected(pool)
    with caplog.at_level("WARNING", logger=module.__name__):
        collected.run()
    assert "out of memory" in caplog.text
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, decoder, request))
    most = 0
    pool.add(requests[0])
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        collected.run()


def test_steps_that_are_recorded_take_one_batch_after_the_other(vlm):
    static = Decoder(vlm, stepping="static")
    pool = ImagePool(vlm, static)
    requests = {}
    for number in range(5):
        request = request_of(vlm, number, 2, SETTINGS[number % 2 * 2])
        requests[pool.add(request)] = request
    collected = Collected(pool)
    batches = set()
    while pool.num_requests:
        collected.advance()
        batches.add(len(pool._running))
    assert batches <= {0, 1}
    for key, request in requests.items():
        assert torch.equal(collected.images(key, request), alone(vlm, Decoder(vlm), request))


@pytest.mark.parametrize("field", ["num_samples", "seed", "first_candidate"])
def test_numbers_below_the_least_are_refused(field):
    with pytest.raises(InputError, match=f"{field} must be at least ., got -1"):
        ImageRequest(**{"prefix": (1,), "num_samples": 1} | {field: -1})


@pytest.mark.parametrize(("prefix", "says"), [((), "prefix 0 is empty"), ((10**9,), "outside the vocabulary")])
def test_prefixes_that_are_none_are_refused_when_they_come(vlm, decoder, prefix, says):
    pool = ImagePool(vlm, decoder)
    with pytest.raises(InputError, match=says):
        pool.add(ImageRequest(prefix, 1))
    assert pool.num_requests == 0
