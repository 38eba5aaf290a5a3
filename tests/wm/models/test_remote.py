"""Models in buckets: found, looked at and loaded on nodes that have nothing of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.bucket_models import bucket, empty, files_below, keys, upload
from tests.helpers.models_folders import logits, with_adapter
from tests.helpers.models_vlms import WRITERS
from wm.dynamics.editor_forward import load_editor_forward
from wm.dynamics.pair_folders import PairFolders
from wm.errors import InputError
from wm.files.mirror import mirrored_path, publish
from wm.models import copy_model, is_adapter, load_codec, load_model, read_manifest, save_model
from wm.models.manifest import list_model_folders, model_folder
from wm.models.remote import changed_s


@pytest.fixture(scope="module")
def server() -> Any:
    with bucket("models", "other") as client:
        yield client


@pytest.fixture
def client(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store, without objects, seen from node a."""
    for name in ("models", "other"):
        empty(server, name)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "a"))
    monkeypatch.setattr("wm.models.remote._looked_at", {})
    monkeypatch.setattr("wm.models.remote._changed_ns", {})
    return server


def save_adapter(base: str, uri: str, seed: int = 0) -> torch.Tensor:
    """Write an adapter of ``base`` into a bucket, as the first worker of a training does; returns what it computes."""
    vlm = with_adapter(load_model(base), seed)
    folder = mirrored_path(uri)
    save_model(vlm, folder, task="fdm")
    publish(folder)
    return logits(vlm)


