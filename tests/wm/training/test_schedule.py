"""The learning rate against transformers' schedules, and what a run too short for its schedule is told."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from jobs import pretrain
from jobs.bootstrap import BootstrapRecipe
from jobs.bootstrap import run as run_bootstrap
from jobs.train.job import run
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.config import Recipe
from wm.errors import InputError
from wm.runs import Run
from wm.training import RankInfo, TrainRecipe, fit
from wm.training.checkpoint.identity import check_identity
from wm.training.checkpoint.store import Checkpoint
from wm.training.planning.schedule import learning_rate, schedule_warnings
from wm.training.step import Stepper

PAPER = Path(__file__).resolve().parents[3] / "jobs" / "recipes" / "paper"


def recipe_of(**values: Any) -> TrainRecipe:
    common = {"task": "idm", "base": "b", "out": "o", "triplets": "t", "resources": {"num_workers": 0}}
    length = {} if "epochs" in values else {"max_steps": 100}
    return TrainRecipe.parse(merge_tables(common, length, values), "test")


def rates_of_transformers(peak: float, num_steps: int, warmup_steps: int, floor: float) -> list[float]:
    """Rate of every step. transformers starts its warm-up at 0, so that the first step changes nothing; here it starts
    a step later, at 1 / warmup_steps, and has the peak at its last step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup_steps, num_steps, min_lr_rate=floor)
    factor = schedule.lr_lambdas[0]
    return [peak * factor(step + 1 if step < warmup_steps else step) for step in range(num_steps)]


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(100, 0), (100, 7), (47, 500), (10, 10), (1, 0), (400, 399)])
def test_rates_are_those_of_transformers(num_steps: int, warmup_steps: int, floor: float) -> None:
    settings = {"num_steps": num_steps, "warmup_steps": warmup_steps, "floor": floor}
    rates = [learning_rate(step, peak=2e-4, **settings) for step in range(num_steps)]
    assert rates == pytest.approx(rates_of_transformers(2e-4, **settings), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize("warmup", [{"warmup_ratio": 0.45}, {"warmup_steps": 30}])
def test_adamw_gets_these_rates_also_after_a_resume(
    warmup: dict[str, Any], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triplets = write_triplets(random_rows(tiny_base, 12), tmp_path / "triplets")
    values = {"base": str(tiny_base), "triplets": str(triplets), "out": str(tmp_path / "out"), "max_steps": 7}
    recipe = recipe_of(
        **values, global_batch_size=2, optim={"lr": 1e-3, "min_lr_ratio": 0.1, **warmup},
        checkpoint={"every_steps": 2}, logging={"trackers": []},
    )  # fmt: skip
    rates = rates_of_transformers(1e-3, num_steps=7, warmup_steps=recipe.num_warmup_steps(7), floor=0.1)
    used: list[list[float]] = []
    adamw_step, train_step = torch.optim.AdamW.step, Stepper.step

    def note(self: torch.optim.AdamW, *args: Any) -> Any:
        used.append([group["lr"] for group in self.param_groups])
        return adamw_step(self, *args)

    def die(self: Stepper, step: int, *args: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return train_step(self, step, *args)

    def fit_once() -> list[list[float]]:
        used.clear()
        fit(recipe, RankInfo(0, 1, torch.device("cpu")), digest="d")
        return list(used)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stepper, "step", die)
        fit_once()
    assert used == [[pytest.approx(rate)] * len(used[0]) for rate in rates[:3]]
    while not list((tmp_path / "out" / "checkpoints").glob("step-*/checkpoint.json")):
        time.sleep(0.01)
    assert fit_once() == [[pytest.approx(rate)] * len(used[0]) for rate in rates[2:]]
    logged = [json.loads(line)["lr"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert logged == pytest.approx(rates)


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.03, 0.1, 0.5])
@pytest.mark.parametrize("num_steps", [1, 47, 100, 1333])
def test_a_warmup_ratio_is_that_of_transformers(ratio: float, num_steps: int, tmp_path: Path) -> None:
    # Its newest version has one setting, of which a value below 1 is a share.
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio, use_cpu=True, report_to=[])
    assert recipe_of(optim={"warmup_ratio": ratio}).num_warmup_steps(num_steps) == arguments.get_warmup_steps(num_steps)


@pytest.mark.parametrize("name", ["c-idm", "l-idm", "c-fdm", "c-ft", "l-fdm"])
def test_paper_recipes_on_small_sets_say_what_they_reach(name: str) -> None:
    recipe = TrainRecipe.load(PAPER / f"{name}.toml")
    for rows in (300, 3000, 200_000):
        num_steps = -(-int(rows * recipe.epochs) // recipe.global_batch_size)
        warmup_steps = recipe.optim.warmup_steps
        settings = {"num_steps": num_steps, "warmup_steps": warmup_steps, "floor": 0.0}
        share = max(rates_of_transformers(1.0, **settings))
        text = [line for line in schedule_warnings(recipe, num_steps) if line.startswith("optim.warmup_steps")]
        if warmup_steps > num_steps:
            [line] = text
            assert f"optim.warmup_steps = {warmup_steps} is longer than the run of {num_steps} steps" in line
            assert f"no further than {share:.1%} of its peak" in line
            assert "give optim.warmup_steps=0 optim.warmup_ratio=0.05 (" in line
            repaired = TrainRecipe.load(PAPER / f"{name}.toml", ["optim.warmup_steps=0", "optim.warmup_ratio=0.05"])
            assert not [line for line in schedule_warnings(repaired, num_steps) if "warmup" in line]
        elif warmup_steps > 0.2 * num_steps:
            assert text[0].startswith(f"optim.warmup_steps = {warmup_steps} takes {warmup_steps / num_steps:.0%}")
        else:
            assert text == []


def test_c_idm_on_300_triplets_reaches_9_percent() -> None:
    [line] = [line for line in schedule_warnings(TrainRecipe.load(PAPER / "c-idm.toml"), 47) if "warmup" in line]
    assert line == (
        "optim.warmup_steps = 500 is longer than the run of 47 steps: the learning rate gets no further than 9.4% of "
        "its peak; give optim.warmup_steps=0 optim.warmup_ratio=0.05 (3 of 47 steps), or train for 2,500 steps or more"
    )


@pytest.mark.parametrize(
    ("values", "num_steps", "beginnings"),
    [
        ({"optim": {"warmup_steps": 100}}, 100, ["optim.warmup_steps = 100 takes 100% of the run's 100 steps; give"]),
        (
            {"optim": {"warmup_steps": 101}},
            100,
            ["optim.warmup_steps = 101 is longer than the run of 100 steps: the learning rate gets"],
        ),
        ({"optim": {"warmup_steps": 21}}, 100, ["optim.warmup_steps = 21 takes 21% of the run's 100 steps; give"]),
        ({"optim": {"warmup_steps": 20}}, 100, []),
        ({"optim": {"warmup_ratio": 0.2}}, 100, []),
        (
            {"optim": {"warmup_ratio": 0.5}},
            100,
            ["optim.warmup_ratio = 0.5 takes 50% of the run's 100 steps; give optim.warmup_ratio=0.05 (5 of"],
        ),
        ({"optim": {"warmup_steps": 0}}, 100, []),
        # The share of a run of 3 steps is rounded up to 1, which has the peak: no shorter warm-up is to be had.
        ({"optim": {"warmup_ratio": 0.05}}, 3, []),
        ({"optim": {"warmup_steps": 1}}, 1, []),
        ({"optim": {"warmup_steps": 2}}, 3, ["optim.warmup_steps = 2 takes 67% of the run's 3 steps; give"]),
    ],
)
def test_a_long_warmup_is_reported(values: dict[str, Any], num_steps: int, beginnings: list[str]) -> None:
    lines = schedule_warnings(recipe_of(checkpoint={"every_steps": 1}, **values), num_steps)
    assert len(lines) == len(beginnings)
    assert all(line.startswith(start) for line, start in zip(lines, beginnings, strict=True)), lines


@pytest.mark.parametrize(
    ("num_steps", "warmup_steps", "share"),
    [(1000, 10**7, "0.01%"), (3, 10**12, "3e-10%"), (999_999, 10**6, "99.9999%"), (47, 500, "9.4%")],
)
def test_the_peak_is_no_false_zero_or_whole(num_steps: int, warmup_steps: int, share: str) -> None:
    [line] = schedule_warnings(
        recipe_of(checkpoint={"every_steps": 1}, optim={"warmup_steps": warmup_steps}), num_steps
    )
    assert f"gets no further than {share} of its peak" in line


def test_intervals_beyond_the_run_are_reported() -> None:
    values = {
        "checkpoint": {"every_steps": 100},
        "eval": {"every_steps": 150, "sample_every_steps": 100, "triplets": "h"},
        "logging": {"every_steps": 200},
    }
    lines = schedule_warnings(recipe_of(**values), 100)
    assert [line.split(" is not reached")[0] for line in lines] == [
        "checkpoint.every_steps = 100",
        "eval.every_steps = 150",
        "eval.sample_every_steps = 100",
        "logging.every_steps = 200",
    ]
    assert "a killed run would start again at step 1" in lines[0]
    assert schedule_warnings(recipe_of(checkpoint={"every_steps": 99}, logging={"every_steps": 10}), 100) == []
    # Defaults that a short run does not reach: only what would be lost is worth a line.
    assert [line.split(" = ")[0] for line in schedule_warnings(recipe_of(), 5)] == ["checkpoint.every_steps"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"optim": {"warmup_steps": 5, "warmup_ratio": 0.1}}, "give warmup_steps or warmup_ratio, not both"),
        ({"optim": {"warmup_steps": 0.05}}, "a share of the run is optim.warmup_ratio = 0.05"),
        ({"optim": {"warmup_ratio": 1.5}}, "warmup_ratio = 1.5: "),
        ({"optim": {"warmup_ratio": -0.1}}, "warmup_ratio = -0.1: "),
        ({"optim": {"warmup_steps": 10**400}}, "input should be less than or equal to 1000000000000"),
        ({"epochs": 1e300}, "epochs = 1e+300: input should be less than or equal to 1000000000"),
    ],
)
def test_a_warmup_that_makes_no_sense_is_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe_of(**values)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_raw_weights_are_said_to_change_the_learning_rate() -> None:
    raw = {"task": "fdm", "recognition": {"normalise": False}, "checkpoint": {"every_steps": 9}}
    lines = schedule_warnings(recipe_of(**raw), 100)
    assert len(lines) == 1 and lines[0].startswith("recognition.normalise = false multiplies the loss")
    assert "max_grad_norm = 1 clips" in lines[0]
    for other in ({"task": "idm"}, {"recognition": {"normalise": False, "enabled": False}}, {"recognition": {}}):
        assert schedule_warnings(recipe_of(**(raw | other)), 100) == []
    # Runs of before the key are the runs that they were.
    old, new = recipe_of(task="fdm").model_dump(), recipe_of(**raw).model_dump()
    del old["recognition"]["normalise"]
    assert TrainRecipe.identity_settings(old) == TrainRecipe.identity_settings(recipe_of(task="fdm").model_dump())
    assert TrainRecipe.identity_settings(new)["recognition"]["normalise"] is False


