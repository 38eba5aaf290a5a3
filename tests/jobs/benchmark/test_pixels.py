"""The measurement of pixel-reading models: both ways give the same, ratios are of medians, the record has all parts."""

import json

import pytest

from jobs.benchmark import job as benchmark
from jobs.benchmark import pixels
from jobs.benchmark.pixels import BenchmarkRecipe, Trial, compute_ratios
from jobs.benchmark.pixels_model import PixelShape, write_qwen3_vl
from wm.dynamics.pixel_inverse import load_pixel_inverse
from wm.errors import InputError


def test_ratios_are_of_medians():
    medians = {
        "one": 2.0, "all": 5.0, "one_plain": 2.0, "all_plain": 16.0, "one_large_source": 4.0, "all_large_source": 8.0,
        "annotate": 3.0, "annotate_plain": 6.0,
    }  # fmt: skip
    assert compute_ratios(medians) == {
        "pixels_all_over_one": 2.5, "pixels_all_over_one_plain": 8.0, "pixels_all_over_one_large_source": 2.0,
        "pixels_plain_over_kept": 3.2, "pixels_annotate_plain_over_kept": 2.0,
    }  # fmt: skip


def test_both_ways_do_the_same_work(tmp_path):
    write_qwen3_vl(tmp_path / "model", PixelShape(64, 2, 64, 2), 64)
    inverse = load_pixel_inverse(tmp_path / "model")
    recipe = BenchmarkRecipe(out="x.json", side_px=64, candidates=3, frames=3, max_new_tokens=2)
    trial = Trial(recipe, inverse)
    work = trial.work()
    assert trial.count_tokens() == {"image": 4, "chat": 35, "action": 7}
    store = inverse.shortcuts.reader.store
    for ours, images in (("one", 2), ("all", 4), ("annotate", 3)):
        before = store.num_encoded
        scores = work[ours]()
        assert store.num_encoded - before == images
        plain = work[f"{ours}_plain"]()
        assert [score.text for score in scores] == [score.text for score in plain]
        assert [score.logprob for score in scores] == pytest.approx([score.logprob for score in plain], abs=1e-3)
    # Each turn begins with images that nobody has seen.
    before = store.num_encoded
    work["all_large_source"]()
    work["all_large_source"]()
    assert store.num_encoded - before == 8


def test_a_quick_run_writes_the_record(tmp_path, capsys):
    out = tmp_path / "pixels.json"
    assert benchmark.main(["pixels", f"out={out}", "quick=true"]) == 0
    record = json.loads(out.read_text())
    assert record["benchmark"] == "pixels"
    assert record["parameters"] > 100_000
    assert {figures["count"] for figures in record["cpu_seconds"].values()} == {1}
    assert set(record["ratios"]) == set(compute_ratios(dict.fromkeys(record["cpu_seconds"], 1.0)))
    assert set(record["annotate_s_per_pair"]) == {"annotate", "annotate_plain"}
    assert "pixels_all_over_one" in capsys.readouterr().out
    assert pixels.run(BenchmarkRecipe(out=str(tmp_path / "b.json")), dry_run=True) == {}
    with pytest.raises(InputError, match=r"expected the name of a \.json file"):
        pixels.run(BenchmarkRecipe(out=str(tmp_path)))
