"""How much at once: what memory allows, and half of what does not fit."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.models_reference import lively
from wm.models import flatten, load_model
from wm.sampling import build_model_runner, sample_images, speculate_images
from wm.sampling.batches import (
    POSITIONS_AT_ONCE,
    halving,
    positions_at_once,
    prefixes_at_once,
    rows_at_once,
    tails_at_once,
)
from wm.sampling.llama_runner import LlamaRunner


@pytest.fixture(scope="module")
def vlm(tiny_base):
    return lively(load_model(tiny_base))


def test_batch_that_does_not_fit_is_halved(vlm, monkeypatch, caplog):
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put the cup")) for k in range(4)]
    expected = sample_images(vlm, prefixes, num_candidates=6, seed=3)
    reserve = LlamaRunner.reserve

    def small(self, num_rows, capacity):
        if num_rows > 4:
            raise torch.OutOfMemoryError("no room")
        return reserve(self, num_rows, capacity)

    monkeypatch.setattr(LlamaRunner, "reserve", small)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sample_images(vlm, prefixes, num_candidates=6, seed=3), expected)
    assert "out of memory with 4 at once; continuing with 2" in caplog.text
    assert "out of memory with 6 at once; continuing with 3" in caplog.text
    monkeypatch.setattr(LlamaRunner, "reserve", lambda self, num_rows, capacity: small(self, num_rows + 4, capacity))
    with pytest.raises(torch.OutOfMemoryError):
        sample_images(vlm, prefixes, num_candidates=6, seed=3)


def test_gpu_batch_is_what_its_memory_holds(vlm, monkeypatch):
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


def test_prefix_is_counted_once_for_all_its_rows(vlm, monkeypatch):
    assert (tails_at_once(1060, 1024, None, 16_384), tails_at_once(1060, 1024, 5, 16_384)) == (14, 5)
    assert tails_at_once(20_000, 1024, None, 16_384) == 1
    assert (prefixes_at_once(1060, 1024, 8, None, 16_384), prefixes_at_once(132, 128, 8, None, 16_384)) == (1, 14)
    assert [prefixes_at_once(132, 128, 8, size, 16_384) for size in (4, 8, 17)] == [1, 1, 2]
    prefix = flatten(vlm.layout("fdm", source=[1, 5, 9, 0], action="put the cup"))
    capacity = len(prefix) + 6 * vlm.tokens_per_image
    reserved = []
    reserve = LlamaRunner.reserve
    monkeypatch.setattr(
        LlamaRunner, "reserve", lambda self, rows, capacity: reserved.append(rows) or reserve(self, rows, capacity)
    )
    for positions, expected in ((capacity, [0, 6]), (capacity - 1, [0, 5, 1])):
        monkeypatch.setattr("wm.sampling.batches.POSITIONS_AT_ONCE", positions)
        reserved.clear()
        sample_images(vlm, [prefix], num_candidates=6)
        assert reserved == expected, "as many as fit beside their prefix, which is there once"


def test_buffers_of_earlier_images_are_freed_for_prefixes(vlm, monkeypatch):
    """A prefix that does not fit beside them is read again without them."""
    prefix = flatten(vlm.layout("fdm", source=[1, 5, 9, 0], action="put the cup"))
    runner = build_model_runner(vlm, stepping="static")
    expected = sample_images(vlm, [prefix], num_candidates=2, runner=runner)
    prefill = LlamaRunner.prefill

    def full(self, prefixes):
        if self.static_steps is not None:
            raise torch.OutOfMemoryError("no room")
        return prefill(self, prefixes)

    monkeypatch.setattr(LlamaRunner, "prefill", full)
    assert runner.static_steps is not None
    assert torch.equal(sample_images(vlm, [prefix], num_candidates=2, runner=runner), expected)


@pytest.mark.parametrize(
    "words", ["[enforce fail] DefaultCPUAllocator: can't allocate memory", "could not create a primitive"]
)
def test_cpu_messages_for_lack_of_memory_are_recognised(words, caplog):
    """torch has no exception of its own for them; the second are oneDNN's."""
    ranges = []

    def work(start, stop):
        if stop - start > 2:
            raise RuntimeError(words)
        ranges.append((start, stop))

    halving(work, 5, 5)
    assert ranges == [(0, 2), (2, 4), (4, 5)] and "out of memory with 5 at once; continuing with 2" in caplog.text
    with pytest.raises(RuntimeError, match=re.escape(words)):
        halving(lambda start, stop: work(0, 9), 2, 2)


def test_drafting_frees_buffers_of_earlier_images(vlm):
    runner = build_model_runner(vlm, stepping="static")
    prefix = flatten(vlm.layout("fdm", source=[1, 5, 9, 0], action="put the cup"))
    expected = sample_images(vlm, [prefix], num_candidates=2, runner=runner)
    assert runner.static_steps is not None
    speculation = speculate_images(
        vlm, [prefix], torch.tensor([[1, 5, 9, 0]]), num_candidates=2, num_draft_tokens=2, runner=runner
    )
    assert runner.static_steps is None and torch.equal(speculation.codes, expected)


def test_other_errors_are_not_lack_of_memory():
    def broken(start, stop):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        halving(broken, 4, 4)
