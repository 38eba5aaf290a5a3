"""How much at once: what memory allows, and half of what does not fit."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.models_reference import lively
from wm.models import flatten, load_model
from wm.sampling import Decoder, sample_images, speculate_images
from wm.sampling.batches import (
    POSITIONS_AT_ONCE,
    halving,
    positions_at_once,
    prefixes_at_once,
    rows_at_once,
    tails_at_once,
)


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


def test_half_of_what_does_not_fit(vlm, monkeypatch, caplog):
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put the cup")) for k in range(4)]
    whole = sample_images(vlm, prefixes, num_samples=6, seed=3)
    reserve = Decoder.reserve

    def small(self, num_rows, room):
        if num_rows > 4:
            raise torch.OutOfMemoryError("no room")
        return reserve(self, num_rows, room)

    monkeypatch.setattr(Decoder, "reserve", small)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_images(vlm, prefixes, num_samples=6, seed=3), whole)
    assert "out of memory with 4 at once; continuing with 2" in caplog.text
    assert "out of memory with 6 at once; continuing with 3" in caplog.text
    monkeypatch.setattr(Decoder, "reserve", lambda self, num_rows, room: small(self, num_rows + 4, room))
    with pytest.raises(torch.OutOfMemoryError):
        sample_images(vlm, prefixes, num_samples=6, seed=3)


def test_a_gpu_takes_what_its_memory_holds(vlm, monkeypatch):
    """A tiny model in float32: 2 layers of 32 numbers twice, 8 x 32 + 3 x 48 worked on."""
    bytes_each = 4 * (2 * 2 * 32 + 8 * 32 + 3 * 48)
    assert positions_at_once(vlm) == POSITIONS_AT_ONCE
    gpu = SimpleNamespace(device=torch.device("cuda"), module=vlm.module)
    free = {"mem_get_info": (900_000, 2_000_000), "memory_reserved": 150_000, "memory_allocated": 50_000}
    for name, value in free.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert positions_at_once(gpu) == 700_000 // bytes_each
    assert positions_at_once(gpu, held_bytes=1_000_000) == 1_400_000 // bytes_each
    assert rows_at_once(100, None, positions_at_once(gpu)) == 700_000 // bytes_each // 100
    assert rows_at_once(10**9, None, positions_at_once(gpu)) == 1
    assert rows_at_once(100, 7, positions_at_once(gpu)) == 7


def test_a_prefix_is_counted_once_for_all_its_rows(vlm, monkeypatch):
    assert (tails_at_once(1060, 1024, None, 16_384), tails_at_once(1060, 1024, 5, 16_384)) == (14, 5)
    assert tails_at_once(20_000, 1024, None, 16_384) == 1
    assert (prefixes_at_once(1060, 1024, 8, None, 16_384), prefixes_at_once(132, 128, 8, None, 16_384)) == (1, 14)
    assert [prefixes_at_once(132, 128, 8, size, 16_384) for size in (4, 8, 17)] == [1, 1, 2]
    prefix = flatten(vlm.layout("fdm", source=[1, 5, 9, 0], action="put the cup"))
    room = len(prefix) + 6 * vlm.tokens_per_image
    reserved = []
    reserve = Decoder.reserve
    monkeypatch.setattr(Decoder, "reserve", lambda self, rows, room: reserved.append(rows) or reserve(self, rows, room))
    for positions, expected in ((room, [0, 6]), (room - 1, [0, 5, 1])):
        monkeypatch.setattr("wm.sampling.batches.POSITIONS_AT_ONCE", positions)
        reserved.clear()
        sample_images(vlm, [prefix], num_samples=6)
        assert reserved == expected, "as many as fit beside their prefix, which is there once"


def test_buffers_of_images_before_make_room(vlm, monkeypatch):
    """A prefix that does not fit beside them is read again without them."""
    prefix = flatten(vlm.layout("fdm", source=[1, 5, 9, 0], action="put the cup"))
    decoder = Decoder(vlm, stepping="static")
    expected = sample_images(vlm, [prefix], num_samples=2, decoder=decoder)
    prefill = Decoder.prefill

    def full(self, prefixes):
        if self.held is not None:
            raise torch.OutOfMemoryError("no room")
        return prefill(self, prefixes)

    monkeypatch.setattr(Decoder, "prefill", full)
    assert decoder.held is not None
    assert torch.equal(sample_images(vlm, [prefix], num_samples=2, decoder=decoder), expected)


@pytest.mark.parametrize(
    "words", ["[enforce fail] DefaultCPUAllocator: can't allocate memory", "could not create a primitive"]
)
def test_a_cpus_words_for_want_of_memory(words, caplog):
    """torch has no exception of its own for them; the second are oneDNN's."""
    done = []

    def work(start, stop):
        if stop - start > 2:
            raise RuntimeError(words)
        done.append((start, stop))

    halving(work, 5, 5)
    assert done == [(0, 2), (2, 4), (4, 5)] and "out of memory with 5 at once; continuing with 2" in caplog.text
    with pytest.raises(RuntimeError, match=re.escape(words)):
        halving(lambda start, stop: work(0, 9), 2, 2)


def test_drafting_gives_the_buffers_of_images_back(vlm):
    decoder = Decoder(vlm, stepping="static")
    prefix = flatten(vlm.layout("fdm", source=[1, 5, 9, 0], action="put the cup"))
    expected = sample_images(vlm, [prefix], num_samples=2, decoder=decoder)
    assert decoder.held is not None
    found = speculate_images(
        vlm, [prefix], torch.tensor([[1, 5, 9, 0]]), num_samples=2, num_draft_tokens=2, decoder=decoder
    )
    assert decoder.held is None and torch.equal(found.codes, expected)


def test_other_errors_are_not_taken_for_want_of_memory():
    def broken(start, stop):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        halving(broken, 4, 4)
