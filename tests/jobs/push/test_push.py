"""Uploads to a hub on this machine: exactly what is sent, what stays, what is refused, and what errors say."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard, constants

from jobs.push import PushRecipe, run
from tests.helpers.hub_server import Hub, serve_hub
from tests.helpers.triplet_files import triplet, write_output
from wm.datasets.card import write_dataset_card
from wm.errors import InputError
from wm.models.base_facts import BaseFacts
from wm.models.card import CardFacts, write_card
from wm.packaged import SHIPPED
from wm.runs import write_json


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library talks to, with a token that it knows."""
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Its storage of chunks is a service of its own; files go by LFS instead.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The run of a training: model, record, and what must not be shared."""
    out = tmp_path / "runs" / "fdm"
    folder = out / "model"
    shutil.copytree(SHIPPED / "fdm", folder, ignore=shutil.ignore_patterns("run.json"))
    write_json(out / "run.json", {"stage": "train", "recipe": {"out": str(out)}, "counts": {}})
    write_card(folder, CardFacts("fdm", BaseFacts("b", "me/base", ["apache-2.0"]), figures=()))
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": str(tmp_path / "bases" / "anole"), "r": 2})
    for name in ("optimizer.pt", ".README.md.1.tmp", "x.lock", "code.py", "checkpoints/a.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"0")
    (folder / "linked.json").symlink_to("/etc/hostname")
    return out


def push(folder: Path, dry_run: bool = False, **keys: object) -> dict[str, Any]:
    """Run the command."""
    return run(PushRecipe.parse({"folder": str(folder), "repo": "me/fdm", **keys}, "test"), dry_run=dry_run)


WEIGHTS = ["README.md", "adapter_config.json", "config.json", "model.safetensors", "preprocessor_config.json"]
MODEL_FILES = [*WEIGHTS, "tokenizer.json", "tokenizer_config.json", "wm_model.json"]


def test_a_model_is_sent_whole_and_nothing_else(model: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    plan = push(model, dry_run=True)
    # A dry run asks nothing of the hub.
    assert hub.created == [] and sorted(plan["files"]) == MODEL_FILES and plan["rewritten"] == ["adapter_config.json"]
    left_out = {"optimizer.pt", ".README.md.1.tmp", "x.lock", "code.py", "checkpoints/a.safetensors", "linked.json"}
    assert set(plan["left_out"]) == left_out and plan["left_out"]["linked.json"] == "a link out of the folder"
    text = capsys.readouterr().out
    assert "adapter_config.json  (without paths of this machine)" in text and "left out (a pickle" in text
    result = push(model, message="first")
    assert result["commit"] == f"{hub.url}/me/fdm/commit/1" and hub.messages == ["first"]
    assert [(entry["type"], entry["organization"], entry["name"]) for entry in hub.created] == [("model", "me", "fdm")]
    assert hub.private == {"models/me/fdm": True}
    sent = hub.files["models/me/fdm"]
    assert sorted(sent) == MODEL_FILES
    assert json.loads(sent["adapter_config.json"]) == {"base_model_name_or_path": "anole", "r": 2}
    for name in set(MODEL_FILES) - {"adapter_config.json"}:
        assert sent[name] == (model / "model" / name).read_bytes(), name
    assert str(model).encode() not in b"".join(sent.values())
    assert ModelCard(sent["README.md"].decode()).data.base_model == "me/base"


def test_a_second_upload_sends_no_weights_again(model: Path, hub: Hub) -> None:
    push(model)
    assert len(hub.uploads) == 1
    push(model)
    assert len(hub.uploads) == 1 and len(hub.created) == 1


def test_a_data_set_is_sent_as_one(tmp_path: Path, hub: Hub) -> None:
    out = write_output(tmp_path / "data", [triplet(number) for number in range(6)])
    write_dataset_card(out, title="six")
    write_json(out / "run.json", {"stage": "ingest", "recipe": {"root": "/data/me/raw"}, "counts": {"triplets": 6}})
    (out / "parts").mkdir()
    (out / "parts" / "a.npz").write_bytes(b"0")
    result = push(out, private=False)
    assert hub.private == {"datasets/me/fdm": False}
    sent = hub.files["datasets/me/fdm"]
    shards = [f"triplets/shard-{number:06d}.parquet" for number in range(2)]
    assert sorted(sent) == ["README.md", "rejects/shard-000000.parquet", "run.json", *shards]
    assert json.loads(sent["run.json"])["recipe"] == {"root": "raw"}
    # The rows name theirs, by which a reader may go.
    assert result["problems"] == []


def test_incomplete_outputs_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "run.unfinished.json").write_text("{}")
    with pytest.raises(InputError, match=r"fdm is not complete \(run.unfinished.json\)"):
        push(model, dry_run=True)
    (model / "run.unfinished.json").unlink()
    index = {"weight_map": {"a": "model-00001.safetensors"}}
    write_json(model / "model" / "model.safetensors.index.json", index)
    with pytest.raises(InputError, match=r"model.safetensors.index.json lists 'model-00001.safetensors': not there"):
        push(model, dry_run=True)
    (model / "model" / "model.safetensors.index.json").unlink()
    # Weights on another disk stay: a model without them is none.
    weights = model / "model" / "model.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors would stay \(a link out of the folder\): put the file"):
        push(model, dry_run=True)
    out = write_output(tmp_path / "data", [triplet(number) for number in range(6)])
    with pytest.raises(InputError, match=r"neither a model .* nor the output of a complete stage \(no run.json\)"):
        push(out, dry_run=True)
    write_json(out / "run.json", {"stage": "ingest", "counts": {"triplets": 7}})
    with pytest.raises(InputError, match=r"run.json counts 7 triplets, its files hold 6"):
        push(out, dry_run=True)


def test_secrets_are_refused_and_paths_named(model: Path, tmp_path: Path) -> None:
    notes = model / "model" / "notes.txt"
    notes.write_text(f"trained in {model}/model")
    assert "notes.txt names folders of this machine" in push(model, dry_run=True)["problems"]
    notes.write_text("token hf_" + "a" * 34)
    with pytest.raises(InputError, match=r"^notes.txt holds a token of the Hugging Face hub"):
        push(model, dry_run=True)
    notes.unlink()
    # Whatever its name: a log, or one without an ending.
    for name, text, secret in (
        ("train.log", "ask http://me:pass@host/v1", "a password in an address"),
        ("credentials", "key wm-" + "a" * 43, "a key of wm serve"),
    ):
        (model / "model" / name).write_text(text)
        with pytest.raises(InputError, match=rf"^{name} holds {secret}"):
            push(model, dry_run=True)
        (model / "model" / name).unlink()
    rows = [triplet(number, video_uri=f"/home/me/{number}.mp4") for number in range(2)]
    out = write_output(tmp_path / "data", rows)
    write_json(out / "run.json", {"stage": "ingest", "counts": {}})
    problem = "triplets/shard-000000.parquet: column video_uri holds paths of this machine"
    assert problem in push(out, dry_run=True)["problems"]


def test_names_of_buckets_and_hosts_are_left_out_or_shown(tmp_path: Path, hub: Hub) -> None:
    out = write_output(tmp_path / "data", [triplet(number) for number in range(2)])
    write_dataset_card(out, title="two")
    recipe = {
        "videos": "s3://mine/clips/*.mp4", "out": "gs://other/runs/a", "idm": ["s3://mine/idm/"], "note": "of s3://third/x",
        "endpoint": {"base_url": "http://10.0.0.5:8000/v1"}, "data": "s3://mine", "root": "S3://mine/",
        "store": "s3://mine/a?b/c.mp4?endpoint_override=http://10.0.0.9:9000&scheme=http",
    }  # fmt: skip
    write_json(out / "run.json", {"stage": "annotate", "recipe": recipe, "counts": {}})
    assert push(out)["problems"] == [
        "run.json names the addresses http://10.0.0.5:8000/v1",
        "run.json names the buckets s3://third",
    ]
    sent = json.loads(hub.files["datasets/me/fdm"]["run.json"])["recipe"]
    stripped = {"videos": "*.mp4", "out": "a", "idm": ["idm"], "data": "s3://", "root": "s3://", "store": "c.mp4"}
    assert sent == recipe | stripped


def test_a_licence_that_forbids_sharing_is_refused(model: Path, tmp_path: Path) -> None:
    card = CardFacts("fdm", BaseFacts("b"), licenses=["Acme: no redistribution"])
    write_card(model / "model", card)
    with pytest.raises(InputError, match=r"licence 'Acme: no redistribution' forbids redistribution: not pushed"):
        push(model, dry_run=True)
    allowed = push(model, dry_run=True, allow_license=["acme: no redistribution"])
    assert not any("redistribution" in problem for problem in allowed["problems"])
    write_card(model / "model", CardFacts("fdm", licenses=["cc-by-nc-4.0"]))
    problems = push(model, dry_run=True)["problems"]
    assert "licence 'cc-by-nc-4.0' forbids commercial use: keep that in the card" in problems
    # Of data the rows count, whatever the card says.
    out = write_output(tmp_path / "data", [triplet(0, license="CC BY-ND 4.0")])
    write_json(out / "run.json", {"stage": "ingest", "counts": {}})
    assert pq.read_table(out / "triplets").column("license").to_pylist() == ["CC BY-ND 4.0"]
    with pytest.raises(InputError, match=r"licence 'CC BY-ND 4.0' forbids derivatives"):
        push(out, dry_run=True)


def test_what_a_card_lacks_is_named(model: Path) -> None:
    card = model / "model" / "README.md"
    card.write_text("---\nbase_model: /models/anole\n---\n# x\n[More Information Needed]\n")
    assert push(model, dry_run=True)["problems"] == [
        "README.md names no licence",
        "README.md is an empty template: wm card model=FOLDER writes one",
        "README.md names base_model '/models/anole', which is no repository of the hub: wm card model=FOLDER "
        "writes one",
    ]
    card.write_text("# x\n")
    assert "README.md has no YAML head, by which the hub finds it" in push(model, dry_run=True)["problems"]
    card.unlink()
    (problem,) = push(model, dry_run=True)["problems"]
    assert problem == "there is no card (README.md): wm card model=FOLDER writes one"


def test_a_public_repository_is_not_written_as_a_private_one(model: Path, hub: Hub) -> None:
    hub.private["models/me/fdm"] = False
    with pytest.raises(InputError, match=r"repo = 'me/fdm' is there and public: private=false says that this is meant"):
        push(model)
    assert hub.files == {} and hub.uploads == []
    push(model, private=False)
    assert hub.created == [] and sorted(hub.files["models/me/fdm"]) == MODEL_FILES


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"the hub does not know the token: hf auth login, or set HF_TOKEN"),
        (403, r"the token may not write there"),
        (503, r"the hub answers 503: run it again later, it resumes"),
        (418, r"the hub answers 418"),
    ],
)
def test_what_the_hub_refuses_is_one_line(model: Path, hub: Hub, status: int, message: str) -> None:
    hub.status = status
    with pytest.raises(InputError, match=f"^repo = 'me/fdm': {message}") as caught:
        push(model)
    assert "\n" not in str(caught.value) and hub.token not in str(caught.value)


def test_an_owner_that_is_not_there(model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = hub.answer
    missing = (404, {"error": "no such namespace"}, {})
    monkeypatch.setattr(
        hub, "answer", lambda method, path, *rest: missing if "create" in path else answer(method, path, *rest)
    )
    with pytest.raises(InputError, match=r"^repo = 'me/fdm': no such repository or owner"):
        push(model)


def test_without_token_or_network(model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^no token of the Hugging Face hub: hf auth login, or set HF_TOKEN"):
        push(model)
    monkeypatch.setenv("HF_TOKEN", "other")
    with pytest.raises(InputError, match=r"the hub does not know the token"):
        push(model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set"):
        push(model)
    assert hub.created == []


@pytest.mark.parametrize("repo", ["fdm", "a/b/c", "me/..", "me/a--b", "me/a.git", "-me/a", "me/a b", ""])
def test_names_of_repositories(model: Path, repo: str) -> None:
    with pytest.raises(InputError, match="expected owner/name"):
        push(model, repo=repo)