def test_dry_run_and_start_print_the_same_warnings(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    triplets = write_triplets(random_rows(tiny_base, 12), tmp_path / "triplets")
    values = {"base": str(tiny_base), "triplets": str(triplets), "out": str(tmp_path / "out"), "global_batch_size": 4}
    recipe = recipe_of(**values, epochs=1, optim={"warmup_steps": 30, "lr": 1e-3})
    plan = run(recipe, dry_run=True)
    planned = capsys.readouterr().out
    assert (plan["num_steps"], plan["warmup_steps"], plan["peak_share"]) == (3, 30, 0.1)
    assert "3 of them warm the learning rate up to 0.0001, 10.0% of optim.lr = 0.001" in planned
    assert [f"warning: {line}" for line in plan["warnings"]] == planned.splitlines()[-2:]
    run(recipe)
    assert [line for line in capsys.readouterr().out.splitlines() if line in planned.splitlines()] == [
        f"warning: {line}" for line in plan["warnings"]
    ]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["lr"] for line in lines) == pytest.approx(1e-4)
    with pytest.raises(
        InputError, match=r"epochs = 0\.01 shows none of the 12 rows .* expected 0\.042 or more, or max_steps"
    ):
        run(recipe_of(**values | {"out": str(tmp_path / "none")}, epochs=0.01), dry_run=True)


