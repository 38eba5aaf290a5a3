"""The comparison of recorded steps with plain decoding, and what follows when they disagree."""

import json
import logging
from math import inf

import pytest
import torch

from tests.helpers.models_families import write_emu3, write_liquid
from tests.helpers.models_reference import lively
from wm.models import flatten, load_model
from wm.nano.preset import TINY, TINY_WORDS, NanoPreset, build_nano
from wm.sampling import Sampling, build_model_runner, runners, sample_images
from wm.sampling.kernels import cuda_graphs, self_test
from wm.sampling.kernels.self_test import MAX_ERRORS, choose_positions, choose_sources
from wm.sampling.llama_runner import LlamaRunner

PRESET = NanoPreset(**{**vars(TINY), "channel_multiplier": (1, 1, 1)})
"""16 tokens an image."""
WAY = "static decoding"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("self_test")
    torch.manual_seed(0)
    models = {"chameleon": lively(build_nano(TINY_WORDS, PRESET)[0])}
    for name, write in {"liquid": write_liquid, "emu3": write_emu3}.items():
        write(folder / name)
        models[name] = load_model(folder / name)
    return models


def sample(vlm, stepping, *, sampling=None, num_candidates=2):
    """Images after prompts of two lengths, and the runner."""
    sources = [[code % 16 for code in range(start, start + vlm.tokens_per_image)] for start in (1, 5)]
    prefixes = [
        flatten(vlm.layout("fdm", source=source, action=action))
        for source, action in zip(sources, ["put the cup", "take"], strict=True)
    ]
    runner = build_model_runner(vlm, stepping=stepping)
    codes = sample_images(
        vlm, prefixes, num_candidates=num_candidates, sampling=sampling or Sampling(), seed=3, runner=runner
    )
    return codes, runner


@pytest.mark.parametrize(
    ("family", "sampling"),
    [
        ("chameleon", Sampling()),
        ("chameleon", Sampling(guidance_scale=2.0, image_guidance_scale=1.5)),
        ("liquid", Sampling(top_k=4)),
        ("emu3", Sampling(greedy=True)),
    ],
)
def test_steps_agree_with_plain_decoding(models, family, sampling):
    codes, runner = sample(models[family], "static", sampling=sampling)
    test = runner.self_tests[WAY]
    # Mixing has the coefficients 1 - 1.5, 1.5 - 2 and 2.
    gain = (0.5**2 + 0.5**2 + 2**2) ** 0.5 if sampling.is_guided else 1.0
    assert test.agrees and test.error < 1e-4 < test.limit == pytest.approx(MAX_ERRORS[torch.float32] * gain)
    assert test.positions[:2] == (0, 1) and runner.stepping == "static"
    assert torch.equal(codes, sample(models[family], "plain", sampling=sampling)[0])
    described = json.loads(json.dumps(runner.describe_decoding()))
    assert described["stepping"] == "static" and described["self_tests"][WAY]["agrees"] is True


@pytest.mark.parametrize("fault", ["wrong_scale", "late_only", "nan"])
def test_a_wrong_kernel_is_not_used(models, monkeypatch, caplog, fault):
    """One whose attention is off everywhere, one from the middle of the image on, one that gives NaN."""
    vlm = models["chameleon"]
    expected, _ = sample(vlm, "plain")
    attend = cuda_graphs.attend_shared

    def wrong(query, prefix_keys, prefix_values, own_keys, own_values, **hidden):
        mixed = attend(query, prefix_keys, prefix_values, own_keys, own_values, **hidden)
        # The mask says where the step is: a fault at late positions alone must be seen too.
        position = int((~hidden["own_hidden"]).sum()) - 1
        if fault == "late_only":
            return mixed * (0.5 if position > 8 else 1.0)
        return mixed * (torch.nan if fault == "nan" else 0.8)

    monkeypatch.setattr(cuda_graphs, "attend_shared", wrong)
    with caplog.at_level(logging.WARNING):
        codes, runner = sample(vlm, "static")
    assert torch.equal(codes, expected) and runner.stepping == "plain" and runner.static_steps is None
    test = runner.self_tests[WAY]
    assert not test.agrees and test.error > 0.01
    assert (test.error == inf) == (fault == "nan")
    # Others' records come through the same logger where a test before has turned them on.
    (record,) = [item for item in caplog.records if item.levelno >= logging.WARNING]
    assert "static decoding failed (its logits differ by" in record.message
    assert record.message.endswith("continuing with plain decoding")


