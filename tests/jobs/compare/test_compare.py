"""Two systems compared from hand-made results whose differences are known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.__main__ import main as wm
from jobs.compare import CompareRecipe, run
from jobs.compare.job import to_settings
from tests.helpers.evaluate_data import noise_pair, write_triplets
from wm.errors import InputError
from wm.evaluation.image_scoring import VALUE_SCHEMA
from wm.evaluation.judge.score_files import SCORES_SCHEMA
from wm.evaluation.probe import Likelihoods, Pairs, ProbeScores
from wm.evaluation.probe_arrays import to_arrays
from wm.runs import write_json
from wm.tables import write_table

COUNT = 16
"""Items; those of even number are of one subset, the others of the other."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_triplets(tmp_path_factory.mktemp("bench"), noise_pair, ["move the red cup"] * COUNT)


def write_run(folder: Path, stage: str, bench: Path, **recipe: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"triplets": str(bench), "subset": "dataset", **recipe}
    write_json(folder / "run.json", {"stage": stage, "recipe": recipe, "inputs": {}, "finished_at": "2026"})
    return folder


def write_judged(
    folder: Path, bench: Path, scores: dict[str, list[list[float | None]]], model: str = "m", **keys: Any
) -> Path:
    """Scores of each system, a list a training run, an item each; None: not judged."""
    rows = [
        {
            "triplet_id": f"t{item}", "subset": "", "system": system, "run": run, "sampling_seed": 0,
            "num_candidates": 1, "repeat": 0, "editing_success": value, "minimal_editing": value, "final": value,
            "failure": None if value is not None else "refusal", "key": "k",
        }
        for system, runs in scores.items()
        for run, values in enumerate(runs)
        for item, value in enumerate(values)
    ]  # fmt: skip
    write_table(rows, folder / "scores.parquet", SCORES_SCHEMA)
    return write_run(folder, "judge", bench, model=model, **keys)


def write_scored(folder: Path, bench: Path) -> Path:
    """L1 of two systems, near and far."""
    rows = [
        {"triplet_id": f"t{item}", "system": system, "run": 0, "sampling_seed": 0, "decoding": "unknown",
         "candidates": [0], "chosen_at": [], "pixels_sha256": "", "l1": 0.1 + item / 100 + gap + item * gap / 9}
        for system, gap in (("near", 0.0), ("far", 0.05))
        for item in range(COUNT)
    ]  # fmt: skip
    write_table(rows, folder / "values" / "part-000000.parquet", VALUE_SCHEMA)
    return write_run(folder, "score", bench)


def compare(first: str, second: str, **keys: Any) -> dict[str, Any]:
    document = run(CompareRecipe.parse({"first": first, "second": second, **keys}, "test"))
    return {entry["metric"]: entry for entry in document["metrics"]} | {"": document}


BASE = [float(item % 5) for item in range(COUNT)]
BETTER = [value + (2 + item / 8 if item % 2 == 0 else 0.0) for item, value in enumerate(BASE)]
"""Better on every even item by 2 to 3.75, by 2.875 on average, as good on the odd ones."""


def test_a_known_difference_by_subset(bench, tmp_path, capsys):
    judged = write_judged(tmp_path / "j", bench, {"A": [BETTER], "B": [BASE]})
    entry = compare(f"{judged}:A", "B")["judge.final"]
    even, odd = entry["by_subset"]["even"], entry["by_subset"]["odd"]
    assert (even["difference"], odd["difference"]) == (pytest.approx(2.875), 0.0)
    # Eight of eight in one direction: 2 of 2^8 signs are as extreme; twice that for two subsets.
    assert even["p"] == pytest.approx(2 / 256) and even["p_corrected"] == pytest.approx(4 / 256) and even["is_sure"]
    assert (odd["low"], odd["high"], odd["p"], odd["p_corrected"], odd["is_sure"]) == (0.0, 0.0, 1.0, 1.0, False)
    assert entry["macro"]["difference"] == pytest.approx(1.4375) == pytest.approx(entry["micro"]["difference"])
    # Within the subsets alone: that of all items reaches further.
    assert 1.2 < entry["macro"]["low"] < 1.4375 < entry["macro"]["high"] < 1.7
    assert entry["micro"]["low"] < entry["macro"]["low"] and entry["micro"]["num_items"] == COUNT
    assert entry["verdict"] == (
        f"A is better by 1.44 [{entry['macro']['low']:.2f}, {entry['macro']['high']:.2f}], macro average, 16 items, "
        "1 training seed; surely on even, on odd undecided"
    )
    text = capsys.readouterr().out
    assert "One training seed" in text and "wm compare --help" in text and "Holm" not in text
    assert f"judge's score (m): {entry['verdict']}" in text
    # The other way round the same is said.
    turned = compare("B", f"{judged}:A")["judge.final"]
    assert turned["verdict"] == entry["verdict"] and turned["macro"]["difference"] == pytest.approx(-1.4375)


