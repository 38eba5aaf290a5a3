"""The GPU benchmark: its smallest run, on a CPU; what it counts; what a time-out and a failure leave; what it needs."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from jobs.benchmark import gpu_flow
from jobs.benchmark.gpu import SHAPE, TINY
from jobs.benchmark.gpu_record import Record, bytes_moved, weight_bytes
from jobs.benchmark.gpu_training import step_flops
from jobs.benchmark.harness import write_record
from jobs.benchmark.job import main
from jobs.benchmark.sampling_models import ShapeModel
from wm.sampling import build_model_runner
from wm.video.device_flow import batch_size

ABSENT = (
    "ray",
    "deepspeed",
    "peft",
    "decord",
    "av",
    "openai",
    "rouge_score",
    "sacrebleu",
    "cv2",
    "matplotlib",
    "boto3",
)
"""What a bare GPU machine may lack; the real names are hidden from the import system, not from its list of packages."""
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding:
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_smallest_run_does_every_part(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert main(["gpu", f"out={out}", "quick=true", "device=cpu"]) == 0
    record = json.loads(out.read_text())
    assert record["failed"] == {} and record["left_out"] == []
    figures = record["figures"]
    ways = {"sampling_n8_static", "sampling_n1_plain", "sampling_n32_plain", "hf_n8_dynamic", "hf_n8_static"}
    assert set(figures) >= ways | {"idm_shared", "speculation_n8", "training_b8_kept", "training_b1_checkpointed"}
    flow = figures["flow_64x48"]
    assert flow["compared_with"] == "OpenCV" and flow["max_distance_px"] < 1e-3 and flow["motion_difference"] < 1e-5
    # Rates are a GPU's, for a plan.
    assert "rates" not in record
    assert figures["check"]["static"] == {"identical": 1.0, "decoded": "static"}
    assert figures["speculation_n1"]["identical_codes"] == 1.0
    assert figures["prefill"]["fused_attention"]
    names = {
        "flow_64x48_over_opencv",
        "n8_over_n1",
        "hf_over_ours_n8",
        "plain_over_static_n8",
        "bandwidth_share_n1_static",
    }
    assert set(record["ratios"]) >= names | {"idm_unshared_over_shared", "sequential_over_speculative_n8"}
    # The share of the bandwidth is of a difference of two times, which a busy machine may turn round.
    assert all(value > 0 or name.startswith("bandwidth_share") for name, value in record["ratios"].items())
    assert "0 failed, 0 left out" in capsys.readouterr().out
    test = figures["sampling_n8_static"]["self_tests"]["static decoding"]
    assert test["agrees"] and test["error"] < 1e-4


def test_flow_gives_the_rates_of_a_plan_and_needs_no_opencv(monkeypatch):
    """Without OpenCV the same program on the CPU is the reference."""
    monkeypatch.setattr(gpu_flow, "SIZES_PX", {"xvid": (48, 64), "h264": (32, 48)})
    monkeypatch.setattr(gpu_flow, "has_opencv", lambda: False)
    record = Record(TINY, "cpu", 1000.0, lambda **parts: parts)
    gpu_flow.measure_flow(record, 1, quick=False)
    assert set(record.measurements) == {"flow_64x48", "flow_48x32"}
    figures = record.measurements["flow_64x48"]
    assert figures["compared_with"] == "the same program on the CPU" and figures["max_distance_px"] == 0
    assert record.rates == {} == record.ratios
    record.measurements |= {"flow_64x48": {"frames_per_s": 600.0}, "flow_48x32": {"frames_per_s": 300.0}}
    rates = {"flow_frames_per_s_xvid": 600.0, "flow_frames_per_s_h264": 300.0, "flow_frames_per_s": 400.0}
    assert gpu_flow.to_rates(record) == pytest.approx(rates)
    del record.measurements["flow_48x32"]
    assert gpu_flow.to_rates(record) == {"flow_frames_per_s_xvid": 600.0}


@pytest.mark.parametrize("size_px", gpu_flow.SIZES_PX.values())
def test_flow_is_measured_in_batches_of_an_annotation(size_px):
    frame_px = size_px[0] * size_px[1]
    assert gpu_flow.FRAMES_PX // frame_px == batch_size(frame_px) + 1


def test_a_run_that_ended_early_is_resumed(tmp_path, capsys, monkeypatch):
    """What was measured stays as it was; a complete run, or one of other settings, is measured anew."""
    out = tmp_path / "gpu.json"
    words = ["gpu", f"out={out}", "quick=true", "device=cpu", 'parts=["idm"]']
    assert main([*words, "seconds=1e-9"]) == 0
    first = json.loads(out.read_text())
    assert first["left_out"] and set(first["figures"]) == {"shape"}
    first["figures"]["idm_shared"] = {"s": 123.0, "pairs_per_s": 0.5}
    out.write_text(json.dumps(first))
    assert main(words) == 0
    record = json.loads(out.read_text())
    assert record["figures"]["idm_shared"]["s"] == 123.0 and "idm_unshared_one_source" in record["figures"]
    assert "idm_shared: kept from the run before" in capsys.readouterr().out
    assert main(words) == 0
    assert json.loads(out.read_text())["figures"]["idm_shared"]["s"] < 100


def test_bytes_are_those_that_a_step_must_move():
    """Counted by hand for two layers: matrices, norms of both kinds, head rows; caches."""
    model = ShapeModel(TINY)
    view = build_model_runner(model).view
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32 + 4 * 2 * 16
    assert weight_bytes(view, 16) == 4 * (2 * layer + 17 * 32)
    steps, pair = 15, 2 * 2 * 32
    own = 8 * sum(range(1, 16))
    numbers = pair * (steps * 12 + own + 8 * steps) + 8 * steps * 32
    assert bytes_moved(view, 16, TINY, 8) == steps * weight_bytes(view, 16) + 4 * numbers


def test_the_large_shape_is_a_7b_model():
    with torch.device("meta"):
        parameters = 2 * 65_536 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * SHAPE.mlp)
    assert 6.9e9 < parameters < 7.1e9 and SHAPE.mlp == 11_008
    assert (SHAPE.codes, SHAPE.prefix, SHAPE.target) == (8192, 1060, 1024)


def test_flops_of_a_training_step():
    model = ShapeModel(TINY)
    length = 12 + 16 - 1
    weights = 2 * (4 * 32**2 + 3 * 32 * 48)
    attended = 2 * 2 * 32 * length * (length + 1) // 2
    assert step_flops(model, 3) == 4 * 3 * (length * weights + attended + 16 * 32 * 64)


def test_what_is_measured_stands_when_the_time_is_up(tmp_path):
    """And what fails is named, and does not end the run."""
    out = tmp_path / "gpu.json"
    record = Record(TINY, "cpu", 1000.0, partial(write_record, str(out), "gpu", ()))
    assert record.measure("first", lambda: {"s": 1.0})["s"] == 1.0

    def broken():
        raise torch.OutOfMemoryError("no\nroom")

    assert record.measure("second", broken) is None
    written = json.loads(out.read_text())
    assert written["figures"]["first"]["s"] == 1.0
    assert written["failed"] == {"second": "OutOfMemoryError: no room"}
    record._begin -= 2000
    assert record.measure("third", lambda: {"s": 1.0}) is None
    assert record.left_out == ["third"]


def test_bad_settings_are_told(tmp_path, capsys):
    out = f"out={tmp_path / 'gpu.json'}"
    for settings, told in (
        (["device=quantum"], "device = 'quantum': torch cannot use it"),
        (["device=cpu", 'parts=["training", "idm"]'], "training must be the last"),
        (["device=cpu", 'parts=["drawing"]'], "parts.0 = 'drawing'"),
    ):
        assert main(["gpu", out, *settings]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_models_sampling_and_the_benchmark_need_no_ray():
    """Nor anything else that a bare GPU machine lacks: they are imported where it cannot be found."""
    modules = ("wm.models", "wm.sampling", "wm.dynamics", "wm.training.loss", "wm.training.adapters")
    lines = [
        f"ABSENT = {ABSENT!r}",
        HIDING,
        *(f"import {name}" for name in (*modules, "jobs.benchmark.job", "jobs.benchmark.gpu")),
    ]
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", "\n".join(["import sys", f"sys.path.insert(0, {root!r})", *lines])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    blocked = [sys.executable, "-c", "\n".join([f"ABSENT = {ABSENT!r}", HIDING, "import ray"])]
    refused = subprocess.run(blocked, capture_output=True, text=True, check=False)
    assert "No module named 'ray'" in refused.stderr
