"""Kubernetes manifests against the schemas of KubeRay 1.7.0, unknown fields refused, and the operator's own rules.

``kuberay_crds.json.xz`` holds version v1 of KubeRay's custom resource definitions (Apache-2.0), kind by kind.
"""

import copy
import json
import lzma
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator
from ray.serve.schema import ServeDeploySchema

from serve_apps.exposure import check_guarded
from serve_apps.recipe import ServeRecipe
from wm.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
RAY_MANIFESTS = ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml"]
DNS_LABEL = "[a-z]([-a-z0-9]*[a-z0-9])?"


def load(name):
    return yaml.safe_load((FOLDER / name).read_text())


def to_strict(schema):
    """Translate what a definition of Kubernetes says beyond JSON Schema, and refuse unknown fields."""
    if isinstance(schema, list):
        return [to_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: to_strict(part) for key, part in schema.items()}
    if isinstance(strict.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        strict["type"] = ["integer", "string"]
    elif schema.get("nullable") is True:
        strict["type"] = [schema["type"], "null"]
    return strict


@cache
def definitions():
    return json.loads(lzma.decompress((Path(__file__).parent / "kuberay_crds.json.xz").read_bytes()))


def problems(manifest):
    assert manifest["apiVersion"] == "ray.io/v1"
    errors = Draft7Validator(to_strict(definitions()[manifest["kind"]])).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def cluster_spec(manifest):
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_kuberays_schemas_and_rules(name):
    manifest = load(name)
    assert problems(manifest) == []
    # 1. A misspelt field deep inside is found.
    broken = copy.deepcopy(manifest)
    (box,) = cluster_spec(broken)["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    box["volumeMount"] = box.pop("volumeMounts")
    assert next(problem.partition(": ")[2] for problem in problems(broken)).startswith("Additional properties are not")
    # 2. What the operator refuses beyond its schemas.
    assert re.fullmatch(DNS_LABEL, manifest["metadata"]["name"])
    assert manifest["spec"].get("backoffLimit", 0) >= 0
    spec = cluster_spec(manifest)
    assert tuple(map(int, spec["rayVersion"].split(".")[:2])) >= (2, 52), "tokens need it"
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(DNS_LABEL, group) for group in names)
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert "resources" not in group or "num-cpus" not in group["rayStartParams"]


@pytest.mark.parametrize("name", RAY_MANIFESTS)
def test_every_pod_runs_as_the_images_user_on_its_nodes(name):
    spec = cluster_spec(load(name))
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        user = pod["securityContext"]
        assert user["runAsNonRoot"] and user["runAsUser"] == user["fsGroup"] == 1000
        wants_gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        keys = {toleration["key"] for toleration in pod.get("tolerations", [])}
        assert keys == ({"nvidia.com/gpu"} if wants_gpu else set())
        for box in pod["containers"]:
            assert {mount["name"] for mount in box["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
            assert not any("subPath" in mount for mount in box["volumeMounts"]), "a changed Secret would not reach it"


def test_claims_secrets_and_labels_exist():
    text = (FOLDER / "support.yaml").read_text()
    support = {item["kind"]: item for item in yaml.safe_load_all(text)}
    claims, secrets, labels = set(), set(), []
    for name in RAY_MANIFESTS:
        spec = cluster_spec(load(name))
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            labels.append(group["template"].get("metadata", {}).get("labels"))
            for volume in group["template"]["spec"]["volumes"]:
                claims.add(volume.get("persistentVolumeClaim", {}).get("claimName"))
                secrets.add(volume.get("secret", {}).get("secretName"))
    assert claims - {None} == {support["PersistentVolumeClaim"]["metadata"]["name"]}
    assert support["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]
    (secret,) = secrets - {None}
    assert f"kubectl create secret generic {secret} --from-file=keys.toml" in text
    budget = support["PodDisruptionBudget"]["spec"]
    assert labels.count(budget["selector"]["matchLabels"]) == 1
    workers = load("rayservice.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert 1 <= budget["minAvailable"] < workers["minReplicas"], "or no node could be drained"


def test_the_service_asks_for_the_keys_of_its_secret():
    manifest = load("rayservice.yaml")
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    recipe = ServeRecipe.model_validate(config.applications[0].args)
    check_guarded(recipe, config.http_options.host)
    with pytest.raises(InputError, match="lets other machines in"):
        check_guarded(recipe.model_copy(update={"keys": None}), config.http_options.host)
    for group in [cluster_spec(manifest)["headGroupSpec"], *cluster_spec(manifest)["workerGroupSpecs"]]:
        (box,) = group["template"]["spec"]["containers"]
        assert {"name": "WM_SERVE_KEYS", "value": recipe.keys} in box["env"]
        folders = {mount["name"]: mount["mountPath"] for mount in box["volumeMounts"]}
        assert recipe.keys == f"{folders['keys']}/keys.toml"
        assert recipe.fdm.startswith(folders["store"])
