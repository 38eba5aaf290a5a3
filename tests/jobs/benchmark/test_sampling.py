"""The sampling benchmark: its smallest run, what it times and what it counts."""

import json

import pytest
import torch

from jobs.benchmark.harness import turns
from jobs.benchmark.job import main
from jobs.benchmark.sampling_models import Shape, ShapeModel, generate
from jobs.benchmark.sampling_work import count_sampling, count_scoring, score_unshared
from wm.dynamics.scoring import completion_logprobs
from wm.sampling import build_model_runner

NAMES = {
    "hf_over_ours_n8",
    "hf_over_ours_n8_long",
    "n8_over_n1_over_gemm",
    "step_over_gemm_b1",
    "step_over_gemm_b8",
    "sampler_flops",
    "idm_flops",
    "idm_unshared_over_shared",
    "speculative_over_formula",
    "speculative_identical",
    "ragged_n8_over_n1",
    "shared_over_merged_step_b1",
    "shared_over_merged_step_b8",
    "shared_over_merged_bytes",
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_smallest_run_has_every_ratio_by_name(tmp_path, capsys):
    out = tmp_path / "sampling.json"
    assert main(["sampling", f"out={out}", "quick=true"]) == 0
    record = json.loads(out.read_text())
    assert set(record["ratios"]) >= NAMES
    assert all(value > 0 for value in record["ratios"].values())
    assert record["ratios"]["speculative_identical"] == 1.0
    assert "not measured (no fdm)" in capsys.readouterr().out


def test_a_model_without_triplets_is_refused(tmp_path, capsys):
    assert main(["sampling", f"out={tmp_path / 'x.json'}", "fdm=somewhere"]) == 2
    assert "give both or neither" in capsys.readouterr().err


def test_the_baseline_draws_images_too():
    """transformers' own forward never would: its image logits are the smallest number there is."""
    model = ShapeModel(Shape(32, 1, 2, 64, 40, prefix=12, target=9))
    for cache in ("dynamic", "static"):
        ids = generate(model, model.shape.ids(12), 8, cache)
        assert ids.shape == (8, 21)
        assert torch.isin(ids[:, 12:], model.image_rows).any()
        assert len({tuple(row) for row in ids.tolist()}) > 1


def test_counts_follow_from_the_shape():
    shape = Shape(32, 2, 2, 64, 16, prefix=12, target=9)
    model = ShapeModel(shape).double()
    weights = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.mlp)

    def one(prefix_reads, rows):
        """Products with weights; of queries with keys and weights with values; the head."""
        tokens = prefix_reads * 12 + rows * 8
        attended = prefix_reads * 12 * 12 + rows * sum(12 + place + 1 for place in range(8))
        return 2 * (tokens * weights + 2 * attended * shape.width * shape.layers + rows * 9 * shape.width * 16)

    counts = count_sampling(model, 8)
    assert counts["flops_shared"] == one(1, 8)
    assert counts["flops_naive"] == one(8, 8)
    each = 2 * shape.layers * shape.width * 4
    assert counts["bytes_shared"] == each * (12 + 8 * 9)
    assert counts["bytes_naive"] == each * 8 * (12 + 9)
    scoring = count_scoring(model, 8, 3)
    tail = 9 + 1 + 3 + 1
    head = 2 * 8 * 4 * shape.width * shape.vocabulary
    attended = 8 * (12 + tail) ** 2
    naive = 2 * (8 * (12 + tail) * weights + 2 * attended * shape.width * shape.layers) + head
    assert scoring["flops_naive"] == naive
    attended = 12 * 12 + 8 * tail * (12 + tail)
    shared = 2 * ((12 + 8 * tail) * weights + 2 * attended * shape.width * shape.layers) + head
    assert scoring["flops_shared"] == shared


def test_unshared_scores_are_the_shared_ones():
    model = ShapeModel(Shape(32, 2, 2, 64, 16, prefix=12, target=9)).double()
    prompts = model.inverse_prompts(8, 3)
    with torch.no_grad():
        unshared = score_unshared(model, build_model_runner(model), prompts)
    shared = [logprob for logprob, _ in completion_logprobs(model, prompts)]
    assert unshared.tolist() == pytest.approx(shared, abs=1e-10)


def test_turns_time_the_slower_of_two_once():
    calls = {"quick": 0, "slow": 0, "other": 0}

    def work(name, steps):
        def do():
            calls[name] += 1
            return sum(range(steps))

        return do

    kinds = {"quick": work("quick", 3_000_000), "slow": work("slow", 12_000_000), "other": work("other", 10)}
    seconds = turns(kinds, 2, ("quick", "slow"), 20)
    assert calls["slow"] == 1 and len(seconds["slow"]) == 1
    assert len(seconds["quick"]) == 2
    assert calls["other"] == 1 + 2 * 20
