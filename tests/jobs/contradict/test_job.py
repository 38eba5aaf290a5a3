"""``jobs.contradict`` against a local server that speaks OpenAI's API, and by a tiny model of this machine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.contradict import ContradictRecipe, run
from tests.helpers.judge_server import Answer, JudgeServer, completion, failure, judge_server
from tests.helpers.models_families import word_tokenizer
from tests.helpers.triplet_files import triplet, write_output
from wm.errors import InputError, OtherRunError
from wm.evaluation.counterfactuals import read_counterfactuals
from wm.models.chat_model import load_chat_model
from wm.records import REJECT_SCHEMA, derive_seed
from wm.tables import read_table

ACTIONS = ["open the door", "öffne die Tür", "open the door", "shut it {now}"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [triplet(number, action=action) for number, action in enumerate(ACTIONS)]
    return write_output(tmp_path_factory.mktemp("bench"), rows, num_rejects=0)


def recipe(bench: Path, server: JudgeServer | None, out: Path, **keys: object) -> ContradictRecipe:
    url = {"base_url": server.url} if server is not None else {}
    return ContradictRecipe.parse({"triplets": str(bench), "out": str(out), "max_retries": 2, **url, **keys}, "test")


def action_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"]).rpartition("Instruction: ")[2].strip()


def honest(body: dict[str, Any], _number: int) -> Answer:
    return completion(f' "do not {action_of(body)}"\n')


def test_every_triplet_has_its_contradiction_or_is_a_reject(bench: Path, tmp_path: Path) -> None:
    with judge_server(honest) as server:
        record = run(recipe(bench, server, tmp_path / "c", model="qwen"))
        # Equal actions are one question, braces in them stay as they are.
        assert sorted(map(action_of, server.bodies)) == sorted(set(ACTIONS))
        assert {(body["model"], body["max_tokens"], "temperature" in body) for body in server.bodies} == {
            ("qwen", 64, False)
        }
    expected = {f"{number:024x}": f"do not {action}" for number, action in enumerate(ACTIONS)}
    assert read_counterfactuals(tmp_path / "c") == expected
    assert record["counts"] == {
        "triplets": 4, "actions": 3, "counterfactuals": 4, "rejects": 0, "rejects_by_reason": {}, "torn_lines": 0,
    }  # fmt: skip
    card = (tmp_path / "c/README.md").read_text()
    assert "Write one instruction that contradicts it" in card and "model: qwen (the paper: Qwen2-7B-Instruct)" in card


def test_bad_replies_are_asked_again_then_rejected(bench: Path, tmp_path: Path) -> None:
    bad = {
        "open the door": ["", "Open  the door.", '"OPEN THE DOOR"'],
        "öffne die Tür": ["schließe\nsie", "schließe die Tür", ""],
    }

    def answer(body: dict[str, Any], number: int) -> Answer:
        action = action_of(body)
        if action not in bad:
            # Rate limits and server errors are no attempts: the client repeats them.
            return failure(429, "slow down") if number == 0 else honest(body, number)
        return completion(bad[action][number])

    with judge_server(answer) as server:
        record = run(recipe(bench, server, tmp_path / "c", concurrency=1, max_attempts=3))
        assert sorted(server.counts.values()) == [2, 2, 3]
        # Complete: nothing is asked any more.
        assert run(recipe(bench, server, tmp_path / "c", concurrency=1, max_attempts=3)) == record
        assert len(server.bodies) == 7
    assert record["counts"]["rejects_by_reason"] == {"same_action": 2}
    rejects = read_table(tmp_path / "c/rejects", REJECT_SCHEMA).to_pylist()
    assert [row["uri"] for row in rejects] == [f"{number:024x}#counterfactual_action" for number in (0, 2)]
    assert read_counterfactuals(tmp_path / "c") == {
        f"{1:024x}": "schließe die Tür",
        f"{3:024x}": "do not shut it {now}",
    }


def test_a_stopped_run_resumes_and_asks_nothing_twice(bench: Path, tmp_path: Path) -> None:
    is_down = True

    def answer(body: dict[str, Any], number: int) -> Answer:
        # After the first reply the endpoint refuses everything, as a kill would cut it off.
        return failure(401, "key expired") if is_down and len(server.bodies) > 1 else honest(body, number)

    with judge_server(answer) as server:
        mine = recipe(bench, server, tmp_path / "c", concurrency=1)
        with pytest.raises(InputError, match="refuses the key"):
            run(mine)
        assert not (tmp_path / "c/counterfactuals.jsonl").exists()
        is_down = False
        # A line that was cut off is asked again; complete ones are not.
        torn = tmp_path / "c/replies/0-torn.jsonl"
        torn.write_text('{"key": "half')
        record = run(mine)
    assert sum(server.counts.values()) == 3 + 1
    assert (record["counts"]["counterfactuals"], record["counts"]["torn_lines"]) == (4, 1)


def test_cost_is_named_capped_and_counted(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The server counts 1,000 and 50 tokens a reply: .002 a reply.
    prices = {"input_price": 1.0, "output_price": 20.0, "concurrency": 1}
    with judge_server(honest) as server:
        run(recipe(bench, server, tmp_path / "c", **prices), dry_run=True)
        assert "4 triplets, 3 different actions, 3 to ask" in capsys.readouterr().out
        assert server.bodies == [] and not (tmp_path / "c").exists()
        with pytest.raises(InputError, match=r"max_cost = 0.003 allows no further request \(0.0020 spent\)"):
            run(recipe(bench, server, tmp_path / "c", max_cost=0.003, **prices))
        record = run(recipe(bench, server, tmp_path / "c", max_cost=1.0, **prices))
        assert record["cost"] == pytest.approx(0.006)
        # Another temperature is another run.
        with pytest.raises(OtherRunError, match="temperature"):
            run(recipe(bench, server, tmp_path / "c", temperature=0.5))


def test_bad_keys_are_named(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for keys, message in (
        ({}, "is not served by OpenAI: give base_url"),
        ({"base_url": "http://x", "model_folder": "f"}, "give one of them"),
        ({"model": "gpt", "model_folder": "f"}, "leave it out beside model_folder"),
        ({"model": "gpt", "max_cost": 1.0}, "max_cost needs input_price"),
    ):
        with pytest.raises(InputError, match=message):
            recipe(bench, None, tmp_path / "c", **keys)
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        run(recipe(bench, None, tmp_path / "c", model="gpt"))
    assert not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    words = {"open", "shut", "the", "door", "it", "instruction:", "user:", "assistant:"}
    tokenizer = word_tokenizer(
        ["<pad>", "<s>", "</s>", "<unk>"], words, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = "{% for m in messages %}user: {{ m.content }} {% endfor %}assistant: "
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_local_model_answers_by_its_chat_template(bench: Path, chat_folder: Path, tmp_path: Path) -> None:
    mine = {"model_folder": str(chat_folder), "max_tokens": 24, "temperature": 1.5, "max_attempts": 2}
    record = run(recipe(bench, None, tmp_path / "c", **mine))
    counts = record["counts"]
    assert counts["counterfactuals"] + counts["rejects"] == 4
    lines = [json.loads(line) for file in (tmp_path / "c/replies").glob("*.jsonl") for line in file.open()]
    # The same seeds give the same replies.
    run(recipe(bench, None, tmp_path / "again", **mine))
    again = [json.loads(line) for file in (tmp_path / "again/replies").glob("*.jsonl") for line in file.open()]
    assert [line["reply"] for line in again] == [line["reply"] for line in lines]


def test_each_attempt_is_a_sample_of_its_own(chat_folder: Path) -> None:
    chat = load_chat_model(chat_folder)
    messages = [{"role": "user", "content": "open the door"}]
    # Short answers of few words may be equal by chance; these seeds are the same in every run.
    answers = [
        chat.answer(messages, max_tokens=24, temperature=1.5, seed=derive_seed(attempt, "key")).text
        for attempt in range(8)
    ]
    assert len(set(answers)) > 4
    assert answers[3] == chat.answer(messages, max_tokens=24, temperature=1.5, seed=derive_seed(3, "key")).text


def test_a_greedy_answer_is_transformers_own(chat_folder: Path) -> None:
    chat = load_chat_model(chat_folder)
    messages = [{"role": "user", "content": "open the door"}]
    answer = chat.answer(messages, max_tokens=12, temperature=0.0)
    # The likeliest token each time, by full passes over the text so far.
    ids = chat.tokenizer("user: open the door assistant:", add_special_tokens=False)["input_ids"]
    count = len(ids)
    while len(ids) < count + 12 and ids[-1] != 2:
        ids.append(int(chat.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert answer.text == chat.tokenizer.decode(ids[count:], skip_special_tokens=True)
    assert (answer.prompt_tokens, answer.answer_tokens) == (count, len(ids) - count)
    assert answer.is_cut_off == (ids[-1] != 2)


def test_a_tokenizer_that_gives_token_types_answers_alike(chat_folder: Path, tmp_path: Path) -> None:
    """Most models refuse them."""
    shutil.copytree(chat_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m/tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (tmp_path / "m/tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "open the door"}]
    answers = [load_chat_model(path).answer(messages, max_tokens=6, seed=3) for path in (tmp_path / "m", chat_folder)]
    assert answers[0] == answers[1]


def test_folders_without_a_template_are_refused(tiny_base: Path, chat_folder: Path, tmp_path: Path) -> None:
    for file in chat_folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="has no chat template"):
        load_chat_model(tmp_path)
    with pytest.raises(InputError):
        load_chat_model(tmp_path / "absent")