def test_what_one_lacks_is_named_and_counts_for_neither(bench, tmp_path, capsys):
    partial = [None if item in (0, 3) else value for item, value in enumerate(BETTER)]
    judged = write_judged(tmp_path / "j", bench, {"A": [partial], "B": [BASE]})
    entry = compare(f"{judged}:A", f"{judged}:B")["judge.final"]
    assert entry["missing"] == {"first": ["t0", "t3"], "second": []} and entry["micro"]["num_items"] == COUNT - 2
    # The item of the smallest gain is left out of both means.
    assert entry["by_subset"]["even"]["difference"] == pytest.approx(
        np.mean([2 + item / 8 for item in range(2, 16, 2)])
    )
    assert "'A' lacks 2 of 16 triplets in every metric: t0, t3; they count for neither" in capsys.readouterr().out


def test_judgements_are_compared_where_the_question_was_the_same(bench, tmp_path, capsys):
    scores = {"A": [BETTER], "B": [BASE]}
    judged = write_judged(tmp_path / "r" / "j", bench, scores, detail="low", max_tokens=500)
    # What an earlier version did not record was its default.
    old = write_judged(tmp_path / "o", bench, scores, detail="auto", source_view="as_seen", temperature=None)
    assert compare(f"{old}:A", f"{write_judged(tmp_path / 'p', bench, scores)}:B")["judge.final"]
    with pytest.raises(
        InputError, match=r"measured alike: .*: detail is 'low' and 'auto', max_tokens is '500' and '300'$"
    ):
        compare(f"{judged}:A", f"{old}:B")
    # Two judgings by one model that differ: both are shown, by what they differ in.
    other = write_judged(tmp_path / "r" / "k", bench, scores, detail="high", max_tokens=500)
    text = compare(f"{tmp_path / 'r'}:A", "B")[""]
    assert [entry["basis"].split(", ")[1] for entry in text["metrics"][:2]] == ["detail low", "detail high"]
    shown = capsys.readouterr().out
    assert "(m, detail low, source_view as_seen, temperature default, max_tokens 500)" in shown
    # Where something else can be compared the reason is a line.
    write_scored(tmp_path / "x" / "s", bench)
    write_judged(tmp_path / "x" / "j", bench, {"near": [BASE]}, detail="low")
    write_judged(tmp_path / "y" / "j", bench, {"far": [BASE]}, source_view="full")
    write_scored(tmp_path / "y" / "s", bench)
    assert list(compare(f"{tmp_path / 'x'}:near", f"{tmp_path / 'y'}:far")) == ["l1", ""]
    shown = capsys.readouterr().out
    assert "measured otherwise: judge.final, judge.editing_success, judge.minimal_editing: detail is 'low' and" in shown
    with pytest.raises(InputError, match=r"both have 'l1'; not comparable: judge\.final, .*: detail is"):
        compare(f"{tmp_path / 'x'}:near", f"{tmp_path / 'y'}:far", metrics=["judge.final"])
    assert other.is_dir()