def test_a_run_from_before_a_key_was_added_is_the_same_run(tmp_path: Path) -> None:
    """Folders that older versions left have no ``warmup_ratio``: they are resumed, not refused."""
    recipe = recipe_of(out=str(tmp_path / "out"))
    old = Run(recipe.out, "train", recipe)
    old.start()
    path = tmp_path / "out" / "run.unfinished.json"
    record = json.loads(path.read_text())
    assert record["recipe"]["optim"].pop("warmup_ratio", "absent") is None
    path.write_text(json.dumps(record))
    assert not Run(recipe.out, "train", recipe).is_complete()
    with pytest.raises(InputError, match=r"recipe optim.warmup_ratio = not set there, 0\.1 here"):
        Run(recipe.out, "train", recipe_of(out=recipe.out, optim={"warmup_ratio": 0.1})).is_complete()
    checkpoint = Checkpoint("step-1", {"identity": {"lr": 1.0, "lora": {}}})
    check_identity(checkpoint, {"optim": {"lr": 1.0, "warmup_ratio": None}, "lora": {"margin": None}}, "place")
    with pytest.raises(InputError, match=r"optim\.warmup_ratio = not set there, 0\.1 here"):
        check_identity(checkpoint, {"optim": {"lr": 1.0, "warmup_ratio": 0.1}, "lora": {}}, "place")


