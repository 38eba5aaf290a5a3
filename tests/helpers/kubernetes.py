"""The manifests of cluster/kubernetes with settings filled in, and what is asked of them again and again."""

import shutil
from pathlib import Path

from tests.helpers.kustomize import render

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kubernetes"
OVERLAYS = ["cpu", "gpu"]

SETTINGS = {
    "auth_token": "0123456789abcdef",
    "keys.toml": '[[keys]]\nname = "alice"\nsha256 = "' + "0" * 64 + '"\n',
    "bucket/store.env": "WM_STORE=s3://bucket/wm\n",
    "bucket/bucket.env": "AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=secret\n",
}


def copy_filled(folder):
    """Copy the manifests, and fill in what a user must."""
    shutil.copytree(FOLDER, folder)
    for name, text in SETTINGS.items():
        (folder / "settings" / name).write_text(text)
    return folder


def render_all(folder):
    """Render both overlays of a filled copy, each with both stores: objects by overlay and store."""
    found = {}
    for overlay in OVERLAYS:
        file = folder / "overlays" / overlay / "kustomization.yaml"
        text = file.read_text()
        for store in ("bucket", "claim"):
            file.write_text(text.replace("components/bucket", f"components/{store}"))
            found[overlay, store] = render(folder / "overlays" / overlay)
    return found


def cluster_spec(manifest):
    """Return the part of a RayCluster, RayJob or RayService that describes a cluster."""
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def groups(manifest):
    """List the groups of a cluster, the head's first."""
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
