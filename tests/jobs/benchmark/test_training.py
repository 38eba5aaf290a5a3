"""The training benchmark: its smallest run, what it counts, both sides' equal work. Speed is not asserted."""

import json
import math

import pytest
import torch

from jobs.benchmark.job import main
from jobs.benchmark.training_counts import ByteMask, peak_bytes, saved_bytes, use_byte_masks
from jobs.benchmark.training_models import Shape, add_peft, build_module, build_ours, our_step, peft_step
from wm.training import Lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`", "ignore:Model has `tie_word")
TINY = Shape(32, 2, 2, 64, 16, tokens_per_image=9, action_tokens=3)


def test_the_smallest_run_writes_every_ratio(tmp_path, capsys):
    out = tmp_path / "training.json"
    assert main(["training", f"out={out}", "quick=true"]) == 0
    record = json.loads(out.read_text())
    names = {"hf_step_over_ours_fdm", "hf_step_over_ours_idm", "hf_memory_over_ours", "peft_activations_over_ours"}
    assert set(record["ratios"]) >= names | {"loader_over_step"}
    assert all(math.isfinite(value) and value > 0 for value in record["ratios"].values())
    figures = record["figures"]
    for task in ("fdm", "idm"):
        first = figures[f"{task}_first_loss"]
        assert first["hf"] == pytest.approx(first["ours"], rel=1e-5)
        peaks = figures["peak_bytes"][task]
        assert record["ratios"][f"hf_memory_over_ours_{task}"] == pytest.approx(peaks["hf"] / peaks["ours"], abs=1e-4)
    rates = figures["rows_per_s"]
    assert record["ratios"]["loader_over_step"] == pytest.approx(rates["loader"] / rates["nano_step"], rel=1e-3)
    assert figures["fdm_rows"] == {"tokens": 25, "completion_tokens": 9}  # bos boi 9 eoi 3 boi 9
    assert set(record["spread"]) == {"hf_fdm", "ours_fdm", "hf_idm", "ours_idm", "loader", "nano_step"}
    assert "loader_over_step" in capsys.readouterr().out


def test_bad_input_is_reported_in_one_line(capsys):
    for arguments, told in (
        (["out=x.txt"], "expected the name of a .json file"),
        (["out=x.json", "rounds=0"], "rounds"),
        ([], "out is missing"),
    ):
        assert main(["training", *arguments]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def test_both_sides_take_the_same_step():
    """Without dropout: the losses of three steps are one another's."""
    lora = Lora(dropout=0.0)
    batch = TINY.batch("fdm")
    vlm = build_ours(build_module(TINY), lora, TINY)
    own = our_step(vlm, batch)
    hf = add_peft(build_module(TINY), lora)
    hf.load_state_dict(vlm.module.state_dict())
    theirs = peft_step(hf, batch)
    losses = [(float(theirs()), float(own())) for _ in range(3)]
    assert losses[0][0] != losses[2][0]
    for hf_loss, our_loss in losses:
        assert hf_loss == pytest.approx(our_loss, rel=1e-5)


def test_peaks_are_counted_to_the_byte():
    given = torch.ones(1000)

    def work():
        first = given + 1
        second = first * 2
        del first
        view = second[:10]
        view.add_(1)
        third = second + 1
        return float(third.sum())

    # Two of 4,000 bytes at a time; the sum adds a number while two of them live.
    assert peak_bytes(work) == 8004
    assert peak_bytes(lambda: given.add_(1)) == 0


def test_saved_bytes_count_a_storage_once_and_no_parameter():
    layer = torch.nn.Linear(8, 8, bias=False)
    x = torch.ones(5, 8)

    def forward():
        hidden = layer(x)
        return (hidden * hidden).sum() + (hidden.view(-1) ** 2).sum()

    assert saved_bytes(forward, layer) == 2 * 5 * 8 * 4


def test_masks_of_bytes_drop_as_dropout_does():
    model = torch.nn.Sequential(torch.nn.Dropout(0.25), torch.nn.Sequential(torch.nn.Dropout(0.5)))
    use_byte_masks(model)
    assert [type(model[0]), type(model[1][0])] == [ByteMask, ByteMask] and model[0].p == 0.25
    torch.manual_seed(0)
    x = torch.ones(10_000, requires_grad=True)
    dropped = model[0](x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(dropped.mean().detach()) == pytest.approx(1, abs=0.02)
    assert saved_bytes(lambda: model[0](x), model) == 10_000
    assert torch.equal(model.eval()(x), x)
