"""What manifests are rendered from: settings that must be there, and the renderer of the tests against kubectl's."""

import shutil
import subprocess

import pytest
import yaml

from tests.helpers.kubernetes import FOLDER, OVERLAYS, copy_filled
from tests.helpers.kubernetes_server import kubernetes_server
from tests.helpers.kustomize import render

KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


@pytest.fixture
def filled(tmp_path):
    return copy_filled(tmp_path / "kubernetes")


def run_kubectl(folder):
    return subprocess.run(
        [str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )


@needs_kubectl
@pytest.mark.parametrize("store", ["bucket", "claim"])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_tests_renderer_gives_what_kubectl_gives(filled, overlay, store):
    if store == "claim":
        use_claim(filled, overlay)
    ended = run_kubectl(filled / "overlays" / overlay)
    assert ended.returncode == 0, ended.stderr
    nodes = {(node["kind"], node["metadata"]["name"]): node for node in yaml.safe_load_all(ended.stdout)}
    for (kind, _), node in nodes.items():
        if kind == "Secret":  # kubectl breaks the lines of long ones
            node["data"] = {name: "".join(text.split()) for name, text in node["data"].items()}
    assert nodes == render(filled / "overlays" / overlay)


def use_claim(folder, overlay):
    file = folder / "overlays" / overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace("components/bucket", "components/claim"))


@pytest.mark.parametrize("missing", ["auth_token", "keys.toml", "bucket/bucket.env", "bucket/store.env"])
def test_nothing_is_rendered_without_a_setting(filled, missing):
    (filled / "settings" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        render(filled / "overlays" / "cpu")
    if KUBECTL:
        ended = run_kubectl(filled / "overlays" / "cpu")
        assert ended.returncode == 1 and missing.rpartition("/")[2] in ended.stderr and "no such file" in ended.stderr


def test_the_folder_ships_without_settings_and_says_which():
    """What a user fills in is in no commit, and the examples name every variable."""
    ignored = (FOLDER.parents[1] / ".gitignore").read_text().splitlines()
    for name in ("auth_token", "keys.toml", "bucket/bucket.env", "bucket/store.env"):
        assert f"/cluster/kubernetes/settings/{name}" in ignored
    examples = FOLDER / "settings" / "bucket"
    assert (examples / "store.env.example").read_text().startswith("WM_STORE=")
    assert "AWS_SECRET_ACCESS_KEY=\n" in (examples / "bucket.env.example").read_text()


@needs_kubectl
@pytest.mark.parametrize("component", ["annotate", "serve", "cluster"])
def test_a_label_applies_one_part_and_what_all_need(filled, tmp_path, component):
    """As the docs say it, against a stand-in that keeps what kubectl sends."""
    environment = {"KUBECONFIG": "/dev/null", "HOME": str(tmp_path)}
    selector = f"app.kubernetes.io/component in (store, {component})"
    with kubernetes_server() as (address, objects):
        command = [str(KUBECTL), "--server", address, "apply", "--validate=false"]
        ended = subprocess.run(
            [*command, "-k", str(filled / "overlays" / "cpu"), "-l", selector],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        sent = {(body["kind"], body["metadata"]["name"]) for body in objects.values()}
    needed = {("ConfigMap", "wm-store"), *(("Secret", f"wm-{name}") for name in ("bucket", "keys", "token"))}
    parts = {
        "annotate": {("RayJob", "wm-annotate")},
        "serve": {("RayService", "wm-server"), ("PodDisruptionBudget", "wm-serve")},
        "cluster": {("RayCluster", "wm")},
    }
    assert sent == needed | parts[component]