def test_items_on_fewer_runs_are_named(bench, tmp_path, capsys):
    lacking = [None if item < 2 else value for item, value in enumerate(BASE)]
    judged = write_judged(tmp_path / "j", bench, {"A": [BASE, BETTER], "B": [BASE, lacking], "C": [BASE]})
    entry = compare(f"{judged}:A", "B")["judge.final"]
    # In the run that B lacks, A is better by 2: that is no difference of the two.
    assert entry["fewer_runs"] == {"t0": [1, 1], "t1": [1, 1]} and entry["missing"] == {"first": [], "second": []}
    gains = [0.0 if item < 2 else (BETTER[item] - BASE[item]) / 2 for item in range(COUNT)]
    assert entry["micro"]["difference"] == pytest.approx(np.mean(gains))
    shown = capsys.readouterr().out
    assert "2 triplets are compared on fewer runs than 2 and 2: t0 (1 and 1), t1 (1 and 1), in every metric" in shown
    # Runs that are not paired: each has its own.
    entry = compare(f"{judged}:B", "C")["judge.final"]
    assert entry["fewer_runs"] == {"t0": [1, 1], "t1": [1, 1]}


def test_results_of_several_benches_below_a_folder(bench, tmp_path):
    other = write_triplets(tmp_path / "other", noise_pair, ["take"] * 6)
    for file in other.glob("*.parquet"):
        _rename_ids(file)
    write_judged(tmp_path / "r" / "a", bench, {"A": [BETTER], "B": [BASE]})
    write_judged(tmp_path / "r" / "b", other, {"C": [BASE[:6]]})
    # Another system's bench is not in the way.
    assert compare(f"{tmp_path / 'r'}:A", "B")["judge.final"]["micro"]["num_items"] == COUNT
    write_judged(tmp_path / "r" / "c", other, {"A": [BASE[:6]]}, model="n")
    with pytest.raises(
        InputError,
        match=r"'A' has results of two benches: .*r/a of 16 triplets, .*r/c of 6, 0 in common; "
        r"name a narrower folder, such as .*r/c:A",
    ):
        compare(f"{tmp_path / 'r'}:A", "B")


def test_runs_are_paired_by_their_seed(bench, tmp_path):
    runs = [[value + gain for value in BETTER] for gain in (0.0, 1.0, 2.0)]
    judged = write_judged(tmp_path / "j", bench, {"A": runs, "B": [BASE, BASE, BASE], "C": [BASE, BETTER, BETTER]})
    entry = compare(f"{judged}:A", "B")["judge.final"]
    assert entry["differences_of_runs"] == pytest.approx({"0": 1.4375, "1": 2.4375, "2": 3.4375})
    assert entry["std_over_runs"] == pytest.approx(1.0) and entry["is_sure"]
    assert "16 items, 3 training seeds (± 1.00)" in entry["verdict"]
    # B and C differ in two of three runs: an interval over items alone would call that sure.
    entry = compare(f"{judged}:C", "B")["judge.final"]
    assert entry["macro"]["low"] > 0 and not entry["is_sure"]
    assert "undecided: C is ahead by 0.96" in entry["verdict"] and "(so in 2 of 3 training seeds)" in entry["verdict"]


def test_ties_and_equal_systems(bench, tmp_path):
    tied = [value + (1 if item < 4 else -1 if item < 8 else 0) for item, value in enumerate(BASE)]
    judged = write_judged(tmp_path / "j", bench, {"A": [BASE], "B": [BASE], "C": [tied]})
    entry = compare(f"{judged}:A", "B")["judge.final"]
    assert entry["verdict"] == "equal on every item, 16 items, 1 training seed" and not entry["is_sure"]
    entry = compare(f"{judged}:A", "C")["judge.final"]
    assert entry["micro"]["p"] == 1.0 and entry["verdict"].startswith("undecided: difference 0.00 [-")
    assert entry["verdict"].endswith("undecided on every subset")


def test_less_is_better_where_it_is(bench, tmp_path, capsys):
    scored = write_scored(tmp_path / "s", bench)
    entry = compare(f"{scored}:far", "near")["l1"]
    assert entry["lower_is_better"] and entry["micro"]["difference"] > 0.05
    assert entry["verdict"].startswith("near is better by 0.09") and "surely on even and odd" in entry["verdict"]
    assert "L1 (lower is better): near is better" in capsys.readouterr().out


