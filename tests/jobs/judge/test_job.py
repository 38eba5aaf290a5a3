"""``jobs.judge`` against a local server that speaks OpenAI's API: what is asked, kept, counted and refused."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.judge import JudgeRecipe, run
from tests.helpers.judge_server import Answer, JudgeServer, completion, failure, images_of, judge_server
from tests.helpers.triplet_files import picture, triplet, write_output
from wm.errors import InputError
from wm.evaluation.predictions import prediction_row, predictions_folder, write_predictions
from wm.images import encode_png
from wm.nano.world.oracle import judge
from wm.nano.world.triplets import sample_triplet
from wm.runs import write_json

SIZE = 6
SUBSETS = ("kubric", "ag", "ag")


def scores_of(body: dict[str, Any]) -> tuple[float, float]:
    """Scores that follow from the images alone: 0 for a copy."""
    source, prediction = (np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int) for png in images_of(body))
    if source.shape == prediction.shape and (source == prediction).all():
        return 0.0, 10.0
    return round(prediction.mean() / 25.5, 3), round(prediction.std() / 25.5, 3)


def honest(body: dict[str, Any], _number: int) -> Answer:
    success, minimality = scores_of(body)
    return completion(json.dumps({"score": [success, minimality], "reasoning": "because"}))


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    rows = [triplet(number, class_label=SUBSETS[number % 3]) for number in range(SIZE)]
    return write_output(tmp_path / "bench", rows)


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """C-FDM: 2 runs x 4 candidates, of which two are equal; GoT: one image, none for the last triplet."""
    folder, rows = tmp_path / "predictions", []
    for number in range(SIZE):
        for repeat in range(2):
            for candidates in ((0,), (1, 3), (2,)):
                rows.append(
                    prediction_row(
                        picture(1000 + 100 * number + 10 * repeat + candidates[0], 16, 16),
                        triplet_id=f"{number:024x}",
                        system="C-FDM",
                        run=repeat,
                        decoding="sampled",
                        candidates=candidates,
                        verifier_logprob=-float((candidates[0] + number) % 3),
                        view="square",
                        origin="wm",
                    )
                )
        if number < SIZE - 1:
            image = picture(5000 + number, 12, 20)
            rows.append(
                prediction_row(image, triplet_id=f"{number:024x}", system="GoT", view="full", origin="external")
            )
    write_predictions(rows, predictions_folder(folder) / "part-00000.parquet")
    write_json(folder / "run.json", {"stage": "evaluate"})
    return folder


def recipe(bench: Path, predictions: Path, server: JudgeServer | None, out: Path, **keys: object) -> JudgeRecipe:
    url = {"base_url": server.url} if server is not None else {}
    fields = {"predictions": [str(predictions)], "triplets": str(bench), "out": str(out), "model": "judge", **url}
    return JudgeRecipe.parse({**fields, "max_retries": 2, "poll_s": 0.01, **keys}, "test")


def test_figures_are_means_of_what_the_judge_said(bench: Path, predictions: Path, tmp_path: Path) -> None:
    with judge_server(honest) as server:
        record = run(recipe(bench, predictions, server, tmp_path / "j", num_candidates=[1, 4]))
    rows = pq.read_table(tmp_path / "j" / "scores.parquet").to_pylist()
    # 6 triplets x 2 runs x 2 K, GoT at K = 1 for 5 of them, Copy for all.
    assert len(rows) == 24 + 5 + 6
    assert record["counts"] == {"judgements": 35, "questions": len(server.bodies), "unjudged": 0, "torn_lines": 0}
    # The best of 4 by the verifier, among them the image of candidates 1 and 3: brute force over the fixture's rule.
    for row in rows:
        if row["system"] == "C-FDM":
            number = int(row["triplet_id"], 16)
            best = 0 if row["num_candidates"] == 1 else min((0, 1, 2), key=lambda c: ((c + number) % 3, c))
            pixels = picture(1000 + 100 * number + 10 * row["run"] + best, 16, 16).astype(int)
            assert row["editing_success"] == round(pixels.mean() / 25.5, 3)
            assert row["final"] == min(row["editing_success"], row["minimal_editing"])
    figures = {(row["system"], row["num_candidates"]): row for row in record["figures"]}
    assert list(figures) == [("C-FDM", 1), ("C-FDM", 4), ("GoT", 1), ("Copy", 1)]
    for criterion in ("final", "editing_success", "minimal_editing"):
        mine = [row for row in rows if row["system"] == "C-FDM" and row["num_candidates"] == 4]
        by_subset = {
            name: np.mean([row[criterion] for row in mine if row["subset"] == name]) for name in ("kubric", "ag")
        }
        got = figures["C-FDM", 4]["figures"][criterion]
        assert {name: got[name]["mean"] for name in by_subset} == pytest.approx(by_subset)
        assert got["macro average"]["mean"] == pytest.approx(np.mean(list(by_subset.values())))
        assert got["all items"]["mean"] == pytest.approx(np.mean([row[criterion] for row in mine]))
        runs = [np.mean([row[criterion] for row in mine if row["run"] == number]) for number in range(2)]
        assert got["all items"]["std"] == pytest.approx(np.std(runs, ddof=1))
    # GoT lacks a prediction: counted, never a 0.
    got = figures["GoT", 1]
    assert got["missing"] == {"ag": 1}
    assert (got["figures"]["final"]["ag"]["judged"], got["figures"]["final"]["ag"]["expected"]) == (3, 4)
    assert figures["Copy", 1]["figures"]["final"]["all items"]["mean"] == 0.0


def test_a_square_prediction_is_seen_beside_a_square_source(bench: Path, predictions: Path, tmp_path: Path) -> None:
    with judge_server(honest) as server:
        run(recipe(bench, predictions, server, tmp_path / "j", systems=["C-FDM"], copy_baseline=False))
        seen = {tuple(Image.open(io.BytesIO(png)).size for png in images_of(body)) for body in server.bodies}
        assert seen == {((16, 16), (16, 16))}
        server.bodies.clear()
        run(recipe(bench, predictions, server, tmp_path / "full", source_view="full", systems=["GoT", "C-FDM"]))
        seen = {tuple(Image.open(io.BytesIO(png)).size for png in images_of(body)) for body in server.bodies}
        assert seen == {((20, 12), (16, 16)), ((20, 12), (20, 12))}
    # Text first, then the source.
    text = server.bodies[0]["messages"][0]["content"][0]["text"]
    assert 'take the "cup"' in text


def test_every_malformed_reply_is_asked_again_then_counted(bench: Path, predictions: Path, tmp_path: Path) -> None:
    bad = ["I cannot.", '{"score": [11, 5]}', '{"score": [5]}', "", "nonsense"]

    def answer(body: dict[str, Any], number: int) -> Answer:
        # GoT's images never get a score; those of the others at the third attempt.
        if number < 2 or Image.open(io.BytesIO(images_of(body)[1])).size == (20, 12):
            return completion(bad[number % len(bad)])
        return honest(body, number)

    with judge_server(answer) as server:
        record = run(recipe(bench, predictions, server, tmp_path / "j", copy_baseline=False, max_attempts=3))
        assert set(server.counts.values()) == {3}
    figures = {row["system"]: row for row in record["figures"]}
    assert figures["GoT"]["unjudged"] == {"not two scores": 5}
    assert figures["GoT"]["figures"]["final"] == {}
    assert figures["C-FDM"]["unjudged"] == {}
    assert figures["C-FDM"]["figures"]["final"]["all items"]["judged"] == 12


def test_rate_limits_and_server_errors_are_repeated(bench: Path, predictions: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return [failure(429, "slow down"), failure(503, "busy"), honest(body, number)][min(number, 2)]

    with judge_server(answer) as server:
        record = run(recipe(bench, predictions, server, tmp_path / "j", systems=["GoT"], concurrency=3))
        assert record["counts"]["unjudged"] == 0
        assert set(server.counts.values()) == {3}


def test_unanswered_requests_end_the_run_and_are_asked_next(bench: Path, predictions: Path, tmp_path: Path) -> None:
    is_down = True

    def answer(body: dict[str, Any], number: int) -> Answer:
        mean = np.array(Image.open(io.BytesIO(images_of(body)[1]))).mean()
        return failure(500, "down") if is_down and mean > 127 else honest(body, number)

    with judge_server(answer) as server:
        mine = recipe(bench, predictions, server, tmp_path / "j", max_retries=0)
        with pytest.raises(InputError, match="questions got no answer; what is judged is kept"):
            run(mine)
        asked_before = {name for name, count in server.counts.items() if count}
        is_down = False
        server.bodies.clear()
        record = run(mine)
        assert record["counts"]["unjudged"] == 0
        assert 0 < len(server.bodies) < len(asked_before)
        # The same figures as in one go.
        assert record["figures"] == run(recipe(bench, predictions, server, tmp_path / "whole"))["figures"]
        server.bodies.clear()
        run(mine)
        assert server.bodies == []


@pytest.mark.parametrize(
    "answer",
    [
        (failure(401, "bad key"), "refuses the key in OPENAI_API_KEY: .*bad key"),
        (failure(404, "no such model"), "model = 'judge' is not known to http://127.*no such model"),
        (failure(429, "pay", "insufficient_quota"), "no credit left"),
    ],
)
def test_what_no_repeat_can_mend_ends_the_run(
    answer: tuple[Answer, str], bench: Path, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with judge_server(lambda _body, _number: answer[0]) as server:
        with pytest.raises(InputError, match=answer[1]) as caught:
            run(recipe(bench, predictions, server, tmp_path / "j", concurrency=1, max_retries=0))
        assert server.keys[0] == "Bearer sk-secret"
        assert len(server.bodies) == 1
    written = b"".join(path.read_bytes() for path in (tmp_path / "j").rglob("*") if path.is_file())
    assert b"sk-secret" not in written
    assert "sk-secret" not in str(caught.value)


def test_no_key_and_no_server_are_found_before_any_work(
    bench: Path, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        run(recipe(bench, predictions, None, tmp_path / "j"))
    assert not (tmp_path / "j").exists()
    with judge_server(honest) as server:
        closed = server.url
    with pytest.raises(InputError, match="cannot be reached"):
        run(recipe(bench, predictions, None, tmp_path / "j", base_url=closed, max_retries=0))


def test_a_request_refused_for_its_content_is_counted(bench: Path, predictions: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        if Image.open(io.BytesIO(images_of(body)[1])).size == (16, 16):
            return failure(400, "image violates the policy")
        return completion(None, refusal="no") if scores_of(body)[0] > 5 else honest(body, number)

    with judge_server(answer) as server:
        record = run(recipe(bench, predictions, server, tmp_path / "j", max_attempts=1))
    figures = {row["system"]: row for row in record["figures"]}
    assert figures["C-FDM"]["unjudged"] == {"bad request": 12}
    assert set(figures["GoT"]["unjudged"]) <= {"refusal"}


def test_structured_output_is_given_up_once_it_is_refused(bench: Path, predictions: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        if "response_format" in body:
            return failure(400, "response_format of type json_schema is not supported")
        return honest(body, number)

    with judge_server(answer) as server:
        record = run(recipe(bench, predictions, server, tmp_path / "j", concurrency=1))
        assert record["counts"]["unjudged"] == 0
        assert sum("response_format" in body for body in server.bodies) == 1


def test_the_cost_cap_stops_and_a_larger_one_resumes(bench: Path, predictions: Path, tmp_path: Path) -> None:
    with judge_server(honest) as server:
        # A reply costs 1,000 x 10 + 50 x 20 millionths; before it, its text, images and 300 tokens are counted.
        prices = {"input_price": 10.0, "output_price": 20.0, "concurrency": 1}
        with pytest.raises(InputError, match=r"max_cost = 0.05 allows no further request \(0.0440 spent\)"):
            run(recipe(bench, predictions, server, tmp_path / "j", max_cost=0.05, **prices))
        assert len(server.bodies) == 4
        record = run(recipe(bench, predictions, server, tmp_path / "j", max_cost=5.0, **prices))
        assert set(server.counts.values()) == {1}
        assert record["cost"] == pytest.approx(0.011 * len(server.bodies))


def test_a_dry_run_asks_nothing_and_names_the_price(
    bench: Path, predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(honest) as server:
        assert run(recipe(bench, predictions, server, tmp_path / "j", repeats=2), dry_run=True) == {}
        assert server.bodies == []
    assert not (tmp_path / "j").exists()
    assert "46 judgements, 46 different questions, 46 to ask" in capsys.readouterr().out


def test_batches_give_the_same_scores_for_half_the_price(bench: Path, predictions: Path, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        return completion("nonsense") if number == 0 and scores_of(body)[0] > 5 else honest(body, number)

    with judge_server(honest) as server:
        online = run(recipe(bench, predictions, server, tmp_path / "online"))
    with judge_server(answer) as server:
        batch = run(recipe(bench, predictions, server, tmp_path / "batch", mode="batch"))
        # Replies without scores went into a second batch.
        assert len(server.batches) == 2
    assert batch["figures"] == online["figures"]
    assert batch["cost"] < online["cost"]
    assert not (tmp_path / "batch" / "batches.json").exists()


def test_a_batch_on_its_way_is_found_again(
    bench: Path, predictions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with judge_server(honest) as server:
        mine = recipe(bench, predictions, server, tmp_path / "j", mode="batch")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("jobs.judge.batches.time.sleep", interrupt)
            run(mine)
        assert len(server.batches) == 1
        record = run(mine)
        assert len(server.batches) == 1
        assert record["counts"]["unjudged"] == 0


def test_requests_that_a_batch_did_not_answer_are_asked_next(bench: Path, predictions: Path, tmp_path: Path) -> None:
    is_slow = True

    def answer(body: dict[str, Any], number: int) -> Answer:
        return failure(408, "expired") if is_slow and scores_of(body)[0] > 5 else honest(body, number)

    with judge_server(answer) as server:
        mine = recipe(bench, predictions, server, tmp_path / "j", mode="batch")
        with pytest.raises(InputError, match="got no answer"):
            run(mine)
        is_slow = False
        assert run(mine)["counts"]["unjudged"] == 0


def test_a_kill_loses_and_repeats_nothing_that_was_stored(bench: Path, predictions: Path, tmp_path: Path) -> None:
    answered: list[int] = []

    def answer(body: dict[str, Any], number: int) -> Answer:
        answered.append(number)
        # The driver is killed while this reply is on its way.
        if len(answered) == 5:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return honest(body, number)

    with judge_server(answer) as server:
        out = tmp_path / "j"
        keys = [f"predictions=['{predictions}']", f"triplets={bench}", f"out={out}", f"base_url={server.url}"]
        command = [sys.executable, "-m", "jobs.judge", *keys, "model=judge", "concurrency=1"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert process.wait(120) == -signal.SIGKILL
        record = run(recipe(bench, predictions, server, out, concurrency=1))
    assert record["counts"]["unjudged"] == 0
    # One request was on its way and not stored; no other was asked twice.
    assert sum(count - 1 for count in server.counts.values()) == 1


def test_bad_keys_and_sets_are_named(bench: Path, predictions: Path, tmp_path: Path) -> None:
    with judge_server(honest) as server:
        with pytest.raises(InputError, match="systems = 'SmartEdit': the prediction sets hold 'C-FDM', 'GoT'"):
            run(recipe(bench, predictions, server, tmp_path / "j", systems=["SmartEdit"]))
        with pytest.raises(InputError, match="is not complete"):
            run(recipe(bench, tmp_path, server, tmp_path / "j"))
        with pytest.raises(InputError, match="numbers from 1 up"):
            recipe(bench, predictions, server, tmp_path / "j", num_candidates=[0])
        other = write_output(tmp_path / "other", [triplet(number) for number in range(50, 52)])
        with pytest.raises(InputError, match="made for another one"):
            run(recipe(other, predictions, server, tmp_path / "j"))
        assert server.bodies == []


def test_the_nano_judge_gives_the_oracles_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that answers nothing stands between this machine and the world, not before its own loopback.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    rng = np.random.default_rng(3)
    triplets = [sample_triplet(rng) for _ in range(4)]
    rows = [
        triplet(number, class_label="nano", action=action, source_image={"bytes": encode_png(source), "path": None})
        for number, (source, action, _) in enumerate(triplets)
    ]
    bench = write_output(tmp_path / "bench", rows)
    predicted = [triplets[0][2], triplets[1][0], triplets[2][2], triplets[0][2]]
    predictions = [
        prediction_row(image, triplet_id=f"{number:024x}", system="mine", view="full", origin="external")
        for number, image in enumerate(predicted)
    ]
    write_predictions(predictions, predictions_folder(tmp_path / "p") / "part-00000.parquet")
    write_json(tmp_path / "p" / "run.json", {"stage": "collect"})
    record = run(recipe(bench, tmp_path / "p", None, tmp_path / "j", model="nano:oracle"))
    expected = [judge(source, target, image) for (source, _, target), image in zip(triplets, predicted, strict=True)]
    figures = {row["system"]: row["figures"]["final"]["all items"]["mean"] for row in record["figures"]}
    assert figures == {"mine": pytest.approx(np.mean([score.final for score in expected])), "Copy": 0.0}
    assert record["cost"] == 0.0
    with pytest.raises(InputError, match="served by the command itself"):
        recipe(bench, tmp_path / "p", None, tmp_path / "x", model="nano:oracle", mode="batch")