def test_adapter_and_base_load_on_a_node_that_has_neither(
    tiny_base: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = upload(client, tiny_base, "models", "base")
    expected = save_adapter(base, "s3://models/runs/fdm/model")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    # Within one bucket the path is relative, so that the bucket may be copied.
    manifest = read_manifest("s3://models/runs/fdm/model")
    assert manifest is not None and manifest.base_path == "../../../base"
    vlm = load_model("s3://models/runs/fdm")
    assert torch.equal(logits(vlm), expected)
    assert load_codec("s3://models/runs/fdm").codec_id == manifest.codec_id


@pytest.mark.parametrize("out", ["s3://other/fdm", "local"])
def test_a_base_in_another_place_is_named_by_its_uri(
    tiny_base: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    base = upload(client, tiny_base, "models", "base")
    path = mirrored_path(out) if "://" in out else tmp_path / out
    vlm = with_adapter(load_model(base))
    assert save_model(vlm, path, task="fdm").base_path == "s3://models/base"
    publish(path)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    assert torch.equal(logits(load_model(out if "://" in out else path)), logits(vlm))


def test_looking_at_a_model_brings_no_weights(tiny_base: Path, client: Any, tmp_path: Path) -> None:
    upload(client, tiny_base, "models", "run/model")
    assert not is_adapter("s3://models/run") and read_manifest("s3://models/run") is not None
    assert model_folder("s3://models/run") == mirrored_path("s3://models/run/model")
    assert files_below(mirrored_path("s3://models")) == ["run/model/config.json", "run/model/wm_model.json"]


def test_models_that_are_not_there_are_named_by_their_uri(
    tiny_base: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wm.models.remote._FRESH_S", 0.0)
    for load in (load_model, load_codec, read_manifest):
        with pytest.raises(InputError, match=r"^s3://models/none: no such object or folder$"):
            load("s3://models/none")
    with pytest.raises(InputError, match=r"^s3://gone/model: no such bucket \(gone\)"):
        load_model("s3://gone/model")
    # An adapter whose base has gone.
    base = upload(client, tiny_base, "models", "base")
    save_adapter(base, "s3://models/runs/fdm/model")
    for key in keys(client, "models", "base/"):
        client.delete_object(Bucket="models", Key=key)
    base_id = str(getattr(read_manifest("s3://models/runs/fdm"), "base_id", ""))
    message = rf"its base {base_id} is not at .*s3://models/base: no such object or folder\); give base="
    with pytest.raises(InputError, match=message):
        load_codec("s3://models/runs/fdm")


def test_a_path_that_leads_out_of_the_bucket_is_refused(tiny_base: Path, client: Any) -> None:
    save_adapter(upload(client, tiny_base, "models", "base"), "s3://models/fdm")
    manifest = json.loads(client.get_object(Bucket="models", Key="fdm/wm_model.json")["Body"].read())
    client.put_object(
        Bucket="models", Key="fdm/wm_model.json", Body=json.dumps(manifest | {"base_path": "../../etc"}).encode()
    )
    with pytest.raises(InputError, match=r"its base .* is not at '../../etc'"):
        load_model("s3://models/fdm")


def test_a_copy_of_an_adapter_names_the_same_base(
    tiny_base: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = save_adapter(upload(client, tiny_base, "models", "base"), "s3://models/runs/fdm/model")
    # Within the bucket, and out of it.
    for target, base_path in (
        (mirrored_path("s3://models/gate/model"), "../../base"),
        (tmp_path / "gate" / "model", "s3://models/base"),
    ):
        copy_model("s3://models/runs/fdm", target)
        assert json.loads((target / "wm_model.json").read_text())["base_path"] == base_path
        publish(target)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    for path in ("s3://models/gate", tmp_path / "gate"):
        assert torch.equal(logits(load_model(path)), expected)


def test_a_folder_of_models_is_listed_without_weights(tiny_base: Path, client: Any, tmp_path: Path) -> None:
    base = upload(client, tiny_base, "models", "base")
    vlm = with_adapter(load_model(base))
    save_model(vlm, tmp_path / "adapter", task="idm")
    for prefix in ("adapters/b", "adapters/a/model"):
        upload(client, tmp_path / "adapter", "models", prefix)
    client.put_object(Bucket="models", Key="adapters/notes.txt", Body=b"-")
    folder = mirrored_path("s3://models/adapters")
    entries = list_model_folders(folder)
    assert [entry.name for entry in entries] == ["a", "b"]
    assert [model_folder(entry) for entry in entries] == [folder / "a" / "model", folder / "b"]
    assert files_below(folder) == [
        f"{name}/{head}" for name in ("a/model", "b") for head in ("adapter_config.json", "wm_model.json")
    ]
    # The time is the bucket's.
    written = client.head_object(Bucket="models", Key="adapters/b/wm_model.json")["LastModified"].timestamp()
    assert abs(changed_s(folder / "b") - written) <= 1
    # One that was written again is read again.
    manifest = json.loads((tmp_path / "adapter" / "wm_model.json").read_text()) | {"recipe_digest": "second-time"}
    client.put_object(Bucket="models", Key="adapters/b/wm_model.json", Body=json.dumps(manifest).encode())
    (folder / "b" / "wm_model.json").unlink()
    assert [entry.name for entry in list_model_folders(folder)] == ["a", "b"]
    again = read_manifest(folder / "b")
    assert again is not None and again.recipe_digest == "second-time"


def test_editors_and_readers_of_pixels_are_checked_by_heads(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS["qwen2_5_vl"](tmp_path / "qwen")
    (tmp_path / "editor/unet").mkdir(parents=True)
    (tmp_path / "editor/model_index.json").write_text('{"_class_name": "StableDiffusionInstructPix2PixPipeline"}')
    (tmp_path / "editor/unet/config.json").write_text("{}")
    uris = {role: upload(client, tmp_path / role, "models", role) for role in ("editor", "qwen")}
    PairFolders(fdm=uris["editor"], idm=uris["qwen"]).check()
    copies = mirrored_path("s3://models/")
    assert files_below(copies) == ["editor/model_index.json", "qwen/config.json"]
    # Who loads an editor has all of it.
    monkeypatch.setattr("wm.dynamics.editor_forward.load_pipeline", _refuse)
    with pytest.raises(InputError, match="read"):
        load_editor_forward(uris["editor"])
    assert "editor/unet/config.json" in files_below(copies)


def _refuse(*_: Any, **__: Any) -> None:
    raise InputError("read")