def test_the_kernels_are_given_up_before_the_graph(models, monkeypatch):
    """Without a GPU the recording itself is left out: what is tested is the order of the ways."""
    ways = []
    monkeypatch.setattr(cuda_graphs, "can_attend", lambda runner: runner.kernels)
    monkeypatch.setattr(cuda_graphs.StaticSteps, "__init__", lambda self, *_: None)
    monkeypatch.setattr(cuda_graphs.StaticSteps, "record", lambda self: None)

    def disagree(steps, candidates, noise_LR, *, each):
        ways.append((candidates.runner.stepping, candidates.runner.kernels))
        return self_test.SelfTest(agrees=False, error=1.0, limit=0.1, positions=(0,))

    monkeypatch.setattr(cuda_graphs, "compare_steps", disagree)
    codes, runner = sample(models["chameleon"], "graph")
    assert ways == [("graph", True), ("graph", False)] and runner.stepping == "plain"
    assert torch.equal(codes, sample(models["chameleon"], "plain")[0])
    assert list(runner.self_tests) == ["graph decoding with Triton kernels", "graph decoding"]


def test_no_memory_for_the_test_is_plain_decoding(models, monkeypatch, caplog):
    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(self_test, "_relative_error", exhaust)
    with caplog.at_level(logging.WARNING):
        codes, runner = sample(models["chameleon"], "static")
    assert torch.equal(codes, sample(models["chameleon"], "plain")[0])
    assert runner.self_tests[WAY].detail == "no memory for its self-test" and "no memory" in caplog.text


def test_a_full_memory_is_no_fault_of_a_kernel(monkeypatch):
    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(self_test, "attend_tails", exhaust)
    with pytest.raises(torch.OutOfMemoryError):
        self_test.compare_fused_attention(2, 8, torch.float32, torch.device("cpu"))


def test_buffers_are_compared_once(models, monkeypatch):
    counts = []
    compare = cuda_graphs.compare_steps
    monkeypatch.setattr(cuda_graphs, "compare_steps", lambda *args, **keys: counts.append(1) or compare(*args, **keys))
    vlm = models["chameleon"]
    runner = build_model_runner(vlm, stepping="static")
    prefix = flatten(vlm.layout("fdm", source=[1] * vlm.tokens_per_image, action="put the cup"))
    first = sample_images(vlm, [prefix], num_candidates=2, seed=3, runner=runner)
    assert torch.equal(sample_images(vlm, [prefix], num_candidates=2, seed=3, runner=runner), first)
    assert len(counts) == 1


def test_a_large_batch_is_compared_in_part_and_leaves_nothing(models, monkeypatch):
    """Memory that is planned for a batch has no space for its cache once more."""
    vlm, rows = models["chameleon"], []
    reserve = LlamaRunner.reserve
    monkeypatch.setattr(LlamaRunner, "reserve", lambda self, num, size: rows.append(num) or reserve(self, num, size))
    prefixes = [
        flatten(vlm.layout("fdm", source=[code] * vlm.tokens_per_image, action="put the cup" if code % 2 else "take"))
        for code in range(6)
    ]
    runner = build_model_runner(vlm, stepping="static")
    codes = sample_images(vlm, prefixes, num_candidates=1, seed=3, runner=runner)
    assert runner.self_tests[WAY].agrees and choose_sources(6) == [0, 2, 3, 5]
    # None as the prefixes are read, those of the steps, those of the comparison, and none after it.
    assert rows == [0, 6, 4, 0]
    plain = build_model_runner(vlm, stepping="plain")
    assert torch.equal(codes, sample_images(vlm, prefixes, num_candidates=1, seed=3, runner=plain))


def test_errors_are_relative_to_the_deviation():
    reference = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    # Deviation of 1, 3, 5, 7: sqrt(20 / 3); difference of .5 everywhere.
    assert self_test._relative_error(reference + 0.5, reference) == pytest.approx(0.5 / (20 / 3) ** 0.5)
    assert self_test._relative_error(reference * torch.nan, reference) == inf
    zeros = torch.zeros(2, 2)
    assert self_test._relative_error(zeros, zeros) == 0.0


def test_positions_are_at_the_edges():
    assert [choose_sources(count) for count in (1, 2, 4, 100)] == [[0], [0, 1], [0, 1, 2, 3], [0, 33, 66, 99]]
    assert choose_positions(1024) == [0, 1, 127, 128, 1022]
    assert choose_positions(16) == [0, 1, 14] and choose_positions(2) == [0] and choose_positions(1) == []


@pytest.mark.parametrize(("capability", "is_slow"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_a_card_without_bfloat16_is_named(caplog, capability, is_slow):
    runners._warn_of_slow_type.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            runners._warn_of_slow_type("Some card", capability)
    assert len(caplog.records) == int(is_slow)
    assert not is_slow or "Some card has no units for bfloat16" in caplog.text
