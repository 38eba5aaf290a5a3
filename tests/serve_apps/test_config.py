"""What a server is started with: the shipped files, text arguments, what is refused at once."""

import json
import os
import socket
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from serve_apps.__main__ import main as serve_main
from serve_apps.recipe import ServeRecipe
from serve_apps.start_failures import find_reason
from wm.errors import InputError
from wm.nano.preset import write_random_base

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_config_is_valid_and_keeps_to_loopback():
    for file in sorted((ROOT / "serve_apps").glob("*.yaml")):
        config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
        assert config.http_options.host == "127.0.0.1"
        for application in config.applications:
            module, _, name = application.import_path.partition(":")
            assert callable(getattr(import_module(module), name))
            recipe = ServeRecipe.model_validate(application.args)
            assert config.http_options.request_timeout_s > recipe.timeout_s, "the app gives up before Ray's proxy"


def test_the_shipped_config_for_one_gpu_is_valid():
    """It is a comment: other arguments in the place of those given."""
    text = (ROOT / "serve_apps" / "world_model_7b.yaml").read_text()
    alternative = text.partition("in the place of the `args` above:\n")[2]
    recipe = ServeRecipe.model_validate(yaml.safe_load("\n".join(line[1:] for line in alternative.splitlines())))
    assert (recipe.base_sharing, recipe.device) == ("shared", "cuda")
    assert recipe.server_options("fdm")["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 1}
    given = yaml.safe_load(text)["applications"][0]["args"]
    assert {recipe.fdm, recipe.idm} == {given["fdm"], given["idm"]}


def test_what_serve_build_reads(tiny_base, tmp_path, monkeypatch):
    """``serve build serve_apps.world_model:app``: the application of the shipped file."""
    monkeypatch.chdir(tmp_path)
    module = import_module("serve_apps.world_model")
    with pytest.raises(InputError, match="fdm = 'runs/demo/fdm/model': no such model folder"):
        _ = module.app
    for name in ("fdm", "idm"):
        (tmp_path / "runs" / "demo" / name).mkdir(parents=True)
        (tmp_path / "runs" / "demo" / name / "model").symlink_to(tiny_base)
    found = build_app(module.app, name="world_model")
    assert [deployment.name for deployment in found.deployments][-1] == "Ingress"
    assert {deployment.name for deployment in found.deployments} == {"Ingress", "FDMServer", "IDMServer"}
    assert not hasattr(module, "application")


def test_text_arguments_of_serve_run():
    recipe = ServeRecipe.model_validate({"fdm": "a", "idm": "b", "num_candidates": "16", "temperature": "0.5"})
    assert (recipe.num_candidates, recipe.temperature) == (16, 0.5)
    assert recipe.limits().default_best_of == 16


def test_a_start_that_cannot_work_is_refused_at_once(tiny_base, tmp_path, capsys, monkeypatch):
    write_random_base(tmp_path / "other", seed=1)
    (tmp_path / "empty").mkdir()
    good = f"fdm={tiny_base}"
    cases = [
        ([good], "they cannot read each other's images"),
        ([good, f"idm={tiny_base}", f"examples={tmp_path / 'empty'}"], "no image"),
        ([good, "idm=nowhere"], "idm = 'nowhere': no such model folder"),
        ([good, f"idm={tmp_path / 'empty'}"], "no config.json"),
        ([good, f"idm={tiny_base}", "port=99999"], "port = 99999"),
        ([good, f"idm={tiny_base}", "bestof=3"], "unknown key 'bestof'"),
        ([good, f"idm={tiny_base}", "port=8001", "direct_port=8001"], "direct_port = 8001 is port too"),
        ([good, f"idm={tiny_base}", "direct_port=8001", "ingress={num_replicas = 2}"], "several ingresses"),
    ]
    for arguments, says in cases:
        assert serve_main([*arguments, "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert serve_main([good, f"idm={tiny_base}", f"port={number}", "--dry-run"]) == 2
        error = capsys.readouterr().err
        assert f"cannot listen on 127.0.0.1 port {number}: Address already in use by process {os.getpid()} (" in error
        assert serve_main([good, f"idm={tiny_base}", f"direct_port={number}", "--dry-run"]) == 2
        assert "; give another direct_port=" in capsys.readouterr().err
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert serve_main([good, f"idm={tiny_base}", f"port={number}", "direct_port=8001", "--dry-run"]) == 2
    assert "direct_port = 8001 with RAY_ADDRESS: it is for the session that wm serve" in capsys.readouterr().err
    monkeypatch.delenv("RAY_ADDRESS")
    assert serve_main([good, f"idm={tiny_base}", f"port={number}", "--dry-run"]) == 0
    capsys.readouterr()
    # Of two codecs, images go between them as pixels.
    assert serve_main([good, f"idm={tmp_path / 'other'}", f"port={number}", "--dry-run"]) == 0
    assert "as pixels" in capsys.readouterr().out


def test_build_refuses_missing_models():
    from serve_apps.world_model import build

    with pytest.raises(InputError, match="no such model folder"):
        build(ServeRecipe(fdm="nowhere", idm="nowhere"))
    assert json.dumps(ServeRecipe(fdm="a", idm="b").model_dump())


def test_why_replicas_did_not_start_is_one_line():
    trace = 'Traceback (most recent call last):\n  File "a.py", line 3, in load\n    raise ValueError()\n'
    died = f"Error:\n{trace}ray.exceptions.ActorDiedError: The actor died, see below\n{trace}"
    assert find_reason(f"{died}RuntimeError: no GPU is there\n\n") == "RuntimeError: no GPU is there"
    assert find_reason(f"{died}wm.errors.InputError: fdm is no model\n") == "fdm is no model"
    assert find_reason(f"{died}MemoryError\n") == "MemoryError"
    assert find_reason("waiting for a GPU") is None
