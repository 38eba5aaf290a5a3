"""Rendered Kubernetes manifests against KubeRay 1.7.0's schemas, unknown fields refused, and the operator's own rules.

``kuberay_crds.json.xz`` holds version v1 of KubeRay's custom resource definitions (Apache-2.0), kind by kind. The rules
are those of the operator's ``ray-operator/controllers/ray/utils/validation.go``.
"""

import copy
import json
import lzma
import re
from functools import cache
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import Draft7Validator
from ray.serve.schema import ServeDeploySchema

from serve_apps.exposure import check_guarded
from serve_apps.recipe import ServeRecipe
from tests.helpers.kubernetes import OVERLAYS, SETTINGS, cluster_spec, copy_filled, groups, render_all
from wm.errors import InputError

DNS_LABEL = "[a-z]([-a-z0-9]*[a-z0-9])?"
VARIANTS = [(overlay, store) for overlay in OVERLAYS for store in ("bucket", "claim")]
ROOTS = {"bucket": "s3://bucket/wm", "claim": "/mnt/wm"}


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
def validator(kind):
    packed = (Path(__file__).parent / "kuberay_crds.json.xz").read_bytes()
    return Draft7Validator(to_strict(json.loads(lzma.decompress(packed))[kind]))


def problems(manifest):
    assert manifest["apiVersion"] == "ray.io/v1"
    errors = validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_all(copy_filled(tmp_path_factory.mktemp("manifests") / "kubernetes"))


@pytest.fixture(params=VARIANTS, ids="-".join)
def nodes(request, rendered):
    return rendered[request.param]


def of_ray(nodes):
    return [node for node in nodes.values() if node["apiVersion"] == "ray.io/v1"]