def test_null_keys_of_tables_do_not_tell_runs_apart(tmp_path: Path) -> None:
    class Table(Recipe):
        margin: float | None = None
        best_of: int = 1

    class Job(Recipe):
        out: str
        search: Table = Table()

    def is_complete(**values: Any) -> bool:
        return Run(tmp_path, "job", Job(out="o", search=Table(**values))).is_complete()

    Run(tmp_path, "job", Job(out="o")).start()
    path = tmp_path / "run.unfinished.json"
    record = json.loads(path.read_text())
    record["recipe"]["search"] = {"best_of": 1}
    path.write_text(json.dumps(record))
    assert not is_complete()
    for values in ({"margin": 0.0}, {"best_of": 2}):
        with pytest.raises(InputError, match=r"recipe search\.(margin|best_of) = .* there"):
            is_complete(**values)


def test_bootstrap_and_pretrain_report_short_schedules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "idm": {"max_steps": 50, "optim": {"warmup_steps": 100}},
        "fdm": {"epochs": 1.0, "optim": {"warmup_steps": 100}},
    }
    settings |= {"select": {"k": 1}, "pretrain": {"max_steps": 25, "encoder_steps": 5}}  # type: ignore[dict-item]
    values = {"out": str(tmp_path / "out"), "variants": {"unweighted": False}, **settings}
    run_bootstrap(BootstrapRecipe.parse(values, "test"), dry_run=True)
    text = [line.strip() for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert [line.split(" is longer")[0] for line in text if "longer" in line] == [
        "warning: the warm-up of 10 steps of the codec's encoder",
        "warning: the language model's warm-up of 50 steps",
        "warning: optim.warmup_steps = 100",
    ]
    # (step + 1) / 50 against the fall to zero over the last 10 steps: highest at step 20, from 1.
    assert "no further than 42.0% of its peak" in next(line for line in text if "language" in line)
    assert "no further than 50.0% of its peak" in text[2 + ("decoder" in text[1])]
    pretrain.run(pretrain.PretrainRecipe(out=str(tmp_path / "base"), max_steps=250, encoder_steps=50), dry_run=True)
    assert "warning" not in capsys.readouterr().out
