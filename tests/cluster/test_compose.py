"""The file for one machine: what it mounts, what it lets in, and its commands against those that they call."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.scripts.scripts import start

from serve_apps.__main__ import StartRecipe
from wm.cli import load_recipe
from wm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster" / "compose.yaml"
DEFAULTS = {"WM_FDM": "nano:fdm", "WM_IDM": "nano:idm", "WM_DEVICE": "cpu"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load(FILE.read_text())


def mounted(service):
    """Return the local files that a service mounts, and where."""
    pairs = [volume.split(":")[:2] for volume in service["volumes"]]
    return {FILE.parent / source: target for source, target in pairs if source.startswith(".")}


def test_what_is_mounted_is_there_and_secrets_are_ignored(compose):
    for service in compose["services"].values():
        assert all(path.exists() for path in mounted(service))
        named = {volume.split(":")[0] for volume in service["volumes"]} - {
            f"./{p.relative_to(FILE.parent)}" for p in mounted(service)
        }
        assert named <= set(compose["volumes"])
        assert set(service.get("secrets", [])) <= set(compose["secrets"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    yours = [secret["file"] for secret in compose["secrets"].values()] + [compose["x-wm"]["env_file"][0]["path"]]
    assert len(yours) == 3
    for path in yours:
        assert f"/cluster/{path.removeprefix('./')}" in ignored and not (FILE.parent / path).exists()


def test_ports_are_published_on_loopback(compose):
    ports = {port for service in compose["services"].values() for port in service["ports"]}
    assert ports == {
        "${WM_LISTEN:-127.0.0.1}:8265:8265",
        "${WM_LISTEN:-127.0.0.1}:8000:8000",
        "127.0.0.1:9090:9090",
        "127.0.0.1:3000:3000",
    }


def test_the_server_asks_for_keys_and_its_recipe_is_known(compose, tmp_path):
    server = compose["services"]["server"]
    *_, script = server["command"]
    (tmp_path / "keys.toml").write_text('[[keys]]\nname = "alice"\nsha256 = "' + "0" * 64 + '"\n')
    for name, text in DEFAULTS.items():
        script = script.replace(f"$${name}", text)
    words = shlex.split(script)
    settings = words[words.index("serve_apps") + 1 :]
    assert {name: server["environment"][name] for name in DEFAULTS} == {
        name: f"${{{name}:-{model}}}" for name, model in DEFAULTS.items()
    }
    assert "keys=/run/secrets/keys.toml" in settings and "keys.toml" in server["secrets"]
    assert server["environment"]["WM_SERVE_KEYS"] == "/run/secrets/keys.toml"
    recipe = load_recipe(StartRecipe, settings)
    assert recipe.host == "0.0.0.0" and recipe.port == 8000
    with pytest.raises(InputError, match="lets other machines in"):
        load_recipe(StartRecipe, [word for word in settings if not word.startswith("keys=")])


def test_ray_starts_with_options_that_it_has_and_the_token(compose):
    head, server = (compose["services"][name] for name in ("head", "server"))
    known = {option for parameter in start.params for option in parameter.opts}
    commands = [shlex.split(head["command"]), shlex.split(server["command"][-1].partition("&&")[0])]
    for service, command in zip((head, server), commands, strict=True):
        assert command[:3] == ["ray", "start", "--head"]
        assert {word.partition("=")[0] for word in command[2:]} <= known
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/auth_token"
        assert "auth_token" in service["secrets"]
        assert service["cap_drop"] == ["ALL"] and service["init"] is True
    # Prometheus asks both where they say.
    prometheus = compose["services"]["prometheus"]
    folders = {target: path for path, target in mounted(prometheus).items()}
    assert prometheus["command"].startswith("--config.file=/etc/wm/prometheus.yaml ")
    config = yaml.safe_load((folders["/etc/wm"] / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["alert*.yaml"]
    (targets,) = [entry["targets"] for job in config["scrape_configs"] for entry in job["static_configs"]]
    assert targets == ["head:8080", "server:8080"]
    assert all("--metrics-export-port=8080" in command for command in commands)


def test_grafana_finds_the_dashboard_and_prometheus(compose):
    grafana = compose["services"]["grafana"]
    folders = {target: path for path, target in mounted(grafana).items()}
    (provider,) = yaml.safe_load(folders["/etc/grafana/provisioning/dashboards/wm.yaml"].read_text())["providers"]
    assert (folders[provider["options"]["path"]] / "wm.json").is_file()
    assert grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == "/etc/dashboards/wm.json"
    (source,) = yaml.safe_load(folders["/etc/grafana/provisioning/datasources/wm.yaml"].read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and source["isDefault"] is True
    # Nobody has a password that everybody knows.
    assert grafana["environment"]["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_images_are_named_by_version(compose):
    images = [service["image"] for service in compose["services"].values()]
    assert all(":" in image and not image.endswith(":latest") for image in images)
    assert compose["services"]["head"]["build"] == {
        "context": "..",
        "dockerfile": "cluster/Dockerfile",
        "args": {"TORCH_BACKEND": "${TORCH_BACKEND:-cpu}"},
    }


def test_the_file_for_gpus_changes_image_and_device_alone(compose):
    over = yaml.safe_load((FILE.parent / "compose.gpu.yaml").read_text())["services"]
    devices = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for service in over.values():
        assert service["deploy"]["resources"]["reservations"]["devices"] == [devices]
        assert service["image"] == "${WM_IMAGE:-wm:0.1.0-cu130}"
    assert set(over) == {"head", "server"} <= set(compose["services"])
    assert set(over["head"]) | set(over["server"]) == {"image", "build", "environment", "deploy"}
    assert set(over["server"]["environment"]) <= set(compose["services"]["server"]["environment"])


def test_docker_compose_reads_the_file(tmp_path):
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    ended = subprocess.run(
        [docker, "compose", "-f", FILE, "config", "--quiet"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
