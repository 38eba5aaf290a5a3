"""Cards and action sensitivity through the commands: training, gate, evaluation, wm card."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from jobs import card as card_job
from jobs.card import CardRecipe
from jobs.evaluate import job as evaluate_job
from jobs.gate import GateRecipe
from jobs.gate import run as run_gate
from jobs.train.job import run as run_train
from jobs.train.report import evaluation_lines
from tests.helpers.evaluate_data import ACTIONS, noise_pair, recipe_of, write_triplets
from tests.helpers.models_reference import lively
from wm.errors import InputError
from wm.models import load_codec, load_model, save_model
from wm.packaged import SHIPPED
from wm.training import TrainRecipe


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six triplets of two subsets."""
    folder = tmp_path_factory.mktemp("triplets") / "data"
    return write_triplets(folder, noise_pair, ACTIONS, codec=load_codec(tiny_base))


@pytest.fixture(scope="module")
def trained(tiny_base: Path, triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a short training with evaluations, the best by its action sensitivity."""
    out = tmp_path_factory.mktemp("runs") / "fdm"
    run_train(TrainRecipe.parse(train_settings(tiny_base, triplets, out), "test"))
    return out


def train_settings(base: Path, triplets: Path, out: Path, **more: Any) -> dict[str, Any]:
    """Settings of a training."""
    evaluation = {"triplets": str(triplets), "every_steps": 2, "metric_for_best_model": "sensitivity.shuffled"}
    values = {"task": "fdm", "base": str(base), "triplets": str(triplets), "out": str(out), "max_steps": 4}
    return values | {"resources": {"num_workers": 0}, "global_batch_size": 4, "eval": evaluation} | more


def test_a_training_logs_it_and_writes_a_card(trained: Path, tiny_base: Path, triplets: Path) -> None:
    lines = [json.loads(line) for line in (trained / "gates.jsonl").read_text().splitlines()]
    values = [line["sensitivity.shuffled"] for line in lines]
    assert all({"sensitivity.empty", "ignores_action"} <= set(line) for line in lines)
    assert "sensitivity.opposite" not in lines[0]
    summary = json.loads((trained / "run.json").read_text())["summary"]
    assert summary["best"]["sensitivity.shuffled"] == max(values)
    for name in ("model", "last"):
        card = ModelCard.load(trained / name / "README.md")
        assert card.data.library_name == "peft" and "forward-dynamics" in card.data.tags
        assert str(trained) not in card.content and str(tiny_base) not in card.content
        assert "| even | human | 3 | not given |" in card.content
    step = summary["best"]["step"]
    assert f"| {max(values):.4f} | 6 | training, held out, step {step} |" in (trained / "model/README.md").read_text()


def test_a_training_that_cannot_choose_by_it_is_refused(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'sensitivity.shuffled' is of a forward model; task = 'idm'"):
        TrainRecipe.parse(train_settings(tiny_base, triplets, tmp_path / "out", task="idm"), "test")
    alike = write_triplets(tmp_path / "alike", noise_pair, ["take it", "Take  it"], codec=load_codec(tiny_base))
    with pytest.raises(InputError, match=r"no subset of .*alike has two different actions"):
        run_train(TrainRecipe.parse(train_settings(tiny_base, alike, tmp_path / "out"), "test"))


def test_a_model_that_ignores_its_action_is_warned_of() -> None:
    line = {"step": 3, "nats": 1.0, "preference": 0.5, "has_collapsed": False, "sensitivity.shuffled": -0.001}
    texts = evaluation_lines(line | {"ignores_action": True})
    assert "true action -0.0010 nats an image token over a shuffled one" in texts[0]
    assert texts[1].startswith("warning: at step 3 the model ignores its action")
    assert len(evaluation_lines(line)) == 1


def test_the_gate_decides_by_it(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    paths = {}
    for seed, name in enumerate(("champion", "challenger")):
        paths[name] = str(tmp_path / name)
        save_model(lively(load_model(tiny_base), seed), paths[name], task="fdm", kind="full")
    settings = {**paths, "role": "fdm", "triplets": str(triplets), "metric": "sensitivity.shuffled"}
    record = run_gate(GateRecipe.parse(settings | {"out": str(tmp_path / "out")}, "test"))
    figures = {name: values["sensitivity.shuffled"] for name, values in record["summary"]["figures"].items()}
    assert record["summary"]["gain"] == pytest.approx(figures["challenger"] - figures["champion"])
    with pytest.raises(InputError, match=r"metric = 'sensitivity.shuffled' is of a forward model; role = 'idm'"):
        run_gate(GateRecipe.parse(settings | {"role": "idm", "out": str(tmp_path / "idm")}, "test"))


def test_an_evaluation_measures_it_and_adds_to_a_card(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "fdm"
    save_model(lively(load_model(tiny_base), 3), model, task="fdm", kind="full")
    entry = {"path": str(model), "role": "fdm", "label": "C-FT", "idm": "zero-shot-idm"}
    recipe = recipe_of(
        tiny_base, triplets, tmp_path / "out", models={"ft": entry}, idm="", action_margins=True, seeds=[0],
        search={"num_candidates": [1, 2]}, greedy=False,
    )  # fmt: skip
    evaluate_job.run(recipe)
    table = json.loads((tmp_path / "out" / "tables.json").read_text())["sensitivity"]
    rows = {(row["label"], row["by"], row["other"]): row for row in table["rows"]}
    assert set(rows) == {
        ("C-ZS", "likelihood", "shuffled"),
        ("C-ZS", "likelihood", "empty"),
        ("C-FT", "likelihood", "shuffled"),
        ("C-FT", "likelihood", "empty"),
        ("C-FT", "verifier", "shuffled"),
    }
    assert {row["pairs"] for row in rows.values()} == {6}
    assert rows["C-FT", "likelihood", "shuffled"]["unit"] == "nats an image token"
    # What the printed tables begin with.
    assert capsys.readouterr().out.splitlines()[0].startswith("action sensitivity")
    assert (tmp_path / "out" / "sensitivity.csv").read_text().count("\n") == 1 + 3 * 5
    assert "| C-FT | shuffled | nats an action token |" in (tmp_path / "out" / "sensitivity.md").read_text()
    # The same figures on the model's card.
    settings = {"model": str(model), "evaluation": str(tmp_path / "out"), "license": "mit", "base_model": "me/base"}
    result = card_job.run(CardRecipe.parse(settings, "test"))
    card = ModelCard.load(Path(result["card"]))
    assert card.data.base_model == "me/base" and result["licenses"][-1] == "mit"
    mean = rows["C-FT", "verifier", "shuffled"]["mean"]
    assert f"action sensitivity: true over shuffled, nats an action token | {mean:+.4f}" in card.content
    assert "l1, best of 2" in card.content
    other = {"model": "nano:fdm", "evaluation": str(tmp_path / "out")}
    # What is installed with the package is nobody's to write; of another folder the evaluation knows nothing.
    with pytest.raises(InputError, match="model = 'nano:fdm': it comes with the package, whose files are not written"):
        card_job.run(CardRecipe.parse(other, "test"))
    shutil.copytree(SHIPPED / "fdm", tmp_path / "copy")
    with pytest.raises(InputError, match=r"did not evaluate .*/copy"):
        card_job.run(CardRecipe.parse(other | {"model": str(tmp_path / "copy")}, "test"), dry_run=True)