def test_an_evaluations_files_hold_every_item(bench, tmp_path):
    """Two candidates an item; the verifier likes the second of even items."""
    values = np.arange(2.0 * COUNT).reshape(COUNT, 2) / 10
    likes = np.array([[0.0, 1.0] if item % 2 == 0 else [1.0, 0.0] for item in range(COUNT)])
    models = {
        "a-0": {"label": "A", "role": "fdm", "seed": 0},
        "b-0": {"label": "B", "role": "fdm", "seed": 0},
    }
    folder = write_run(tmp_path / "run" / "evaluate", "evaluate", bench, models=models, search={"max_unchanged": 1.0})
    for name, gain in (("a-0", 1.0), ("b-0", 0.0)):
        arrays = {"metric.final": values + gain, "metric.unchanged_tokens": values * 0, "verifier": likes}
        for seed in (0, 1):
            extra = {"metric.final": values + gain + seed}
            file = folder / "parts" / f"{name}.sample.{seed}.npz"
            file.parent.mkdir(exist_ok=True)
            np.savez(file, facts=np.array("{}"), **{**arrays, **extra, "codes": np.zeros((COUNT, 2, 4))})
    chosen = np.where(likes[:, 0] > 0, values[:, 0], values[:, 1])
    # A folder with results below it will do; K = 1 averages the candidates, seeds are averaged.
    entry = compare(f"{tmp_path / 'run'}:A", "B", k=2)["oracle.final"]
    assert entry["micro"]["second"] == pytest.approx(chosen.mean() + 0.5)
    assert entry["micro"]["difference"] == pytest.approx(1.0) == pytest.approx(entry["micro"]["low"])
    by_k = compare(f"{folder}:B@2", "B")["oracle.final"]["micro"]
    assert (by_k["first"], by_k["second"]) == pytest.approx((chosen.mean() + 0.5, values.mean() + 0.5))
    with pytest.raises(InputError, match="has no value at K = 4"):
        compare(f"{folder}:A@4", "B")
    with pytest.raises(InputError, match="has 6 now"):
        small = write_triplets(tmp_path / "small", noise_pair, ["take"] * 6)
        compare(f"{folder}:A", "B", triplets=str(small))


def test_the_probes_preferences_are_compared_by_item(bench, tmp_path):
    """A prefers every truth; B the first negative of even items, and it has a second negative for two items."""
    models = {name: {"label": name.upper(), "role": "idm", "seed": 0} for name in ("a", "b")}
    folder = write_run(tmp_path / "e", "evaluate", bench, models=models)
    (folder / "parts").mkdir()
    even = np.arange(COUNT) % 2 == 0
    for name, worse in (("a", np.ones(COUNT)), ("b", np.where(even, -1.0, 1.0))):
        reference = Likelihoods(np.full(COUNT, -5.0), np.full(COUNT, 3.0))
        negatives = {"copy": Pairs(np.arange(COUNT), Likelihoods(-5.0 - worse, np.full(COUNT, 3.0)))}
        if name == "b":
            negatives["inverse"] = Pairs(np.array([0, 1]), Likelihoods(np.array([-5.0, -9.0]), np.full(2, 3.0)))
        arrays = to_arrays(ProbeScores(reference, negatives))
        np.savez(folder / "parts" / f"{name}.probe.0.npz", facts=np.array("{}"), **arrays)
    entry = compare(f"{folder}:A", "B")["preference.idm"]
    # Of item 0 B ties once and loses once: a quarter.
    assert (
        entry["by_subset"]["even"]["second"] == pytest.approx(0.25 / 8) and entry["by_subset"]["odd"]["second"] == 1.0
    )
    assert entry["micro"]["first"] == 1.0 and entry["verdict"].startswith("A is better by 48.4")


