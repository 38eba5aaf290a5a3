"""Endpoints that refuse: of which nothing is asked twice in vain, and whose words are passed on."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contradict import ContradictRecipe, run
from tests.helpers.judge_server import Answer, completion, failure, judge_server
from tests.helpers.triplet_files import triplet, write_output
from wm.errors import InputError
from wm.evaluation.counterfactuals import read_counterfactuals


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [triplet(number, action=f"put it on {number}") for number in range(12)]
    return write_output(tmp_path_factory.mktemp("bench"), rows, num_rejects=0)


def recipe(bench: Path, url: str, out: Path, **keys: object) -> ContradictRecipe:
    fields = {"triplets": str(bench), "out": str(out), "max_retries": 0, "base_url": url, "concurrency": 1}
    return ContradictRecipe.parse({**fields, **keys}, "test")


def test_a_model_that_refuses_every_request_ends_the_run(bench: Path, tmp_path: Path) -> None:
    with judge_server(lambda *_: failure(400, "temperature is not supported")) as server:
        mine = recipe(bench, server.url, tmp_path / "c")
        with pytest.raises(InputError, match=r"refused all of 20 requests: bad request: .*temperature is not supp"):
            run(mine)
        assert len(server.bodies) == 20 and not (tmp_path / "c" / "run.json").exists()


def test_single_requests_that_are_refused_are_rejects(bench: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        is_last = body["messages"][0]["content"].rstrip().endswith("put it on 0")
        return completion("take it") if is_last else failure(400, "against the policy")

    with judge_server(answer) as server:
        record = run(recipe(bench, server.url, tmp_path / "c"))
        assert len(server.bodies) == 1 + 11 * 3
    assert record["counts"]["rejects_by_reason"] == {"bad_request": 11}


def test_triplets_without_an_action_are_not_asked_about(tmp_path: Path) -> None:
    """Other programs may write such tables."""
    rows = [triplet(number, action="open it") for number in range(3)]
    mixed, empty = (write_output(tmp_path / name, rows[:count], num_rejects=0) for name, count in (("m", 3), ("e", 1)))
    for folder, actions in ((mixed, ["open it", " ", "open it"]), (empty, [""])):
        (file,) = (folder / "triplets").glob("*.parquet")
        table = pq.read_table(file)
        pq.write_table(table.set_column(table.schema.names.index("action"), "action", pa.array(actions)), file)
    with judge_server(lambda *_: completion("Close it.")) as server:
        record = run(recipe(mixed, server.url, tmp_path / "c"))
        assert len(server.bodies) == 1 and record["counts"]["rejects_by_reason"] == {"no_action": 1}
        assert set(read_counterfactuals(tmp_path / "c").values()) == {"close it"}
        with pytest.raises(InputError, match="has an action, so that there is nothing to contradict"):
            run(recipe(empty, server.url, tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_newer_models_know_the_limit_by_another_name(bench: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], _number: int) -> Answer:
        if "max_tokens" in body:
            return failure(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        assert body["max_completion_tokens"] == 64
        return completion("take it")

    with judge_server(answer) as server:
        record = run(recipe(bench, server.url, tmp_path / "c"))
        # One request finds it out.
        assert len(server.bodies) == 12 + 1
    assert record["counts"]["counterfactuals"] == 12


def test_cost_is_counted_where_the_endpoint_counts_no_tokens(bench: Path, tmp_path: Path) -> None:
    def answer(_body: dict[str, Any], _number: int) -> Answer:
        status, body = completion("take it")
        return status, {name: value for name, value in body.items() if name != "usage"}

    with judge_server(answer) as server:
        # A reply may be 64 tokens long: .0064 at most, of which three fit.
        with pytest.raises(InputError, match=r"max_cost = 0.02 allows no further request \(0.0192 spent\)"):
            run(recipe(bench, server.url, tmp_path / "c", output_price=100.0, max_cost=0.02))
        assert len(server.bodies) == 3


def test_addresses_that_cannot_be_meant_are_named(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base_url = '127.0.0.1:8001/v1': expected http://"):
        run(recipe(bench, "127.0.0.1:8001/v1", tmp_path / "c"))
    message = r"not known to .*, or base_url lacks its path, such as /v1: .*Not Found"
    with judge_server(lambda *_: failure(404, "Not Found")) as server, pytest.raises(InputError, match=message):
        run(recipe(bench, server.url, tmp_path / "c"))