def test_kuberays_schemas_know_every_field(rendered):
    for nodes in rendered.values():
        assert {node["kind"] for node in of_ray(nodes)} == {"RayCluster", "RayJob", "RayService"}
        for node in of_ray(nodes):
            assert problems(node) == [], node["metadata"]
    # A misspelt field deep inside is found.
    broken = copy.deepcopy(rendered["cpu", "bucket"]["RayJob", "wm-annotate"])
    (box,) = cluster_spec(broken)["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    box["volumeMount"] = box.pop("volumeMounts")
    assert next(problem.partition(": ")[2] for problem in problems(broken)).startswith("Additional properties are not")


def test_jobs_differ_in_name_and_command_alone(nodes):
    own = {"entrypoint", "entrypointNumCpus", "entrypointNumGpus"}
    jobs = [node for (kind, _), node in nodes.items() if kind == "RayJob"]
    common = [{key: part for key, part in job["spec"].items() if key not in own} for job in jobs]
    assert len(jobs) > 10 and all(part == common[0] for part in common)
    for job in jobs:
        assert set(job["spec"]) - set(common[0]) <= own
        assert isinstance(job["spec"]["entrypoint"], str) and job["spec"]["entrypointNumCpus"] >= 1
        assert job["metadata"]["name"] == f"wm-{job['metadata']['labels']['app.kubernetes.io/component']}"


def test_the_operators_own_rules(nodes):
    for node in of_ray(nodes):
        # 1. Names: the operator adds at most 6 characters to a job's or service's for its cluster, which has 53.
        assert re.fullmatch(DNS_LABEL, node["metadata"]["name"]) and len(node["metadata"]["name"]) <= 47
        spec = cluster_spec(node)
        # 2. A token needs Ray 2.52; here it is the installed one.
        assert spec["rayVersion"] == ray.__version__ and tuple(map(int, ray.__version__.split(".")[:2])) >= (2, 52)
        assert spec["authOptions"] == {"mode": "token", "secretName": "wm-token"}
        # 3. Groups.
        names = [group["groupName"] for group in spec["workerGroupSpecs"]]
        assert len(set(names)) == len(names) and all(re.fullmatch(DNS_LABEL, name) for name in names)
        for group in spec["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for group in groups(node):
            assert "resources" not in group or not {"num-cpus", "num-gpus", "memory"} & set(group["rayStartParams"])
            assert "labels" not in group["rayStartParams"]
        # 4. Jobs: a time to live needs a cluster that is shut down; neither is negative.
        if node["kind"] == "RayJob":
            assert node["spec"]["backoffLimit"] >= 0 and node["spec"]["ttlSecondsAfterFinished"] >= 0
            assert node["spec"]["shutdownAfterJobFinishes"] is True and node["spec"]["preRunningDeadlineSeconds"] > 0
            assert node["spec"]["submissionMode"] == "K8sJobMode"
    # 5. Services that the operator names after them do not meet.
    heads = [node["metadata"]["name"] for node in of_ray(nodes)]
    assert len(set(heads)) == len(heads)


def test_every_pod_runs_as_the_images_user_with_no_right_to_more(nodes):
    for node in of_ray(nodes):
        pods = [group["template"]["spec"] for group in groups(node)]
        if node["kind"] == "RayJob":
            pods.append(node["spec"]["submitterPodTemplate"]["spec"])
        for pod in pods:
            user = pod["securityContext"]
            assert user["runAsNonRoot"] is True and user["runAsUser"] == user["runAsGroup"] == 1000
            assert user["seccompProfile"] == {"type": "RuntimeDefault"}
            assert all(isinstance(user[key], int) for key in ("runAsUser", "runAsGroup"))
            for box in pod["containers"]:
                assert box["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
        for group in groups(node):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["fsGroup"] == 1000
            (box,) = pod["containers"]
            assert {mount["name"] for mount in box["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
            assert not any("subPath" in mount for mount in box["volumeMounts"]), "a changed Secret would not reach it"
            assert box["resources"]["requests"] == box["resources"]["limits"]


def test_probes_ask_each_pod_what_it_is_for(nodes):
    for node in of_ray(nodes):
        for index, group in enumerate(groups(node)):
            (box,) = group["template"]["spec"]["containers"]
            for probe in ("startupProbe", "livenessProbe"):
                assert box[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}
                assert box[probe]["failureThreshold"] * box[probe]["periodSeconds"] >= 300, "a slow node is no dead one"
            ready = box["readinessProbe"]
            # The operator deploys to a head that is ready: it may not wait for a proxy.
            if node["kind"] == "RayService" and index > 0:
                command = ready["exec"]["command"][-1]
                assert "127.0.0.1:52365/api/healthz" in command and "127.0.0.1:8000/-/healthz" in command
                assert command.count("-T 5") == 2 and ready["timeoutSeconds"] > 2 * 5
            else:
                assert ready["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_gpus_are_asked_for_by_workers_and_tolerated(rendered):
    for (overlay, _), nodes in rendered.items():
        for node in of_ray(nodes):
            for index, group in enumerate(groups(node)):
                pod = group["template"]["spec"]
                wants_gpu = pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
                assert wants_gpu == ("1" if overlay == "gpu" and index > 0 else None)
                keys = {toleration["key"] for toleration in pod.get("tolerations", [])}
                assert keys == ({"nvidia.com/gpu"} if wants_gpu else set())
                tag = {"cpu": "0.1.0", "gpu": "0.1.0-cu130"}[overlay]
                assert {box["image"] for box in pod["containers"]} == {f"wm:{tag}"}


def test_what_pods_refer_to_is_rendered_too(rendered):
    for (_, store), nodes in rendered.items():
        names = {
            "ConfigMap": {"wm-store"},
            "Secret": {"wm-token", "wm-keys"} | ({"wm-bucket"} if store == "bucket" else set()),
            "PersistentVolumeClaim": {"wm-store"} if store == "claim" else set(),
        }
        for kind, expected in names.items():
            assert {name for other, name in nodes if other == kind} == expected
        assert nodes["ConfigMap", "wm-store"]["data"] == {"WM_STORE": ROOTS[store]}
        assert set(nodes["Secret", "wm-token"]["data"]) == {"auth_token"}, "the operator reads this key"
        references = {kind: set() for kind in names}
        for node in of_ray(nodes):
            references["Secret"].add(cluster_spec(node)["authOptions"]["secretName"])
            templates = [group["template"] for group in groups(node)]
            templates += [node["spec"]["submitterPodTemplate"]] if node["kind"] == "RayJob" else []
            for pod in (template["spec"] for template in templates):
                for volume in pod.get("volumes", []):
                    references["PersistentVolumeClaim"].add(volume.get("persistentVolumeClaim", {}).get("claimName"))
                    references["Secret"].add(volume.get("secret", {}).get("secretName"))
                for source in pod["containers"][0].get("envFrom", []):
                    references["ConfigMap"].add(source.get("configMapRef", {}).get("name"))
                    references["Secret"].add(source.get("secretRef", {}).get("name"))
        assert {kind: found - {None} for kind, found in references.items()} == names


def test_copies_from_the_bucket_fit_their_volume(rendered):
    for overlay in OVERLAYS:
        for node in of_ray(rendered[overlay, "bucket"]):
            for group in groups(node):
                (box,) = group["template"]["spec"]["containers"]
                variables = {variable["name"]: variable["value"] for variable in box["env"]}
                (volume,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "copies"]
                assert {"name": "copies", "mountPath": variables["WM_CACHE"]} in box["volumeMounts"]
                assert int(variables["WM_CACHE_GIB"]) < int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))


def test_the_disruption_budget_is_of_the_servers_workers(nodes):
    budget = nodes["PodDisruptionBudget", "wm-serve"]["spec"]
    selected = [
        (node["kind"], index)
        for node in of_ray(nodes)
        for index, group in enumerate(groups(node))
        if budget["selector"]["matchLabels"] == group["template"].get("metadata", {}).get("labels")
    ]
    assert selected == [("RayService", 1)]
    workers = groups(nodes["RayService", "wm-server"])[1]
    assert 1 <= budget["minAvailable"] < workers["minReplicas"], "or no node could be drained"


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_service_asks_for_the_keys_of_its_secret(rendered, variant):
    manifest = rendered[variant]["RayService", "wm-server"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "serve_apps.world_model:build"
    recipe = ServeRecipe.model_validate(application.args)
    check_guarded(recipe, config.http_options.host)
    with pytest.raises(InputError, match="lets other machines in"):
        check_guarded(recipe.model_copy(update={"keys": None}), config.http_options.host)
    for group in groups(manifest):
        (box,) = group["template"]["spec"]["containers"]
        assert {"name": "WM_SERVE_KEYS", "value": recipe.keys} in box["env"]
        folders = {mount["name"]: mount["mountPath"] for mount in box["volumeMounts"]}
        assert recipe.keys == f"{folders['keys']}/keys.toml" and "keys.toml" in SETTINGS
    root = ROOTS[variant[1]]
    assert (application.args["fdm"], application.args["idm"]) == (f"{root}/run/fdm/model", f"{root}/run/idm/model")
    # Replicas and proxies have room on the workers; a pod is not killed before its replicas gave up.
    graces = [options.get("graceful_shutdown_timeout_s", 30) for options in (recipe.fdm_server, recipe.idm_server)]
    assert max(graces) < groups(manifest)[1]["template"]["spec"]["terminationGracePeriodSeconds"]