def test_what_cannot_be_compared_is_one_line(bench, tmp_path):
    judged = write_judged(tmp_path / "j", bench, {"A": [BASE], "B": [BASE]})
    other = write_judged(tmp_path / "o", bench, {"A": [BASE]}, model="another")
    far = write_triplets(tmp_path / "far", noise_pair, ["take"] * 6)
    elsewhere = write_judged(tmp_path / "e", far, {"A": [BASE[:6]]})
    for first, second, message in (
        (f"{judged}:Z", "A", "name one of the systems there: 'A', 'B'$"),
        (f"{judged}:a", "A", "name one of the systems there: 'A', 'B'; did you mean 'A'"),
        (str(judged), f"{judged}:A", "name one of the systems there: 'A', 'B'"),
        (f"{judged}:A", str(tmp_path / "none"), "no such folder"),
        (f"{judged}:A@x", "A", "expected LABEL@greedy, or LABEL@K"),
        (f"{judged}:A", str(bench), "holds no result of single items"),
        ("A", "B", "is no folder; expected FOLDER:LABEL"),
        (
            f"{judged}:A",
            f"{other}:A",
            "measured alike: judge.final, judge.editing_success, judge.minimal_editing: model is 'm' and 'another'$",
        ),
    ):
        with pytest.raises(InputError, match=message):
            compare(first, second)
    # A part of a bench is one; triplets of which none is the other's are none.
    assert compare(f"{judged}:A", str(elsewhere))["judge.final"]["micro"]["num_items"] == 6
    strange = write_triplets(tmp_path / "strange", noise_pair, ["take"] * 3)
    for file in strange.glob("*.parquet"):
        _rename_ids(file)
    stranger = write_judged(tmp_path / "s", strange, {"A": [[1.0]]})
    with pytest.raises(InputError, match="of 16 and 3 triplets they share 0"):
        compare(f"{judged}:A", str(stranger))
    with pytest.raises(InputError, match=r"metrics = 'l1': both have 'judge\.final'"):
        compare(f"{judged}:A", "B", metrics=["l1"])


def _rename_ids(file: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    names = [f"x{number}" for number in range(table.num_rows)]
    pq.write_table(table.set_column(0, table.schema.field(0), [names]), file)


def test_the_command_line(bench, tmp_path, capsys, monkeypatch):
    judged = write_judged(tmp_path / "j", bench, {"A": [BETTER], "B": [BASE]})
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("sys.argv", ["wm"])
    assert wm(["compare", f"{judged}:A", f"{judged}:B", "metrics=['judge.final']"]) == 0
    text = capsys.readouterr().out
    assert text.count("A is better by") == 1 and sorted(tmp_path.rglob("*")) == before
    assert max(map(len, text.split("\n\n")[1].splitlines())) <= 120
    out = tmp_path / "c"
    for _ in range(2):
        assert wm(["compare", "A", "B", f"results=['{judged}']", f"out={out}"]) == 0
    document = json.loads((out / "compare.json").read_text())
    assert document["metrics"][0]["metric"] == "judge.final"
    assert "| even | " in (out / "compare.md").read_text() and (out / "run.json").is_file()
    capsys.readouterr()
    assert wm(["compare", f"{judged}:A", "B", "C"]) == 2
    assert "is a third system" in capsys.readouterr().err
    assert wm(["compare", f"{judged}:A", "B", "--dry-run"]) == 0 and "would compare" in capsys.readouterr().out
    assert to_settings(["a=b:C", "k=2", "x"]) == ["first=a=b:C", "second=x", "k=2"]
    assert to_settings(["second=x", "a"]) == ["first=a", "second=x"] and to_settings(["c.toml"]) == ["c.toml"]
    for words, message in (
        (["a"], r"expected two systems, such as wm compare runs/a:C-FDM runs/b:C-FT; got 'a'$"),
        ([], "expected two systems, .*; got none$"),
        (["a", "b", "metric=['l1']"], r"unknown key 'metric' in .*; did you mean metrics\?$"),
        (["a", "out_=x"], "did you mean out"),
        (["a", "b", "second=c"], "'b' is a third system"),
    ):
        with pytest.raises(InputError, match=message):
            to_settings(words)
    # A folder may be called like a key.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metric=x").mkdir()
    assert to_settings(["a", "metric=x:B"]) == ["first=a", "second=metric=x:B"]
    monkeypatch.setattr("sys.argv", ["wm"])
    with pytest.raises(SystemExit):
        wm(["compare", "--help"])
    assert "Holm" in capsys.readouterr().out
