"""What is wrong with sets or store shows before a request, and no mean hides what it is not of."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.judge import JudgeRecipe, run
from tests.helpers.judge_server import Answer, completion, judge_server
from tests.helpers.triplet_files import picture, triplet, write_output
from wm.errors import InputError
from wm.evaluation.judge.store import JudgementStore
from wm.evaluation.predictions import prediction_row, predictions_folder, write_predictions
from wm.runs import write_json

SUBSETS = ("kubric", "ag", "ag")


def seven(_body: dict[str, Any], _number: int) -> Answer:
    return completion(json.dumps({"score": [7, 8]}))


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    return write_output(tmp_path / "bench", [triplet(number, class_label=SUBSETS[number]) for number in range(3)])


def write_set(folder: Path, numbers: tuple[int, ...]) -> str:
    """Write predictions of GoT for some triplets."""
    rows = [
        prediction_row(
            picture(100 + number, 12, 20), triplet_id=f"{number:024x}", system="GoT", view="full", origin="external"
        )
        for number in numbers
    ]
    write_predictions(rows, predictions_folder(folder) / "part-00000.parquet")
    write_json(folder / "run.json", {"stage": "collect"})
    return str(folder)


def recipe(bench: Path, url: str, out: Path, *sets: str, **keys: object) -> JudgeRecipe:
    fields = {"predictions": [*sets], "triplets": str(bench), "out": str(out), "model": "judge", "base_url": url}
    return JudgeRecipe.parse(fields | {"copy_baseline": False} | keys, "test")


def test_bad_sets_and_a_store_in_use_end_before_a_request(bench: Path, tmp_path: Path) -> None:
    first, second = write_set(tmp_path / "first", (0, 1)), write_set(tmp_path / "second", (2,))
    alien = write_set(tmp_path / "alien", (7,))
    with judge_server(seven) as server:
        for sets, message in (
            ((first, second), "first and .*second both hold a system named 'GoT'; give one of them another name"),
            ((alien,), "made for another one"),
            ((str(tmp_path / "none"),), "none does not exist"),
        ):
            with pytest.raises(InputError, match=message) as caught:
                run(recipe(bench, server.url, tmp_path / "j", *sets))
            assert "\n" not in str(caught.value) and not (tmp_path / "j").exists()
        # Two runs in one store would ask twice.
        mine = recipe(bench, server.url, tmp_path / "j", first, store=str(tmp_path / "store"))
        message = "store: another run is writing into it; wait for it"
        with JudgementStore(tmp_path / "store").writing(), pytest.raises(InputError, match=message):
            run(mine)
        assert server.bodies == []
        assert run(mine)["counts"]["judgements"] == len(server.bodies) == 2


def test_a_subset_without_data_is_named(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge_server(seven) as server:
        record = run(recipe(bench, server.url, tmp_path / "j", write_set(tmp_path / "set", (2,))))
    (row,) = record["figures"]
    # One of two triplets of ag, none of kubric: no average over the one subset that there is.
    assert set(row["figures"]["final"]) == {"ag", "all items"} and row["missing"] == {"kubric": 1, "ag": 1}
    assert {name: (part["judged"], part["expected"]) for name, part in row["figures"]["final"].items()} == {
        "ag": (1, 2),
        "all items": (1, 3),
    }
    out = capsys.readouterr().out
    assert "7.00 (n 1/2) !" in out and "GoT, K = 1: without a prediction: kubric 1, ag 1" in out
