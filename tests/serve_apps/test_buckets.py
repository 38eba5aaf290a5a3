"""Serving models of buckets: what the starter looks at, what replicas download, adapters that come and go."""

from pathlib import Path
from typing import Any

import pytest

from serve_apps.adapters import find_adapters
from serve_apps.catalog import _changed_s
from serve_apps.checks import check_models
from serve_apps.examples import load_examples
from serve_apps.model_server import ModelServer
from serve_apps.recipe import ServeRecipe
from serve_apps.world_model import bind
from tests.helpers.bucket_models import bucket, empty, files_below, keys, upload
from tests.helpers.models_folders import logits
from tests.helpers.models_roles import add_adapter
from wm.errors import InputError
from wm.files.mirror import mirrored_path
from wm.images import encode_png
from wm.models import load_model, save_model


class BothServer(ModelServer):
    """A replica with both models."""

    TASKS = ("fdm", "idm")


@pytest.fixture(scope="module")
def models(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("fdm", "idm", "extra")):
        save_model(add_adapter(load_model(tiny_base), seed), root / name, task="idm" if name == "idm" else "fdm")
    return root


@pytest.fixture(scope="module")
def server() -> Any:
    with bucket("models") as client:
        yield client


@pytest.fixture
def client(server: Any, tiny_base: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store with a base and its adapters, seen from the node that starts the server."""
    empty(server, "models")
    upload(server, tiny_base, "models", "base")
    upload(server, models, "models", "")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "a"))
    monkeypatch.setattr("wm.models.remote._looked_at", {})
    monkeypatch.setattr("wm.models.remote._changed_ns", {})
    return server


def recipe(**values: Any) -> ServeRecipe:
    names = {"fdm": "s3://models/fdm", "idm": "s3://models/idm", "base": "s3://models/base"}
    return ServeRecipe.model_validate(names | {"base_sharing": "shared"} | values)


def test_the_starter_brings_no_weights_and_replicas_do(
    models: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = recipe()
    application = bind(served, check_models(served))
    assert not [name for name in files_below(tmp_path / "a") if name.endswith(".safetensors")]
    # What replicas get means the same on every node.
    args = application._bound_deployment.init_args[0]
    assert (args.fdm, args.idm, args.base) == ("s3://models/fdm", "s3://models/idm", "s3://models/base")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    replica = BothServer(args)
    for task in ("fdm", "idm"):
        expected = load_model(models / task, base=mirrored_path("s3://models/base"))
        assert logits(replica._own[task].vlm).equal(logits(expected))
    assert mirrored_path("s3://models/base/model.safetensors").is_file()
    # The time of a model is the bucket's, on a node without it too.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "c"))
    times = [client.head_object(Bucket="models", Key=key)["LastModified"] for key in keys(client, "models", "fdm/")]
    assert _changed_s("s3://models/fdm") == int(max(times).timestamp())
    assert _changed_s("s3://models/none") == 0


def test_a_missing_model_is_one_line_with_its_uri(client: Any) -> None:
    for key in ("fdm", "base", "adapters"):
        with pytest.raises(InputError, match=rf"^{key} = s3://models/none: no such object or folder$"):
            check_models(recipe(**{key: "s3://models/none"}))
    # Gone since the server was started: of a replica too.
    for key in keys(client, "models", "base/"):
        client.delete_object(Bucket="models", Key=key)
    with pytest.raises(InputError, match=r"s3://models/base: no such object or folder") as error:
        BothServer(recipe())
    assert "wm-buckets" not in str(error.value) and "\n" not in str(error.value)


def test_adapters_come_and_go(models: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wm.models.remote._FRESH_S", 0.0)
    base_id = load_model("s3://models/base").base_id
    upload(client, models / "extra", "models", "adapters/one")
    assert list(find_adapters("s3://models/adapters", base_id)) == ["base:one"]
    upload(client, models / "extra", "models", "adapters/two/model")
    found = find_adapters("s3://models/adapters", base_id)
    assert list(found) == ["base:one", "base:two"]
    assert found["base:two"][0] == mirrored_path("s3://models/adapters/two/model")
    for key in keys(client, "models", "adapters/one/"):
        client.delete_object(Bucket="models", Key=key)
    assert list(find_adapters("s3://models/adapters", base_id)) == ["base:two"]


def test_examples_of_a_bucket_are_read_and_keys_are_not(client: Any) -> None:
    png = encode_png(load_model_image())
    client.put_object(Bucket="models", Key="examples/cup.png", Body=png)
    client.put_object(Bucket="models", Key="examples/actions.json", Body=b'{"cup.png": ["move the red cup"]}')
    (example,) = load_examples("s3://models/examples", recipe().limits())
    assert (example.name, example.actions) == ("cup.png", ("move the red cup",))
    with pytest.raises(InputError, match=r"^keys = 's3://models/keys.toml': expected a local file"):
        check_models(recipe(keys="s3://models/keys.toml"))


def load_model_image() -> Any:
    import numpy as np

    return np.full((16, 16, 3), 90, np.uint8)
