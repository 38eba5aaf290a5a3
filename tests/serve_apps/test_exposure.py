"""Keys wherever other machines reach the server: in a YAML deployment, and where a Serve ran before."""

import hashlib
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import ray
import yaml
from ray.serve._private.build_app import build_app as build_for_ray
from ray.serve.schema import ServeDeploySchema

from serve_apps.exposure import find_proxy_host
from serve_apps.ingress import Ingress
from serve_apps.keys import KeyRing
from serve_apps.recipe import ServeRecipe
from serve_apps.world_model import build
from wm.errors import InputError

OPEN_TO_ALL = "lets other machines in, and nobody would be asked for a key: give keys: FILE in the application's args"


def entry(name, token):
    return f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'


@pytest.fixture
def serve_listens(monkeypatch):
    """Let a Serve run whose proxies listen on an address, as its controller would say."""

    def listen(host):
        def get_http_config():
            config = Future()
            config.set_result(SimpleNamespace(host=host))
            return SimpleNamespace(future=lambda: config)

        controller = SimpleNamespace(get_http_config=SimpleNamespace(remote=get_http_config))
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_actor", lambda name, namespace: controller)

    return listen


@pytest.fixture
def models(tiny_base):
    return {"fdm": str(tiny_base), "idm": str(tiny_base)}


def test_a_yaml_without_keys_opens_no_server(serve_listens, models, tmp_path):
    text = f"applications: [{{name: a, import_path: 'serve_apps.world_model:build', args: {models}}}]"
    config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    assert config.http_options.host == "0.0.0.0"  # Ray's default for a file that does not say
    args = config.applications[0].args
    keys = tmp_path / "keys.toml"
    keys.write_text(entry("alice", "wm-alice"))
    for host in (config.http_options.host, "::", "192.168.1.5", "server.example"):
        serve_listens(host)
        with pytest.raises(InputError, match=f"^http_options.host = '{host}' {OPEN_TO_ALL}.*, or open: true") as caught:
            build(ServeRecipe.model_validate(args))
        assert "\n" not in str(caught.value)
        assert build(ServeRecipe.model_validate({**args, "keys": str(keys)}))
        assert build(ServeRecipe.model_validate({**args, "open": True}))
    for host in ("127.0.0.1", "::1", "localhost", None):
        serve_listens(host)
        assert build(ServeRecipe.model_validate(args))


def test_the_process_that_answers_checks_again(serve_listens, models, monkeypatch):
    """``build`` may run where no Serve is yet: ``serve run module:build`` joins a cluster afterwards."""
    application = build(ServeRecipe(**models))
    deployments = {deployment.name: deployment for deployment in build_for_ray(application, name="wm").deployments}
    assert deployments["Ingress"]._deployment_config.max_constructor_retry_count == 2
    serve_listens("0.0.0.0")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.168.1.5")
    undecorated = Ingress.__bases__[0]
    with pytest.raises(InputError, match=OPEN_TO_ALL):
        undecorated(ServeRecipe(**models), None, None)
    undecorated(ServeRecipe(**models, open=True), None, None)


def test_without_a_serve_no_host_is_known(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert find_proxy_host() is None

    def get_actor(name, namespace):
        raise ValueError(name)

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_actor", get_actor)
    assert find_proxy_host() is None


def test_keys_of_a_kubernetes_secret_are_followed(models, tmp_path):
    """Its file is a link through ``..data``, which leads to a new folder when the secret changes."""

    def mount(version, text):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.toml").write_text(text)
        (tmp_path / "new").symlink_to(version)
        (tmp_path / "new").rename(tmp_path / "..data")

    mount("..v1", entry("alice", "wm-alice"))
    (tmp_path / "keys.toml").symlink_to("..data/keys.toml")
    application = build(ServeRecipe(**models, keys=str(tmp_path / "keys.toml")))
    recipe = next(
        part for part in build_for_ray(application, name="wm").deployments if part.name == "Ingress"
    ).init_args[0]
    ring = KeyRing(recipe.keys)
    assert ring.find(b"wm-alice")
    mount("..v2", entry("bob", "wm-bob"))
    (tmp_path / "..v1" / "keys.toml").unlink()
    assert ring.find(b"wm-alice") is None and ring.find(b"wm-bob")
